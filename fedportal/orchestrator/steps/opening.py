"""Steps that begin a round: choose sites, publish model and jobs, start the sites."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from fedportal.aggregation.strategies import STRATEGIES
from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator import sitework, spool
from fedportal.orchestrator.outcomes import (
    Advance,
    AttemptChange,
    Changes,
    Fail,
    NewAttempt,
    NewModel,
    NewSiteRun,
    Outcome,
    SiteRunChange,
    Wait,
)
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import AttemptView, Participant, SiteRunView, Snapshot
from fedportal.orchestrator.steps.starting import PATIENCE, launch_what_is_due, start_publishing, tidy
from fedportal.orchestrator.words import listed, of, sites, trainer_said
from fedportal.ui.templatetags.ui import bytes_
from trainer.contract import Stored, canonical_json, global_model_key

logger = logging.getLogger(__name__)

INIT_TIMEOUT = 180.0
CHECK_PATIENCE = 20.0
FIRST_LOOK = timedelta(seconds=0.3)
QUORUM_PAUSE = timedelta(seconds=15)
FAMILY_PAUSE = timedelta(seconds=60)
"""Whoever ends wakes those who wait for it; this is for when it could not."""


def begin(s: Snapshot, _tools: Tools) -> Outcome:
    """Give a running experiment without a round its first one."""
    return Advance(Changes(new_round=(1, "evaluate" if s.kind == "cross_site" else "train")))


def open_round(s: Snapshot, tools: Tools) -> Outcome:
    """PENDING: choose the sites that take part; wait while they are too few, and for others of the family."""
    if s.waits_for:
        return Wait(s.now + FAMILY_PAUSE, reason=f"Waits until “{s.waits_for}” has ended.", is_parked=True)
    changes = Changes(part="open")
    if s.kind == "cross_site" and s.incoming is None:
        return Advance(Changes(part="open", gathers_subjects=True))
    if s.beside is not None and s.beside.silent:
        return Fail(_silent(s.beside.silent), changes)
    problems = {p.id: p.problem for p in s.candidates} | _asked(s, tools)
    usable = [p for p in s.candidates if not problems[p.id]]
    existing = {run.participant.id: run for run in s.site_runs}
    delivered = {id for id, run in existing.items() if run.state is SiteRunState.ADMITTED}
    quorum = 1 if s.round.is_evaluation else s.min_sites
    if len({p.id for p in usable} | delivered) < quorum:
        return _too_few(s, usable, problems, quorum, changes)
    for participant in s.candidates:
        if participant.id not in delivered:
            _take_in(s, participant, problems[participant.id], existing.get(participant.id), changes)
    changes.round_through = (RoundState.PUBLISHING,)
    changes.round_fields = {"started_at": s.round.started_at}
    changes.begins = s.round.number == 1 and not s.site_runs
    if s.incoming is not None and _published_early(s, tools, changes):
        changes.round_through = (RoundState.PUBLISHING, RoundState.DISPATCHING)
    return Advance(changes)


def _silent(names: Sequence[str]) -> str:
    return (
        f"{listed(names)} did not say which cases the run beside was tested on: a baseline could train on them, and the "
        "comparison would be worth nothing."
    )


def _published_early(s: Snapshot, tools: Tools, changes: Changes) -> bool:
    """Put the jobs of the attempts that are about to be written, since the model is there: one transaction less in
    every round's way. Say whether all of them are published; :func:`publish` does what is left."""
    if any(run.state is SiteRunState.PENDING for run in s.site_runs):
        return False  # taken up again: some attempts have been there before
    sites_of = {participant.id: participant for participant in s.participants}
    owners = {run.id: run.participant for run in s.site_runs}
    first = [(new.run, 1, sites_of[new.participation]) for new in changes.new_site_runs if new.run]
    further = [(new.run, new.number, owners[new.site_run]) for new in changes.new_attempts]
    keys = [
        start_publishing(s, AttemptView(0, number, run, s.round.number, participant.site), participant.dataset, tools)
        for run, number, participant in (*first, *further)
    ]
    tools.errands.wait(keys, PATIENCE)
    uploads = {}
    for _, run in keys:
        errand = tools.errands.take(("publish", run))
        if errand is not None and errand.error is None:
            uploads[run] = errand.value
    changes.new_site_runs = [replace(new, upload=uploads.get(new.run, {})) for new in changes.new_site_runs]
    changes.new_attempts = [replace(new, upload=uploads.get(new.run, {})) for new in changes.new_attempts]
    return len(uploads) == len(keys)


def _asked(s: Snapshot, tools: Tools) -> dict[int, str]:
    """Ask the sites that no recent check speaks for; return the problem of each that has one."""
    asked = [p for p in s.candidates if not p.problem and not p.is_checked]
    for p in asked:
        tools.errands.start(("check", p.site.id), partial(sitework.check, p.site, tools))
    tools.errands.wait([("check", p.site.id) for p in asked], CHECK_PATIENCE)
    problems = {}
    for p in asked:
        errand = tools.errands.take(("check", p.site.id))
        if errand is None:
            problems[p.id] = f"It did not answer within {CHECK_PATIENCE:.0f} seconds."
        elif errand.error is not None:
            problems[p.id] = str(errand.error)
        elif not errand.value.ok:
            problems[p.id] = next(step.message for step in errand.value.steps if not step.ok)
    return problems


def _too_few(
    s: Snapshot, usable: list[Participant], problems: dict[int, str], quorum: int, changes: Changes
) -> Outcome:
    failing = [p for p in s.candidates if problems[p.id]]
    reason = (
        f"{s.round.title} waits for sites: {len(usable)} of {len(s.candidates)} can take part, {quorum} are needed. "
        + " ".join(f"{p.site.name}: {problems[p.id]}" for p in failing)
    ).strip()
    if s.now >= s.round.started_at + s.deadline:
        return Fail(reason, changes)
    # ask for a new look at them, so that the round begins soon after they are well
    changes.checks = [p.site.id for p in failing]
    return Wait(min(s.now + QUORUM_PAUSE, s.round.started_at + s.deadline), changes, reason)


def _take_in(s: Snapshot, participant: Participant, problem: str, run: SiteRunView | None, changes: Changes) -> None:
    site = participant.site
    if problem:
        changes.say(
            "skipped", f"{site.name} is left out of {s.round.title.lower()}: {problem}", level="warn", site=site.slug
        )
    if run is None:
        name = "" if problem else s.run_name(site, 1)
        changes.new_site_runs.append(NewSiteRun(participant.id, name, problem))
        return
    # A round that is taken up again. Whoever asked for that has made the site run PENDING, or left it as it was.
    to = SiteRunState.SKIPPED if problem else SiteRunState.PENDING
    if run.state is not to:
        via = (SiteRunState.PENDING,) if to is SiteRunState.SKIPPED and run.state is not SiteRunState.PENDING else ()
        changes.site_runs.append(SiteRunChange(run.id, (*via, to), problem, {"not_before": None}))
    if not problem and (run.current is None or not run.attempt.is_fresh):
        changes.new_attempts.append(NewAttempt(run.id, run.number + 1, s.run_name(site, run.number + 1)))


def publish(s: Snapshot, tools: Tools) -> Outcome:
    """PUBLISHING: have the model in the store, and a signed job for every site that takes part."""
    changes = Changes(part="publish")
    method = STRATEGIES.get(s.strategy)
    if method is not None and method.uses_server_state and s.plan.optimizer.treatment == "aggregate":
        # Both would want to be the state that goes with the model from round to round.
        return Fail(f"{method.title} keeps a state of its own: let the optimizer's start fresh or stay at the site.")
    if s.incoming is None:
        if s.round.number != 1:
            return Fail(f"The global model of round {s.round.number - 1} is missing.", changes)
        return _publish_initial_model(s, tools, changes)
    waiting = [run for run in s.site_runs if run.state is SiteRunState.PENDING and run.current is not None]
    fresh = [run for run in waiting if run.current is not None and not run.attempt.upload]
    keys = [start_publishing(s, run.attempt, run.participant.dataset, tools) for run in fresh]
    tools.errands.wait(keys, 60.0)
    for run, key in zip(fresh, keys, strict=True):
        errand = tools.errands.take(key)
        if errand is None:
            raise TimeoutError(f"the job of {run.attempt.run} could not be put within 60 seconds")
        if errand.error is not None:
            raise errand.error
        changes.attempts.append(AttemptChange(run.attempt.id, {"upload": errand.value}))
    changes.round_through = (RoundState.DISPATCHING,)
    return Advance(changes)


def _publish_initial_model(s: Snapshot, tools: Tools, changes: Changes) -> Outcome:
    folder = spool.folder_of(s, 0, tools)
    folder.mkdir(parents=True, exist_ok=True)
    path = spool.global_in_spool(s, 0, tools)
    if s.start is not None:
        # a copy of its own: the experiment does not depend on what becomes of the other one
        spool.fetch(s.start.key, path, Stored(s.start.sha256, s.start.size), tools)
        said = f"The experiment starts from {s.start.title}"
    else:
        plan = folder / "plan.json"
        plan.write_bytes(canonical_json(s.plan.to_json()))
        exit_code, output = tools.trainer(["init", "--plan", str(plan), "--out", str(path)], INIT_TIMEOUT)
        if exit_code != 0:
            logger.warning("initial model of %s, exit code %d: %s", s.key, exit_code, output)
            return Fail(f"The initial model could not be made: {trainer_said(exit_code, output)}", changes)
        said = "The initial model was made"
    key = global_model_key(s.key, 0)
    sha256 = tools.store.put_file(key, path)
    spool.trust(path, sha256, tools)
    changes.model = NewModel(0, key, sha256, path.stat().st_size)
    changes.say("initial_model", f"{said} ({bytes_(path.stat().st_size)}).", sha256=sha256)
    return Advance(changes)


def dispatch(s: Snapshot, tools: Tools) -> Outcome:
    """DISPATCHING: start the sites. Those that do not answer at once are started later, from the next state."""
    changes = Changes(part="dispatch")
    waiting = [run for run in s.site_runs if run.state is SiteRunState.PENDING]
    delivered = [run for run in s.site_runs if run.state is SiteRunState.ADMITTED]
    launch_what_is_due(s, waiting, tools, changes)
    changes.round_through = (RoundState.EVALUATING if s.round.is_evaluation else RoundState.TRAINING,)
    changes.round_fields = {"dispatched_at": s.now, "deadline_at": s.now + s.deadline}
    taking_part = len(waiting) + len(delivered)
    work = f"begins from the model of {of(s.round.number - 1)}"
    if s.round.is_evaluation:
        work = f"measures {1 + len(s.subjects)} models" if s.kind == "cross_site" else "measures the final model"
    names = listed([run.site.name for run in (*waiting, *delivered)])
    changes.say("round_started", f"{s.round.title} {work} at {sites(taking_part)}: {names}.")
    begun = sum(SiteRunState.DISPATCHED in change.through for change in changes.site_runs)
    tidy(s, tools)
    # Nobody can have delivered yet; the sites need the processor more than another look at them does.
    return Wait(s.now + FIRST_LOOK, changes) if begun == len(waiting) > 0 else Advance(changes)
