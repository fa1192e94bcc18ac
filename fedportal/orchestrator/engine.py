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
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.db import DatabaseError, InterfaceError, OperationalError, close_old_connections, connection, transaction
from django.db.models import F
from django.utils import timezone

from fedportal.connectors.errors import StoreUnreachable
from fedportal.experiments import families, journal, lifecycle
from fedportal.experiments.lifecycle import StaleClaim
from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator import reading, sitework
from fedportal.orchestrator.errands import doubled
from fedportal.orchestrator.outcomes import Changes, Fail, Outcome, Wait
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
NEWS_EVERY = 0.004
"""While lingering: pause between two looks for signs at sites that can be asked for nothing."""
WAKES_EVERY = 0.025
"""While lingering: pause between two looks for wake-ups; one query on a key, 0.2 ms."""


@dataclass
class Claim:
    """The right to drive an experiment for a while. ``lost``: somebody else has taken over."""

    experiment: Experiment
    token: str
    tools: Tools
    lost: threading.Event = field(default_factory=threading.Event)
    snapshot: Snapshot | None = None
    signs: set[str] = field(default_factory=set)
    due_at: datetime | None = None
    """Of a look that found nothing: when to look again. Written when the claim is given back."""
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

    def drive(self, experiment_id: int, *, steps: int = 1000, lingers: Callable[[], bool] = lambda: False) -> int:
        """Do steps until there is nothing to do at once; return how many were done.

        While ``lingers()`` holds, stay with an experiment that waits, so that news of its sites are heard at once.
        """
        claim = self._claim(experiment_id)
        if claim is None:
            return 0
        done = 0
        try:
            while done < steps and not self._closing.is_set():
                outcome = self._step(claim)
                done += 1
                if isinstance(outcome, Fail):
                    break
                if isinstance(outcome, Wait) and not self._linger(claim, outcome, lingers):
                    break
                if isinstance(outcome, Wait):
                    claim.lap()  # time that only passed is nobody's
                if not self._goes_on(claim):
                    break
        except StaleClaim as stale:
            # Somebody paused it, cancelled it or took it over. What this step did is found done the next time.
            logger.info("%s", stale.detail)
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
            s = claim.snapshot = reading.take(experiment, self.clock(), before=claim.snapshot)
            outcome = self._decide(s, claim.tools)
            take_logs(s, claim.tools, outcome.changes)
            if claim.lost.is_set():
                raise StaleClaim(f"{experiment.key} was taken over")
            claim.due_at = None
            if isinstance(outcome, Wait) and self._found_nothing(experiment, outcome):
                claim.due_at = outcome.until
            else:
                settle(experiment, s, outcome, now=self.clock(), wakes_seen=wakes, seconds=claim.lap())
        except (StaleClaim, OperationalError, InterfaceError):
            raise  # nothing was written, and the database may be back the next time
        except Exception as error:  # whatever a step meets must not stop the engine
            outcome = self._stumbled(claim, error)
        return outcome

    def _found_nothing(self, experiment: Experiment, outcome: Wait) -> bool:
        """Say whether a look changed nothing, so that nothing needs to be written."""
        return (
            outcome.changes == Changes()
            and outcome.reason == experiment.reason
            and experiment.wakes == experiment.wakes_seen
            and not experiment.stumbles
        )

    def _decide(self, s: Snapshot, tools: Tools) -> Outcome:
        try:
            return step_for(s)(s, tools)
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
                families.tell_ended(experiment)
                return Fail(reason)
            until = self.clock() + timedelta(seconds=doubled(stumbles, longest=60.0))
            lifecycle.fence(experiment, stumbles=stumbles, due_at=until, wakes_seen=experiment.wakes)
            text = f"The portal stumbled ({what}) and tries again."
            journal.record(experiment, "stumbled", text, level="warn")
        return Wait(until)

    def _fail_round(self, experiment: Experiment, reason: str) -> None:
        current = experiment.current_round
        if current is not None and current.status.may_become(RoundState.FAILED):
            lifecycle.move(current, RoundState.FAILED, because=reason, ended_at=self.clock())

    # --- waiting ----------------------------------------------------------------------------------

    def _linger(self, claim: Claim, outcome: Wait, lingers: Callable[[], bool]) -> bool:
        """Wait with an experiment; return True when there is something to do, False to give it back."""
        if outcome.is_parked:
            return False
        experiment = claim.experiment
        looked = 0.0
        # By both clocks: one that is set back while we wait must not make the wait longer.
        end = time.monotonic() + (outcome.until - self.clock()).total_seconds()
        while lingers() and not self._closing.is_set() and not claim.lost.is_set():
            if claim.snapshot is not None and sitework.has_sign(claim.snapshot, claim.tools, claim.signs):
                return True
            if (
                self.clock() >= outcome.until
                or time.monotonic() >= end
                or claim.tools.errands.wait_for_news(NEWS_EVERY)
            ):
                return True
            if time.monotonic() - looked > WAKES_EVERY:
                looked = time.monotonic()
                row = Experiment.objects.filter(pk=experiment.pk).values_list("version", "wakes").first()
                if row != (experiment.version, experiment.wakes):
                    return True
        return False

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
        experiment = Experiment.objects.get(pk=experiment_id)
        if experiment.claimed_by != token:
            return None
        tools = replace(self.tools, errands=self.tools.errands.of(experiment.key))
        claim = Claim(experiment, token, tools, mark=mark)
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
        if not claim.experiment.is_active:
            self.tools.errands.drop(claim.experiment.key)
        fields = {"claimed_by": "", "lease_until": None} | ({"due_at": claim.due_at} if claim.due_at else {})
        Experiment.objects.filter(pk=claim.experiment.pk, claimed_by=claim.token).update(**fields)

    def _keep_alive(self) -> None:
        while True:
            time.sleep(RENEW_EVERY)
            with self._lock:
                if not self._claims:
                    self._keeper = None
                    return
            with _own_connection():
                try:
                    self.renew_leases()
                except DatabaseError:
                    logger.exception("leases could not be renewed")

    def renew_leases(self) -> None:
        """Renew the leases of what is at hand. A step whose claim is gone is told that it was overtaken."""
        with self._lock:
            claims = list(self._claims.values())
        for claim in claims:
            mine = Experiment.objects.filter(pk=claim.experiment.pk, claimed_by=claim.token)
            if not mine.update(lease_until=self.clock() + LEASE) and claim.token in self._claims:
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
