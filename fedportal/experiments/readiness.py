"""Whether an experiment can start: a checklist in plain words, each line with its remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Prefetch

from fedportal.aggregation.strategies import plan_fields, refusal
from fedportal.experiments import baselines
from fedportal.experiments.models import MEAN, Baseline, Experiment, GlobalModel, Participation
from fedportal.experiments.plan import task_signature
from fedportal.experiments.recipe import BY_NAME, value_of
from fedportal.experiments.size import plan_problems
from fedportal.sites.models import Dataset, Health, Site
from trainer.contract import Network, has_norm_entries

OTHER_LABELS = {"task.regions": "Regions", "proximal_mu": "Strategy", "local_layers": "Strategy"}
"""Of parts of the plan that are no settings of their own."""

ENSEMBLE_ALONE = "The ensemble averages the local-only models: tick “Local only”, too."


@dataclass(frozen=True)
class Check:
    """One line of the checklist. ``problems`` is empty when it is fulfilled; ``section``: where to mend it."""

    title: str
    section: str
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def checklist(experiment: Experiment) -> list[Check]:
    """Return every precondition of a start, fulfilled or not, in the order of the composer's sections."""
    sites = Prefetch("site", queryset=Site.objects.with_last_check())
    parts = list(experiment.participations.select_related("dataset__site").prefetch_related(sites))
    problems = plan_problems(experiment.plan, [part.dataset for part in parts])
    task = {name: text for name, text in problems.items() if name.startswith("task.")}
    recipe = {name: text for name, text in problems.items() if name not in task}
    return [
        Check("The experiment has a name", "question", tuple(_name(experiment))),
        Check("Sites take part and are ready", "sites", tuple(_sites(parts))),
        Check("Their data can be used", "sites", tuple(_data(parts))),
        Check("All sites have the same task", "sites", tuple(_same_task(experiment, parts))),
        Check("There is something to segment", "recipe", tuple(_sentences(task) if parts else ())),
        Check("The recipe can run", "recipe", (*_sentences(recipe), *_initial_model(experiment))),
        Check("Rounds and aggregation fit the sites", "rounds", tuple(_aggregation(experiment, parts))),
        Check(
            "What it is compared with can be trained",
            "comparison",
            (*baseline_problems(experiment, experiment.baselines), *_seeds(experiment)),
        ),
    ]


def site_problem(site: Site) -> str:
    """Return why a site cannot take part now, and what helps; empty when it can."""
    if site.is_retired:
        return f"{site} is retired. Take it out of the experiment."
    match site.health:
        case Health.HEALTHY:
            return ""
        case Health.FAILING:
            step = (site.last_check and site.last_check.first_problem) or {"message": "the last check failed"}
            return f"{site} has a problem: {step['message']} {step.get('remedy') or ''}".strip()
        case Health.STALE:
            return f"{site} was not heard from for a day. Ask its steward or an operator for a check."
    return f"{site} was not checked yet. Ask its steward or an operator for a check."


def dataset_problem(dataset: Dataset) -> str:
    """Return why a dataset cannot be trained on now, and what helps; empty when it can."""
    if not dataset.is_available:
        return f"{dataset} was not found by the last check. Choose another dataset or ask the site."
    if dataset.problems:
        more = f" (and {len(dataset.problems) - 1} more)" if len(dataset.problems) > 1 else ""
        return f"{dataset} has a problem: {dataset.problems[0]}{more}"
    if not dataset.train_cases or not dataset.validation_cases:
        return f"{dataset} needs at least one case to train on and one held out to validate with."
    return ""


def _name(experiment: Experiment) -> Iterator[str]:
    if not experiment.title.strip():
        yield "Give the experiment a name."


def _sites(parts: list[Participation]) -> Iterator[str]:
    if not parts:
        yield "Choose at least one site with a dataset."
    yield from filter(None, (site_problem(part.site) for part in parts))


def _data(parts: list[Participation]) -> Iterator[str]:
    yield from filter(None, (dataset_problem(part.dataset) for part in parts))


def _same_task(experiment: Experiment, parts: list[Participation]) -> Iterator[str]:
    planned = task_signature(experiment.plan.get("task") or {})
    for part in parts:
        if part.dataset.task_signature != planned:
            yield (
                f"{part.dataset} has other channels or labels than the experiment's task. "
                "Choose datasets with the same channels and labels, then save the sites again."
            )


def _initial_model(experiment: Experiment) -> Iterator[str]:
    if experiment.initial_model is not None:
        yield from filter(None, [initial_model_problem(experiment.initial_model, experiment.plan)])


def _aggregation(experiment: Experiment, parts: list[Participation]) -> Iterator[str]:
    if experiment.min_sites < 1 or (parts and experiment.min_sites > len(parts)):
        yield f"The quorum is {experiment.min_sites}, but {len(parts)} sites take part: set it between 1 and {len(parts)}."
    if experiment.deadline_minutes <= 0:
        yield "Set a deadline above 0 minutes."
    if experiment.rounds_planned != experiment.plan.get("rounds"):
        yield "The number of rounds is not the recipe's. Save the rounds again."
    if trouble := best_by_problem(experiment.best_by, experiment.plan):
        yield trouble
    trouble = strategy_problem(experiment, experiment.strategy, experiment.strategy_options, len(parts))
    if trouble and parts:
        yield trouble
    elif not trouble:
        needed = plan_fields(experiment.strategy, experiment.strategy_options)
        if any(experiment.plan.get(name, at_rest) != needed[name] for name, at_rest in plan_fields("", {}).items()):
            yield "The recipe does not tell the sites what the strategy needs of them. Save the rounds again."


def best_by_problem(region: str, plan: Mapping[str, Any]) -> str:
    """Return why the best model cannot be chosen by a region's Dice; empty when it can."""
    names = [known["name"] for known in (plan.get("task") or {}).get("regions", [])]
    if region == MEAN or region in names:
        return ""
    return f"The best model is chosen by the Dice of {region}, which is no region of the task: choose another."


def _seeds(experiment: Experiment) -> Iterator[str]:
    setting = BY_NAME["seed"]
    seed = value_of(experiment, setting)
    if isinstance(seed, int) and seed + experiment.repeats - 1 > (setting.high or 0):
        yield f"The seeds of the repeats go on from {seed}, beyond the largest there is: choose a smaller random seed."


def baseline_problems(experiment: Experiment, chosen: Collection[str], *, beside: Collection[str] = ()) -> list[str]:
    """Return why an experiment cannot be compared with all that is chosen, ``beside`` what it has; empty when it can."""
    if not chosen:
        return []
    impossible = baselines.problems(experiment)
    found = list(dict.fromkeys(impossible[one] for one in Baseline if one in chosen and one in impossible))
    if is_ensemble_alone({*chosen, *beside}):
        found.append(ENSEMBLE_ALONE)
    return found


def is_ensemble_alone(chosen: Collection[str]) -> bool:
    return Baseline.ENSEMBLE in chosen and Baseline.LOCAL_ONLY not in chosen


SHAPES_WEIGHTS = ("name", "channels", "strides", "residual_units", "norm")
"""What two networks must have in common to have the same weights."""


def initial_model_problem(model: GlobalModel, plan: Mapping[str, Any]) -> str:
    """Return why a plan cannot start from a global model; empty when it can."""
    source = model.experiment
    name = f"The model of round {model.round_number} of “{source.title}”"
    ours, theirs = plan.get("task") or {}, source.plan.get("task") or {}
    if task_signature(ours) != task_signature(theirs) or _labels(ours) != _labels(theirs):
        return f"{name} was trained for another task: channels, labels and regions have to be the same."
    network, other = plan.get("network") or {}, source.plan.get("network") or {}
    for part in SHAPES_WEIGHTS:
        setting = BY_NAME[f"network.{part}"]
        mine, its = (_plain(known.get(part, setting.default)) for known in (network, other))
        if mine != its:
            return f"{name} is of another network: {setting.label} is {setting.show(its)} there and {setting.show(mine)} here."
    return ""


def _labels(task: Mapping[str, Any]) -> list[list[int]]:
    """Return the labels of each output channel; what the regions are called is no part of a model."""
    return [list(region["labels"]) for region in task.get("regions", [])]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def strategy_problem(
    experiment: Experiment,
    strategy: str,
    options: Mapping[str, Any],
    sites: int,
    *,
    quorum: int | None = None,
    treatment: str = "",
) -> str | None:
    """Return why a strategy does not go with an experiment and its number of sites; ``None`` when it does.

    ``quorum`` and ``treatment`` take the place of what the experiment has, while a form changes them.
    """
    network = experiment.plan.get("network") or {}
    of_plan = {name: network[name] for name in ("name", "norm") if isinstance(network.get(name), str)}
    return refusal(
        strategy,
        sites=min(sites, experiment.min_sites if quorum is None else quorum),
        options=options,
        treatment=treatment or (experiment.plan.get("optimizer") or {}).get("treatment", ""),
        has_norm_entries=has_norm_entries(Network(**of_plan)),
    )


def _sentences(problems: dict[str, str]) -> Iterator[str]:
    for name, text in problems.items():
        label = BY_NAME[name].label if name in BY_NAME else OTHER_LABELS.get(name, "Task")
        yield f"{label}: {text}."
