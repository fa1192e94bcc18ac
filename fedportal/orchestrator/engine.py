"""The engine: claim an experiment, do one step, settle it. Anybody may call :func:`advance`, any time, on any machine.

A claim is a row's ``claimed_by`` and ``lease_until``, taken by compare-and-set. Every claim and every settled step
raises the experiment's version, so a worker that was frozen and overtaken can write nothing any more.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import DatabaseError, close_old_connections, connection, transaction
from django.db.models import F
from django.utils import timezone

from fedportal.connectors.errors import StoreUnreachable
from fedportal.experiments import journal, lifecycle
from fedportal.experiments.lifecycle import StaleClaim
from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator import snapshot
from fedportal.orchestrator.outcomes import Advance, Fail, Outcome, Wait
from fedportal.orchestrator.settle import settle
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps import step_for, take_logs
from fedportal.orchestrator.steps.watching import STORE_SILENT

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=15)
"""A worker that dies is followed by another after this time at the latest."""
RENEW_EVERY = 5.0
STORE_PAUSE = timedelta(seconds=2)
MOST_STUMBLES = 5


@dataclass
class Claim:
    """The right to drive an experiment for a while. ``lost``: somebody else has taken over."""

    experiment: Experiment
    token: str
    lost: threading.Event = field(default_factory=threading.Event)
    mark: float = field(default_factory=time.monotonic)
    """When the time of the step at hand began."""

    def lap(self) -> float:
        """Return the seconds since the last lap: no time between two steps is lost."""
        now = time.monotonic()
        seconds, self.mark = now - self.mark, now
        return seconds


class Engine:
    """Drives experiments with ``tools``. ``worker`` names it in the rows; one instance serves all threads."""

    def __init__(self, tools: Tools, *, worker: str = "worker", clock: Callable[[], datetime] = timezone.now) -> None:
        self.tools = tools
        self.worker = worker
        self.clock = clock
        self._claims: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._closing = threading.Event()

    def advance(self, experiment_id: int) -> bool:
        """Do the next step of an experiment if it is due and free; say whether there was one."""
        return self.drive(experiment_id, steps=1) > 0

    def drive(self, experiment_id: int, *, steps: int = 1000) -> int:
        """Do steps without a pause until there is nothing to do at once; return how many were settled."""
        claim = self._claim(experiment_id)
        if claim is None:
            return 0
        done = 0
        try:
            while done < steps and not self._closing.is_set():
                outcome = self._step(claim)
                done += 1
                if not isinstance(outcome, Advance) or not self._goes_on(claim):
                    break
        except StaleClaim as stale:
            # Somebody paused it, cancelled it or took it over. What this step did is found done the next time.
            logger.info("%s", stale)
        finally:
            self._release(claim)
        return done

    def close(self) -> None:
        """Let the steps at hand be the last ones."""
        self._closing.set()

    # --- one step ---------------------------------------------------------------------------------

    def _step(self, claim: Claim) -> Outcome:
        experiment = claim.experiment
        wakes = experiment.wakes
        try:
            s = snapshot.take(experiment, self.clock())
            outcome = self._decide(s)
            take_logs(s, self.tools, outcome.changes)
            if claim.lost.is_set():
                raise StaleClaim(f"{experiment.key} was taken over")
            settle(experiment, s, outcome, now=self.clock(), wakes_seen=wakes, seconds=claim.lap())
        except (StaleClaim, DatabaseError):
            raise
        except Exception as error:  # the one place: whatever a step meets must not stop the engine
            outcome = self._stumbled(claim, error)
        return outcome

    def _decide(self, s: Snapshot) -> Outcome:
        try:
            return step_for(s)(s, self.tools)
        except StoreUnreachable as error:
            # An outage of hours is no reason to give up what was trained: wait without an end.
            logger.warning("%s: %s", s.key, error)
            return Wait(s.now + STORE_PAUSE, reason=STORE_SILENT)

    def _stumbled(self, claim: Claim, error: Exception) -> Outcome:
        """Book an unexpected error: wait and try again, longer each time; give up after five in a row."""
        experiment = claim.experiment
        logger.exception("%s stumbled", experiment.key, exc_info=error)
        stumbles = experiment.stumbles + 1
        what = f"{type(error).__name__}: {error}"[:300]
        claim.lap()
        with transaction.atomic():
            if stumbles >= MOST_STUMBLES and experiment.status is ExperimentState.RUNNING:
                reason = f"The portal stumbled {stumbles} times in a row. The last reason was {what}"
                lifecycle.fence(experiment, stumbles=0)
                self._fail_round(experiment, reason)
                journal.record(experiment, "failed", f"The experiment failed: {reason}", level="bad")
                lifecycle.move_experiment(experiment, ExperimentState.FAILED, because=reason)
                return Fail(reason)
            until = self.clock() + timedelta(seconds=min(60.0, 2.0**stumbles))
            lifecycle.fence(experiment, stumbles=stumbles, due_at=until, wakes_seen=experiment.wakes)
            text = f"The portal stumbled ({what}) and tries again."
            journal.record(experiment, "stumbled", text, level="warn")
        return Wait(until)

    def _fail_round(self, experiment: Experiment, reason: str) -> None:
        current = experiment.current_round
        if current is not None and current.status.may_become(RoundState.FAILED):
            lifecycle.move(current, RoundState.FAILED, because=reason, ended_at=self.clock())

    # --- claims -----------------------------------------------------------------------------------

    def _claim(self, experiment_id: int) -> Claim | None:
        mark = time.monotonic()
        now = self.clock()
        token = f"{self.worker}:{secrets.token_hex(4)}"
        taken = (
            Experiment.objects.due(now)
            .filter(pk=experiment_id)
            .update(claimed_by=token, lease_until=now + LEASE, version=F("version") + 1)
        )
        if not taken:
            return None
        claim = Claim(Experiment.objects.get(pk=experiment_id), token, mark=mark)
        if claim.experiment.claimed_by != token:
            return None
        with self._lock:
            self._claims[token] = claim
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_alive, name="lease keeper", daemon=True)
                self._keeper.start()
        return claim

    def _goes_on(self, claim: Claim) -> bool:
        """Reread the experiment between two steps; say whether this worker still has it and there is more to do."""
        mine = claim.experiment
        mine.refresh_from_db()
        if mine.claimed_by != claim.token:
            raise StaleClaim(f"{mine.key} was taken over")
        return mine.status in (ExperimentState.RUNNING, ExperimentState.CANCELLING)

    def _release(self, claim: Claim) -> None:
        with self._lock:
            self._claims.pop(claim.token, None)
        Experiment.objects.filter(pk=claim.experiment.pk, claimed_by=claim.token).update(
            claimed_by="", lease_until=None
        )

    def _keep_alive(self) -> None:
        """Renew the leases of long steps. A renewal that finds no row tells the step that it was overtaken."""
        while True:
            time.sleep(RENEW_EVERY)
            with self._lock:
                claims = list(self._claims.values())
                if not claims:
                    self._keeper = None
                    return
            with _own_connection():
                for claim in claims:
                    try:
                        held = Experiment.objects.filter(pk=claim.experiment.pk, claimed_by=claim.token).update(
                            lease_until=self.clock() + LEASE
                        )
                    except DatabaseError:
                        logger.exception("a lease could not be renewed")
                        continue
                    if not held and claim.token in self._claims:
                        claim.lost.set()

    def free_own_leases(self) -> int:
        """Free what a dead predecessor of the same name has claimed. Only the only bearer of the name may call it."""
        return Experiment.objects.filter(claimed_by__startswith=f"{self.worker}:").update(
            claimed_by="", lease_until=None
        )


@contextmanager
def _own_connection() -> Iterator[None]:
    close_old_connections()
    try:
        yield
    finally:
        connection.close()
