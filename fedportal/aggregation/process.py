"""Run admission and aggregation in a process of their own: killable, limited in memory and time.

The processes are forked from a warm one (:mod:`fedportal.aggregation.warm`), so that a start costs
milliseconds. Not from multiprocessing's forkserver: inside a Celery worker it refuses to start ("daemonic
processes are not allowed to have children"), it runs the parent's main script again in every child, and it
speaks pickle (docs/decisions/0012).
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fedportal
from fedportal.aggregation import errors
from fedportal.aggregation.admission import Admission
from fedportal.aggregation.errors import AggregationError, AggregationFailed
from fedportal.aggregation.merge import THREADS, Aggregate, Contribution
from fedportal.aggregation.weights import part_prefix

logger = logging.getLogger(__name__)

MEMORY_LIMIT_BYTES = 1024**3
TIMEOUT = 600.0
START_TIMEOUT = 60.0
"""Seconds in which a run begins; the first one's warm process has to be started, too."""
_DOMAIN_ERRORS = {
    kind.__name__: kind for kind in (errors.WeightsError, errors.NothingToAggregate, errors.AggregationRefused)
}


@dataclass(frozen=True)
class _Warm:
    """The warm process and the portal's end of the socket on which it is asked for runs."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def stop(self) -> None:
        self.control.close()  # it ends by itself then; its runs go on
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class AggregationProcess:
    """Admission and aggregation with the signatures of :func:`admit` and :func:`aggregate`, each call in a
    process of its own.

    ``memory_limit_bytes`` bounds the private memory of a run (RLIMIT_DATA), ``timeout`` its seconds. A run that
    dies, is killed or exceeds them raises :class:`AggregationFailed`; the other errors come through as they are.
    ``threads`` of a run change its time, never a bit of its result.
    One instance serves all threads; :meth:`close` (or leaving the context) stops the warm process.
    """

    def __init__(
        self, *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES, timeout: float = TIMEOUT, threads: int = THREADS
    ) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self.timeout = timeout
        self.threads = threads
        self.peak_memory_bytes = 0
        """Largest resident size of a run so far, as the kernel measured it."""
        self._lock = threading.Lock()
        self._warm: _Warm | None = None
        self._finalizer: weakref.finalize[[], AggregationProcess] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._stop()

    def admit(self, update: Path, reference: Path, *, max_relative_norm: float | None = None) -> Admission:
        """Judge an update; see :func:`fedportal.aggregation.admission.admit`."""
        arguments = {"update": str(update), "reference": str(reference), "max_relative_norm": max_relative_norm}
        return Admission(**self._call("admit", arguments, outputs=()))

    def admit_state(self, state: Path, model: Path, entries: Sequence[str]) -> Admission:
        """Judge an optimizer's state; see :func:`fedportal.aggregation.admission.admit_state`."""
        arguments = {"state": str(state), "model": str(model), "entries": list(entries)}
        return Admission(**self._call("admit_state", arguments, outputs=()))

    def aggregate(
        self,
        *,
        reference: Path,
        contributions: Sequence[Contribution],
        strategy: str,
        options: Mapping[str, Any],
        state_in: Path | None,
        out: Path,
        state_out: Path | None,
        round: int | None = None,
    ) -> Aggregate:
        """Merge updates; see :func:`fedportal.aggregation.merge.aggregate`."""
        arguments = {
            "reference": str(reference),
            "contributions": [[site.site, str(site.path), site.cases] for site in contributions],
            "strategy": strategy,
            "options": dict(options),
            "state_in": None if state_in is None else str(state_in),
            "out": str(out),
            "state_out": None if state_out is None else str(state_out),
            "round": round,
            "threads": self.threads,
        }
        result = self._call("aggregate", arguments, outputs=[path for path in (out, state_out) if path is not None])
        return Aggregate(**{**result, "path": Path(result["path"])})

    def _call(self, verb: str, arguments: Mapping[str, Any], *, outputs: Sequence[Path]) -> dict[str, Any]:
        request = {
            "verb": verb,
            "arguments": arguments,
            "memory_limit_bytes": self.memory_limit_bytes,
            "timeout": math.ceil(self.timeout),
        }
        connection, pid = self._started()
        started = time.monotonic()
        deadline = started + self.timeout
        with connection:
            try:
                connection.sendall(json.dumps(request).encode() + b"\n")
                answer = json.loads(_line(connection, deadline))
            except (EOFError, ConnectionError) as error:
                _remove_parts(outputs, pid)
                raise AggregationFailed(
                    "The aggregation was killed before it finished; the machine may be short of memory."
                ) from error
            except TimeoutError as error:
                # The run holds the other end of the connection, which has not closed: the id is still its own.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                _remove_parts(outputs, pid)
                raise AggregationFailed(f"The aggregation took longer than {self.timeout:g} seconds.") from error
        if "error" in answer:
            raise self._error(answer["error"], answer["reason"])
        peak = int(answer["peak_memory_bytes"])
        with self._lock:
            self.peak_memory_bytes = max(self.peak_memory_bytes, peak)
        logger.debug("%s took %.3f s and %d MiB", verb, time.monotonic() - started, peak >> 20)
        return dict(answer["result"])

    def _error(self, kind: str, reason: str) -> AggregationError:
        if kind in _DOMAIN_ERRORS:
            return _DOMAIN_ERRORS[kind](reason)
        if kind == "OutOfMemory":
            return AggregationFailed(
                f"The aggregation needed more memory than its limit of {self.memory_limit_bytes >> 20} MiB."
            )
        return AggregationFailed(f"The aggregation stopped: {reason}.")

    def _started(self) -> tuple[socket.socket, int]:
        """Return a run that waits for its request; a warm process found dead or stuck is replaced once."""
        for attempt in (1, 2):
            connection, theirs = socket.socketpair()
            try:
                with theirs, self._lock:
                    socket.send_fds(self._control(fresh=attempt == 2), [b"\0"], [theirs.fileno()])
                return connection, int(_line(connection, time.monotonic() + START_TIMEOUT))
            except (EOFError, ConnectionError, TimeoutError):
                connection.close()
            except BaseException:
                connection.close()
                raise
        raise AggregationFailed("The process for aggregation could not be started; the log has the details.")

    def _control(self, *, fresh: bool) -> socket.socket:
        """Return the socket of a living warm process; the lock is held."""
        if self._warm is not None and (fresh or self._warm.process.poll() is not None):
            self._stop()
        if self._warm is None:
            self._warm = _start_warm()
            self._finalizer = weakref.finalize(self, self._warm.stop)
        return self._warm.control

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._warm = self._finalizer = None


def _start_warm() -> _Warm:
    ours, theirs = socket.socketpair()
    root = str(Path(str(fedportal.__file__)).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedportal.aggregation.warm", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return _Warm(process=process, control=ours)


def _line(connection: socket.socket, deadline: float) -> bytes:
    """Return what comes up to a line's end. Raises ``EOFError`` when the other end closes, ``TimeoutError``."""
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(65_536)
        if not piece:
            raise EOFError
        received += piece
    return received


def _remove_parts(outputs: Sequence[Path], pid: int) -> None:
    """Remove what a killed run left unfinished."""
    for out in outputs:
        for part in out.parent.glob(f"{part_prefix(out, pid)}*.part"):
            part.unlink(missing_ok=True)
