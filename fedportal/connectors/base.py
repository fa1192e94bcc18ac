"""The interface behind which every site is reached: ``check · launch · poll · cancel · logs``.

All verbs may be repeated at any time: a run is known by its computed name, so launching it twice
launches it once, and cancelling a run that has ended does nothing. A connector holds no state that a
crash could lose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from trainer.contract import LaunchTicket


class RunState(StrEnum):
    """State of one run as its site tells it. ``LOST``: the site no longer knows it."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def is_over(self) -> bool:
        return self not in (RunState.WAITING, RunState.RUNNING)


@dataclass(frozen=True)
class RunStatus:
    """``exit_code`` is the trainer's (:class:`trainer.contract.Exit`) where known."""

    state: RunState
    exit_code: int | None = None
    message: str = ""


@dataclass(frozen=True)
class LogChunk:
    """Text of a run's log from a byte offset on, and the offset to go on from."""

    text: str
    next_offset: int


@dataclass(frozen=True)
class CheckStep:
    """One step of a site check. ``ok`` is ``None`` where the step was not reached."""

    name: str
    ok: bool | None
    message: str
    remedy: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class DatasetReport:
    """A dataset found at a site. ``spacing`` in mm (median over cases), ``shape`` in voxels (median)."""

    name: str
    title: str
    train_cases: int
    validation_cases: int
    channels: tuple[str, ...]
    labels: dict[int, str]
    spacing: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    steps: tuple[CheckStep, ...]
    version: str = ""
    datasets: tuple[DatasetReport, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.steps) and all(step.ok for step in self.steps)


class Connector(Protocol):
    """One site. Methods raise :class:`~fedportal.connectors.errors.SiteError` and keep explicit time-outs."""

    def check(self) -> CheckReport:
        """Look at the site from name resolution to datasets; failures are steps of the report, not exceptions."""
        ...

    def launch(self, ticket: LaunchTicket) -> bool:
        """Start the run. True: started now; False: a run of that name existed already (a success, too)."""
        ...

    def poll(self, run: str) -> RunStatus: ...

    def cancel(self, run: str) -> None:
        """End the run with its processes; returns once they are gone. No error when there is nothing to end."""
        ...

    def logs(self, run: str, *, offset: int = 0) -> LogChunk: ...
