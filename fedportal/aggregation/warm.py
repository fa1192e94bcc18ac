"""The warm process that aggregation runs are forked from; started by :mod:`fedportal.aggregation.process` only.

It imports numpy once and stays single-threaded, so that a fork is safe and takes milliseconds. Each run is a
process of its own with its own limits; what happens to it leaves this process and its parent unharmed.
Some spare processes, forked in quiet moments, wait for the next runs, so that not even the fork is in their way.
Wire: one byte with one connected socket (SCM_RIGHTS) asks for a run. On that socket: the request as a line of
JSON in, the run's process id as a line out, then the answer as a line of JSON; closing without one is a death.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: BLAS threads would make the fork unsafe, none is needed

from fedportal.aggregation.admission import admit, admit_state
from fedportal.aggregation.errors import AggregationError
from fedportal.aggregation.merge import Contribution, aggregate

SPARES = 4
"""Updates tend to come together, and are merged right after they were admitted."""
QUIET = 0.05
"""Seconds without a request after which spare processes are made up for."""
OUT_OF_MEMORY = "OutOfMemory"
UNEXPECTED = "Unexpected"


def serve(control: socket.socket) -> None:
    """Have a process carry out a run for each socket that arrives, until the portal's end is closed."""
    gc.freeze()  # no collection of a child touches, and so copies, what it shares with the others
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps; a run's death shows on its socket
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the portal, which then closes its end
    spares: list[socket.socket] = []
    while True:
        pause = QUIET if len(spares) < SPARES else None
        if not select.select([control], [], [], pause)[0]:
            spares.append(_fork([control, *spares]))
            continue
        byte, handles, _, _ = socket.recv_fds(control, 1, 1)
        if not byte:
            return  # the spares see the end of their channels
        with socket.socket(fileno=handles[0]) as connection:
            while not _hand_over(connection, spares.pop() if spares else _fork([control])):
                pass  # it died while it waited


def _fork(inherited: Sequence[socket.socket]) -> socket.socket:
    """Fork a process that waits for its run, and return the channel to it. ``inherited``: what is not its own."""
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        return ours
    for foreign in (ours, *inherited):
        foreign.close()
    byte, handles, _, _ = socket.recv_fds(theirs, 1, 1)
    if not byte:
        os._exit(0)
    _run(socket.socket(fileno=handles[0]))


def _hand_over(connection: socket.socket, channel: socket.socket) -> bool:
    with channel:
        try:
            socket.send_fds(channel, [b"\0"], [connection.fileno()])
        except OSError:
            return False
    return True


def _run(connection: socket.socket) -> NoReturn:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        connection.sendall(b"%d\n" % os.getpid())
        with connection.makefile("rb") as lines:
            request = json.loads(lines.readline())
        memory = request["memory_limit_bytes"]
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        signal.alarm(request["timeout"] + 60)  # the portal kills in time; this is for when it has died
        connection.sendall(json.dumps(_answer(request["verb"], request["arguments"])).encode() + b"\n")
        code = 0
    except ConnectionError:
        pass  # the portal is gone; nobody waits for the answer
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _answer(verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result = VERBS[verb](**arguments)
    except AggregationError as error:
        return {"error": type(error).__name__, "reason": error.reason}
    except MemoryError:
        return {"error": OUT_OF_MEMORY, "reason": ""}
    except OSError as error:  # no path of this machine in what a researcher reads
        traceback.print_exc()
        return {"error": UNEXPECTED, "reason": error.strerror or type(error).__name__}
    except Exception as error:  # the border of the process: whatever it is, the portal is to read it
        if str(error) == "can't start new thread":  # no room for its stack
            return {"error": OUT_OF_MEMORY, "reason": ""}
        traceback.print_exc()
        return {"error": UNEXPECTED, "reason": f"{type(error).__name__}: {error}"}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"result": result, "peak_memory_bytes": peak}


def _admit(update: str, reference: str, max_relative_norm: float | None) -> dict[str, Any]:
    return asdict(admit(Path(update), Path(reference), max_relative_norm=max_relative_norm))


def _admit_state(state: str, model: str, entries: list[str]) -> dict[str, Any]:
    return asdict(admit_state(Path(state), Path(model), entries))


def _aggregate(
    reference: str,
    contributions: list[list[Any]],
    state_in: str | None,
    out: str,
    state_out: str | None,
    **others: Any,
) -> dict[str, Any]:
    merged = aggregate(
        reference=Path(reference),
        contributions=[Contribution(site=site, path=Path(path), cases=cases) for site, path, cases in contributions],
        state_in=None if state_in is None else Path(state_in),
        out=Path(out),
        state_out=None if state_out is None else Path(state_out),
        **others,
    )
    return {**asdict(merged), "path": str(merged.path)}


VERBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "admit": _admit,
    "admit_state": _admit_state,
    "aggregate": _aggregate,
}


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        serve(listening)
