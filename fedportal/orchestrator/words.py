"""Small pieces of the journal's sentences."""

from __future__ import annotations

import json
from collections.abc import Sequence

from trainer.contract import EXPLANATIONS, Exit
from trainer.contract.checks import storable

LONGEST = 1000
"""Characters of what somebody else has said, at most."""


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
    """Return the text with a full stop, so that another sentence may follow. It may be a site's: what is endless is cut,
    what would steer a terminal becomes a space."""
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    text = "".join(letter if letter.isprintable() else " " for letter in storable(shown)).strip()
    return text if not text or text[-1] in ".!?”…" else f"{text}."


def trainer_said(exit_code: int, output: str) -> str:
    """Return in a sentence why a command of the trainer on the portal's machine failed.

    Its last line where it was written for people; what it did not expect names paths and modules and is for the log.
    """
    if exit_code in AT_THE_PORTAL:
        return AT_THE_PORTAL[Exit(exit_code)]
    if exit_code not in EXPLANATIONS or exit_code == Exit.UNEXPECTED:
        return "The trainer stopped unexpectedly. The orchestrator's log has the details for an operator."
    return sentence(_last_words(output))


AT_THE_PORTAL = {
    Exit.DISK_FULL: "The disk of the portal's machine is full. Tell an operator.",
    Exit.OUT_OF_MEMORY: "It needs more memory than the portal allows. Choose a smaller network, or ask an operator.",
}
"""What an exit code means where it is not a site's."""


def _last_words(output: str) -> str:
    """Return what a trainer's command said last: its lines are JSON with a message inside, or plain text."""
    lines = output.strip().splitlines()
    if not lines:
        return "The trainer said nothing."
    try:
        return str(json.loads(lines[-1])["message"])
    except (ValueError, KeyError, TypeError):
        return lines[-1].strip()
