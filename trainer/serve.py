"""The warm server: imports torch and MONAI once and starts each run from there, in some 10 ms instead of seconds.

One JSON line per connection on a Unix socket, one JSON line back::

    {"op": "ping"}                                  → {"ok": true, "pid": …, "label": …, "versions": {…}}
    {"op": "run", "job": {…}, "again": false}       → {"ok": true, "started": true|false}
    {"op": "command", "argv": […], "timeout": 60}   → {"ok": true, "exit_code": 0, "output": "…", "log": "…"}

Why ``os.fork`` of our own and no ``multiprocessing`` forkserver: the latter ends with the process that started it,
and a run must outlive the portal. Forking is safe here because this process has imported and done nothing else: it
has one thread (OpenBLAS is told so) and has never computed, so no OpenMP team exists that a child would miss.
Some children wait ready, forked in quiet moments, so that not even the fork is in a run's way.

A run is a session of its own: it outlives this server, which on SIGTERM leaves without touching runs. Idle children
end with the server, commands are ended by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from trainer.exchange import Work, job_from_json, versions
from trainer.job import Fault
from trainer.run import begin, carry_out, claim
from trainer.transfer import rehearse

PRELOAD = (
    "torch",
    "torch._dynamo",  # the first torch.optim constructor imports it, 1.5 s
    "torch.optim",
    "monai.data",
    "monai.inferers",
    "monai.losses",
    "monai.metrics",
    "monai.networks.nets",
    "monai.transforms",
    "trainer.bundle",
    "trainer.evaluate",
    "trainer.initial",
    "trainer.inspect",
    "trainer.train",
)
TAKEN = 75
"""Exit code of a server that finds another on its socket (EX_TEMPFAIL of sysexits.h)."""
MAX_REQUEST = 1024 * 1024
MAX_OUTPUT = 4 * 1024 * 1024
MAX_LOG = 8 * 1024
QUIET = 0.05
"""Seconds without a request after which waiting children are made up for: sites are started in bursts."""
RETRY = 1.0
"""Seconds until another try where no process was to be had."""


@dataclass
class _Child:
    """A forked process, the channel on which it gets its task, and the client that waits for its answer.
    ``folder``: where a command's output goes."""

    pid: int
    channel: socket.socket
    client: socket.socket | None = None
    folder: Path | None = None
    deadline: float = field(default=float("inf"))


class Server:
    """See the module. ``command`` runs a trainer command line in a child; ``label`` is given back by a ping."""

    def __init__(
        self,
        path: Path,
        *,
        command: Callable[[Sequence[str]], int],
        work: Work,
        patience: float,
        preload: Sequence[str] = PRELOAD,
        idle: int = 4,
        label: str = "",
    ) -> None:
        self._path, self._label, self._idle_wanted = path, label, idle
        self._command, self._work, self._patience, self._preload = command, work, patience, preload
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Child] = []
        self._commands: dict[int, _Child] = {}
        self._refill_at = 0.0
        self._stopping = False

    def serve(self) -> int:
        """Serve until SIGTERM. Returns :data:`TAKEN` at once when another server has the socket."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"another trainer server has {self._path}")
            return TAKEN
        self._import_all()
        # The lock says that nobody listens any more: a socket that is still there is of one that was killed.
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        finally:
            os.umask(before)
        listener.listen(64)
        self._listener, self._lock = listener, lock
        self._watch(listener, self._accept)
        self._signals_in, self._signals_out = socket.socketpair()
        for end in (self._signals_in, self._signals_out):
            end.setblocking(False)
        self._watch(self._signals_out, self._signalled)
        signal.set_wakeup_fd(self._signals_in.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        _say(f"ready: {self._path}")
        self._loop()
        return 0

    # --- the loop ----------------------------------------------------------------------------------

    def _loop(self) -> None:
        while len(self._idle) < self._idle_wanted:
            self._fork()
        while not self._stopping:
            events = self._selector.select(self._pause())
            for key, _ in events:
                key.data()
            self._end_overdue()
            if len(self._idle) < self._idle_wanted and time.monotonic() >= self._refill_at:
                try:
                    self._fork()
                except OSError:  # no memory or process to be had now
                    self._refill_at = time.monotonic() + RETRY
        self._path.unlink(missing_ok=True)
        self._listener.close()
        for child in self._commands.values():
            _kill_group(child.pid)
            shutil.rmtree(child.folder, ignore_errors=True)
        for child in self._idle:
            _close(child.channel)

    def _pause(self) -> float | None:
        deadlines = [child.deadline for child in self._commands.values() if child.deadline < float("inf")]
        waits = [deadline - time.monotonic() for deadline in deadlines]
        if len(self._idle) < self._idle_wanted:
            waits.append(self._refill_at - time.monotonic())
        return max(0.0, min(waits)) if waits else None

    def _import_all(self) -> None:
        # Read when the libraries load. OpenBLAS' threads would make forking unsafe; OpenMP's shall sleep, not spin,
        # while they wait: the runs of several sites share this machine.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # A library that only asks whether there is a GPU must not open CUDA here: no child could use it then.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        for name in self._preload:
            importlib.import_module(name)
        rehearse()
        versions()
        gc.collect()
        gc.freeze()  # what is here stays: no collection touches, and so copies, the pages shared with children
        threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").exists() else 1
        if threads > 1:
            _say(f"warning: {threads} threads before the first fork")

    def _watch(self, connection: socket.socket, act: Callable[[], None]) -> None:
        self._selector.register(connection, selectors.EVENT_READ, act)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self._refill_at = time.monotonic() + QUIET
        # Requests are one small line, sent at once by the only user who may open the socket: no need to
        # serve the others while it arrives.
        client.settimeout(2)
        try:
            request = json.loads(_line(client))
            self._answer(client, request)
        except (OSError, ValueError, KeyError, TypeError, Fault) as error:
            _reply(client, {"ok": False, "error": str(error)})

    def _answer(self, client: socket.socket, request: Any) -> None:
        match request["op"]:
            case "ping":
                _reply(client, {"ok": True, "pid": os.getpid(), "label": self._label, "versions": dict(versions())})
            case "run":
                job_from_json(request["job"])
                self._give(client, {"job": request["job"], "again": bool(request.get("again"))})
            case "command":
                argv = [str(argument) for argument in request["argv"]]
                timeout = float(request.get("timeout") or 60)
                folder = Path(tempfile.mkdtemp(prefix="trainer-command-"))
                child = self._give(client, {"argv": argv, "folder": str(folder)})
                child.folder = folder
                child.deadline = time.monotonic() + timeout
                self._commands[child.pid] = child
            case _:
                raise ValueError("unknown op")

    def _give(self, client: socket.socket, task: dict[str, Any]) -> _Child:
        """Give a task to a waiting child, or to a new one; the child's first answer goes back to the client."""
        while True:
            child = self._idle.pop() if self._idle else self._fork(idle=False)
            try:
                child.channel.sendall(json.dumps(task).encode() + b"\n")
            except OSError:  # died while it waited
                _close(child.channel)
                continue
            child.client = client
            self._watch(child.channel, partial(self._heard, child))
            return child

    def _heard(self, child: _Child) -> None:
        """The child has taken its task, or has died over it."""
        self._selector.unregister(child.channel)
        try:
            answer = json.loads(_line(child.channel))
        except (OSError, ValueError):
            answer = {"ok": False, "error": "the process died"}
        _close(child.channel)
        if child.pid not in self._commands:  # a command answers when it ends
            self._tell(child, answer)

    def _signalled(self) -> None:
        numbers = self._signals_out.recv(1024)
        if signal.SIGTERM in numbers or signal.SIGINT in numbers:
            self._stopping = True
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._idle = [child for child in self._idle if child.pid != pid or _close(child.channel)]
            child = self._commands.pop(pid, None)
            if child is not None:
                self._command_ended(child, os.waitstatus_to_exitcode(status))

    def _command_ended(self, child: _Child, exit_code: int) -> None:
        output, log = (_tail(child.folder / name, most) for name, most in (("stdout", MAX_OUTPUT), ("stderr", MAX_LOG)))
        shutil.rmtree(child.folder, ignore_errors=True)
        self._tell(child, {"ok": True, "exit_code": exit_code, "output": output, "log": log})

    def _end_overdue(self) -> None:
        for child in self._commands.values():
            if time.monotonic() > child.deadline:
                child.deadline = float("inf")
                self._tell(child, {"ok": False, "error": "timed out"})
                _kill_group(child.pid)

    def _tell(self, child: _Child, answer: dict[str, Any]) -> None:
        if child.client is not None:
            _reply(child.client, answer)
            child.client = None

    # --- children ----------------------------------------------------------------------------------

    def _fork(self, *, idle: bool = True) -> _Child:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._be_child(theirs)
        theirs.close()
        child = _Child(pid, ours)
        if idle:
            self._idle.append(child)
        return child

    def _be_child(self, channel: socket.socket) -> NoReturn:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            # All that is the server's: with a copy of another child's channel open, that child would
            # never see the server's end.
            for key in list(self._selector.get_map().values()):
                _close(key.fileobj)
            for child in self._idle:
                _close(child.channel)
            for connection in [child.client for child in self._commands.values()]:
                _close(connection)
            self._signals_in.close()
            self._selector.close()
            os.close(self._lock)
            request = _line(channel, limit=None)
            if request:
                os.setsid()
                code = self._do(channel, json.loads(request))
        except BaseException as error:
            if not isinstance(error, SystemExit):
                sys.excepthook(type(error), error, error.__traceback__)
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            # Not sys.exit: the server's stack lies below us.
            os._exit(code)

    def _do(self, channel: socket.socket, task: dict[str, Any]) -> int:
        if "argv" in task:
            folder = Path(task["folder"])
            _redirect(folder / "stdout", folder / "stderr")
            try:
                return self._command(task["argv"])
            except SystemExit as stop:  # argparse
                return stop.code if isinstance(stop.code, int) else 2
        job = job_from_json(task["job"])
        lock = claim(job.folder, again=bool(task.get("again")))
        if lock is not None:
            begin(job.folder, lock)
        _reply(channel, {"ok": True, "started": lock is not None})
        if lock is None:
            return 0
        _redirect(job.folder / "log.txt", job.folder / "log.txt")
        return int(carry_out(job, work=self._work, patience=self._patience))


def _redirect(stdout: Path, stderr: Path) -> None:
    for descriptor, path in ((1, stdout), (2, stderr)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
        os.dup2(file, descriptor)
        os.close(file)


def _say(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def _line(connection: socket.socket, limit: int | None = MAX_REQUEST) -> bytes:
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            break
        data += piece
        if limit is not None and len(data) > limit:
            raise ValueError("request is too long")
    return data


def _reply(connection: socket.socket, answer: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # who asked has gone: nobody to tell
        connection.sendall(json.dumps(answer).encode() + b"\n")
    _close(connection)


def _close(connection: Any) -> None:
    with contextlib.suppress(OSError):
        if connection is not None:
            connection.close()


def _tail(path: Path, most: int) -> str:
    try:
        return path.read_bytes()[-most:].decode(errors="replace")
    except OSError:
        return ""


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(OSError):
            kill(pid, signal.SIGKILL)
