"""A circuit breaker for each site: while it cannot be reached, one call at a time finds out whether it can again.

Runs of many experiments may go on at one site. Without this each of them would ask a dead site at its own pace, each
question would wait for its time-out, and each run would hear last that the site is back.

======== ============================================================================================
closed   calls pass; :data:`OPENS_AFTER` failures in a row open it
open     no call passes until the next try, later each time, with jitter
trying   one call is on its way; its success closes the breaker for all, its failure opens it for longer
======== ============================================================================================

In memory only: after a restart a dead site costs three calls until this is known again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from fedportal.connectors.base import CheckReport, Connector, LogChunk, RunStatus
from fedportal.connectors.errors import SiteError, SiteNotReady, SiteResting, SiteUnreachable
from trainer.contract import LaunchTicket

OPENS_AFTER = 3
FIRST, LONGEST = 5.0, 60.0
"""Seconds until the next try of a site that is not reached: at first, and at the longest."""
JITTER = 0.2
TRY_LIMIT = 180.0
"""Seconds after which a try is given up that never came back; calls have shorter time-outs of their own."""
SOON = 1.0
"""While somebody tries: seconds after which the others may ask how that went."""
TOLD_EVERY = 30.0
"""Seconds between two news that a site goes on being reached."""

T = TypeVar("T")


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    TRYING = "trying"


@dataclass(frozen=True)
class Contact:
    """What is known of the way to a site, in seconds before and after now. ``reached``: since the last answer, ``None``:
    there was none; ``silent``: since the first of the failures that opened the breaker, ``None`` while it is closed."""

    reached: float | None = None
    silent: float | None = None
    next_try: float = 0.0
    reason: str = ""


class Breaker:
    """The breaker of one site; for many threads. ``clock`` in seconds; ``draw(low, high)`` returns a number between."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, draw: Callable[[float, float], float] = random.uniform
    ) -> None:
        self._clock, self._draw = clock, draw
        self._lock = threading.Lock()
        self._state = State.CLOSED
        self._failures = 0
        self._pause = 0.0
        self._due = 0.0
        self._reason = ""
        self._reached_at: float | None = None
        self._silent_at = 0.0
        self._is_news = False
        self._told_at = float("-inf")

    @property
    def state(self) -> State:
        return self._state

    def enter(self, *, may_try: bool = True) -> bool:
        """Begin a call; return whether it is the try of an open breaker. Raises :class:`SiteResting` for one that must
        not be made now. Whoever got True tells how it went: :meth:`reached`, :meth:`missed` or :meth:`left`."""
        with self._lock:
            if self._state is State.CLOSED:
                return False
            wait = self._due - self._clock()
            if wait > 0 or not may_try:
                raise SiteResting(self._reason, seconds=SOON if self._state is State.TRYING else max(wait, SOON))
            self._state, self._due = State.TRYING, self._clock() + TRY_LIMIT
            return True

    def reached(self) -> None:
        """A call was answered, whatever the answer."""
        with self._lock:
            self._is_news |= self._state is not State.CLOSED
            self._state, self._failures, self._pause, self._reason = State.CLOSED, 0, 0.0, ""
            self._reached_at = self._clock()
            self._is_news |= self._reached_at - self._told_at >= TOLD_EVERY

    def missed(self, reason: str, *, was_try: bool) -> float | None:
        """A call was not answered; return the seconds until the next try, ``None`` while the breaker is closed."""
        with self._lock:
            if self._state is State.CLOSED:
                self._failures += 1
                if self._failures == 1:
                    self._silent_at = self._clock()
                if self._failures < OPENS_AFTER:
                    return None
                self._open(FIRST, reason)
            elif was_try and self._state is State.TRYING:
                self._open(min(LONGEST, 2 * self._pause), reason)
            # else: it began before the breaker opened, and says nothing new
            return max(self._due - self._clock(), SOON) if self._state is State.OPEN else SOON

    def left(self, *, was_try: bool) -> None:
        """A call ended in a way that says nothing about the site."""
        with self._lock:
            if was_try and self._state is State.TRYING:
                self._state, self._due = State.OPEN, self._clock()

    def news(self) -> Contact | None:
        """Return what has changed since the last time, ``None``: nothing that matters."""
        with self._lock:
            if not self._is_news:
                return None
            now = self._clock()
            self._is_news, self._told_at = False, now
            reached = None if self._reached_at is None else now - self._reached_at
            if self._state is State.CLOSED:
                return Contact(reached)
            return Contact(reached, now - self._silent_at, max(0.0, self._due - now), self._reason)

    def _open(self, pause: float, reason: str) -> None:
        self._state, self._pause, self._reason, self._is_news = State.OPEN, pause, reason, True
        self._due = self._clock() + pause * self._draw(1 - JITTER, 1 + JITTER)


class Guarded:
    """A connector behind the breaker of its site. What else it can do is passed through."""

    def __init__(self, connector: Connector, breaker: Breaker) -> None:
        self._connector, self._breaker = connector, breaker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connector, name)

    def check(self) -> CheckReport:
        """Look at the site in any case: a check has a pace of its own, and people may be waiting for it."""
        report = self._connector.check()
        if report.ok:
            self._breaker.reached()
        return report

    def launch(self, ticket: LaunchTicket) -> bool:
        return self._call(lambda: self._connector.launch(ticket))

    def poll(self, run: str) -> RunStatus:
        return self._call(lambda: self._connector.poll(run))

    def cancel(self, run: str) -> None:
        self._call(lambda: self._connector.cancel(run))

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        """Read on in a log, where the site is reached. Failing says nothing: logs lie elsewhere than states."""
        self._breaker.enter(may_try=False)
        return self._connector.logs(run, offset=offset)

    def _call(self, call: Callable[[], T]) -> T:
        was_try = self._breaker.enter()
        try:
            result = call()
        except SiteNotReady:
            self._breaker.reached()
            raise
        except SiteUnreachable as error:
            seconds = self._breaker.missed(error.message, was_try=was_try)
            if seconds is None:
                raise
            raise SiteResting(error.message, remedy=error.remedy, seconds=seconds) from error
        except SiteError:
            self._breaker.reached()
            raise
        except BaseException:
            self._breaker.left(was_try=was_try)
            raise
        self._breaker.reached()
        return result
