"""The process of one run: its folder, its lock, its end.

``<work_dir>/runs/<run>/`` tells everything about a run to whoever looks, without asking the process:

=============  ===============================================================================================
``lock``       locked (flock) by the run's process and its children for as long as they live: liveness is the lock
``pid``        process id, also of the process group where the run was started detached
``log.txt``    the log, with whatever libraries print
``exit.json``  ``{"exit_code", "message"}``, written once, when the outcome is known
=============  ===============================================================================================

SIGTERM ends a run at once, in whatever it is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from trainer.contract import EXPLANATIONS, Exit
from trainer.exchange import Job, Work, exchange, train_or_evaluate
from trainer.reporting import Log

RESERVE = 8192
"""Bytes set aside for exit.json when a run begins, so that a full disk can still be told."""
LARGE = ("*.safetensors", "*.part", "*.tmp")
"""Files of a run that its end removes: a model a round would fill the site's disk."""
STOPPING = (signal.SIGTERM, signal.SIGINT)

_settling = threading.Lock()


def claim(folder: Path, *, again: bool = False, wait: float = 1.0) -> int | None:
    """Take a run for this process and return the descriptor of its lock, or ``None`` when it was taken before.

    A run that was begun is never begun a second time, whatever became of it. With ``again``, one that ended
    without success is (a scheduler that repeats its own task). The lock goes when all processes that have the
    descriptor are gone.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            # Somebody who only looks holds it for microseconds; a run that has begun has a pid.
            if (folder / "pid").exists() or time.monotonic() > end:
                os.close(lock)
                return None
            time.sleep(0.002)
    begun = (folder / "pid").exists()
    if begun and again and exit_code_of(folder) != 0:
        (folder / "exit.json").unlink(missing_ok=True)
        begun = False
    if begun:
        os.close(lock)
        return None
    return lock


def begin(folder: Path, lock: int) -> None:
    """Settle this process as the run's: pid, room for its last words, and the end on SIGTERM.

    Call it before any thread starts (also before importing torch): threads inherit that they leave SIGTERM to the
    one that waits for it.
    """
    os.set_inheritable(lock, False)
    reserve = folder / ".exit.json"
    reserve.write_bytes(b" " * RESERVE)
    _write(folder / "pid", str(os.getpid()))

    def cancelled() -> None:
        _tidy(folder)  # first: who waits for the verdict may kill what is left after it
        settle(folder, Exit.CANCELLED, EXPLANATIONS[Exit.CANCELLED])

    end_on_signal(cancelled)
    # Should memory run out, the system should take a run, which can be repeated, before anything else.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
    faulthandler.enable()


def carry_out(job: Job, *, work: Work = train_or_evaluate, patience: float = 900.0) -> Exit:
    """Do the job in this process, which has claimed the run and begun it."""
    log = Log(job.folder / "log.txt")
    log.say("run begins", run=job.run, pid=os.getpid())
    try:
        code = exchange(
            job, log=log, settle=lambda code, message: settle(job.folder, code, message), work=work, patience=patience
        )
    finally:
        _tidy(job.folder)  # the store has what is worth keeping
    log.say("run ends", run=job.run, exit_code=int(code))
    return code


def settle(folder: Path, code: Exit, message: str) -> None:
    """Write exit.json, once: what was settled first stays."""
    with _settling:
        target = folder / "exit.json"
        if target.exists():
            return
        text = json.dumps({"exit_code": int(code), "message": message[:1000]}).encode()
        reserve = folder / ".exit.json"
        try:
            # In place, into blocks that are already ours; JSON does not mind the spaces after it.
            with reserve.open("r+b") as file:
                file.write(text.ljust(RESERVE))
        except FileNotFoundError:
            reserve.write_bytes(text)
        reserve.replace(target)


def exit_code_of(folder: Path) -> int | None:
    """Return the exit code of a run that has settled, else ``None``."""
    try:
        return int(json.loads((folder / "exit.json").read_bytes())["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end_on_signal(last: Callable[[], None]) -> None:
    """End this process with CANCELLED on SIGTERM or SIGINT, after ``last``. Call it before any thread starts."""

    # A thread that waits, not a signal handler: Python runs handlers in the main thread only, which may be
    # inside a long operation of torch. Those let go of the interpreter, so this thread gets its turn.
    def end() -> None:
        signal.sigwait(STOPPING)
        with contextlib.suppress(OSError):
            last()
        os._exit(Exit.CANCELLED)

    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    threading.Thread(target=end, name="end-on-signal", daemon=True).start()


def _tidy(folder: Path) -> None:
    for pattern in LARGE:
        for file in folder.glob(pattern):
            with contextlib.suppress(OSError):
                file.unlink()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text)
    temporary.replace(path)
