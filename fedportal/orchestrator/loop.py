"""The loop over due experiments: how the engine is driven on one machine, or on several with one database."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from django.conf import settings
from django.db import DatabaseError, close_old_connections, connection
from django.utils import timezone

from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState
from fedportal.orchestrator.engine import Engine

logger = logging.getLogger(__name__)

FULL_PAUSE = 0.025
"""While all threads are taken: how soon a site's “finished” is seen. One query on an index, 0.3 ms."""
BUSY_PAUSE = 0.1
IDLE_PAUSE = 0.5
MOST_SLOTS = 64


class Loop:
    """Drives due experiments, each in a thread of its own, so that a slow step delays no other experiment."""

    def __init__(self, engine: Engine, *, workers: int = 8) -> None:
        self.engine = engine
        self.workers = workers
        self._closing = threading.Event()
        self._once = False
        self._driven: set[int] = set()
        self._lock = threading.Lock()

    def run(self, *, once: bool = False) -> None:
        """Drive until :meth:`stop`; with ``once`` until nothing is due any more at this moment."""
        self._once = once
        with ThreadPoolExecutor(self.workers, thread_name_prefix="drive") as pool:
            while not self._closing.is_set():
                try:
                    close_old_connections()
                    found = self._hand_out(pool)
                    if once and not found and not self._driven:
                        break
                    pause = self._pause(found)
                except DatabaseError:
                    logger.exception("the database does not answer")
                    connection.close()
                    pause = IDLE_PAUSE * 4
                self._closing.wait(pause)
            self.engine.close()
        connection.close()

    def stop(self) -> None:
        """Finish the steps at hand and return from :meth:`run`."""
        self._closing.set()
        self.engine.close()

    def _hand_out(self, pool: ThreadPoolExecutor) -> int:
        due = Experiment.objects.due(timezone.now()).order_by("due_at").values_list("pk", flat=True)
        with self._lock:
            free = [pk for pk in due[: 4 * self.workers] if pk not in self._driven][: self.workers - len(self._driven)]
            self._driven.update(free)
        for pk in free:
            pool.submit(self._drive, pk)
        return len(free)

    def _pause(self, found: int) -> float:
        if len(self._driven) >= self.workers:
            return FULL_PAUSE  # nobody lingers: wake-ups are seen here
        return BUSY_PAUSE if found or self._driven or self._is_busy() else IDLE_PAUSE

    def _drive(self, pk: int) -> None:
        close_old_connections()
        try:
            self.engine.drive(pk, lingers=self._has_room)
        except DatabaseError:
            # Nothing is lost: the lease runs out, and the step is done again.
            logger.exception("experiment %d: the database does not answer", pk)
            connection.close()
            time.sleep(1)
        except Exception:  # one experiment's trouble must not end the others'
            logger.exception("experiment %d could not be driven", pk)
            time.sleep(1)
        finally:
            with self._lock:
                self._driven.discard(pk)

    def _has_room(self) -> bool:
        """Whether no other experiment needs the thread of one that waits."""
        return not self._closing.is_set() and not self._once and len(self._driven) < self.workers

    def _is_busy(self) -> bool:
        states = (ExperimentState.RUNNING, ExperimentState.CANCELLING)
        return Experiment.objects.filter(state__in=states).exists()


class Name:
    """This worker's name. A file lock makes it the only bearer on this machine, so that a restarted orchestrator knows
    that the claims under its name are those of a dead one, and need not wait for their leases."""

    def __init__(self, folder: Path | None = None) -> None:
        base = settings.FEDPORTAL_WORKER_ID or socket.gethostname()
        base = re.sub(r"[^A-Za-z0-9.-]", "-", base)[:40]
        folder = folder or settings.STATE_DIR
        for slot in range(1, MOST_SLOTS + 1):
            self._file = os.open(folder / f"orchestrator-{slot}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._file)
                continue
            self.text = f"{base}-{slot}"
            return
        raise RuntimeError(f"{MOST_SLOTS} orchestrators run already in {folder}")
