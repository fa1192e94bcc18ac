"""The step that lasts: hear how the sites get on, take what they deliver, start again what failed, mind the deadline."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from fedportal.connectors.base import RunState, RunStatus
from fedportal.connectors.errors import SiteError, StoreUnreachable
from fedportal.experiments.states import NOT_DELIVERED, SITE_RUN_OVER, RoundState, SiteRunState
from fedportal.orchestrator import sitework
from fedportal.orchestrator.outcomes import (
    Advance,
    AttemptChange,
    Changes,
    Measured,
    MeasuredCases,
    NewAttempt,
    Outcome,
    SiteRunChange,
    Wait,
)
from fedportal.orchestrator.sitework import Answer, Delivery, Tools
from fedportal.orchestrator.snapshot import AttemptView, SiteRunView, Snapshot
from fedportal.orchestrator.steps.arrivals import LOOK_PATIENCE, Arrivals
from fedportal.orchestrator.steps.logs import MAX_LOG, start_log
from fedportal.orchestrator.steps.starting import (
    SILENT_AFTER,
    launch_what_is_due,
    not_reached,
    poll_pace,
    tidy,
    trouble,
)
from fedportal.orchestrator.steps.strays import cancel_strays
from fedportal.orchestrator.words import duration, sentence, sites
from trainer.contract import EXPLANATIONS, PERMANENT, Exit

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(seconds=30)
SOON = timedelta(seconds=0.1)
NO_NEWS = timedelta(seconds=1)
"""So long the answers of sites wait that say nothing new."""
STORE_LOOK = timedelta(seconds=2)
"""How often we look for manifests of our own accord: a site may reach the store and not the portal, to say that it has
finished, and what it is asked comes at longer intervals."""
SIGN_OF_LIFE = timedelta(seconds=10)
LOST_FOR = timedelta(seconds=10)
"""So long a run that its site does not know is asked for again before it is believed to be lost: an answer from a copy
of the database that is behind, or from a service that has just started, must not cost a training that goes on."""
ASK_FOR_LOST = 5.0
WAITS_LONG = timedelta(seconds=20)
"""A run that has not begun after this time is said to wait, and for what."""
NOT_KNOWN = "The site no longer knows the run."
STORE_SILENT = "The object store does not answer. Trying again."


def watch(s: Snapshot, tools: Tools) -> Outcome:
    """TRAINING or EVALUATING: until every site run is over."""
    return _Watch(s, tools).look()


class _Watch:
    """One look at all sites of a round. ``after`` has each site run's state as it will be."""

    def __init__(self, s: Snapshot, tools: Tools) -> None:
        self.s, self.round, self.tools = s, s.round, tools
        self.changes = Changes()
        self.after = {run.id: run.state for run in s.site_runs}
        self.at_once = False
        self.store_is_silent = False
        self.arrivals = Arrivals(s, tools)

    def look(self) -> Outcome:
        at_sites = [run for run in self.s.site_runs if run.is_at_site and run.current is not None]
        asked = self._start_asking(at_sites)
        keys = [*self._start_fetching(self.arrivals.look(at_sites)), *asked]
        self.tools.errands.wait(keys, LOOK_PATIENCE)
        for run in at_sites:
            self._take_delivery(run)
        for run in at_sites:
            self._take_answer(run)
        pending = [run for run in self.s.site_runs if run.state is SiteRunState.PENDING]
        for failed in launch_what_is_due(self.s, pending, self.tools, self.changes):
            self.after[failed] = SiteRunState.FAILED
        cancel_strays(self.s, self.tools, self.changes)
        tidy(self.s, self.tools)
        self._mind_the_time()
        return self._outcome()

    # --- errands ----------------------------------------------------------------------------------

    def _start_fetching(self, runs: list[SiteRunView]) -> list[Hashable]:
        keys: list[Hashable] = []
        for run in runs:
            attempt = run.attempt
            key = ("look", attempt.run)
            if self.tools.errands.start(
                key, partial(sitework.fetch_delivery, self.s, attempt, self.tools), is_large=True
            ):
                keys.append(key)
        return keys

    def _start_asking(self, runs: list[SiteRunView]) -> list[Hashable]:
        keys: list[Hashable] = []
        for run in runs:
            attempt = run.attempt
            key = ("poll", attempt.run)
            if self.tools.pace.is_due(key) and self.tools.errands.start(
                key, partial(sitework.ask, self.s, attempt, self.tools), is_news=partial(says_something_new, attempt)
            ):
                keys.append(key)
            if attempt.log_offset < MAX_LOG and self.tools.pace.is_due(("logs", attempt.run)):
                start_log(self.s, attempt, attempt.log_offset, self.tools)
        return keys

    # --- deliveries -------------------------------------------------------------------------------

    def _take_delivery(self, run: SiteRunView) -> None:
        errand = self.tools.errands.take(("look", run.attempt.run))
        if errand is None:
            return
        if isinstance(errand.error, StoreUnreachable):
            self.store_is_silent = True
        elif errand.error is not None:
            raise errand.error
        elif errand.value is not None:
            self.changes.part = "collect"
            self._delivered(run, errand.value)

    def _delivered(self, run: SiteRunView, delivery: Delivery) -> None:
        s, site, manifest, attempt = self.s, run.site, delivery.manifest, run.attempt
        if manifest is not None:
            self.changes.measured.append(Measured(run.id, attempt.number, manifest.metrics))
        if manifest is not None and manifest.exit_code != 0:
            self._attempt_failed(run, manifest.exit_code, manifest.message)
            return
        if delivery.damaged:
            self._attempt_failed(run, None, delivery.damaged)
            return
        ended = {"ended_at": s.now, "heard_at": s.now, "state": RunState.SUCCEEDED.value, "exit_code": 0}
        self._ended(run, ended)
        fields: dict[str, Any] = {}
        if manifest is not None:
            fields = {
                "train_cases": manifest.train_cases,
                "validation_cases": manifest.validation_cases,
                "steps": manifest.steps,
                "seconds": dict(manifest.seconds),
                "held_out": list(manifest.held_out),
                "update_sha256": manifest.update.sha256 if manifest.update else "",
                "update_size": manifest.update.size if manifest.update else 0,
                "update_norm": delivery.admission.norm if delivery.admission else None,
            }
        if delivery.refused:
            refused = sentence(delivery.refused)
            self._becomes(run, SiteRunState.UPLOADED, SiteRunState.REJECTED, because=refused, **fields)
            text = f"The update of {site.name} was rejected: {refused}"
            self.changes.say("rejected", text, level="bad", site=site.slug)
            return
        self._becomes(run, SiteRunState.UPLOADED, SiteRunState.ADMITTED, **fields)
        if manifest is not None and manifest.cases:
            # a case that is held out since, the models may have been trained on
            tested = frozenset(s.tested)
            scores = tuple(score for score in manifest.cases if not tested or score.case in tested)
            if len(scores) < len(manifest.cases):
                text = f"Some cases of {site.name} were not held out when the models were trained: their scores are left aside."
                self.changes.say("left_aside", text, level="warn", site=site.slug)
            self.changes.cases.append(MeasuredCases(site.slug, scores))
        if manifest is not None and manifest.copies:
            text = f"Among the training cases of {site.name} are copies of cases that the model is tested on."
            self.changes.say("copies", text, level="warn", site=site.slug)
        took = (s.now - (attempt.launched_at or s.now)).total_seconds()
        done = "measured the model" if self.round.is_evaluation else "delivered its update"
        self.changes.say(
            "admitted",
            f"{site.name} {done} after {duration(took)}.",
            level="good",
            site=site.slug,
            seconds=round(took, 3),
        )

    # --- answers ----------------------------------------------------------------------------------

    def _take_answer(self, run: SiteRunView) -> None:
        attempt = run.attempt
        key = ("poll", attempt.run)
        errand = self.tools.errands.take(key)
        if errand is None or self.after[run.id] is not run.state:
            return
        if isinstance(errand.error, StoreUnreachable):
            self.store_is_silent = True
        elif errand.error is not None:
            if not isinstance(errand.error, SiteError):
                # A bug in one site's connector must not end the experiment of the others.
                logger.error("asking about %s failed", attempt.run, exc_info=errand.error)
            if not_reached(errand.error, key, self.tools) >= SILENT_AFTER:
                trouble(run, str(errand.error), self.changes)
        else:
            self._answered(run, attempt, errand.value)

    def _answered(self, run: SiteRunView, attempt: AttemptView, answer: Answer) -> None:
        status = answer.status
        self.tools.pace.heard(("poll", attempt.run), first=poll_pace(run.site)[0], longest=poll_pace(run.site)[1])
        if answer.has_delivered:
            self.at_once = True
        elif status.state is RunState.LOST and self._may_be_found(attempt):
            self._not_found(run, attempt, status)
        elif status.state.is_over:
            silent = NOT_KNOWN if status.state is RunState.LOST else "The run ended without a result."
            message = status.message or silent
            self._attempt_failed(run, status.exit_code, message, state=status.state)
        else:
            self._take_reason(run, attempt, status)
            if status.state is RunState.RUNNING and run.state is SiteRunState.DISPATCHED:
                self._becomes(run, SiteRunState.RUNNING)
            if attempt.state != status.state or self.s.now - (attempt.heard_at or self.s.now) > SIGN_OF_LIFE:
                self._heard(attempt, status)

    def _may_be_found(self, attempt: AttemptView) -> bool:
        if attempt.site.connector in sitework.AT_HAND:  # it asks its own processes
            return False
        return attempt.state != RunState.LOST or self.s.now - (attempt.heard_at or self.s.now) < LOST_FOR

    def _not_found(self, run: SiteRunView, attempt: AttemptView, status: RunStatus) -> None:
        """Ask for the run again soon. What it measures and sends meanwhile is a sign of life."""
        self.tools.pace.put_off(("poll", attempt.run), ASK_FOR_LOST)
        if attempt.state != status.state:
            self._heard(attempt, status)
        self._show(run, f"{sentence(status.message or NOT_KNOWN)} The portal asks once more.")

    def _heard(self, attempt: AttemptView, status: RunStatus) -> None:
        fields = {"state": status.state.value, "heard_at": self.s.now}
        self.changes.attempts.append(AttemptChange(attempt.id, fields))

    def _take_reason(self, run: SiteRunView, attempt: AttemptView, status: RunStatus) -> None:
        """Show why a run has not begun (a steward must confirm it, a DAG is paused) once that has lasted a while."""
        waited = self.s.now - (attempt.launched_at or self.s.now)
        is_stuck = status.state is RunState.WAITING and status.message and waited > WAITS_LONG
        self._show(run, sentence(status.message) if is_stuck else "")

    def _show(self, run: SiteRunView, reason: str) -> None:
        if reason == run.reason:
            return
        self.changes.site_runs.append(SiteRunChange(run.id, fields={"reason": reason}))
        if reason:
            self.changes.say("waiting", f"{run.site.name}: {reason}", level="warn", site=run.site.slug)
        else:
            self.changes.say("reached", f"{run.site.name} goes on.", site=run.site.slug)

    def _attempt_failed(
        self, run: SiteRunView, exit_code: int | None, message: str, *, state: RunState = RunState.FAILED
    ) -> None:
        """End an attempt; begin the next one, or fail the site run when another would not help."""
        s, site = self.s, run.site
        known = exit_code in {int(code) for code in Exit}
        reason = sentence(message or (EXPLANATIONS[Exit(exit_code)] if known and exit_code is not None else ""))
        self._ended(run, {"ended_at": s.now, "state": state.value, "exit_code": exit_code, "message": reason})
        is_permanent = exit_code in {int(code) for code in PERMANENT}
        if is_permanent or run.tries >= s.max_attempts:
            why = (
                "Another attempt would fail in the same way."
                if is_permanent
                else f"That was attempt {run.tries} of {s.max_attempts}."
            )
            self._becomes(run, SiteRunState.FAILED, because=reason)
            self.changes.say("site_failed", f"{site.name} failed: {reason} {why}", level="bad", site=site.slug)
            return
        pause = min(300.0, 4.0 ** (run.tries - 1))
        number = run.number + 1
        self._becomes(run, SiteRunState.PENDING, because=reason, not_before=s.now + timedelta(seconds=pause))
        self.changes.new_attempts.append(NewAttempt(run.id, number, s.run_name(site, number)))
        text = f"{site.name} tries again in {duration(pause)}: {reason} (attempt {run.tries + 1} of {s.max_attempts})"
        self.changes.say("retrying", text, level="warn", site=site.slug)

    # --- time -------------------------------------------------------------------------------------

    def _mind_the_time(self) -> None:
        live = [run for run in self.s.site_runs if not self._is_over(run) and not self._is_being_fetched(run)]
        if not live:
            return
        now, deadline = self.s.now, self.round.deadline_at
        quorum_at = self._quorum_at()
        failed = [run for run in self.s.site_runs if self.after[run.id] in NOT_DELIVERED]
        if deadline is not None and now >= deadline:
            self._give_up(live, f"It did not deliver within {duration(self.s.deadline.total_seconds())}.")
        elif self.s.stragglers == "drop" and quorum_at is not None and now >= quorum_at + self.s.grace:
            self._give_up(live, "It was late; the others had enough updates and went on without it.")
        elif self.s.stragglers == "fail" and failed and not self.round.is_evaluation:
            self._give_up(live, f"It was stopped, because {failed[0].site.name} failed.")

    def _quorum_at(self) -> datetime | None:
        admitted = sum(state is SiteRunState.ADMITTED for state in self.after.values())
        if self.round.quorum_at is None and admitted >= self.s.min_sites:
            self.changes.round_fields["quorum_at"] = self.s.now
            return self.s.now
        return self.round.quorum_at

    def _give_up(self, runs: list[SiteRunView], because: str) -> None:
        for run in runs:
            self._becomes(run, SiteRunState.TIMED_OUT, because=because)
            self.changes.say("timed_out", f"{run.site.name}: {because}", level="warn", site=run.site.slug)

    # --- outcome ----------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        if all(self._is_over(run) for run in self.s.site_runs):
            complete = all(state is SiteRunState.ADMITTED for state in self.after.values())
            # With every update there is nothing to weigh; one transaction less is in every round's way.
            straight = complete and not self.round.is_evaluation and len(self.after) >= self.s.min_sites
            through = (RoundState.COLLECTING, RoundState.AGGREGATING) if straight else (RoundState.COLLECTING,)
            self.changes.round_through = through
            return Advance(self.changes)
        if self.changes.new_attempts or any("upload" in change.fields for change in self.changes.attempts):
            return Advance(self.changes)
        return Wait(self._next_look(), self.changes, self._reason())

    def _reason(self) -> str:
        if self.store_is_silent or self.arrivals.store_is_silent:
            return STORE_SILENT
        possible = sum(state not in NOT_DELIVERED for state in self.after.values())
        if possible < self.s.min_sites and not self.round.is_evaluation:
            missing = [run.site.name for run in self.s.site_runs if self.after[run.id] in NOT_DELIVERED]
            return (
                f"{self.round.title} needs updates from {sites(self.s.min_sites)}, but only {possible} can still deliver. "
                f"Let {' or '.join(missing)} try again, or the round fails when the others have delivered."
            )
        return ""

    def _next_look(self) -> datetime:
        s, tools = self.s, self.tools
        if self.at_once:
            return s.now
        limits = [self.round.deadline_at]
        if s.stragglers == "drop" and self.round.quorum_at is not None:
            limits.append(self.round.quorum_at + s.grace)
        times = [s.now + LONGEST_WAIT, *(limit for limit in limits if limit is not None and limit > s.now)]
        for run in s.site_runs:
            if self._is_over(run) or run.current is None:
                continue
            name = run.attempt.run
            if any(tools.errands.is_under_way((verb, name)) for verb in ("look", "publish", "launch")):
                times.append(s.now + SOON)
            elif self.after[run.id] is SiteRunState.PENDING:
                launch_in = timedelta(seconds=max(0.0, tools.pace.remaining(("launch", name))))
                times.append(max(run.not_before or s.now, s.now + launch_in))
            elif tools.errands.is_under_way(("poll", name)):
                times.append(s.now + NO_NEWS)  # an answer that says something new wakes us
            else:
                pause = timedelta(seconds=max(0.1, self.arrivals.pause, tools.pace.remaining(("poll", name))))
                times.append(s.now + (pause if run.site.connector in sitework.AT_HAND else min(pause, STORE_LOOK)))
        if self.arrivals.again_in is not None:
            times.append(s.now + timedelta(seconds=self.arrivals.again_in))
        for stray in s.strays:
            times.append(s.now + timedelta(seconds=max(0.5, tools.pace.remaining(("cancel", stray.run)))))
        return max(min(times), s.now)

    # --- small things -----------------------------------------------------------------------------

    def _is_over(self, run: SiteRunView) -> bool:
        return self.after[run.id] in SITE_RUN_OVER

    def _is_being_fetched(self, run: SiteRunView) -> bool:
        """Whether its delivery may be on the way to us: then it is not late, we are."""
        return run.current is not None and any(
            self.tools.errands.is_under_way(key) for key in (("look", run.attempt.run), self.arrivals.key)
        )

    def _becomes(self, run: SiteRunView, *through: SiteRunState, because: str = "", **fields: Any) -> None:
        self.after[run.id] = through[-1]
        self.changes.site_runs.append(SiteRunChange(run.id, through, because, fields))

    def _ended(self, run: SiteRunView, fields: dict[str, object]) -> None:
        attempt = run.attempt
        self.changes.attempts.append(AttemptChange(attempt.id, fields))
        self.tools.pace.forget(*((verb, attempt.run) for verb in ("poll", "logs", "manifest")))
        if attempt.log_offset < MAX_LOG:
            start_log(self.s, attempt, attempt.log_offset, self.tools, has_ended=True)


def says_something_new(attempt: AttemptView, answer: Answer) -> bool:
    """Say whether an answer is worth a step of its own; others wait for the next."""
    return answer.has_delivered or answer.status.state != attempt.state
