"""What a step returns: what to do next, and which rows change, as plain data.

A step only decides; :mod:`fedportal.orchestrator.settle` writes all of it in one fenced transaction, or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from trainer.contract import CaseScore, MetricRecord


@dataclass(frozen=True)
class Line:
    """A journal line: a plain sentence for a researcher. ``level``: info, good, warn or bad."""

    kind: str
    text: str
    level: str = "info"
    site: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewSiteRun:
    """A site's part in the round at hand. ``run`` is the name of its first attempt; empty: it is skipped.
    ``upload``: what is needed to complete its uploads, where its job lies in the store already."""

    participation: int
    run: str = ""
    because: str = ""
    upload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteRunChange:
    """States that a site run passes through, in order, and columns to write."""

    site_run: int
    through: tuple[SiteRunState, ...] = ()
    because: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewAttempt:
    """The next attempt of a site run: written before anything of it exists at the site."""

    site_run: int
    number: int
    run: str
    upload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AttemptChange:
    attempt: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """Metric records of one attempt, from its manifest."""

    site_run: int
    attempt: int
    records: tuple[MetricRecord, ...]


@dataclass(frozen=True)
class MeasuredCases:
    """What an evaluation measured of each held-out case of a site."""

    site: str
    scores: tuple[CaseScore, ...]


@dataclass(frozen=True)
class LogText:
    """A piece of an attempt's log (``attempt`` is the row's id), from byte ``offset`` up to ``next_offset``."""

    attempt: int
    offset: int
    text: str
    next_offset: int


@dataclass(frozen=True)
class NewModel:
    """A global model that now lies in the object store."""

    round_number: int
    key: str
    sha256: str
    size: int
    server_state_key: str = ""
    server_state_sha256: str = ""
    server_state_size: int = 0


@dataclass(frozen=True)
class GlobalNumber:
    """A number over all sites. ``value`` is ``None`` where no site could measure it."""

    name: str
    region: str
    value: float | None
    cases: int


@dataclass(frozen=True)
class Score:
    """What the sites measured of the global model of ``round_number`` in the round after it."""

    round_number: int
    dice: float | None
    scores: Mapping[str, Any]
    numbers: tuple[GlobalNumber, ...]


@dataclass(frozen=True)
class NewArtefact:
    model: int
    kind: str
    key: str
    sha256: str
    size: int


@dataclass
class Changes:
    """Everything that one step changes. ``part`` names what its time is booked under in the round's timings."""

    lines: list[Line] = field(default_factory=list)
    round_through: tuple[RoundState, ...] = ()
    round_because: str = ""
    round_fields: dict[str, Any] = field(default_factory=dict)
    rounds_planned: int | None = None
    """Given when the experiment stops early: the number of its rounds from now on."""
    slowest_site: float | None = None
    """Given when the round ends: seconds that the slowest admitted site spent on its own work."""
    new_round: tuple[int, str] | None = None
    experiment_to: ExperimentState | None = None
    experiment_because: str = ""
    new_site_runs: list[NewSiteRun] = field(default_factory=list)
    site_runs: list[SiteRunChange] = field(default_factory=list)
    new_attempts: list[NewAttempt] = field(default_factory=list)
    attempts: list[AttemptChange] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    cases: list[MeasuredCases] = field(default_factory=list)
    logs: list[LogText] = field(default_factory=list)
    model: NewModel | None = None
    score: Score | None = None
    artefacts: list[NewArtefact] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)
    """Sites (ids) that should be checked soon."""
    part: str = ""
    begins: bool = False
    """Whether the experiment's own work begins: it may have waited for others of its family."""
    gathers_subjects: bool = False
    """Whether the models are to be chosen that an evaluation measures."""

    def say(self, kind: str, text: str, *, level: str = "info", site: str = "", **data: Any) -> None:
        self.lines.append(Line(kind, text, level, site, data))


@dataclass(frozen=True)
class Advance:
    """Something was done: go on with the next step at once."""

    changes: Changes


@dataclass(frozen=True)
class Wait:
    """Look again at ``until``, or when woken. ``reason``: shown to people when it is not the normal course. ``is_parked``:
    nothing of it is under way anywhere, nobody needs to stay with it."""

    until: datetime
    changes: Changes = field(default_factory=Changes)
    reason: str = ""
    is_parked: bool = False


@dataclass(frozen=True)
class Fail:
    """The round cannot succeed: it fails, and the experiment with it, until somebody takes it up again."""

    reason: str
    changes: Changes = field(default_factory=Changes)


Outcome = Advance | Wait | Fail
