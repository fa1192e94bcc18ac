"""An experiment with its repeats and all that stands beside them: who is there, how far it is, what is still missing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from django.db.models import OuterRef, Prefetch, Subquery

from fedportal.experiments.models import Event, Experiment, Kind, Participation, Round, RoundKind
from fedportal.experiments.plan import listed
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.monitoring.figures import SiteStyle, styles

NAMES = {
    Kind.FEDERATED: "the federated run",
    Kind.POOLED: "the pooled baseline",
    Kind.CYCLIC: "the cyclic baseline",
    Kind.CROSS_SITE: "the cross-site evaluation",
}
MOST_NAMES = 5
"""So many of those that are still to come are named; beyond, the last one counts the others."""


@dataclass(frozen=True)
class Run:
    """One federated run (one seed) with what stands beside it: of each baseline the newest, all evaluations."""

    number: int
    federated: Experiment
    companions: tuple[Experiment, ...] = ()

    @property
    def members(self) -> tuple[Experiment, ...]:
        return (self.federated, *self.companions)

    def of(self, kind: Kind) -> list[Experiment]:
        return [member for member in self.members if member.kind == kind]


@dataclass(frozen=True)
class Family:
    """``sites``: the participants of the federated run. ``newest``: experiment id → its newest round."""

    head: Experiment
    runs: tuple[Run, ...]
    sites: list[SiteStyle]
    newest: dict[int, Round]

    @property
    def members(self) -> list[Experiment]:
        return [member for run in self.runs for member in run.members]

    @property
    def evaluations(self) -> list[Experiment]:
        return [member for member in self.members if member.kind == Kind.CROSS_SITE]

    @property
    def measuring(self) -> list[Experiment]:
        """The members that measure single cases: the federated runs at their end, and the cross-site evaluations."""
        return [*(run.federated for run in self.runs), *self.evaluations]

    @property
    def keeps_layers(self) -> bool:
        """Whether each site keeps layers of its own (FedBN), with which alone the federated model is what it is."""
        return self.head.plan.get("local_layers", "none") != "none"

    @property
    def is_active(self) -> bool:
        return any(member.is_active for member in self.members)

    @property
    def digest(self) -> str:
        """Changes when a member begins, ends or appears: when the page has something new to show."""
        states = ",".join(f"{member.key}:{member.state}" for member in self.members)
        return hashlib.sha256(states.encode()).hexdigest()[:12]

    def has(self, kind: Kind) -> bool:
        return any(run.of(kind) for run in self.runs)

    @cached_property
    def site_names(self) -> dict[str, str]:
        return {site.slug: site.name for site in self.sites}

    def name_of(self, member: Experiment, run: Run) -> str:
        """Return what a member is called in a sentence: “the pooled baseline of repeat 2”."""
        if member.kind == Kind.LOCAL_ONLY:
            part = next(iter(member.participations.all()), None)
            name = f"the local-only model of {part.site}" if part else "a local-only model"
        else:
            name = NAMES[Kind(member.kind)]
        return f"{name} of repeat {run.number}" if len(self.runs) > 1 else name

    def notes(self) -> list[str]:
        """Return a sentence for everything that is not there yet or will not come; empty when all is there."""
        said, to_come = [], []
        for run in self.runs:
            for member in run.members:
                name, newest = self.name_of(member, run), self.newest.get(member.pk)
                if member.is_active and (newest is None or _not_begun(newest)):
                    to_come.append(name)
                else:
                    said.append(_how_far(member, name, newest))
        if len(to_come) > MOST_NAMES:
            to_come[MOST_NAMES - 1 :] = [f"{len(to_come) - MOST_NAMES + 1} more"]
        if to_come:
            said.append(f"Still to come: {listed(to_come)}.")
        return [_sentence(text) for text in said if text]

    def warnings(self) -> list[str]:
        """Return a sentence for everything that somebody who reads the numbers has to know."""
        said = Event.objects.filter(experiment__in=[run.federated for run in self.runs], kind="copies")
        copies = set(said.values_list("site", flat=True))
        if not copies:
            return []
        names = listed([site.name for site in self.sites if site.slug in copies])
        return [
            f"Among the training cases of {names} are copies of cases that the comparison tests on. Baselines leave them out, "
            "the federated run did not: its advantage may come from there. Take them out of the training data and repeat the "
            "experiment."
        ]


def family_of(experiment: Experiment) -> Family:
    """Read the family of an experiment, whichever member it is; a fixed number of queries."""
    parts = Participation.objects.select_related("site").order_by("site__slug")
    members = list(experiment.family.prefetch_related(Prefetch("participations", queryset=parts)))
    head = next(member for member in members if member.is_head)
    runs = [member for member in members if member.kind == Kind.FEDERATED and member.beside_id is None]
    rounds = Round.objects.filter(experiment__in=members)
    last = rounds.filter(experiment=OuterRef("experiment")).order_by("-number").values("number")[:1]
    return Family(
        head=head,
        runs=tuple(
            Run(number, run, _newest(member for member in members if member.beside_id == run.pk))
            for number, run in enumerate(runs, start=1)
        ),
        sites=styles((part.site.slug, part.site.name) for part in head.participations.all()),
        newest={found.experiment_id: found for found in rounds.filter(number=Subquery(last))},
    )


def _newest(companions: Iterable[Experiment]) -> tuple[Experiment, ...]:
    """Leave out the baselines that were trained again: those of the same kind and sites as a later one."""
    found = {}
    for one in companions:
        sites = tuple(part.site_id for part in one.participations.all())
        found[one.pk if one.kind == Kind.CROSS_SITE else (one.kind, sites)] = one
    return tuple(found.values())


def _not_begun(newest: Round) -> bool:
    return newest.number == 1 and newest.status is RoundState.PENDING


def _how_far(member: Experiment, name: str, newest: Round | None) -> str:
    match member.status:
        case ExperimentState.FAILED:
            return f"{name} stopped: {member.reason or 'its page has the reason'}"
        case ExperimentState.CANCELLED:
            return f"{name} was cancelled."
        case ExperimentState.COMPLETED | ExperimentState.DRAFT:
            return ""
    if newest is None or newest.kind == RoundKind.EVALUATE:
        return f"{name} is being measured."
    paused = " and paused" if member.status is ExperimentState.PAUSED else ""
    return f"{name} is in round {newest.number} of {member.rounds_planned}{paused}."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
