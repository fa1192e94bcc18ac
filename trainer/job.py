"""The words that the trainer's parts share: where it works, whom it tells, what it returns, how it fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trainer.contract import EXPLANATIONS, CaseScore, Exit, MetricRecord


class Fault(Exception):
    """A failure with a documented exit code. ``message`` is one plain sentence or two, fit for a radiologist."""

    def __init__(self, exit: Exit, detail: str = "") -> None:
        self.exit, self.detail = exit, detail
        self.message = f"{EXPLANATIONS[exit]} {detail}".strip()
        super().__init__(self.message)


@dataclass(frozen=True)
class Member:
    """A dataset that a pool has in it: folder ``dataset`` of ``data_root``. ``site``: short name of its hospital."""

    site: str
    data_root: Path
    dataset: str

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Member:
        """Read ``{"site", "data_root", "dataset"}``. Raises ``KeyError`` or ``TypeError``."""
        return cls(str(document["site"]), Path(document["data_root"]), str(document["dataset"]))


@dataclass(frozen=True)
class Site:
    """What the site's administrator decides: where data and working files lie, and how many CPU threads
    a run may use (0 = all). Never part of a job, so that no portal can point the trainer elsewhere.

    ``pool``: where a site stands for several, the datasets that are its only one together."""

    data_root: Path
    work_dir: Path
    threads: int = 0
    pool: tuple[Member, ...] = ()

    @property
    def cache(self) -> Path:
        """Preprocessed cases, shared by all runs of this site."""
        return self.work_dir / "cache"

    def state(self, experiment: str) -> Path:
        """What stays at the site between the rounds of one experiment (kept optimizer state)."""
        return self.work_dir / "state" / experiment

    def run_dir(self, run: str) -> Path:
        return self.work_dir / "runs" / run


class Report(Protocol):
    """Where progress goes while a run works. Neither call may fail or block the training."""

    def metric(self, record: MetricRecord) -> None: ...

    def say(self, message: str, **facts: Any) -> None: ...


Deliver = Callable[[Path, Path | None], None]
"""Told the files of update and optimizer state as soon as they are final: they are sent while the work goes on."""


@dataclass(frozen=True)
class Outcome:
    """What training or evaluating produced: files in the run's folder, counts, seconds per step; pseudonyms of the
    held-out cases and what was measured of each of them; how many of them an evaluation found among the training cases."""

    train_cases: int = 0
    validation_cases: int = 0
    steps: int = 0
    update: Path | None = None
    optimizer: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    cases: tuple[CaseScore, ...] = ()
    copies: int = 0
