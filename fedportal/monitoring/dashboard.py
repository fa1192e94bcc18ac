"""The front page: what runs, how the sites are, what happened last. A fixed number of queries."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import Q

from fedportal.accounts.models import User
from fedportal.experiments.models import Event, Experiment, GlobalModel
from fedportal.experiments.states import ACTIVE, ExperimentState
from fedportal.monitoring.figures import sparkline
from fedportal.sites.models import Health, Site

ACTIVE_SHOWN, RECENT_SHOWN, EVENTS_SHOWN, SITES_SHOWN = 12, 6, 8, 12


@dataclass(frozen=True)
class ExperimentCard:
    """An experiment on the front page. ``curve``: points of a sparkline of the global models' Dice."""

    experiment: Experiment
    round_now: int
    sites: int
    dice: float | None
    curve: str

    @property
    def where(self) -> str:
        planned = self.experiment.rounds_planned
        if not self.experiment.is_active:
            return f"{min(self.round_now, planned)} of {planned} rounds"
        if not self.round_now:
            return "about to begin"
        return f"round {self.round_now} of {planned}" if self.round_now <= planned else "final evaluation"

    @property
    def rounds_done(self) -> int:
        return min(max(self.round_now - 1, 0), self.experiment.rounds_planned)


@dataclass(frozen=True)
class Board:
    """All that the front page shows one person."""

    active: list[ExperimentCard]
    recent: list[ExperimentCard]
    drafts: list[Experiment]
    sites: list[Site]
    more_sites: int
    events: list[Event]

    @property
    def is_new(self) -> bool:
        """Whether there is no experiment yet that the person could look at."""
        return not (self.active or self.recent or self.drafts)


def dashboard_of(user: User) -> Board:
    """Read the front page of a person: only experiments that this person may see."""
    listed = Experiment.objects.listed_for(user)
    mine = listed.select_related("owner").with_progress()
    active = list(mine.filter(Q(state__in=ACTIVE) | Q(runs_left__gt=0)).order_by("-started_at")[:ACTIVE_SHOWN])
    over = mine.exclude(state__in=(*ACTIVE, ExperimentState.DRAFT)).filter(runs_left=0)
    recent = list(over.order_by("-ended_at")[:RECENT_SHOWN])
    drafts = list(mine.filter(state=ExperimentState.DRAFT, owner=user).order_by("-created_at")[:RECENT_SHOWN])
    curves = _curves([*active, *recent])
    events = Event.objects.filter(experiment__in=listed).select_related("experiment")
    sites = _sites(user)
    return Board(
        active=[_card(one, curves) for one in active],
        recent=[_card(one, curves) for one in recent],
        drafts=drafts,
        sites=sites[:SITES_SHOWN],
        more_sites=max(0, len(sites) - SITES_SHOWN),
        events=list(events.order_by("-id")[:EVENTS_SHOWN]),
    )


def _card(experiment: Experiment, curves: dict[int, list[float]]) -> ExperimentCard:
    curve = sparkline(curves.get(experiment.pk, []))
    return ExperimentCard(experiment, experiment.round_now or 0, experiment.site_count, experiment.last_dice, curve)


def _curves(experiments: list[Experiment]) -> dict[int, list[float]]:
    """Return the Dice of the global models of each experiment, in the order of the rounds."""
    found: dict[int, list[float]] = {}
    rows = GlobalModel.objects.filter(experiment__in=experiments).exclude(dice=None).order_by("round_number")
    for experiment_id, dice in rows.values_list("experiment_id", "dice"):
        found.setdefault(experiment_id, []).append(dice)
    return found


def _sites(user: User) -> list[Site]:
    """Return the active sites: a steward's own before others, those with a problem first."""
    own = set(Site.objects.stewarded_by(user).values_list("pk", flat=True))
    rows = Site.objects.hospitals().with_last_check()
    return sorted(rows, key=lambda site: (site.pk not in own, site.health is Health.HEALTHY, site.name))
