"""Plans: the presets of the reference experiment, the task that datasets have in common, a plan in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from django.db.models import prefetch_related_objects

from fedportal.experiments.models import Experiment, Straggler, Weighting
from fedportal.experiments.recipe import ALL_SETTINGS, BY_NAME, STRATEGY_SETTINGS, Setting, has_effect, value_of
from fedportal.sites.counts import count_for, total_of
from fedportal.sites.models import Dataset
from trainer.contract import (
    ContractError,
    Network,
    Optimizer,
    Schedule,
    Task,
    TrainingPlan,
    Validation,
    canonical_json,
    plan_from_json,
    regions_for,
)

EDITABLE = frozenset(
    {
        "title",
        "question",
        "strategy",
        "strategy_options",
        "weighting",
        "min_sites",
        "deadline_minutes",
        "stragglers",
        "grace_minutes",
        "max_attempts",
        "max_relative_norm",
        "best_by",
        "patience",
        "initial_model",
        "baselines",
        "repeats",
        "compare_every",
    }
)
"""Fields of a draft that people set; ``rounds_planned`` follows the plan."""

NO_TASK = Task(name="", channels=(), labels={}, regions=())

LAPTOP_TREATMENT = "keep"
"""The 2021 experiment reset Adam every round. In twelve short rounds, keeping it gains 0.03 Dice (docs/decisions/0005)."""


@dataclass(frozen=True)
class Preset:
    """A ready experiment to start from. ``options`` are fields of the experiment beside its plan."""

    name: str
    title: str
    text: str
    plan: TrainingPlan
    options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="laptop",
            title="Brain tumour, laptop size",
            text="The reference experiment on small volumes (40³ voxels): a small U-Net, 12 rounds, a few minutes on a laptop.",
            plan=TrainingPlan(
                task=NO_TASK,
                network=Network(name="unet", channels=(8, 16, 32, 64), strides=(1, 2, 2), residual_units=0),
                loss="dice",
                optimizer=Optimizer(name="adam", learning_rate=1e-3, treatment=LAPTOP_TREATMENT),
                rounds=12,
                local_epochs=3,
                batch_size=2,
                augmentation="light",
            ),
            options={"min_sites": 2, "deadline_minutes": 30.0, "stragglers": Straggler.WAIT},
        ),
        Preset(
            name="original",
            title="Brain tumour, original size",
            text="The reference experiment on the real Task01_BrainTumour: residual U-Net on patches, 500 rounds, needs a GPU at each site.",
            plan=TrainingPlan(
                task=NO_TASK,
                network=Network(
                    name="residual_unet", channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), residual_units=2
                ),
                loss="dice",
                optimizer=Optimizer(name="adam", learning_rate=1e-3, weight_decay=1e-5, treatment="reset"),
                validation=Validation(hd95_every=50, overlap=0.5),
                rounds=500,
                local_epochs=1,
                batch_size=2,
                patch=(128, 128, 64),
                spacing=(1.5, 1.5, 2.0),
                augmentation="light",
                precision="mixed",
            ),
            options={"min_sites": 2, "deadline_minutes": 1440.0, "stragglers": Straggler.WAIT},
        ),
        Preset(
            name="blank",
            title="Blank",
            text="Any other segmentation task: sensible defaults, you choose the sites and the rest.",
            plan=TrainingPlan(
                task=NO_TASK,
                network=Network(name="unet", channels=(16, 32, 64, 128), strides=(1, 2, 2)),
                schedule=Schedule(name="constant"),
                rounds=20,
                local_epochs=2,
                patch=(96, 96, 96),
                augmentation="standard",
            ),
            options={"min_sites": 2, "deadline_minutes": 360.0},
        ),
    )
}


# --- the task -------------------------------------------------------------------------------------


def task_of(dataset: Dataset) -> Task:
    """Return the task of a dataset: its channels and labels, with the regions usual for them."""
    labels = {int(number): str(name) for number, name in dataset.labels.items()}
    return Task(
        name=dataset.title or dataset.name,
        channels=tuple(dataset.channels),
        labels=dict(sorted(labels.items())),
        regions=regions_for(labels),
    )


def task_signature(task: Mapping[str, Any]) -> tuple:
    """Return what :attr:`Dataset.task_signature` is for a dataset, of the task in a plan's JSON."""
    labels = task.get("labels") or {}
    return tuple(task.get("channels") or ()), tuple(sorted((int(number), name) for number, name in labels.items()))


def task_json(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "channels": list(task.channels),
        "labels": {str(number): name for number, name in task.labels.items()},
        "regions": [{"name": region.name, "labels": list(region.labels)} for region in task.regions],
    }


def with_task_of(document: Mapping[str, Any], datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return the plan's JSON with the datasets' task. Regions somebody edited stay while the labels are the same."""
    document = dict(document)
    old = document.get("task") or task_json(NO_TASK)
    signatures = {dataset.task_signature for dataset in datasets}
    if datasets and task_signature(old) not in signatures:
        document["task"] = task_json(task_of(datasets[0]))
    elif "task" not in document:
        document["task"] = old
    return document


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan's JSON with changes laid over it: nested mappings are merged, everything else replaced."""
    result = deepcopy(dict(document))
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else deepcopy(value)
    return result


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted names as nested JSON: ``{"optimizer.name": "adam"}`` → ``{"optimizer": {"name": "adam"}}``."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    return result


def preset_plan(preset: Preset) -> dict[str, Any]:
    return json.loads(canonical_json(preset.plan.to_json()))


def problems_of(document: Mapping[str, Any]) -> dict[str, str]:
    """Return what keeps a plan from running: dotted field name → sentence; empty when it can run."""
    try:
        plan = plan_from_json(document)
    except ContractError as error:
        return error.problems or {"plan": str(error)}
    found = {}
    if any(region.name == "mean" for region in plan.task.regions):
        found["task.regions"] = "“mean” stands for the mean over regions: give the region another name"
    return found


# --- in plain words -------------------------------------------------------------------------------


def summary(experiment: Experiment) -> str:
    """Return what the experiment does, in one plain sentence; what is not chosen yet is said so."""
    show = _Shown(experiment)
    parts = list(experiment.participations.select_related("dataset", "site"))
    task = experiment.plan.get("task") or {}
    regions = listed([region["name"] for region in task.get("regions", [])])
    what = task.get("name") or "a task still to be chosen"
    of = f" ({regions} from {listed(task['channels'])})" if regions and task.get("channels") else ""
    cases = total_of(count_for(None, part.site_id, part.dataset.train_cases) for part in parts)
    where = f"at {_count(len(parts), 'site')} with {cases} training cases" if parts else "at no site yet"
    answers = "the site answers" if len(parts) == 1 else f"at least {experiment.min_sites} of {len(parts)} sites answer"
    if not parts:
        answers = f"at least {_count(experiment.min_sites, 'site')} answer"
    quorum = f"a round counts when {answers} within {_minutes(experiment.deadline_minutes)}"
    by_cases = experiment.weighting == Weighting.CASES and has_effect(experiment, BY_NAME["weighting"])
    weight = "weighted by training cases" if by_cases else "every site counting the same"
    return (
        f"Train a {show['network.name']} on {what}{of} {where} "
        f"for {_count(show.raw('rounds'), 'round')} of {_count(show.raw('local_epochs'), 'epoch')}, "
        f"with {show['optimizer.name']} at learning rate {show['optimizer.learning_rate']}; "
        f"combine the updates by {_strategy(experiment)}, {weight}; {quorum}."
    )


def _strategy(experiment: Experiment) -> str:
    """Return the strategy with its options: “FedAdam (server learning rate 0.01, …)”."""
    title = BY_NAME["strategy"].show(experiment.strategy)
    if title[1:] == title[1:].lower():  # not a name like FedAdam
        title = title.lower()
    own = (setting for setting in STRATEGY_SETTINGS if has_effect(experiment, setting))
    options = ", ".join(f"{s.label.partition(': ')[2]} {s.show(value_of(experiment, s))}" for s in own)
    return f"{title} ({options})" if options else title


def differences(a: Experiment, b: Experiment) -> list[tuple[str, str, str]]:
    """Return the settings in which two experiments differ: label, value in ``a``, value in ``b``."""
    rows = []
    for setting in ALL_SETTINGS:
        ours, theirs = (_in_effect(x, setting) for x in (a, b))
        if ours != theirs:
            rows.append((setting.label, ours, theirs))
    prefetch_related_objects([a, b], "participations__site")  # what is fetched already is left alone
    ours, theirs = (listed([part.site.name for part in x.participations.all()]) or "none" for x in (a, b))
    if ours != theirs:
        rows.insert(0, ("Sites", ours, theirs))
    for part in ("channels", "regions"):
        ours, theirs = (_regions(x) if part == "regions" else _channels(x) for x in (a, b))
        if ours != theirs:
            rows.append((f"Task: {part}", ours, theirs))
    return rows


def _in_effect(experiment: Experiment, setting: Setting) -> str:
    """Return a setting's value in words; a dash for the option of a strategy that was not chosen."""
    if setting.option is not None and not has_effect(experiment, setting):
        return "—"
    return setting.show(value_of(experiment, setting))


class _Shown:
    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def raw(self, name: str) -> Any:
        return value_of(self.experiment, BY_NAME[name])

    def __getitem__(self, name: str) -> str:
        return BY_NAME[name].show(self.raw(name))


def region_text(regions: Sequence[Mapping[str, Any]]) -> str:
    """Return regions as people write them, one a line: ``WT: 1, 2, 3``."""
    return "\n".join(f"{region['name']}: {', '.join(map(str, region['labels']))}" for region in regions)


def _regions(experiment: Experiment) -> str:
    return region_text((experiment.plan.get("task") or {}).get("regions", [])).replace("\n", "; ") or "none"


def _channels(experiment: Experiment) -> str:
    return listed((experiment.plan.get("task") or {}).get("channels", [])) or "none"


def listed(words: Sequence[str]) -> str:
    """Return “a, b and c”."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _minutes(minutes: float) -> str:
    if minutes >= 2880:
        return f"{minutes / 1440:g} days"
    if minutes >= 120:
        return f"{minutes / 60:.3g} hours"
    return f"{minutes:g} {'minute' if minutes == 1 else 'minutes'}" if minutes >= 1 else f"{minutes * 60:g} seconds"
