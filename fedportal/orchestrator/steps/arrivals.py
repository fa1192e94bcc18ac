"""Whose manifests have come: one question to the object store for all runs of a round."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from fedportal.connectors.errors import StoreUnreachable
from fedportal.orchestrator import sitework
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import SiteRunView, Snapshot

LOOK_PATIENCE = 0.03
"""Seconds in which an empty look comes back; a delivery takes longer, and the next look takes it."""
SOON = 0.1
FEW, CROWD = 10, 0.004
"""From so many sites on, that many seconds for each further one lie between two looks: a look costs more, too."""


class Arrivals:
    """One look. ``again_in``: seconds after which another one is wanted, ``None``: when something happens."""

    def __init__(self, s: Snapshot, tools: Tools) -> None:
        self._s, self._tools = s, tools
        self.key = ("list", s.key)
        self.pause = CROWD * max(0, len(s.site_runs) - FEW)
        self.again_in: float | None = None
        self.store_is_silent = False

    def look(self, runs: Sequence[SiteRunView]) -> list[SiteRunView]:
        """Return those of the runs that are over at their sites and whose deliveries nobody fetches yet."""
        errands, pace = self._tools.errands, self._tools.pace
        found = self._taken()  # what came too late for the step before
        awaited = [run.attempt for run in runs if not errands.is_under_way(("look", run.attempt.run))]
        if awaited and pace.is_due(self.key):
            if errands.start(self.key, partial(sitework.arrived, self._s, awaited, self._tools), is_news=bool):
                pace.heard(self.key, first=self.pause, longest=self.pause)
            errands.wait([self.key], LOOK_PATIENCE)
            found |= self._taken()
            if errands.is_under_way(self.key):  # an empty answer would wake nobody, and may be from before a wake-up
                self.again_in = SOON
        elif awaited:
            self.again_in = pace.remaining(self.key)
        return [run for run in runs if run.attempt.run in found]

    def _taken(self) -> set[str]:
        errand = self._tools.errands.take(self.key)
        if errand is None:
            return set()
        if isinstance(errand.error, StoreUnreachable):
            self.store_is_silent = True
            return set()
        if errand.error is not None:
            raise errand.error
        return set(errand.value)
