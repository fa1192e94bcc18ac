"""Read a snapshot from the rows: a few short queries, no transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Max, OuterRef, Q, Subquery
from django.utils import timezone

from fedportal.experiments.baselines import held_out, silent_sites
from fedportal.experiments.models import (
    Artefact,
    Attempt,
    Experiment,
    GlobalModel,
    Kind,
    Metric,
    Participation,
    Round,
    RoundKind,
    SiteRun,
)
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator.snapshot import (
    ArtefactView,
    AttemptView,
    BesideView,
    ContributionView,
    Measurement,
    ModelView,
    Participant,
    RoundView,
    SiteRunView,
    Snapshot,
    StartView,
    SubjectView,
    site_view,
)
from fedportal.sites.models import SiteCheck
from trainer.contract import Phase

AT_WORK = frozenset({RoundState.TRAINING, RoundState.EVALUATING, RoundState.COLLECTING, RoundState.AGGREGATING})
KNOWN_FOR = timedelta(seconds=10)
"""So long a changed configuration of a site may go unnoticed."""
FRESH = timedelta(days=1)
"""A check that is older says nothing any more."""


def take(experiment: Experiment, now: datetime, *, before: Snapshot | None = None) -> Snapshot:
    """Read what the next step needs. Raises ``ContractError`` when the stored plan is none.

    ``before``: the snapshot of the step before; what hardly ever changes is taken from it while it is fresh.
    """
    newest = experiment.rounds.order_by("number").last()
    state = RoundState(newest.state) if newest else None
    earlier = before
    if before is not None and (state is RoundState.PENDING or now - before.sites_read_at > KNOWN_FOR):
        before = None
    if before is None:
        participants = _participants(experiment, with_health=state in (None, RoundState.PENDING))
    else:
        participants = {p.id: p for p in before.participants}
    attempts = _attempts(experiment, newest, participants)
    site_runs = _site_runs(newest, participants, attempts)
    incoming = _model(experiment, newest, before)
    waited_for = {run.attempt.id for run in site_runs if run.current is not None and not run.is_over}
    if experiment.status is ExperimentState.CANCELLING:
        waited_for = set()
    # Published is enough: the row may not know of a launch whose orchestrator died right after it.
    strays = tuple(a for a in attempts if a.ended_at is None and a.upload and a.id not in waited_for)
    return Snapshot(
        now=now,
        id=experiment.pk,
        key=experiment.key,
        title=experiment.title,
        state=experiment.status,
        plan=experiment.training_plan,
        rounds_planned=experiment.rounds_planned,
        strategy=experiment.strategy,
        strategy_options=experiment.strategy_options,
        weighting=experiment.weighting,
        min_sites=experiment.min_sites,
        deadline=timedelta(minutes=experiment.deadline_minutes),
        stragglers=experiment.stragglers,
        grace=timedelta(minutes=experiment.grace_minutes),
        max_attempts=experiment.max_attempts,
        max_relative_norm=experiment.max_relative_norm,
        participants=tuple(participants.values()),
        newest=_round(experiment, newest, now),
        **_family(experiment, newest, earlier),
        site_runs=site_runs,
        strays=strays,
        incoming=incoming,
        sites_read_at=now if before is None else before.sites_read_at,
        measurements=_measurements(newest) if state in (RoundState.COLLECTING, RoundState.AGGREGATING) else (),
        stopping_since=_stopping_since(experiment),
        reason=experiment.reason,
        question=experiment.question,
        best_by=experiment.best_by,
        patience=experiment.patience,
        start=_start(experiment) if incoming is None or state is RoundState.DONE else None,
        **({"models": _models(experiment)} if experiment.patience and state is RoundState.AGGREGATING else {}),
        **(_harvest(experiment) if state is RoundState.DONE else {}),
    )


def with_models(experiment: Experiment, now: datetime) -> Snapshot:
    """Read what the files of an experiment in any state are made from: its models and who contributed to them."""
    return replace(take(experiment, now), start=_start(experiment), **_harvest(experiment))


def _participants(experiment: Experiment, *, with_health: bool) -> dict[int, Participant]:
    rows = list(
        Participation.objects.filter(experiment=experiment).select_related("site", "dataset").order_by("site__slug")
    )
    checks = _newest_checks([row.site_id for row in rows]) if with_health else {}
    found: dict[int, Participant] = {}
    for row in rows:
        problem, is_checked = _problem(row, checks.get(row.site_id)) if with_health else ("", True)
        found[row.pk] = Participant(
            row.pk, site_view(row.site), row.dataset.name, problem, is_checked, row.dataset.train_cases
        )
    return found


def _newest_checks(sites: Sequence[int]) -> dict[int, SiteCheck]:
    newest = SiteCheck.objects.filter(site=OuterRef("site")).order_by("-at", "-pk").values("pk")[:1]
    return {check.site_id: check for check in SiteCheck.objects.filter(site__in=sites, pk=Subquery(newest))}


def _problem(row: Participation, check: SiteCheck | None) -> tuple[str, bool]:
    """Return why a site cannot take part now (empty: it can) and whether a recent check says so."""
    if row.site.is_retired:
        return "It has been retired.", True
    if not row.dataset.is_available:
        return f"Its dataset {row.dataset.name} is gone.", True
    if check is None:
        return "", False
    if not check.ok:
        first = check.first_problem or {}
        return str(first.get("message") or "Its last check found a problem."), True
    return "", timezone.now() - check.at <= FRESH


def _round(experiment: Experiment, row: Round | None, now: datetime) -> RoundView | None:
    if row is None:
        return None
    ends = row.status in (RoundState.COLLECTING, RoundState.AGGREGATING)
    is_late = row.deadline_at is not None and now >= row.deadline_at
    paused = timedelta()
    if ends or is_late or row.quorum_at is not None:
        paused = _paused(experiment, row.dispatched_at or row.started_at)
    return RoundView(
        id=row.pk,
        number=row.number,
        is_evaluation=row.kind == "evaluate",
        state=row.status,
        started_at=_begun(experiment, row),
        dispatched_at=row.dispatched_at,
        deadline_at=None if row.deadline_at is None else row.deadline_at + paused,
        quorum_at=None if row.quorum_at is None else row.quorum_at + paused,
        paused=paused,
        timings=row.timings,
    )


def _begun(experiment: Experiment, row: Round) -> datetime:
    """Return since when a round is under way: the first one of a baseline not before the others have made way."""
    if experiment.is_head or row.number > 1 or row.status is not RoundState.PENDING:
        return row.started_at
    ends = experiment.family.filter(turn__lt=experiment.turn).aggregate(last=Max("ended_at"))
    return max(row.started_at, ends["last"] or row.started_at)


def _family(experiment: Experiment, newest: Round | None, earlier: Snapshot | None) -> dict[str, Any]:
    """Read what the others of its family have to do with an experiment. Once its turn has come, that stays the same."""
    first = experiment.key if experiment.is_head else earlier.family if earlier else experiment.head.key
    found: dict[str, Any] = {"kind": experiment.kind, "family": first}
    if experiment.kind == Kind.FEDERATED and newest is not None and newest.kind == RoundKind.EVALUATE:
        found["tested"] = (earlier and earlier.tested) or _held_out(experiment)
    if newest is None or experiment.is_head or experiment.status is not ExperimentState.RUNNING:
        return found
    if newest.number == 1 and newest.status is RoundState.PENDING and (other := experiment.waits_for) is not None:
        return found | {"waits_for": other.title}
    if experiment.kind == Kind.CROSS_SITE:
        found["subjects"] = (earlier and earlier.subjects) or _subjects(experiment)
        found["tested"] = (earlier and earlier.tested) or _held_out(experiment.beside)
    elif experiment.beside is not None:
        found["beside"] = (earlier and earlier.beside) or _beside(experiment.beside)
    return found


def _beside(main: Experiment) -> BesideView:
    return BesideView(held_out=_held_out(main), silent=tuple(silent_sites(main)))


def _held_out(experiment: Experiment) -> tuple[str, ...]:
    return tuple(sorted(frozenset[str]().union(*held_out(experiment).values())))


def _subjects(experiment: Experiment) -> tuple[SubjectView, ...]:
    rows = experiment.subjects.prefetch_related("global_models").order_by("pk")
    return tuple(SubjectView(row.name, tuple(model_view(model) for model in row.global_models.all())) for row in rows)


def _paused(experiment: Experiment, since: datetime) -> timedelta:
    """Return for how long the experiment was paused: nobody was late in that time."""
    total, began = timedelta(), None
    events = experiment.events.filter(kind__in=["paused", "resumed"], at__gte=since).order_by("pk")
    for kind, at in events.values_list("kind", "at"):
        if kind == "paused":
            began = at
        elif began is not None:
            total, began = total + (at - began), None
    return total


def _attempts(
    experiment: Experiment, newest: Round | None, participants: Mapping[int, Participant]
) -> list[AttemptView]:
    """Return the attempts of the round at hand, and those of earlier rounds that may still run.

    Before sites are started, and at the end, of all rounds; else of the last two, which an index finds.
    """
    since = newest.number - 1 if newest is not None and newest.status in AT_WORK else 0
    if experiment.status is ExperimentState.CANCELLING:
        since = 0
    rows = (
        Attempt.objects.filter(site_run__round__experiment=experiment, site_run__round__number__gte=since)
        .filter(Q(ended_at=None) | Q(site_run__round=newest))
        .order_by("pk")
        .values_list(
            "pk",
            "number",
            "run",
            "site_run__round__number",
            "site_run__participation_id",
            "upload",
            "state",
            "launched_at",
            "heard_at",
            "ended_at",
            "log_offset",
        )
    )
    return [
        AttemptView(pk, number, run, in_round, participants[participation].site, *values)
        for pk, number, run, in_round, participation, *values in rows
    ]


def _site_runs(
    newest: Round | None, participants: Mapping[int, Participant], attempts: Sequence[AttemptView]
) -> tuple[SiteRunView, ...]:
    if newest is None:
        return ()
    by_run = {(a.site.id, a.number): a for a in attempts if a.round_number == newest.number}
    begun = newest.started_at
    tries = Counter(a.site.id for a in by_run.values() if a.launched_at is None or a.launched_at >= begun)
    rows = SiteRun.objects.filter(round=newest).order_by("participation__site__slug")
    return tuple(
        SiteRunView(
            id=row.pk,
            participant=participants[row.participation_id],
            state=row.status,
            number=row.attempt,
            current=by_run.get((participants[row.participation_id].site.id, row.attempt)),
            tries=tries[participants[row.participation_id].site.id],
            reason=row.reason,
            not_before=row.not_before,
            train_cases=row.train_cases,
            update_sha256=row.update_sha256,
            update_size=row.update_size,
            weight=row.weight,
            seconds=row.seconds,
        )
        for row in rows
    )


def model_view(row: GlobalModel) -> ModelView:
    return ModelView(
        id=row.pk,
        round_number=row.round_number,
        key=row.key,
        sha256=row.sha256,
        size=row.size,
        dice=row.dice,
        scores=row.scores,
        server_state_key=row.server_state_key,
        server_state_sha256=row.server_state_sha256,
        server_state_size=row.server_state_size,
    )


def _model(experiment: Experiment, newest: Round | None, before: Snapshot | None) -> ModelView | None:
    if newest is None:
        return None
    if before is not None and before.incoming is not None and before.incoming.round_number == newest.number - 1:
        return before.incoming
    row = experiment.models.filter(round_number=newest.number - 1).first()
    return None if row is None else model_view(row)


def _models(experiment: Experiment) -> tuple[ModelView, ...]:
    return tuple(model_view(row) for row in experiment.models.order_by("round_number"))


def _start(experiment: Experiment) -> StartView | None:
    model = experiment.initial_model
    if model is None:
        return None
    title = f"the model of round {model.round_number} of “{model.experiment.title}” ({model.experiment.key})"
    return StartView(model.key, model.sha256, model.size, title)


def _measurements(newest: Round | None) -> tuple[Measurement, ...]:
    rows = (
        Metric.objects.filter(site_run__round=newest, phase=Phase.INCOMING.value)
        .select_related("site_run")
        .order_by("site", "pk")
    )
    return tuple(
        Measurement(row.site, row.name, row.region, row.value, row.cases)
        for row in rows
        if row.site_run is not None and row.site_run.attempt == row.attempt
    )


def _harvest(experiment: Experiment) -> dict[str, Any]:
    """Read what the files of a completed experiment are made from."""
    admitted = (
        SiteRun.objects.filter(round__experiment=experiment, state=SiteRunState.ADMITTED)
        .order_by("round__number", "participation__site__slug")
        .values_list("round__number", "participation__site__slug", "train_cases", "weight", "update_sha256")
    )
    artefacts = Artefact.objects.filter(model__experiment=experiment).values_list("model_id", "kind")
    return {
        "models": _models(experiment),
        "contributions": tuple(ContributionView(*values) for values in admitted),
        "artefacts": tuple(ArtefactView(*values) for values in artefacts),
    }


def _stopping_since(experiment: Experiment) -> datetime | None:
    if experiment.status is not ExperimentState.CANCELLING:
        return None
    event = experiment.events.filter(kind="cancelling").order_by("-pk").first()
    return None if event is None else event.at
