"""Starts the demo's processes, restarts those that die, and ends all of them with the demo."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedportal.demo.state import DemoError

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
QUICK_DEATH = 3.0
"""Seconds. A process that keeps dying sooner than this after its start is not restarted for ever."""
MAX_QUICK_DEATHS = 5


def die_with_parent() -> None:
    """Runs in the child before exec, so that a killed demo leaves no process behind (Linux)."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class _Child:
    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes]
    started: float
    quick_deaths: int = 0


class Processes:
    """Named child processes, each with a log file. Call :meth:`watch` regularly from the main thread."""

    def __init__(self, *, logs: Path, environment: Mapping[str, str], cwd: Path) -> None:
        self._logs, self._environment, self._cwd = logs, environment, cwd
        self._children: dict[str, _Child] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str]) -> None:
        self._children[name] = _Child(name, command, self._spawn(name, command), time.monotonic())

    def run(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process that ends by itself; :meth:`finish` waits for it."""
        return self._spawn(name, command)

    def finish(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.wait() != 0:
            raise DemoError(f"{name} failed (exit code {process.returncode}):\n{self.last_words(name)}")

    def watch(self) -> list[str]:
        """Restart processes that died; return their names. Raises :class:`DemoError` for one that keeps dying."""
        restarted = []
        for child in self._children.values():
            if child.process.poll() is None:
                continue
            quick = time.monotonic() - child.started < QUICK_DEATH
            child.quick_deaths = child.quick_deaths + 1 if quick else 0
            if child.quick_deaths >= MAX_QUICK_DEATHS:
                raise DemoError(f"The {child.name} keeps stopping:\n{self.last_words(child.name)}")
            time.sleep(0.2 * child.quick_deaths)
            child.process, child.started = self._spawn(child.name, child.command), time.monotonic()
            restarted.append(child.name)
        return restarted

    def stop(self, *, timeout: float = 10) -> None:
        """End all children: with SIGTERM, and after ``timeout`` seconds with SIGKILL."""
        running = [child.process for child in self._children.values() if child.process.poll() is None]
        for process in running:
            process.terminate()
        end = time.monotonic() + timeout
        for process in running:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._children.clear()

    def last_words(self, name: str) -> str:
        lines = (self._logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-12:])

    def _spawn(self, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._cwd,
                env=dict(self._environment),
                preexec_fn=die_with_parent,
            )
