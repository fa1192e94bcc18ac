"""Start trainer processes on this machine: from the warm server where one answers, else from cold.

Both ways lead to the same run folder with the same lock, so a run is started once, whoever starts it. The portal
imports nothing of the trainer but its contract: everything else is another process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trainer.contract
from fedportal.connectors.errors import SiteMisbehaved, SiteUnreachable

COMMAND = (sys.executable, "-m", "trainer")
ROOT = Path(trainer.contract.__file__).resolve().parents[2]
"""The folder that holds the trainer package: where a trainer process starts."""
ANSWER_TIMEOUT = 5.0
SERVER_TAKEN = 75
"""Exit code of a warm server that found another one on its socket."""
MAX_ANSWER = 8 * 1024 * 1024

_PASSED_ON = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|LD_LIBRARY_PATH|VIRTUAL_ENV|PYTHON.*|XDG_.*"
    r"|OMP_.*|MKL_.*|OPENBLAS_.*|CUDA_.*|NVIDIA_.*|CUBLAS_.*|TORCH_.*|PYTORCH_.*"
    r"|(?:HTTPS?|NO|ALL)_PROXY|REQUESTS_CA_BUNDLE|SSL_CERT_(?:FILE|DIR)|FEDPORTAL_RELAY",
    re.IGNORECASE,
)
"""The variables that a trainer process needs. The others stay here: the portal's environment holds its secrets."""

_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class CommandResult:
    """What a trainer command said: ``output`` is its standard output, ``log`` the last of its error output."""

    exit_code: int
    output: str
    log: str

    def require(self) -> str:
        """Return the output. Raises :class:`SiteMisbehaved` with the trainer's sentence when the command failed."""
        if self.exit_code:
            words = self.log.strip().splitlines()
            raise SiteMisbehaved(words[-1] if words else f"The trainer ended with code {self.exit_code}.")
        return self.output


class TrainerProcess:
    """Starts runs and commands. ``socket_path``: the warm server's socket, ``None`` for cold starts only.

    ``command``: how to call the trainer; tests replace it.
    """

    def __init__(self, socket_path: Path | None = None, *, command: Sequence[str] = COMMAND) -> None:
        self.socket_path = socket_path
        self._command_line = tuple(command)
        self._server: subprocess.Popen[bytes] | None = None

    # --- runs --------------------------------------------------------------------------------------

    def start_run(self, job: Mapping[str, Any]) -> bool:
        """Start the run that ``job`` describes (the keys of FEDPORTAL_JOB), detached from this process.

        True: started now; False: a run of that name was begun before. May be repeated at any time, also after a
        crash in its middle.
        """
        answer = self._ask({"op": "run", "job": dict(job)})
        if answer is not None:
            return bool(answer["started"])
        return self._start_cold(job)

    def _start_cold(self, job: Mapping[str, Any]) -> bool:
        _reap()
        folder = Path(job["work_dir"]) / "runs" / str(job["run"])
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o640)
        except OSError as error:
            raise SiteUnreachable(f"The trainer's working folder cannot be used: {error.strerror}.") from error
        try:
            if not _lock(lock, folder) or (folder / "pid").exists():
                return False
            # The lock is handed to the process: it is held from here on until the run's last process is gone.
            with (folder / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    [*self._command_line, "run"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    env=_environment(FEDPORTAL_JOB=json.dumps(dict(job)), FEDPORTAL_LOCK_FD=str(lock)),
                    pass_fds=[lock],
                    start_new_session=True,
                )
            (folder / "pid").write_text(str(process.pid))
            _children.append(process)
            return True
        except OSError as error:
            raise SiteUnreachable(f"The trainer could not be started: {error.strerror}.") from error
        finally:
            os.close(lock)

    # --- commands ----------------------------------------------------------------------------------

    def run_command(self, argv: Sequence[str], *, timeout: float = 120) -> CommandResult:
        """Run a trainer command (``init``, ``bundle``, ``inspect``, ``version``) to its end.

        Raises :class:`SiteUnreachable` when it does not end within ``timeout`` seconds.
        """
        arguments = [str(argument) for argument in argv]
        answer = self._ask({"op": "command", "argv": arguments, "timeout": timeout}, timeout=timeout + ANSWER_TIMEOUT)
        if answer is not None:
            return CommandResult(int(answer["exit_code"]), str(answer["output"]), str(answer["log"]))
        try:
            done = subprocess.run(
                [*self._command_line, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=ROOT,
                env=_environment(),
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _too_slow(arguments, timeout) from error
        except OSError as error:
            raise SiteUnreachable(f"The trainer could not be started: {error.strerror}.") from error
        return CommandResult(
            done.returncode, done.stdout.decode(errors="replace"), done.stderr[-8192:].decode(errors="replace")
        )

    # --- the warm server ---------------------------------------------------------------------------

    def ping(self) -> dict[str, Any] | None:
        """Return what the warm server says of itself, or ``None`` when none answers."""
        return self._ask({"op": "ping"})

    def start_server(self, *, timeout: float = 120, wait: bool = True) -> int | None:
        """Have a warm server of today's code run, detached, and return its process id.

        One that runs is kept; one that was started from other code is replaced, its runs go on. With ``wait`` false
        returns ``None`` at once while a new one warms up. Raises :class:`SiteUnreachable` when none gets ready.
        """
        if self.socket_path is None:
            raise ValueError("there is no socket for a warm server")
        _reap()
        label = self._fingerprint()
        answer = self.ping()
        if answer is not None and answer["label"] == label:
            return int(answer["pid"])
        if answer is not None:
            _end(int(answer["pid"]), Path(f"{self.socket_path}.lock"))
        self.socket_path.parent.mkdir(parents=True, exist_ok=True)
        with self.socket_path.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                [*self._command_line, "serve", "--socket", str(self.socket_path.absolute()), "--label", label],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=_environment(),
                start_new_session=True,
            )
        _children.append(process)
        self._server = process
        end = time.monotonic() + timeout
        while wait:
            answer = self.ping()
            if answer is not None:
                if int(answer["pid"]) != process.pid:
                    process.terminate()  # somebody was faster: ours must not step in when that one is stopped
                    process.wait()
                return int(answer["pid"])
            # It ends at once when another process has started one in the meantime: then that one will answer.
            if time.monotonic() > end or process.poll() not in (None, SERVER_TAKEN):
                raise SiteUnreachable("The trainer's warm server does not get ready; its log says why.")
            time.sleep(0.05)
        return None

    def stop_server(self) -> None:
        """End the warm server, also one that was started here and does not answer yet; runs go on. No error when none runs."""
        answer = self.ping()
        if answer is None and self._server is not None and self._server.poll() is None:
            self._server.terminate()
            self._server.wait()
        if answer is not None and self.socket_path is not None:
            _end(int(answer["pid"]), Path(f"{self.socket_path}.lock"))

    def _fingerprint(self) -> str:
        """Return a text that changes with the trainer's code, so that an update does not go on with the old."""
        digest = hashlib.sha256(repr(self._command_line).encode())
        for path in sorted((ROOT / "trainer").rglob("*.py")):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:16]

    def _ask(self, request: Mapping[str, Any], *, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any] | None:
        """Return the server's answer, or ``None`` where a cold start must do."""
        if self.socket_path is None:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            try:
                connection.connect(str(self.socket_path))
                connection.sendall(json.dumps(request).encode() + b"\n")
                data = b""
                while not data.endswith(b"\n") and len(data) <= MAX_ANSWER:
                    piece = connection.recv(65536)
                    if not piece:
                        return None
                    data += piece
                answer = json.loads(data)
            except (OSError, ValueError):
                return None
        if answer.get("ok") is True:
            return dict(answer)
        if answer.get("error") == "timed out":
            raise _too_slow(request["argv"], request["timeout"])
        return None


def is_locked(path: Path) -> bool:
    """Say whether some process holds the lock file ``path``."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def _environment(**more: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}, **more}


def _lock(lock: int, folder: Path) -> bool:
    """Take a run's lock; a run that has begun has a pid, one who only looks holds it for microseconds."""
    end = time.monotonic() + 1
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if (folder / "pid").exists() or time.monotonic() > end:
                return False
            time.sleep(0.002)


def _end(pid: int, lock: Path) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + 5
    while is_locked(lock) and time.monotonic() < end:
        time.sleep(0.02)


def _reap() -> None:
    """Collect the ended among the processes that this one started: nobody else can."""
    _children[:] = [process for process in _children if process.poll() is None]


def _too_slow(argv: Sequence[str], timeout: float) -> SiteUnreachable:
    return SiteUnreachable(f"The trainer's command {argv[0]} did not end within {timeout:.0f} seconds.")
