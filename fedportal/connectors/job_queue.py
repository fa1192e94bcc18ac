"""The queue of jobs between a connector and a site that polls: what the portal puts in, what the site has told.

The connector (``kaapana_pull``) reads and writes it through :class:`JobQueue`; ``fedportal/relay`` keeps it in rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from fedportal.connectors.base import LogChunk


class JobState(StrEnum):
    """States of a job, in Kaapana's words. ``aborted`` is of its later versions."""

    QUEUED = "queued"
    PENDING = "pending"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    DELETED = "deleted"
    ABORTED = "aborted"

    @property
    def rank(self) -> int:
        """Order in which a job goes through its states: a report of an earlier one came late."""
        return _RANKS.get(self, 4)

    @property
    def is_over(self) -> bool:
        return self.rank == 4


_RANKS = {JobState.QUEUED: 0, JobState.PENDING: 1, JobState.SCHEDULED: 2, JobState.RUNNING: 3}


@dataclass(frozen=True)
class QueuedJob:
    """A job as the relay knows it. ``message``: the site's own words. ``is_cancelled``: the portal asked for its end."""

    state: JobState
    message: str = ""
    is_cancelled: bool = False


@dataclass(frozen=True)
class Sighting:
    """What a site has told of itself. ``silent_for``: seconds since its last poll, ``None``: it has never polled.

    ``datasets``: name → number of series; ``dags``: what it allows; ``skew``: seconds that its clock is ahead, ``None``
    where it sent no time.
    """

    silent_for: float | None = None
    agent: str = ""
    dialect: str = ""
    dags: tuple[str, ...] = ()
    datasets: Mapping[str, int] = field(default_factory=dict)
    polls_by_itself: bool = False
    starts_by_itself: bool = False
    skew: float | None = None


@dataclass(frozen=True)
class Look:
    """What ``fp-check`` reported last (``trainer.check.report``; empty: nothing that holds), how many seconds ago, and
    the job that tells why there is no other: one that has failed since, else the newest."""

    report: Mapping[str, Any] = field(default_factory=dict)
    job: QueuedJob | None = None
    age: float = 0.0


class JobQueue(Protocol):
    """The jobs of one site. Calls may be repeated; none waits for the site."""

    def put(self, run: str, *, dag_id: str, conf: Mapping[str, Any], dataset: str) -> bool:
        """Keep a job for the site's next poll. False: there was one of that name."""
        ...

    def job(self, run: str) -> QueuedJob | None: ...

    def cancel(self, run: str) -> None:
        """Ask for the end of a job. One that cannot have started yet is over at once."""
        ...

    def log(self, run: str, *, offset: int) -> LogChunk:
        """Return text of a log that the site has delivered; empty while it has not."""
        ...

    def sighting(self) -> Sighting: ...

    def look(self, portal_url: str) -> Look:
        """Return what the site's trainer last said of itself, and ask for it anew when that is missing or old."""
        ...
