"""The logs of the runs: read on in pieces, beside the steps, and stored by whichever step comes next."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from fedportal.connectors.base import LogChunk
from fedportal.connectors.errors import StoreError
from fedportal.orchestrator import sitework
from fedportal.orchestrator.outcomes import Changes, LogText
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import AttemptView, Snapshot
from fedportal.orchestrator.steps.starting import LOGS, logs_pace
from trainer.contract import LOG_NAME

MAX_LOG = 256 * 1024
"""Bytes of an attempt's log that are kept in the journal."""
LAST_WORDS = 5.0
"""Seconds after which the log of an ended run is read at a site that is called. Right after its end the site has better
to do: to end its task and to begin the next round; and its scheduler shows the last words only then."""
RUN_ENDS = '"run ends"'
"""Stands in the last line that a run writes."""


class Reading(NamedTuple):
    """A piece of an attempt's log. ``is_last``: nothing comes after it."""

    attempt: AttemptView
    chunk: LogChunk
    is_last: bool


def start_log(s: Snapshot, attempt: AttemptView, offset: int, tools: Tools, *, has_ended: bool = False) -> None:
    """Read on in a run's log; :func:`take_logs` of a later step stores what comes."""
    is_elsewhere = has_ended and attempt.site.connector not in LOGS
    pause = LAST_WORDS if is_elsewhere and not s.round.is_evaluation else 0.0
    first, longest = logs_pace(attempt.site)
    tools.pace.heard(("logs", attempt.run), first=first, longest=longest)
    attempt = replace(attempt, log_offset=offset)
    key = ("logs", s.key, attempt.id, offset)

    def read() -> Reading:
        delivered = _delivered(s, attempt, tools) if is_elsewhere and not offset else None
        if delivered is not None:
            return Reading(attempt, delivered, is_last=True)
        time.sleep(pause)
        chunk = sitework.read_log(attempt, tools)
        return Reading(attempt, chunk, is_last=RUN_ENDS in chunk.text)

    tools.errands.start(key, read, is_news=False)


def take_logs(s: Snapshot, tools: Tools, changes: Changes) -> None:
    """Take the pieces of log that have come. A site that cannot show its log is not in trouble for it."""
    ended = {change.attempt for change in changes.attempts if "ended_at" in change.fields}
    for key in tools.errands.keys("logs", s.key):
        errand = tools.errands.take(key)
        if errand is None or errand.error is not None:
            continue
        reading: Reading = errand.value
        attempt, chunk = reading.attempt, reading.chunk
        if not chunk.text:
            continue
        room = MAX_LOG - attempt.log_offset
        text = chunk.text.encode(errors="replace")[:room].decode(errors="ignore")
        changes.logs.append(LogText(attempt.id, attempt.log_offset, text, chunk.next_offset))
        is_over = attempt.id in ended or (s.newest is not None and attempt.round_number != s.round.number)
        if is_over and not reading.is_last and chunk.next_offset < MAX_LOG:
            # its last words may have come after this piece
            start_log(s, attempt, chunk.next_offset, tools, has_ended=True)


def _delivered(s: Snapshot, attempt: AttemptView, tools: Tools) -> LogChunk | None:
    """Return the log that an ended run has put into the store, so that the site need not be asked; ``None``: it has not."""
    try:
        data = tools.store.get_bytes(f"{s.prefix(attempt)}/{LOG_NAME}", max_bytes=MAX_LOG)
    except StoreError:
        return None
    return LogChunk(data.decode(errors="replace"), len(data))
