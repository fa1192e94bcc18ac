"""From families to plain numbers. Whatever is estimated here is estimated by the functions behind the compare page."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from fedportal.experiments.models import MEAN
from fedportal.experiments.recipe import BY_NAME, value_of
from fedportal.monitoring import overlay, verdict
from fedportal.monitoring.board import Board, Choice
from fedportal.monitoring.comparison import MEASURES, Comparison, Scores
from fedportal.monitoring.families import Family, family_of
from fedportal.monitoring.figures import Chart, regions_of
from fedportal.monitoring.statistics import Estimate
from fedportal.results.plans import Setting, Study
from fedportal.results.runs import Trial

DICE, HD95 = MEASURES
RECIPE = (
    "network.name", "network.channels", "loss", "optimizer.name", "optimizer.learning_rate", "schedule.name", "rounds",
    "local_epochs", "batch_size", "augmentation",
)  # fmt: skip
"""The settings that all experiments of a setting have in common and that a reader wants to know."""


def collect(study: Study, trials: Sequence[Trial], sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return all numbers of the study as JSON values; an entry that was never started is not in it."""
    return {
        "made": sessions[-1]["began"] if sessions else "",
        "sessions": list(sessions),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "monai")},
        "study": {"size": study.size, "patients": study.patients, "repeats": study.repeats},
        "settings": [
            _setting(setting, [one for one in trials if one.setting == setting and not one.head.is_draft])
            for setting in study.settings
        ],
    }


def _setting(setting: Setting, trials: Sequence[Trial]) -> dict[str, Any]:
    families = [family_of(trial.head) for trial in trials]
    found: dict[str, Any] = {
        "name": setting.name,
        "title": setting.title,
        "text": setting.text,
        "variant": setting.variant,
        "train": setting.train,
        "validation": setting.validation,
        "is_iid": setting.is_iid,
        "hospitals": [asdict(hospital) for hospital in setting.hospitals],
        "missing": [entry.title for entry in setting.entries if entry not in [trial.entry for trial in trials]],
        "entries": [_entry(trial, family) for trial, family in zip(trials, families, strict=True)],
        "recipe": [],
        "regions": [],
        "differences": {"columns": [], "rows": []},
    }
    if trials:
        head = trials[0].head
        board = Board(families[0], Choice(), [], head.owner, families[1:])
        heads = [trial.head for trial in trials]
        columns = [place for place, column in enumerate(board.columns) if column.experiment in heads]
        found |= {
            "recipe": [
                {"label": BY_NAME[name].label, "value": BY_NAME[name].show(value_of(head, BY_NAME[name]))}
                for name in RECIPE
            ],
            "regions": regions_of(head.plan)[1:],
            "differences": {
                "columns": [trial.entry.title for trial in trials],
                "rows": _differing((label, [cells[place] for place in columns]) for label, cells in board.settings),
            },
        }
    return found


def _differing(rows: Iterable[tuple[str, list[str]]]) -> list[dict[str, Any]]:
    return [{"label": label, "values": values} for label, values in rows if len(set(values)) > 1]


def _entry(trial: Trial, family: Family) -> dict[str, Any]:
    comparison = _comparison(family, DICE, MEAN)
    return {
        "name": trial.entry.name,
        "title": trial.entry.title,
        "strategy": trial.entry.strategy,
        "treatment": trial.entry.treatment,
        "baselines": list(trial.entry.baselines),
        "key": trial.head.key,
        "seeds": [run.federated.plan.get("seed", 0) for run in family.runs],
        "unfinished": trial.failures,
        "models": _models(family, comparison),
        "contrasts": [
            {
                "other": one.other.key,
                "role": one.other.role.value,
                "label": one.other.label,
                "gain": _json(one.gain),
                "percentage": _json(one.percentage),
                "sentence": verdict.about(comparison, one),
            }
            for one in comparison.contrasts
        ],
        "gains": [
            {
                "site": one.slug,
                "name": one.name,
                "federated": _json(one.federated),
                "own": _json(one.own),
                "gain": _json(one.gain),
                "cases": one.cases,
                "is_worst": one.is_worst,
            }
            for one in comparison.gains
        ],
        "said": verdict.headline(comparison) + verdict.about_sites(comparison) if trial.entry.baselines else [],
        "work": [
            {"label": column.label, "steps": column.steps, "seconds": column.time and column.time.total_seconds()}
            for column in Board(family, Choice(), [], trial.head.owner).columns
        ],
        "curves": [
            {"group": one.group, "label": one.label, "rounds": one.rounds, "dice": one.values[overlay.EVERYWHERE]}
            for one in overlay.curves(family, [], measure=DICE.name, region=MEAN)
        ],
    }


def _models(family: Family, comparison: Comparison) -> list[dict[str, Any]]:
    """Every model that was measured: Dice over all sites, at each site, per region and per seed; HD95 over all sites."""
    by_region = {region: _means(_comparison(family, DICE, region)) for region in regions_of(family.head.plan)[1:]}
    distance = _means(_comparison(family, HD95, MEAN))
    by_run = [_means(_comparison(replace(family, runs=(run,)), DICE, MEAN)) for run in family.runs]
    return [
        {
            "key": line.contender.key,
            "role": line.contender.role.value,
            "label": line.contender.label,
            "dice": _json(line.mean),
            "sites": {cell.site: _json(cell.estimate) for cell in line.cells},
            "regions": {region: _json(means[line.contender.key]) for region, means in by_region.items()},
            "hd95": _json(distance.get(line.contender.key, Estimate())),
            "by_seed": [means[line.contender.key].value if line.contender.key in means else None for means in by_run],
        }
        for line in comparison.lines
    ]


def _comparison(family: Family, measure: Chart, region: str) -> Comparison:
    return Comparison(family, Scores(family, measure), measure=measure, region=region)


def _means(comparison: Comparison) -> dict[str, Estimate]:
    return {line.contender.key: line.mean for line in comparison.lines}


def _json(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
