"""What the members of a family tell each other: the run that baselines stand beside hears of them, those who wait are woken."""

from __future__ import annotations

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from fedportal.experiments import journal
from fedportal.experiments.models import MEAN, Event, Experiment, Kind
from fedportal.experiments.states import ACTIVE, ExperimentState


def rounds_beside(main: Experiment, kind: str, sites: int) -> int:
    """Return the rounds of what stands beside a run: of the cyclic baseline, whose rounds are one site's, as many for each
    site; of an evaluation one."""
    if kind == Kind.CROSS_SITE:
        return 1
    return main.rounds_planned * (sites if kind == Kind.CYCLIC else 1)


def named(experiment: Experiment) -> str:
    """Return what an experiment is called in the journal of the run that it stands beside: “the pooled baseline”."""
    if experiment.kind == Kind.CROSS_SITE:
        return "The cross-site evaluation"
    if experiment.kind == Kind.LOCAL_ONLY:
        part = experiment.participations.select_related("site").first()
        return f"The local-only baseline of {part.site if part else 'a site'}"
    return f"The {Kind(experiment.kind).label.lower()} baseline"


def tell_begun(experiment: Experiment) -> None:
    """Note that an experiment's own work begins, which may have waited for others; the journal of the run that it stands
    beside says so. Inside the transaction of the change."""
    if experiment.head_id is not None:
        Experiment.objects.filter(pk=experiment.pk).update(started_at=timezone.now())
    if experiment.beside is not None:
        journal.record(experiment.beside, "baseline_begun", f"{named(experiment)} has begun.", key=experiment.key)


def tell_ended(experiment: Experiment) -> None:
    """Let the family know that one of it has completed, failed or is cancelled. Inside the transaction of the change.

    What stands beside a completed run is trained for as many rounds as that has used.
    """
    if experiment.beside is None and experiment.status is ExperimentState.COMPLETED:
        _follow(experiment)
    if experiment.beside is not None:
        level = Event.Level.GOOD if experiment.status is ExperimentState.COMPLETED else Event.Level.WARN
        text = f"{named(experiment)} {_end_of(experiment)}"
        journal.record(experiment.beside, "baseline_ended", text, level=level, key=experiment.key)
    # After the commit: whoever is woken must see the end, and no lock of another row is taken here. If nobody is woken,
    # because this process dies, they look by themselves a little later.
    family = experiment.family.filter(state__in=ACTIVE).exclude(pk=experiment.pk)
    transaction.on_commit(lambda: family.update(wakes=F("wakes") + 1))


def _follow(main: Experiment) -> None:
    for companion in main.companions.filter(state__in=ACTIVE):
        rounds = rounds_beside(main, companion.kind, companion.participations.count())
        if rounds != companion.rounds_planned:
            Experiment.objects.filter(pk=companion.pk).update(rounds_planned=rounds)


def _end_of(experiment: Experiment) -> str:
    match experiment.status:
        case ExperimentState.CANCELLED:
            return "was cancelled."
        case ExperimentState.FAILED:
            return f"has failed: {experiment.reason}"
    if experiment.kind == Kind.CROSS_SITE:
        return f"has ended: {experiment.subjects.count() + 1} models are measured."
    last = experiment.models.order_by("round_number").last()
    dice = last and last.dice_of(experiment.best_by)
    of = "" if experiment.best_by == MEAN else f" of {experiment.best_by}"
    return "has ended." if dice is None else f"has ended: Dice{of} {dice:.2f}."
