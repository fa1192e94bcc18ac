"""The log of an attempt for reading: the trainer writes JSON lines, a person wants time, level and sentence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Piece(Protocol):
    """A stored piece of a log: text from a byte offset on."""

    offset: int
    text: str


@dataclass(frozen=True)
class Line:
    """One line. ``at`` and ``level`` are empty where the line is not the trainer's own (a library's, a crash's)."""

    text: str
    level: str = ""
    at: datetime | None = None
    detail: str = ""

    @property
    def as_json(self) -> dict[str, str | None]:
        at = self.at.isoformat() if self.at else None
        return {"at": at, "level": self.level, "text": self.text, "detail": self.detail}


def joined(pieces: Iterable[Piece], *, after: int = 0) -> tuple[bytes, int]:
    """Return the bytes of pieces (in the order of their offsets) from offset ``after`` on, and the offset behind them.

    Pieces that overlap (a site that sent again) are counted once; a hole is skipped.
    """
    parts, end = [], after
    for piece in pieces:
        data = piece.text.encode()
        if piece.offset + len(data) > end:
            parts.append(data[max(0, end - piece.offset) :])
            end = piece.offset + len(data)
    return b"".join(parts), end


def lines_of(pieces: Iterable[Piece], *, after: int = 0, is_over: bool = False) -> tuple[list[Line], int]:
    """Return the lines of a log from offset ``after`` on and the offset to go on from.

    A line that is still being written waits for the next time, unless the run is over.
    """
    data, end = joined(pieces, after=after)
    if not is_over:
        complete = data.rfind(b"\n") + 1
        end -= len(data) - complete
        data = data[:complete]
    lines = data.decode(errors="replace").splitlines()
    return [parse(line) for line in lines if line.strip()], end


def parse(line: str) -> Line:
    """Read one line; what is not the trainer's JSON stays as it is."""
    try:
        entry = json.loads(line)
        message, level = str(entry["message"]), str(entry.get("level", "info"))
        at = datetime.fromtimestamp(float(entry["at"]), tz=UTC) if entry.get("at") else None
        detail = str(entry.get("traceback", ""))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, OSError):
        return Line(line)
    return Line(message[:1].upper() + message[1:], level, at, detail)
