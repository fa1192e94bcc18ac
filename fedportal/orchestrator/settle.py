"""Write what a step decided: all of it in one short transaction fenced by the experiment's version, or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django.db import transaction

from fedportal.experiments import families, journal, lifecycle
from fedportal.experiments.models import Artefact, Attempt, CaseScore, Experiment, GlobalModel, Metric, Round, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.experiments.subjects import gather_subjects
from fedportal.orchestrator.outcomes import Changes, Fail, NewArtefact, Outcome, Score, SiteRunChange, Wait
from fedportal.orchestrator.snapshot import RoundView, Snapshot
from fedportal.sites.models import Site
from trainer.contract import Phase, records_in_log


def settle(
    experiment: Experiment, s: Snapshot, outcome: Outcome, *, now: datetime, wakes_seen: int, seconds: float
) -> None:
    """Write an outcome. Raises ``StaleClaim`` when the experiment changed meanwhile; then nothing was written.

    ``wakes_seen``: the wake-ups that the snapshot knew of. ``seconds``: the time that this step took.
    """
    changes = outcome.changes
    fields: dict[str, Any] = {"wakes_seen": wakes_seen, "stumbles": 0, "due_at": now}
    fields["reason"] = experiment.reason
    if isinstance(outcome, Wait):
        fields["due_at"] = outcome.until
        fields["reason"] = outcome.reason
        if outcome.reason and outcome.reason != s.reason:
            changes.say("waiting", outcome.reason, level="info" if outcome.is_parked else "warn")
    elif s.state is ExperimentState.RUNNING:
        fields["reason"] = ""
    if changes.rounds_planned is not None:
        fields["rounds_planned"] = changes.rounds_planned
    with transaction.atomic():
        lifecycle.fence(experiment, **fields)
        _site_runs(s, changes)
        _attempts(changes)
        _models(experiment, changes)
        _cases(experiment, changes)
        if s.newest is not None:
            _round(s, s.round, outcome, now, seconds)
        if changes.new_round is not None:
            following, kind = changes.new_round
            Round.objects.create(experiment=experiment, number=following, kind=kind, started_at=now)
        if changes.checks:
            Site.objects.filter(pk__in=changes.checks, check_due_at__gt=now).update(check_due_at=now)
        _experiment(experiment, outcome)
        if changes.begins:
            families.tell_begun(experiment)
        if changes.gathers_subjects:
            gather_subjects(experiment)
        number = s.round.number if s.newest is not None else None
        for line in changes.lines:
            journal.record(
                experiment, line.kind, line.text, level=line.level, round_number=number, site=line.site, **line.data
            )


def _experiment(experiment: Experiment, outcome: Outcome) -> None:
    changes = outcome.changes
    if isinstance(outcome, Fail):
        changes.say("failed", f"The experiment failed: {outcome.reason}", level="bad")
        lifecycle.move_experiment(experiment, ExperimentState.FAILED, because=outcome.reason)
        families.tell_ended(experiment)
    elif changes.experiment_to is not None:
        lifecycle.move_experiment(experiment, changes.experiment_to, because=changes.experiment_because)
        families.tell_ended(experiment)


def _round(s: Snapshot, view: RoundView, outcome: Outcome, now: datetime, seconds: float) -> None:
    changes = outcome.changes
    through, because = changes.round_through, changes.round_because
    if isinstance(outcome, Fail) and view.state.may_become(RoundState.FAILED):
        through, because = (RoundState.FAILED,), outcome.reason
    fields = dict(changes.round_fields)
    timings = dict(view.timings)
    if changes.part:
        timings[changes.part] = timings.get(changes.part, 0.0) + seconds
        fields["timings"] = timings
    if through and (through[-1].is_final or through[-1] is RoundState.FAILED):
        fields["ended_at"] = now
    if changes.slowest_site is not None:
        fields["timings"] = _closed(
            timings, (now - view.started_at - view.paused).total_seconds(), changes.slowest_site
        )
    row = Round(pk=view.id, number=view.number, experiment_id=s.id, state=view.state.value)
    if through:
        lifecycle.move(row, *through, because=because, **fields)
    elif fields:
        Round.objects.filter(pk=view.id).update(**fields)


def _closed(timings: Mapping[str, float], total: float, slowest_site: float) -> dict[str, float]:
    """Return the seconds of a round that ended. ``wait`` is what no step of ours took; ``overhead`` is all but the
    slowest site's own work, so it includes what the sites need to fetch, to deliver and to start."""
    parts = sum(timings.values())
    closed = {**timings, "wait": max(0.0, total - parts), "total": total, "slowest_site": slowest_site}
    closed["overhead"] = total - slowest_site
    return {name: round(value, 4) for name, value in closed.items()}


def _site_runs(s: Snapshot, changes: Changes) -> None:
    ids = {change.site_run for change in changes.site_runs} | {measured.site_run for measured in changes.measured}
    rows = SiteRun.objects.select_related("round", "participation__site").in_bulk(ids) if ids else {}
    states = {run.id: run.state.value for run in s.site_runs}
    for id, row in rows.items():
        row.state = states[id]  # what this writer read: lifecycle refuses to move a row that is elsewhere by now
    for change in changes.site_runs:
        _site_run(rows[change.site_run], change)
    for measured in changes.measured:
        journal.ingest(rows[measured.site_run], measured.attempt, measured.records)
    attempts = [
        Attempt(site_run_id=new.site_run, number=new.number, run=new.run, upload=dict(new.upload))
        for new in changes.new_attempts
    ]
    for attempt in attempts:
        SiteRun.objects.filter(pk=attempt.site_run_id).update(attempt=attempt.number)
    attempts += _new_site_runs(s, changes)
    Attempt.objects.bulk_create(attempts)


def _new_site_runs(s: Snapshot, changes: Changes) -> list[Attempt]:
    """Create the site runs of a round; return their first attempts, not saved yet."""
    made = SiteRun.objects.bulk_create(
        SiteRun(
            round_id=s.round.id,
            participation_id=new.participation,
            state=(SiteRunState.PENDING if new.run else SiteRunState.SKIPPED).value,
            attempt=1 if new.run else 0,
            reason=new.because,
        )
        for new in changes.new_site_runs
    )
    return [
        Attempt(site_run=row, number=1, run=new.run, upload=dict(new.upload))
        for row, new in zip(made, changes.new_site_runs, strict=True)
        if new.run
    ]


def _site_run(row: SiteRun, change: SiteRunChange) -> None:
    if change.through:
        lifecycle.move(row, *change.through, because=change.because, **change.fields)
    elif change.fields:
        SiteRun.objects.filter(pk=row.pk).update(**change.fields)


def _attempts(changes: Changes) -> None:
    for change in changes.attempts:
        Attempt.objects.filter(pk=change.attempt).update(**change.fields)
    for log in changes.logs:
        # Only the piece that continues what is stored: another worker may have read on meanwhile.
        if Attempt.objects.filter(pk=log.attempt, log_offset=log.offset).update(log_offset=log.next_offset):
            journal.append_log(Attempt(pk=log.attempt), log.offset, log.text)
            if records := records_in_log(log.text):  # from a site that reaches the store, but not the portal
                attempt = Attempt.objects.select_related("site_run__round", "site_run__participation__site")
                found = attempt.get(pk=log.attempt)
                journal.ingest(found.site_run, found.number, records)


def _models(experiment: Experiment, changes: Changes) -> None:
    if changes.model is not None:
        model = changes.model
        GlobalModel.objects.create(
            experiment=experiment,
            round_number=model.round_number,
            key=model.key,
            sha256=model.sha256,
            size=model.size,
            server_state_key=model.server_state_key,
            server_state_sha256=model.server_state_sha256,
            server_state_size=model.server_state_size,
        )
    if changes.score is not None:
        _score(experiment, changes.score)
    book_artefacts(changes.artefacts)


def _cases(experiment: Experiment, changes: Changes) -> None:
    """Write what was measured case by case. An evaluation that is taken up again replaces what a site told before."""
    for measured in changes.cases:
        CaseScore.objects.filter(experiment=experiment, site=measured.site).delete()
        rows = (
            CaseScore(
                experiment=experiment,
                site=measured.site,
                subject=score.subject,
                case=score.case,
                name=score.name,
                region=region,
                value=value,
            )
            for score in measured.scores
            for region, value in score.values.items()
        )
        CaseScore.objects.bulk_create(rows, batch_size=journal.BATCH)


def book_artefacts(artefacts: Iterable[NewArtefact]) -> None:
    """Write what was made from models. What somebody else has made meanwhile is the same file."""
    for made in artefacts:
        Artefact.objects.update_or_create(
            model_id=made.model, kind=made.kind, defaults={"key": made.key, "sha256": made.sha256, "size": made.size}
        )


def _score(experiment: Experiment, score: Score) -> None:
    GlobalModel.objects.filter(experiment=experiment, round_number=score.round_number).update(
        dice=score.dice, scores=score.scores
    )
    # A round that is taken up again measures the same model once more, perhaps at more sites.
    Metric.objects.filter(
        experiment=experiment, site_run=None, round_number=score.round_number + 1, phase=Phase.GLOBAL.value
    ).delete()
    Metric.objects.bulk_create(
        Metric(
            experiment=experiment,
            round_number=score.round_number + 1,
            phase=Phase.GLOBAL.value,
            name=number.name,
            region=number.region,
            cases=number.cases,
            value=number.value,
        )
        for number in score.numbers
    )
