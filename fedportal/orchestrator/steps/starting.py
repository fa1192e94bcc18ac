"""Starting site runs: used when a round begins, and again for every further attempt."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from functools import partial

from fedportal.connectors.errors import SiteRefused, SiteResting, SiteUnreachable, StoreError
from fedportal.experiments.states import SiteRunState
from fedportal.orchestrator import sitework, spool
from fedportal.orchestrator.outcomes import AttemptChange, Changes, NewAttempt, SiteRunChange
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import AttemptView, SiteRunView, SiteView, Snapshot
from fedportal.orchestrator.words import sentence

logger = logging.getLogger(__name__)

PATIENCE = 0.5
"""Seconds that a step waits for its quick errands; what comes later is taken by a later step."""
MISBEHAVED_TOO_OFTEN = 5
SILENT_AFTER = 3
"""Unanswered questions in a row before people are told."""

POLL = {"local": (0.5, 1.0), "kaapana-pull": (1.0, 2.0)}  # the latter reads the portal's own rows
POLL_REMOTE = (2.0, 15.0)
LOGS = {"local": (1.0, 5.0)}
LOGS_REMOTE = (5.0, 30.0)


def poll_pace(site: SiteView) -> tuple[float, float]:
    """Seconds between two questions: at first, and at the longest."""
    return POLL.get(site.connector, POLL_REMOTE)


def logs_pace(site: SiteView) -> tuple[float, float]:
    return LOGS.get(site.connector, LOGS_REMOTE)


def launch_what_is_due(s: Snapshot, pending: Sequence[SiteRunView], tools: Tools, changes: Changes) -> set[int]:
    """Bring PENDING site runs on their way: a further attempt, its job, its start. Returns the ids that failed for good."""
    started = []
    for run in pending:
        attempt = run.current
        if attempt is None or not attempt.is_fresh:
            # asked for by a person: the next attempt is written down before anything of it exists
            changes.new_attempts.append(NewAttempt(run.id, run.number + 1, s.run_name(run.site, run.number + 1)))
            continue
        if run.not_before is not None and run.not_before > s.now:
            continue
        if not attempt.upload:
            key = start_publishing(s, attempt, run.participant.dataset, tools)
        else:
            key = ("launch", attempt.run)
            if not tools.pace.is_due(key) or tools.errands.is_under_way(key):
                continue
            before = [stray for stray in s.strays if stray.site.id == run.site.id]
            tools.errands.start(key, partial(sitework.launch, s, attempt, before, tools))
        started.append(key)
    tools.errands.wait(started, PATIENCE)
    failed = set()
    for run in pending:
        if run.current is None or not run.attempt.is_fresh:
            continue
        _take_published(run, tools, changes)
        if _take_launched(s, run, tools, changes):
            failed.add(run.id)
    return failed


def start_publishing(s: Snapshot, attempt: AttemptView, dataset: str, tools: Tools) -> tuple[str, str]:
    """Put the job of an attempt into the store, beside the step; return the errand's key."""
    key = ("publish", attempt.run)
    tools.errands.start(key, partial(sitework.publish, s, attempt, dataset, tools))
    return key


def tidy(s: Snapshot, tools: Tools) -> None:
    """Clear up after the rounds before, once, while the sites work anyway. What a crash leaves goes at the end."""
    key = ("tidy", f"{s.key}-{s.round.number}")
    if s.round.number > 1 and tools.pace.is_due(key):
        tools.pace.heard(key, first=math.inf, longest=math.inf)
        tools.errands.start(key, partial(_tidy, s, tools), is_news=False)


def _tidy(s: Snapshot, tools: Tools) -> None:
    try:
        spool.tidy_before(s, tools)
    except (StoreError, OSError) as error:  # nobody takes this errand
        logger.warning("leftovers of %s before round %d stay until its end: %s", s.key, s.round.number, error)


def _take_published(run: SiteRunView, tools: Tools, changes: Changes) -> None:
    errand = tools.errands.take(("publish", run.attempt.run))
    if errand is None:
        return
    if errand.error is not None:
        raise errand.error
    changes.attempts.append(AttemptChange(run.attempt.id, {"upload": errand.value}))


def _take_launched(s: Snapshot, run: SiteRunView, tools: Tools, changes: Changes) -> bool:
    """Book the result of a launch; say whether it failed for good."""
    key = ("launch", run.attempt.run)
    errand = tools.errands.take(key)
    if errand is None:
        return False
    site, error = run.site, errand.error
    if error is None:
        tools.pace.forget(key)
        tools.pace.heard(("poll", run.attempt.run), first=poll_pace(site)[0], longest=poll_pace(site)[1])
        if site.connector not in LOGS:  # there is none yet, and the site is busy with the start
            tools.pace.heard(("logs", run.attempt.run), first=LOGS_REMOTE[0], longest=LOGS_REMOTE[1])
        changes.site_runs.append(SiteRunChange(run.id, (SiteRunState.DISPATCHED,)))
        changes.attempts.append(AttemptChange(run.attempt.id, {"launched_at": s.now, "heard_at": s.now}))
        for stray in s.strays:
            if stray.site.id == site.id:
                changes.attempts.append(AttemptChange(stray.id, {"ended_at": s.now, "state": "cancelled"}))
        if run.reason:
            changes.say("reached", f"{site.name} has been reached and started.", site=site.slug)
        return False
    misses = not_reached(error, key, tools)
    if isinstance(error, SiteUnreachable) or (not isinstance(error, SiteRefused) and misses < MISBEHAVED_TOO_OFTEN):
        trouble(run, f"It cannot be started yet: {error}", changes)
        return False
    remedy = getattr(error, "remedy", "")
    reason = f"{sentence(str(error))} {remedy}".strip()
    changes.site_runs.append(SiteRunChange(run.id, (SiteRunState.FAILED,), reason))
    changes.attempts.append(AttemptChange(run.attempt.id, {"ended_at": s.now, "state": "failed", "message": reason}))
    changes.say("site_failed", f"{site.name} could not be started: {reason}", level="bad", site=site.slug)
    return True


def not_reached(error: Exception, key: Hashable, tools: Tools) -> int:
    """Say when to try again what failed; return how often it has failed in a row, or the site has."""
    if isinstance(error, SiteResting):
        tools.pace.put_off(key, error.seconds)
        return SILENT_AFTER
    return tools.pace.missed(key)


def trouble(run: SiteRunView, reason: str, changes: Changes) -> None:
    """Show a passing trouble at the site run, and tell it once."""
    reason = sentence(reason)
    if run.reason != reason:
        changes.site_runs.append(SiteRunChange(run.id, fields={"reason": reason}))
    if not run.reason:
        changes.say("trouble", f"{run.site.name}: {reason} Trying again.", level="warn", site=run.site.slug)
