"""What a plan comes to, for the review and the API: one sentence, and the gradient steps of all that will be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedportal.experiments import baselines
from fedportal.experiments.models import Baseline, Experiment, Kind
from fedportal.experiments.plan import listed, summary
from fedportal.sites.counts import count_for
from trainer.contract import ContractError

TRAINED = {Baseline.POOLED: "pooled", Baseline.LOCAL_ONLY: "local-only", Baseline.CYCLIC: "cyclic"}
"""Baselines that train, as they are called within a sentence."""


@dataclass(frozen=True)
class Steps:
    """The gradient steps of one kind of training. ``count`` is ``None`` where it would tell a small number of cases;
    ``sites``: name → steps, for what is trained at each site by its own."""

    name: str
    label: str
    count: int | None
    sites: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class StepTable:
    """The steps of all that can be trained; ``chosen``: what will be, beside the experiment itself, ``repeats`` times."""

    rows: list[Steps]
    chosen: frozenset[str]
    repeats: int

    @property
    def taken(self) -> list[Steps]:
        return [row for row in self.rows if row.name in self.chosen or row.name == Kind.FEDERATED]

    @property
    def together(self) -> int | None:
        """The steps of all that will be trained; ``None`` where a part is not told."""
        counts = [row.count for row in self.taken]
        return None if None in counts else self.repeats * sum(count or 0 for count in counts)


def step_table(experiment: Experiment, user: Any) -> StepTable:
    return StepTable(planned_steps(experiment, user), frozenset(experiment.baselines), experiment.repeats)


def planned_steps(experiment: Experiment, user: Any) -> list[Steps]:
    """Return what the experiment and every baseline compute, as far as a person may know; empty: not planned yet."""
    try:
        budget = baselines.budget(experiment)
    except ContractError:  # the plan is incomplete
        return []
    parts = list(experiment.participations.select_related("site", "dataset"))
    is_told = all(count_for(user, part.site_id, part.dataset.train_cases).value is not None for part in parts)
    sites = tuple((part.site.name, budget.per_site[part.site.slug]) for part in parts) if is_told else ()
    by_site = {Kind.FEDERATED.value: sites, Kind.LOCAL_ONLY.value: sites}
    kinds = [(Kind.FEDERATED.value, Kind.FEDERATED.label, budget.total)]
    kinds += [(one.value, one.label, budget.baselines[one.value]) for one in Baseline]
    return [Steps(name, label, count if is_told else None, by_site.get(name, ())) for name, label, count in kinds]


def sentence(experiment: Experiment) -> str:
    """Return what the experiment does and what it is compared with, in one plain sentence that everybody may read."""
    ending = "".join(f"; {part}" for part in (_comparison(experiment), _repeats(experiment)) if part)
    return f"{summary(experiment).removesuffix('.')}{ending}."


def _comparison(experiment: Experiment) -> str:
    chosen = [one for one in Baseline if one in experiment.baselines]
    trained = [TRAINED[one] for one in chosen if one in TRAINED]
    words = [f"{listed(trained)} training of {_amount(experiment, chosen)}"] if trained else []
    if Baseline.ENSEMBLE in chosen:
        words.append("the ensemble of the local-only models")
    return f"compared with {listed(words)}" if words else ""


def _amount(experiment: Experiment, chosen: list[Baseline]) -> str:
    steps = {one.name: one.count for one in planned_steps(experiment, None)}
    total = steps.get(Kind.FEDERATED)
    if not total:
        return "the same number of gradient steps"
    # the last batch of an epoch may be smaller: a few steps more or less
    is_same = all(steps[one] == total for one in chosen if one in TRAINED)
    return f"{'the same' if is_same else 'about the same'} {total} gradient steps"


def _repeats(experiment: Experiment) -> str:
    return f"all of it with {experiment.repeats} seeds" if experiment.repeats > 1 else ""
