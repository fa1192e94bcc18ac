"""When, where and with which code the study was computed: a study that was interrupted has several sessions."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Session:
    """``began``: date and time in UTC. ``seconds``: wall clock. ``commit`` ends with ``+`` where files had been changed."""

    began: str
    seconds: float
    commit: str
    cores: int


class Sessions:
    """The sessions of one state folder. :meth:`note` now and then, so that a killed session counts, too."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._past: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        self._start = time.monotonic()
        self._commit = commit()

    @property
    def seconds(self) -> float:
        """Wall clock of this session."""
        return time.monotonic() - self._start

    @property
    def past(self) -> list[dict[str, Any]]:
        """The sessions as JSON, with this one once it was noted."""
        return json.loads(self._file.read_text()) if self._file.exists() else []

    def note(self) -> None:
        now = Session(self._began, round(self.seconds, 1), self._commit, len(os.sched_getaffinity(0)))
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps([*self._past, asdict(now)], indent=2))
        temporary.replace(self._file)


def commit() -> str:
    """Return the short name of the commit that is checked out; what this command writes is no change to it."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/results*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}+" if changed else name


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
