"""How long it will take, and whom it waits for: from the experiment's own history. Pure; all times in seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

HISTORY = 5
"""Rounds whose median is “usual”: enough to forgive one slow round, few enough to follow a change."""
LATE_FACTOR, LATE_SECONDS = 1.25, 2.0
"""A site is late when it takes so much longer than usual; the seconds keep tiny rounds from crying wolf."""
SILENT_SECONDS = 60.0
"""After so long without a sign of life the page says so."""
MOST_NOTES = 5
"""So many sentences stand above the curves; beyond, the last one counts the other sites."""


@dataclass(frozen=True)
class SiteNow:
    """A site in the current round. ``running``: seconds since its attempt was launched, ``None`` when it is not at
    work; ``usual``: what it normally takes, ``None`` without history; ``silent``: seconds since its last sign of life;
    ``unreached``: seconds since which it does not answer, ``None``: it does; ``next_try``: seconds until it is called;
    ``reason``: a sentence on why its run has not begun, for instance that a steward has to confirm it."""

    name: str
    running: float | None = None
    usual: float | None = None
    silent: float | None = None
    unreached: float | None = None
    next_try: float = 0.0
    reason: str = ""

    @property
    def is_late(self) -> bool:
        if self.running is None or self.usual is None:
            return False
        return self.running > self.usual * LATE_FACTOR + LATE_SECONDS


def usual(durations: Sequence[float]) -> float | None:
    """Return the median of the newest durations (oldest first), ``None`` without any."""
    return median(durations[-HISTORY:]) if durations else None


def seconds_left(
    *, rounds: Sequence[float], elapsed: float, to_come: int, evaluation: float = 0.0, evaluating: bool = False
) -> float | None:
    """Return the seconds until the end, ``None`` before a round has been finished.

    ``rounds``: durations of the finished training rounds, oldest first. ``elapsed``: in the current round.
    ``to_come``: training rounds after it. ``evaluation``: what the final evaluation will take; ``evaluating`` when it
    is the current round.
    """
    each = usual(rounds)
    if evaluating:
        return max(evaluation - elapsed, 0.0) if evaluation else None
    if each is None:
        return None
    return max(each - elapsed, 0.0) + each * to_come + evaluation


def in_words(seconds: float) -> str:
    """Write a span of time as roughly as a forecast deserves: “12 s”, “3 min”, “2 h 10 min”, “4 days”."""
    if seconds < 90:
        return f"{max(round(seconds), 0)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes / 10) * 10, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest and hours < 10 else f"{hours} h"
    return f"{round(hours / 24)} days"


def left_in_words(seconds: float | None) -> str:
    if seconds is None:
        return "Time left is known after the first round"
    if seconds < 5:
        return "A few seconds left"
    if seconds < 90:  # tens of seconds: a number that jumps with each update would only look exact
        return f"About {max(round(seconds / 10), 1) * 10} s left"
    return f"About {in_words(seconds)} left"


def notes(sites: Iterable[SiteNow]) -> list[str]:
    """Return a sentence for each site that the others wait for or that has gone silent."""
    said = []
    for site in sites:
        if site.unreached is not None:
            again = f"in {in_words(site.next_try)}" if site.next_try >= 1 else "now"
            said.append(f"{site.name} has not answered for {in_words(site.unreached)}; it is tried again {again}.")
            continue
        if site.running is None:
            continue
        if site.reason:
            said.append(f"{site.name}: {site.reason}")
            continue
        if site.silent is not None and site.silent > SILENT_SECONDS:
            said.append(f"{site.name} was last heard from {in_words(site.silent)} ago.")
        elif site.is_late:
            said.append(f"Waiting for {site.name}: usually {in_words(site.usual or 0)}, now {in_words(site.running)}.")
    if len(said) > MOST_NOTES:
        said[MOST_NOTES - 1 :] = [
            f"{len(said) - MOST_NOTES + 1} more sites are late or silent: the table below has them."
        ]
    return said
