"""What both ways to start runs at a Kaapana have in common: nothing runs twice, although Kaapana lets nobody name a run.

A run has the site's own handle beside the portal's name. What is known of it is kept in memory, and found out anew by the
name after a restart.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from fedportal.connectors.base import LogChunk, RunState, RunStatus
from fedportal.connectors.errors import SiteError, SiteMisbehaved, SiteNotReady, SiteUnreachable

TRAIN = "fp-train"
CANCELLED_NOTE = "cancelled by the portal"
LOOKS = (0.5, 2.0, 4.0)
"""Seconds between the looks for a run whose launch was not answered."""
GRACE = 60.0
"""Seconds that a cancelled run has for its end before the portal says that it goes on, and asks again later."""
LOOK_AGAIN = 0.5
LOOK_THERE = "If its pod is gone, delete the run in Kaapana's Airflow; else abort it in the workflow list."
GONE = RunStatus(RunState.LOST, message="The site no longer knows this run: it was deleted, or never began.")

Handle = TypeVar("Handle")


class KaapanaRuns(ABC, Generic[Handle]):
    """The runs of one site. The verbs are those of a connector; ``conf`` is asked for where a run is really started."""

    def __init__(self, *, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._sleep, self._clock = sleep, clock
        self._lock = threading.Lock()
        self._known: dict[str, Handle] = {}
        self._endings: dict[str, RunStatus] = {}
        self._cancelled: set[str] = set()

    def launch(self, run: str, conf: Callable[[], Mapping[str, Any]]) -> bool:
        if self._find(run) is not None:
            return False
        start, look = self._prepared(run, conf())
        try:
            handle = start()
        except (SiteUnreachable, SiteMisbehaved) as error:
            # It may have started all the same: look before anybody starts it a second time.
            handle = self._look_again(look, error)
        with self._lock:
            self._known[run] = handle
        return True

    def poll(self, run: str) -> RunStatus:
        if (ended := self._endings.get(run)) is not None:
            return ended
        handle = self._find(run)
        status = GONE if handle is None else self._status(run, handle)
        with self._lock:
            if status.state is RunState.LOST:
                self._known.pop(run, None)
            elif status.state.is_over:
                self._endings[run] = status
        return status

    @abstractmethod
    def cancel(self, run: str) -> None: ...

    @abstractmethod
    def logs(self, run: str, *, offset: int = 0) -> LogChunk: ...

    # --- what differs --------------------------------------------------------------------------------

    @abstractmethod
    def _search(self, run: str) -> Handle | None:
        """Ask the site for a run by its name."""

    @abstractmethod
    def _prepared(self, run: str, conf: Mapping[str, Any]) -> tuple[Callable[[], Handle], Callable[[], Handle | None]]:
        """Return what starts a run, and what looks for it afterwards. Raise what keeps it from starting."""

    @abstractmethod
    def _status(self, run: str, handle: Handle) -> RunStatus: ...

    # --- the same in both ----------------------------------------------------------------------------

    def _find(self, run: str) -> Handle | None:
        """Return the site's handle of a run, ``None`` where the site does not have it."""
        if (known := self._known.get(run)) is not None:
            return known
        found = self._search(run)
        if found is not None:
            with self._lock:
                self._known.setdefault(run, found)
        return found

    def _look_again(self, look: Callable[[], Handle | None], error: SiteError) -> Handle:
        for pause in LOOKS:
            self._sleep(pause)
            try:
                found = look()
            except SiteUnreachable:
                continue
            if found is not None:
                return found
        raise error

    def _wait_until(self, is_gone: Callable[[], bool], run: str) -> None:
        """Return once a cancelled run has ended; raise :class:`SiteNotReady` where it goes on."""
        end = self._clock() + GRACE
        while not is_gone():
            if self._clock() > end:
                raise SiteNotReady(
                    f"The site was told to end {run}, and has not ended it yet. {LOOK_THERE}", remedy=LOOK_THERE
                )
            self._sleep(LOOK_AGAIN)
