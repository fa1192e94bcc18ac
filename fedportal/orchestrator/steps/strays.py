"""Runs that nobody waits for any more: what a dropped, repeated or ended site run has left at its site."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from fedportal.connectors.base import RunState
from fedportal.orchestrator import sitework
from fedportal.orchestrator.outcomes import AttemptChange, Changes
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import AttemptView, Snapshot
from fedportal.orchestrator.steps.starting import not_reached


def cancel_strays(s: Snapshot, tools: Tools, changes: Changes, *, patience: float = 0.0) -> list[AttemptView]:
    """End runs that nobody waits for any more; return those that are not confirmed yet.

    ``patience``: seconds, for starts that are under way, and again for the ends.
    """
    # A launch under way must land before it can be taken back.
    tools.errands.wait([("launch", stray.run) for stray in s.strays], patience)
    keys = []
    for stray in s.strays:
        key = ("cancel", stray.run)
        if tools.pace.is_due(key) and not tools.errands.is_under_way(("launch", stray.run)):
            tools.errands.start(key, partial(sitework.cancel, stray, tools))
        keys.append(key)
    tools.errands.wait(keys, patience)
    left = []
    for stray, key in zip(s.strays, keys, strict=True):
        errand = tools.errands.take(key)
        if errand is not None and errand.error is None:
            tools.pace.forget(key)
            changes.attempts.append(AttemptChange(stray.id, {"ended_at": s.now, "state": RunState.CANCELLED.value}))
            continue
        if errand is not None and errand.error is not None:
            not_reached(errand.error, key, tools)
        left.append(stray)
    return left


def say_unconfirmed(strays: Iterable[AttemptView], changes: Changes) -> None:
    """Tell whose runs may go on although the experiment is over."""
    for stray in strays:
        text = f"{stray.site.name} has not confirmed the end of {stray.run}; it may still be computing."
        changes.say("unconfirmed", text, level="warn", site=stray.site.slug)
