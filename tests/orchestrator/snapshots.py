"""Literal snapshots for tests of single steps: no database behind them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Changes, Outcome
from fedportal.orchestrator.snapshot import (
    AttemptView,
    ModelView,
    Participant,
    RoundView,
    SiteRunView,
    SiteView,
    Snapshot,
)
from fedportal.orchestrator.steps.opening import dispatch, publish
from fedportal.orchestrator.steps.watching import watch
from tests.factories import make_plan
from tests.orchestrator.fakes import START, Federation, model_bytes
from trainer.contract import global_model_key, run_name

KEY = "k3x9mq2a"
IDS = {"a": 1, "b": 2, "c": 3, "d": 4}


def site(slug: str) -> SiteView:
    return SiteView(id=IDS[slug], slug=slug, name=f"Hospital {slug.upper()}")


def participant(slug: str, **fields: Any) -> Participant:
    return Participant(id=10 + IDS[slug], site=site(slug), dataset="Task01_BrainTumour", **fields)


def attempt(slug: str, number: int = 1, *, round: int = 1, **fields: Any) -> AttemptView:
    run = run_name(experiment=KEY, round=round, site=slug, attempt=number)
    fields.setdefault("upload", {"published": True})
    return AttemptView(
        id=1000 * round + 100 * IDS[slug] + number,
        number=number,
        run=run,
        round_number=round,
        site=site(slug),
        **fields,
    )


def site_run(slug: str, state: SiteRunState = SiteRunState.PENDING, *, number: int = 1, **fields: Any) -> SiteRunView:
    round_number = fields.pop("round", 1)
    given = {name: fields.pop(name) for name in ("launched_at", "ended_at", "upload", "log_offset") if name in fields}
    if state in (SiteRunState.DISPATCHED, SiteRunState.RUNNING, SiteRunState.ADMITTED):
        given.setdefault("launched_at", START)
    fields.setdefault("current", attempt(slug, number, round=round_number, **given) if number else None)
    fields.setdefault("tries", number)
    return SiteRunView(id=100 + IDS[slug], participant=participant(slug), state=state, number=number, **fields)


def model(federation: Federation | None = None, round_number: int = 0) -> ModelView:
    """A global model; with a federation it lies in its store."""
    data = model_bytes(1.0)
    key = global_model_key(KEY, round_number)
    sha256 = federation.store.put_bytes(key, data) if federation else "0" * 64
    return ModelView(id=1 + round_number, round_number=round_number, key=key, sha256=sha256, size=len(data))


def snapshot(round_state: RoundState = RoundState.TRAINING, **fields: Any) -> Snapshot:
    """An experiment of two rounds at the sites a, b, c, of which two must deliver."""
    round_fields = {
        name: fields.pop(name) for name in ("deadline_at", "quorum_at", "dispatched_at", "timings") if name in fields
    }
    number = fields.pop("number", 1)
    fields.setdefault(
        "newest",
        RoundView(
            id=5,
            number=number,
            is_evaluation=fields.pop("is_evaluation", False),
            state=round_state,
            started_at=START,
            **round_fields,
        ),
    )
    defaults: dict[str, Any] = {
        "now": START,
        "id": 1,
        "key": KEY,
        "title": "Brains",
        "state": ExperimentState.RUNNING,
        "plan": make_plan(),
        "rounds_planned": 2,
        "strategy": "fedavg",
        "strategy_options": {},
        "weighting": "cases",
        "min_sites": 2,
        "deadline": timedelta(hours=1),
        "stragglers": "wait",
        "grace": timedelta(minutes=5),
        "max_attempts": 3,
        "max_relative_norm": None,
        "participants": tuple(participant(slug) for slug in "abc"),
        "incoming": None,
    }
    return Snapshot(**{**defaults, **fields})


def elsewhere(s: Snapshot) -> Snapshot:
    """The same with sites that are not on this machine."""
    runs = []
    for run in s.site_runs:
        far = replace(run.site, connector="airflow")
        runs.append(
            replace(run, participant=replace(run.participant, site=far), current=replace(run.attempt, site=far))
        )
    return replace(s, site_runs=tuple(runs))


def texts(changes: Changes) -> str:
    return "\n".join(line.text for line in changes.lines)


def moves(changes: Changes) -> dict[int, SiteRunState]:
    """The state that each changed site run (by id) ends in."""
    return {change.site_run: change.through[-1] for change in changes.site_runs if change.through}


RUN = {slug: 100 + number for slug, number in IDS.items()}


def at_work(federation: Federation, *slugs: str, **fields) -> Snapshot:
    """A round whose sites have been started and work."""
    waiting = tuple(site_run(slug, upload={}) for slug in slugs)
    first = snapshot(RoundState.PUBLISHING, site_runs=waiting, incoming=model(federation))
    changes = publish(first, federation.tools).changes
    uploads = [change.fields["upload"] for change in changes.attempts]
    ready = tuple(site_run(slug, upload=upload) for slug, upload in zip(slugs, uploads, strict=True))
    dispatch(snapshot(RoundState.DISPATCHING, site_runs=ready, incoming=first.incoming), federation.tools)
    state = fields.pop("run_state", SiteRunState.RUNNING)
    runs = tuple(site_run(slug, state, upload=upload) for slug, upload in zip(slugs, uploads, strict=True))
    fields.setdefault("deadline_at", START + timedelta(hours=1))
    return snapshot(site_runs=runs, incoming=first.incoming, **fields)


def later(s: Snapshot, seconds: float) -> Snapshot:
    return replace(s, now=s.now + timedelta(seconds=seconds))


def looked(s: Snapshot, federation: Federation, seconds: float) -> tuple[Snapshot, Outcome]:
    """Look so many seconds later; return the snapshot with what was written down of the first site, and the outcome."""
    federation.clock.tick(seconds)
    s = later(s, seconds)
    outcome = watch(s, federation.tools)
    run = s.site_runs[0]
    for change in outcome.changes.site_runs:
        if change.site_run == run.id and "reason" in change.fields:
            run = replace(run, reason=str(change.fields["reason"]))
    for change in outcome.changes.attempts:
        if change.attempt == run.attempt.id:
            known = {name: value for name, value in change.fields.items() if name in ("state", "heard_at", "ended_at")}
            run = replace(run, current=replace(run.attempt, **known))
    return replace(s, site_runs=(run, *s.site_runs[1:])), outcome
