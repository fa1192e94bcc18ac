"""Small pieces of the journal's sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """Return ``Graz, Mainz and Ulm``."""
    return names[0] if len(names) == 1 else " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def sites(count: int) -> str:
    return f"{count} site{'' if count == 1 else 's'}"


def of(round_number: int) -> str:
    """Return what the model of a round is called."""
    return f"round {round_number}" if round_number else "the start (random weights)"


def duration(seconds: float) -> str:
    """Return ``0.4 s``, ``12 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def sentence(text: str) -> str:
    """Return the text with a full stop, so that another sentence may follow."""
    text = text.strip()
    return text if not text or text[-1] in ".!?”…" else f"{text}."


def last_words(output: str) -> str:
    """Return what a trainer's command said last: its lines are JSON with a message inside, or plain text."""
    lines = output.strip().splitlines()
    if not lines:
        return "The trainer said nothing."
    try:
        return str(json.loads(lines[-1])["message"])
    except (ValueError, KeyError, TypeError):
        return lines[-1].strip()
