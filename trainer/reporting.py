"""Tell the portal how a run gets on, without ever disturbing the run.

The training only appends to a list; a thread posts the records. While the portal is away they wait, and are sent when
it is back. What it never got is complete in the manifest.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import requests

from trainer.contract import MetricRecord, Phase
from trainer.transfer import PASSING, new_session

BATCH = 500
INTERVAL = 0.5
"""Seconds between two posts at least; the first record of a run goes at once."""
LONGEST_PAUSE = 15.0
MOST_IN_MANIFEST = 50_000
UNWANTED = frozenset({409, 410})
"""The portal's answers for a run that a newer attempt has replaced, or that was cancelled."""


_SIGNED = re.compile(r"\?[^\s\"'<>\\]*(?:Signature|X-Amz-)[^\s\"'<>\\]*")
"""The secret part of a presigned URL. A traceback of some library may hold one."""


class Log:
    """A log of JSON lines: time, level, a sentence for people, facts for machines. Writing never raises."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        # In the foreground (an Airflow task) the lines are wanted in the console, too. A detached run
        # already has the file as its standard output.
        self._echo = not os.path.sameopenfile(self._file, 1) if _is_open(1) else False

    def say(self, message: str, *, level: str = "info", **facts: Any) -> None:
        entry = {"at": round(time.time(), 3), "level": level, "message": message, **facts}
        line = (_SIGNED.sub("?…", json.dumps(entry, default=str, ensure_ascii=False)) + "\n").encode(errors="replace")
        for file in (self._file, 1) if self._echo else (self._file,):
            try:
                os.write(file, line)  # one write: lines of several threads do not mix
            except OSError:
                continue


class Reporter:
    """The :class:`trainer.job.Report` of one run. Call :meth:`finish` once, after the manifest is in the store.

    ``unwanted``: called when the portal says that nobody waits for this run any more; it may end the process. So a run
    can be cancelled at a site where the portal can end nothing itself.
    """

    def __init__(
        self,
        run: str,
        *,
        log: Log,
        url: str = "",
        token: str = "",
        unwanted: Callable[[], None] = lambda: None,
    ) -> None:
        self._unwanted = unwanted
        self._run, self._log, self._url = run, log, url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._records: list[MetricRecord] = []
        self._wake, self._closing = threading.Event(), threading.Event()
        self._end = math.inf
        self._thread = threading.Thread(target=self._work, name="reporter", daemon=True)
        self._thread.start()

    def metric(self, record: MetricRecord) -> None:
        try:
            value = None if record.value is None else float(record.value)
            if value is not None and not math.isfinite(value):
                value = None
            at = record.at or round(time.time(), 3)
            record = replace(
                record,
                value=value,
                at=at,
                step=int(record.step),
                progress=float(record.progress),
                cases=int(record.cases),
            )
        except (TypeError, ValueError) as error:
            self.say("a measurement could not be reported", level="warning", reason=str(error))
            return
        self._records.append(record)
        self._wake.set()

    def say(self, message: str, **facts: Any) -> None:
        self._log.say(message, **facts)

    def for_manifest(self) -> tuple[MetricRecord, ...]:
        """Return all records, or, of a very long run, all validation results and evenly thinned training curves."""
        records = tuple(self._records)
        curves = [r for r in records if r.phase is Phase.TRAIN]
        surplus = len(records) - MOST_IN_MANIFEST
        if surplus <= 0:
            return records
        keep_every = math.ceil(len(curves) / max(1, len(curves) - surplus))
        kept = {id(r) for r in curves[::keep_every]}
        return tuple(r for r in records if r.phase is not Phase.TRAIN or id(r) in kept)

    def finish(self, *, patience: float = 10.0) -> None:
        """Send what is left and say that the run is finished; gives up after ``patience`` seconds."""
        self._end = time.monotonic() + patience
        self._closing.set()
        self._wake.set()
        self._thread.join(patience + 1)

    def _work(self) -> None:
        session = new_session()
        sent = logged = 0
        pause, due = 0.0, 0.0
        while True:
            self._wake.wait()
            if (wait := due - time.monotonic()) > 0:
                if pause and self._closing.is_set():
                    time.sleep(min(wait, 0.5))  # an outage at the end: try often, there is little time left
                else:
                    self._closing.wait(wait)
            self._wake.clear()
            closing = self._closing.is_set()
            batch = self._records[sent : sent + BATCH]
            finished = closing and sent + len(batch) == len(self._records)
            if not self._url:
                outcome: bool | None = True
            elif batch or finished:
                outcome = self._post(session, batch, finished=finished)
            else:
                continue
            if not (outcome and self._url):
                logged = self._log_records(max(logged, sent))
            if outcome:
                sent += len(batch)
                pause, due = 0.0, time.monotonic() + INTERVAL
                if finished:
                    return
            elif outcome is None:
                self._url = ""  # refused: sending more would be refused, too
            else:
                pause = min(max(0.5, 2 * pause), LONGEST_PAUSE)
                due = time.monotonic() + pause
            if closing and time.monotonic() > self._end:
                return
            if closing or sent < len(self._records):
                self._wake.set()

    def _log_records(self, start: int) -> int:
        """Write the records from ``start`` on into the log, where a portal that can read it finds them; return their end."""
        end = len(self._records)
        for first in range(start, end, BATCH):
            records = [record.to_json() for record in self._records[first : min(end, first + BATCH)]]
            self._log.say("measured; the portal reads it here", level="debug", records=records)
        return end

    def _post(self, session: requests.Session, batch: list[MetricRecord], *, finished: bool) -> bool | None:
        """Return True: stored; False: try again later; None: the portal wants no more."""
        body = {"run": self._run, "records": [record.to_json() for record in batch], "finished": finished}
        try:
            response = session.post(self._url, json=body, headers=self._headers, timeout=(5, 20), allow_redirects=False)
        except requests.RequestException as error:
            self._log.say("the portal does not answer, records wait", level="warning", reason=type(error).__name__)
            return False
        if response.ok and response.status_code < 300:
            return True
        if response.status_code in UNWANTED and not self._closing.is_set():
            self._log.say("nobody waits for this run any more, so it ends", level="warning")
            self._unwanted()
            return None
        passing = response.status_code in PASSING
        text = "records wait" if passing else "records stay in the manifest"
        self._log.say(f"the portal answers {response.status_code}, {text}", level="warning")
        return False if passing else None


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
