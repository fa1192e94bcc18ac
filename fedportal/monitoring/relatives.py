"""What belongs to an experiment, as its page shows it: its repeats, its baselines, the evaluation of all models."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from fedportal.experiments.models import Experiment, Kind, Round
from fedportal.experiments.states import CANCELLABLE, ExperimentState, RoundState, State
from fedportal.monitoring.families import Family, Run, family_of

ABOUT = {
    Kind.POOLED: "Pooled baseline of",
    Kind.CYCLIC: "Cyclic baseline of",
    Kind.CROSS_SITE: "Cross-site evaluation of",
}
"""What a companion is, in front of the title of the run that it stands beside."""


@dataclass(frozen=True)
class Relative:
    """A baseline or evaluation beside a run. ``dice``: of its newest measured model, on the cases that it holds out."""

    experiment: Experiment
    site: str
    newest: Round | None
    dice: float | None

    @property
    def name(self) -> str:
        kind = Kind(self.experiment.kind)
        return f"{kind.label}: {self.site}" if kind == Kind.LOCAL_ONLY else kind.label

    @property
    def has_begun(self) -> bool:
        return self.newest is not None and (self.newest.number > 1 or self.newest.status is not RoundState.PENDING)

    @property
    def state(self) -> State:
        is_waiting = self.experiment.status is ExperimentState.RUNNING and not self.has_begun
        return RoundState.PENDING if is_waiting else self.experiment.status

    @property
    def rounds_done(self) -> int:
        if self.newest is None:
            return 0
        done = self.newest.number if self.newest.status is RoundState.DONE else self.newest.number - 1
        return min(done, self.experiment.rounds_planned)

    @property
    def where(self) -> str:
        planned = self.experiment.rounds_planned
        if self.experiment.kind == Kind.CROSS_SITE:
            return "every model at every site"
        return f"{self.rounds_done} of {planned} round{'' if planned == 1 else 's'}"


@dataclass(frozen=True)
class Repeat:
    """A run of the experiment with a seed of its own. ``dice``: of its final model; ``None`` before it has completed."""

    experiment: Experiment
    dice: float | None

    @property
    def seed(self) -> int:
        return int(self.experiment.plan.get("seed", 0))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of the sample) of the final Dice over seeds, lowest and highest."""

    count: int
    mean: float
    deviation: float
    low: float
    high: float


@dataclass(frozen=True)
class Relatives:
    """``run``: the federated run that the page is about, or that stands beside it. ``site``: of a local-only baseline."""

    experiment: Experiment
    run: Experiment
    companions: list[Relative]
    repeats: list[Repeat]
    is_active: bool
    site: str = ""
    left: int = 0
    """How many beside the experiment have not ended: what a cancel would end with it, or after it."""

    @property
    def is_alone(self) -> bool:
        return not self.companions and len(self.repeats) < 2

    @property
    def has_evaluation(self) -> bool:
        return any(one.experiment.kind == Kind.CROSS_SITE for one in self.companions)

    @property
    def about(self) -> str:
        """What the experiment is, to be followed by the title of :attr:`of`; empty for the first of a family."""
        if self.experiment.is_head:
            return ""
        if self.experiment.kind == Kind.FEDERATED:
            return f"Repeat with seed {Repeat(self.experiment, None).seed} of"
        kind = Kind(self.experiment.kind)
        return f"Local-only baseline, {self.site}, of" if kind == Kind.LOCAL_ONLY else ABOUT[kind]

    @property
    def of(self) -> Experiment:
        return self.run if self.experiment != self.run else self.repeats[0].experiment

    @property
    def spread(self) -> Spread | None:
        """How much the final Dice depends on the seed; ``None`` with fewer than two final models."""
        found = [one.dice for one in self.repeats if one.dice is not None]
        if len(found) < 2:
            return None
        return Spread(len(found), statistics.mean(found), statistics.stdev(found), min(found), max(found))


def relatives_of(experiment: Experiment) -> Relatives:
    """Read what belongs to an experiment; a fixed number of queries."""
    family = family_of(experiment)
    # not looked for among the members: a baseline that was trained again is none of them any more
    run = next(run for run in family.runs if run.federated.pk in (experiment.pk, experiment.beside_id))
    shown = [one.pk for one in (*(run.federated for run in family.runs), *run.companions)]
    measured = Experiment.objects.filter(pk__in=shown).with_progress().values_list("pk", "last_dice")
    dice: dict[int, float | None] = dict(measured)
    dice |= {one.pk: None for one in run.of(Kind.CROSS_SITE)}  # its model is that of the run
    companions = [Relative(one, _site(one), family.newest.get(one.pk), dice[one.pk]) for one in run.companions]
    return Relatives(
        experiment=experiment,
        run=run.federated,
        companions=companions,
        repeats=[_repeat(run, dice) for run in family.runs],
        is_active=family.is_active,
        site=_site(next((one for one in run.members if one == experiment), experiment)),
        left=sum(one.status in CANCELLABLE for one in _beside(experiment, family, run)),
    )


def _beside(experiment: Experiment, family: Family, run: Run) -> Iterable[Experiment]:
    """Return what is cancelled with an experiment: of the first of a family all others, of a baseline nothing."""
    if experiment.is_head:
        return (one for one in family.members if one != experiment)
    return run.companions if experiment == run.federated else ()


def _repeat(run: Run, dice: dict[int, float | None]) -> Repeat:
    has_ended = run.federated.status is ExperimentState.COMPLETED
    return Repeat(run.federated, dice[run.federated.pk] if has_ended else None)


def _site(experiment: Experiment) -> str:
    part = next(iter(experiment.participations.all()), None)
    return part.site.name if part and experiment.kind == Kind.LOCAL_ONLY else ""
