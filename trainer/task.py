"""A task of the site's scheduler: ``python -m trainer.task train|evaluate|predict|check``.

It has a run started by the site's warm trainer, or from cold where none answers, shows its log and ends with its exit
code. The run itself is a process of its own: a task that is started again, because its scheduler was, finds it and
goes on watching. SIGTERM ends the run.

The environment says all:

``FEDPORTAL_SITE``  path of the site's file, which only its administrator writes (see :class:`~trainer.site_file.SiteFile`)
``FEDPORTAL_RUN``   the scheduler's name of this run
``FEDPORTAL_CONF``  what the portal sent, as JSON: ``run``, ``spec_url``, ``contract``; for *predict*, which people at the
                    site start, ``model`` and ``dataset``

Standard library only, and little of that, so that it starts in some 50 ms: every round waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from trainer.contract import CONTRACT_VERSION, EXPLANATIONS, ContractError, Exit, attempt_key, site_of
from trainer.site_file import Refused, SiteFile

ENDINGS = (signal.SIGTERM, signal.SIGINT)
NO_VERDICT = 75
"""Exit code when the run ended without a word (EX_TEMPFAIL of sysexits.h): the scheduler may try once more."""
GRACE = 3.0
"""Seconds that an ended run has for its own end before it is killed. Airflow 3 kills a task 5 s after its SIGTERM."""
LOOK = 0.2
"""Seconds between two looks at a run's log. Its end is noticed at once."""
BLOCK = 1024 * 1024
"""Bytes of a log that are read at once: it may be larger than the task's memory."""
ANSWER_TIMEOUT = 5.0
DAY = 86400.0
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
KILLED = "The training process ended without a word: it was killed, most likely because memory ran out."


def main(argv: list[str]) -> int:
    duty = argv[0] if argv else ""
    try:
        site, conf = SiteFile.read(), _conf()
        if duty == "check":
            from trainer.check import report

            sys.stdout.write(json.dumps(report(site, conf)) + "\n")
            return 0
        if duty == "predict":
            return _predict(site, conf)
        if duty not in ("train", "evaluate"):
            raise Refused(Exit.BAD_JOB, f"There is no duty {duty!r}.")
        _require_same_contract(conf)
        run = str(conf.get("run"))
        try:
            site_of(run)
        except ContractError as error:
            raise Refused(Exit.BAD_JOB, str(error)) from error
        if os.environ.get("FEDPORTAL_RUN", run) != run:
            raise Refused(Exit.BAD_JOB, f"The job is that of {run}, not of {os.environ['FEDPORTAL_RUN']}.")
        code = Run(site, run, str(conf.get("spec_url"))).carry_out()
        tidy(site, keep=run)
        return code
    except Refused as refused:
        _say(refused.message, level="error", exit_code=int(refused.code))
        return int(refused.code)


def _predict(site: SiteFile, conf: dict[str, Any]) -> int:
    """Apply a model that lies at the site to images that lie at the site.

    Both are told by the names of folders: whoever may start the task, as the portal may, can point it nowhere else.
    """
    names = {name: str(conf.get(name) or "").strip() for name in ("model", "dataset")}
    for what, name in names.items():
        if not _FOLDER.match(name):
            raise Refused(Exit.BAD_JOB, f"Say which {what}: {name!r} is not the name of a folder.")
    folder = site.work_dir / "models" / names["model"]
    models, recipes = (sorted(folder.glob(pattern)) for pattern in ("*.safetensors", "*.json"))
    if len(models) != 1 or len(recipes) != 1:
        raise Refused(
            Exit.BAD_JOB, f"Put one model (.safetensors) and its recipe (.json), and no other of them, into {folder}."
        )
    images = site.data_root / names["dataset"]
    if not images.is_dir():
        raise Refused(Exit.NO_DATASET, f"There is no folder {images}.")
    from trainer.__main__ import main as trainer

    out = site.work_dir / "predictions" / names["dataset"] / names["model"]
    _say("task begins", **names, out=str(out))
    options = {"model": models[0], "recipe": recipes[0], "images": images, "out": out, "threads": site.threads}
    return trainer(["predict", *(f"--{option}={value}" for option, value in options.items())])


class Run:
    """One run at this site, as its task sees it."""

    def __init__(self, site: SiteFile, run: str, spec_url: str) -> None:
        self._site, self._run = site, run
        self._folder = site.work_dir / "runs" / run
        self._job = {
            "run": run,
            "spec_url": spec_url,
            "key": attempt_key(bytes.fromhex(site.key), run),
            "data_root": str(site.data_root),
            "work_dir": str(site.work_dir),
            "threads": site.threads,
        }
        self._over = threading.Event()
        self._cold: subprocess.Popen[bytes] | None = None
        self._before = 0

    def carry_out(self) -> int:
        """Start the run, or find it; show its log until it is over; return its exit code."""
        for number in ENDINGS:
            signal.signal(number, self._end)
        # From here on a cancelled task says when its processes are gone; one without this line never began.
        _say("task begins", run=self._run)
        self._take_the_place_of_earlier_attempts()
        log = self._folder / "log.txt"
        shown = log.stat().st_size if log.exists() else 0
        with _without_signals():  # so that a task is never ended without knowing what it has started
            answer = _ask(self._site.socket, {"op": "run", "job": self._job, "again": True})
            started = answer is not None and bool(answer.get("started"))
            if answer is None:
                self._cold = self._cold_start()
        if self._cold is not None:
            started = self._has_taken_the_run(self._cold)
        if not started:
            shown = 0
            _say("the run was started before", run=self._run)
        threading.Thread(target=self._wait_for_the_end, daemon=True).start()
        while not self._over.wait(LOOK):
            shown = _show(log, shown)
        _show(log, shown)
        return self._verdict()

    def _cold_start(self) -> subprocess.Popen[bytes]:
        """Start the run as a detached process."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._before = _pid(self._folder)
        with (self._folder / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "trainer", "run"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "FEDPORTAL_JOB": json.dumps(self._job)},
                start_new_session=True,
                preexec_fn=_let_signals_in,
            )

    def _has_taken_the_run(self, cold: subprocess.Popen[bytes]) -> bool:
        """Wait until a cold process has taken the run, or has ended; say whether no other has the run."""
        while cold.poll() is None:
            if _pid(self._folder) == cold.pid:
                return True
            time.sleep(0.02)
        # it is over already, could not begin, or has found (and then its code is 0) that another process has the run
        return cold.returncode != 0 or _pid(self._folder) not in (self._before, 0)

    def _wait_for_the_end(self) -> None:
        # The run holds the lock for its whole life: waiting for the lock is waiting for the run.
        with contextlib.suppress(OSError), (self._folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        self._over.set()

    def _verdict(self) -> int:
        code, message = self._last_words()
        _say(message, level="error" if code else "info", run=self._run, exit_code=code)
        return code

    def _last_words(self) -> tuple[int, str]:
        """Return the run's exit code and why, as it left them behind."""
        try:
            document = json.loads((self._folder / "exit.json").read_bytes())
            return int(document["exit_code"]), str(document["message"])
        except (OSError, ValueError, KeyError, TypeError):
            code = self._cold.poll() if self._cold is not None else None
            if code and code in EXPLANATIONS:  # it could not even write into its folder; its log says why
                return code, EXPLANATIONS[Exit(code)]
            return NO_VERDICT, KILLED

    def _end(self, *_: object) -> NoReturn:
        """End the run's processes and this one."""
        _end_processes(self._number, self._is_over)
        if not (self._folder / "exit.json").exists():
            text = json.dumps({"exit_code": int(Exit.CANCELLED), "message": EXPLANATIONS[Exit.CANCELLED]})
            with contextlib.suppress(OSError):
                (self._folder / "exit.json").write_text(text)
        # The signal may have come while a line was being written, or because nobody reads any more.
        with contextlib.suppress(OSError, RuntimeError):
            _say("the run's processes have ended", run=self._run, exit_code=int(Exit.CANCELLED))
        os._exit(Exit.CANCELLED)

    def _number(self) -> int:
        """Return the number of the run's process, 0 while it has none. Until one that starts from cold has written its own,
        the folder may have the number of an earlier one, which is somebody else's by now."""
        if self._cold is not None and self._cold.poll() is None:
            return self._cold.pid
        return _pid(self._folder)

    def _is_over(self) -> bool:
        """Say whether no process has the run: its lock is free, and none of ours is about to take it."""
        if self._over.is_set():
            return True
        if self._cold is not None and self._cold.poll() is None:
            return False
        return not _is_locked(self._folder)

    def _take_the_place_of_earlier_attempts(self) -> None:
        """End what is still at work of this round's earlier attempts; raise :class:`Refused` where a later one has begun.

        The portal waits for the newest attempt only. Where somebody deletes a run in Airflow, it starts another before
        Airflow has told the task of the first; and Airflow may start a task again that nobody waits for any more.
        """
        stem, _, number = self._run.rpartition("-a")
        for folder in self._folder.parent.glob(f"{stem}-a*"):
            other = folder.name.removeprefix(f"{stem}-a")
            if not other.isdecimal() or other == number:
                continue
            if int(other) > int(number) and self._last_words()[0] != Exit.OK:
                raise Refused(Exit.CANCELLED, "A later attempt has taken the place of this run.")
            if _is_locked(folder):
                _end_processes(partial(_pid, folder), lambda folder=folder: not _is_locked(folder))
                _say("an earlier attempt was still at work and has been ended", run=folder.name)


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT wait for the end of the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)


def _let_signals_in() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)


def tidy(site: SiteFile, *, keep: str) -> None:
    """Remove the folders of runs that ended long ago. The files of models are gone since their run's end."""
    import shutil  # with all its kinds of archives: not before a run begins

    for folder in (site.work_dir / "runs").glob("fp-*"):
        with contextlib.suppress(OSError):
            if folder.name == keep or time.time() - folder.stat().st_mtime < site.keep_days * DAY:
                continue
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)


def ping(path: str) -> bool:
    """Say whether a warm trainer answers."""
    return _ask(path, {"op": "ping"}) is not None


def _ask(path: str, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return the warm trainer's answer, or ``None`` where a cold start must do."""
    if not path:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT)
        try:
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline(1024 * 1024))
        except (OSError, ValueError):
            return None
    return dict(answer) if isinstance(answer, dict) and answer.get("ok") is True else None


def _conf() -> dict[str, Any]:
    try:
        conf = json.loads(os.environ.pop("FEDPORTAL_CONF", "") or "{}")
    except ValueError as error:
        raise Refused(Exit.BAD_JOB, "The configuration of this run is not JSON.") from error
    if not isinstance(conf, dict):
        raise Refused(Exit.BAD_JOB, "The configuration of this run is not an object.")
    return conf


def _require_same_contract(conf: dict[str, Any]) -> None:
    if conf.get("contract") != CONTRACT_VERSION:
        raise Refused(
            Exit.BAD_JOB,
            f"The portal speaks contract {conf.get('contract')}, this trainer {CONTRACT_VERSION}: update one of them.",
        )


def _end_processes(pid: Callable[[], int], is_over: Callable[[], bool]) -> None:
    """Tell a process group to end, and kill it when it does not within :data:`GRACE`; ``pid`` gives 0 while unknown."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        told = 0
        while not is_over() and time.monotonic() < deadline:
            found = pid()
            if found and found != told:  # a process that was asked for a moment ago may have no number yet
                told = found
                for kill in (os.killpg, os.kill):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(found, number)
            time.sleep(0.02)


def _is_locked(folder: Path) -> bool:
    """Say whether a process has the run of this folder: it holds the lock for its whole life."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _pid(folder: Path) -> int:
    try:
        return int((folder / "pid").read_text())
    except (OSError, ValueError):
        return 0


def _show(log: Path, shown: int) -> int:
    """Write the whole lines of a log from an offset on to the console; return the offset behind them."""
    while lines := _lines(log, shown):
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
        shown += len(lines)
    return shown


def _lines(log: Path, offset: int) -> bytes:
    """Return whole lines of a log, or a part of one that is longer than a block."""
    try:
        with log.open("rb") as file:
            file.seek(offset)
            data = file.read(BLOCK)
    except OSError:
        return b""
    end = data.rfind(b"\n") + 1
    return data if len(data) == BLOCK and not end else data[:end]


def _say(message: str, *, level: str = "info", **facts: Any) -> None:
    entry = {"at": round(time.time(), 3), "level": level, "message": message, **facts}
    sys.stdout.write(json.dumps(entry, ensure_ascii=False) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
