"""Reach a site on the portal's own machine: the trainer runs as a process beside the portal.

What it knows of a run it reads from the run's folder, so a restarted portal knows as much as the one before.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

from fedportal.connectors.base import CheckReport, DatasetReport, LogChunk, RunState, RunStatus
from fedportal.connectors.checking import dataset_report, take_steps
from fedportal.connectors.errors import SiteMisbehaved, SiteRefused
from fedportal.connectors.fields import Configured, Field, SiteContext, Unfit
from fedportal.connectors.trainer_process import COMMAND, TrainerProcess, is_locked
from trainer.contract import EXPLANATIONS, Exit, LaunchTicket

NO_ROOM = 64 * 1024
"""Bytes. A run that died without a word on a disk with less than this died of it."""
LEAST_FREE = 1024**3
LOG_CHUNK = 256 * 1024
GRACE = 4.0
"""Seconds that a cancelled run has for its own end before it is killed."""
KILLED = (
    "The training process ended without a word: it was killed, most likely by the system because memory ran out. "
    "A smaller patch or batch size needs less."
)
LAST_WORDS = 300


class LocalConnector(Configured):
    """A site on this machine.

    ``data_root``: folder of its datasets. ``work_dir``: where runs, cache and kept state lie; its own for each site.
    ``threads``: CPU threads of a run, 0 for all. ``socket``: the warm server's, empty for cold starts. ``pool``: where the
    site stands for several of this machine, the datasets that are its only one together: ``{"site", "data_root",
    "dataset"}`` each. The portal makes such sites; no form asks for it. ``shelf``: the portal's spool, where its runs find
    the global model and leave their updates; empty: by the object store only.
    """

    TITLE = "On this machine"
    SUMMARY = (
        "The trainer runs beside the portal and reads folders of this machine. For trying things out, for simulated "
        "hospitals, and for a portal that stands in the hospital itself."
    )
    FIELDS = (
        Field(
            "data_root",
            "Data folder",
            "Folder on this machine that holds one folder per dataset, each with a dataset.json.",
            placeholder="/srv/hospital/data",
        ),
        Field(
            "work_dir",
            "Work folder",
            "Folder for run logs and the preprocessed cache; it must not lie inside the data folder.",
            placeholder="/srv/hospital/work",
        ),
        Field(
            "threads",
            "Threads",
            "Processor threads that one site run may use here.",
            kind="number",
            default=1,
            least=1,
            most=256,
            unit="threads",
        ),
    )
    IS_CALLED = False
    NEEDS_SITE_KEY = False  # its runs get their keys over a private socket

    def __init__(
        self,
        *,
        data_root: str | Path,
        work_dir: str | Path,
        threads: int = 0,
        socket: str | Path = "",
        pool: Sequence[Mapping[str, str]] = (),
        shelf: str | Path = "",
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._data_root = Path(data_root).absolute()
        self._work_dir = Path(work_dir).absolute()
        self._threads = threads
        self._pool = [dict(member) for member in pool]
        self._shelf = str(Path(shelf).absolute()) if shelf else ""
        self._trainer = TrainerProcess(Path(socket) if socket else None, command=command)

    @classmethod
    def clean_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
        cleaned = {**config, **{name: _clean_folder(name, config[name]) for name in ("data_root", "work_dir")}}
        if "pool" in config:
            cleaned["pool"] = _clean_pool(config["pool"])
        folders = [cleaned["data_root"], *(member["data_root"] for member in cleaned.get("pool", ()))]
        if any(PurePosixPath(cleaned["work_dir"]).is_relative_to(folder) for folder in folders):
            raise Unfit("work_dir", "Choose a folder outside of the data folder: it is never written to.")
        return cleaned

    @classmethod
    def from_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> Self:
        return cls(
            data_root=config["data_root"],
            work_dir=config["work_dir"],
            threads=config.get("threads", 0),
            socket=config.get("socket", site.trainer_socket),
            pool=_clean_pool(config.get("pool", ())),
            shelf=site.shelf,
        )

    # --- runs --------------------------------------------------------------------------------------

    def launch(self, ticket: LaunchTicket) -> bool:
        return self._trainer.start_run(
            {
                **ticket.to_json(),
                "data_root": str(self._data_root),
                "work_dir": str(self._work_dir),
                "threads": self._threads,
                "pool": self._pool,
                "shelf": self._shelf,
            }
        )

    def poll(self, run: str) -> RunStatus:
        folder = self._folder(run)
        ended = _ended(folder)
        if ended is not None:
            return ended
        if is_locked(folder / "lock"):
            return RunStatus(RunState.RUNNING if (folder / "pid").exists() else RunState.WAITING)
        # It may have ended between the two looks.
        ended = _ended(folder)
        if ended is not None:
            return ended
        if (folder / "pid").exists():
            with contextlib.suppress(OSError):
                if shutil.disk_usage(folder).free < NO_ROOM:  # too little to leave even a word
                    code = Exit.DISK_FULL
                    return RunStatus(RunState.FAILED, exit_code=int(code), message=EXPLANATIONS[code])
            return RunStatus(RunState.FAILED, message=f"{KILLED} The log ends with: {_last_words(folder)}")
        return RunStatus(RunState.LOST, message="The site does not know this run.")

    def cancel(self, run: str) -> None:
        folder = self._folder(run)
        for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            if self._signal_until_gone(folder, number, patience):
                break
        else:
            raise SiteMisbehaved(f"The processes of {run} do not end.", remedy="End them on the machine itself.")
        if (folder / "pid").exists() and not (folder / "exit.json").exists():
            text = json.dumps({"exit_code": int(Exit.CANCELLED), "message": EXPLANATIONS[Exit.CANCELLED]})
            temporary = folder / ".exit.cancelled"
            temporary.write_text(text)
            temporary.replace(folder / "exit.json")

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        try:
            with (self._folder(run) / "log.txt").open("rb") as file:
                file.seek(offset)
                data = file.read(LOG_CHUNK)
        except FileNotFoundError:
            return LogChunk("", offset)
        # Whole lines only, so that no character is cut; all there is where no end of a line will come.
        whole, full = data.rfind(b"\n") + 1, len(data) == LOG_CHUNK
        if (full and not whole) or (not full and self.poll(run).state.is_over):
            whole = len(data)
        return LogChunk(data[:whole].decode(errors="replace"), offset + whole)

    def _folder(self, run: str) -> Path:
        if not run or "/" in run or run.startswith("."):
            raise ValueError(f"{run!r} is not the name of a run")
        return self._work_dir / "runs" / run

    def _signal_until_gone(self, folder: Path, number: int, patience: float) -> bool:
        """Signal the run's process group until no process holds the run's lock; say whether that came about."""
        end = time.monotonic() + patience
        signalled = False
        while is_locked(folder / "lock"):
            if not signalled:
                signalled = _signal(folder, number)
            settled = number == signal.SIGTERM and signalled and (folder / "exit.json").exists()
            if settled or time.monotonic() > end:
                return False  # a run that has settled and still holds its lock has left children behind
            time.sleep(0.01)
        return True

    # --- check -------------------------------------------------------------------------------------

    def check(self) -> CheckReport:
        version: dict[str, str] = {}
        datasets: list[DatasetReport] = []

        def trainer() -> str:
            version.update(json.loads(self._trainer.run_command(["version"], timeout=60).require()))
            missing = [name for name, value in version.items() if value == "missing"]
            if missing:
                raise SiteRefused(f"The trainer lacks {', '.join(missing)}.", remedy="Install requirements.txt.")
            warm = "warm" if self._trainer.ping() is not None else "cold"
            return f"Trainer of contract {version['contract']} with torch {version['torch']}, {warm} start."

        def found() -> str:
            where = ["--pool", json.dumps(self._pool)] if self._pool else ["--data-root", str(self._data_root)]
            argv = ["inspect", *where]
            reports = json.loads(self._trainer.run_command(argv, timeout=300).require())
            datasets.extend(dataset_report(report) for report in reports)
            if not datasets:
                raise SiteRefused(
                    "There is no dataset.",
                    remedy="Put each dataset into a folder of its own with a dataset.json.",
                )
            return f"{len(datasets)} found: {', '.join(report.name for report in datasets)}."

        steps = take_steps(
            ("Data folder", self._check_data),
            ("Working folder", self._check_work),
            ("Trainer", trainer),
            ("Datasets", found),
        )
        return CheckReport(
            steps=steps,
            version=" · ".join(f"{name} {value}" for name, value in version.items()),
            datasets=tuple(datasets),
            facts={"cpus": os.cpu_count(), "threads": self._threads, **self._free()},
        )

    def _check_data(self) -> str:
        folders = {Path(member["data_root"]) for member in self._pool} or {self._data_root}
        try:
            count = sum(1 for folder in folders for _ in folder.iterdir())
        except OSError as error:
            raise SiteRefused(
                f"The data folder cannot be read ({error.strerror}).",
                remedy="Correct the folder or its rights.",
            ) from error
        what = "The data folder" if folders == {self._data_root} else f"The {len(folders)} data folders of the pool"
        return f"{what} can be read, {count} entr{'y' if count == 1 else 'ies'}."  # everybody reads it, so without the path

    def _check_work(self) -> str:
        try:
            self._work_dir.mkdir(parents=True, exist_ok=True)
            probe = self._work_dir / ".check"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise SiteRefused(
                f"The work folder cannot be written ({error.strerror}).",
                remedy="Correct the folder or its rights.",
            ) from error
        free = shutil.disk_usage(self._work_dir).free
        if free < LEAST_FREE:
            raise SiteRefused(f"Only {free / 1e9:.1f} GB are free.", remedy="Make room on the disk.")
        return f"{free / 1e9:.0f} GB are free."

    def _free(self) -> dict[str, Any]:
        with contextlib.suppress(OSError):
            return {"free_bytes": shutil.disk_usage(self._work_dir).free}
        return {}


def _clean_pool(value: Any) -> list[dict[str, str]]:
    """Return the members of a pool; raise :class:`Unfit` for anything else."""
    if not isinstance(value, list | tuple):
        raise Unfit("pool", "A pool is a list of datasets.")
    members = []
    for member in value:
        if not isinstance(member, Mapping) or set(member) != {"site", "data_root", "dataset"}:
            raise Unfit("pool", "Each dataset of a pool has a site, a data_root and a dataset.")
        if not all(isinstance(text, str) and text.strip() for text in member.values()):
            raise Unfit("pool", "Site, data_root and dataset of a pool are texts.")
        members.append({**member, "data_root": _clean_folder("pool", member["data_root"])})
    return members


def _clean_folder(name: str, value: str) -> str:
    """Return an absolute, normalised path of a folder; raise :class:`Unfit` for anything else."""
    path = value.strip()
    if "\0" in path or not PurePosixPath(path).is_absolute():
        raise Unfit(name, "Give the whole path, beginning with “/”.")
    if ".." in PurePosixPath(path).parts:
        raise Unfit(name, "Give the path without “..”.")
    folder = os.path.normpath(path)
    if folder in ("/", "//"):
        raise Unfit(name, "The root of the machine is no folder of data.")
    return folder


def _ended(folder: Path) -> RunStatus | None:
    """Return how a run ended by its own words, ``None`` where it has said nothing (yet)."""
    try:
        document = json.loads((folder / "exit.json").read_bytes())
        code, message = int(document["exit_code"]), str(document["message"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunStatus(RunState.FAILED, message=f"The run's exit.json cannot be read ({type(error).__name__}).")
    states = {Exit.OK: RunState.SUCCEEDED, Exit.CANCELLED: RunState.CANCELLED}
    return RunStatus(states.get(code, RunState.FAILED), exit_code=code, message=message)  # type: ignore[call-overload]


def _last_words(folder: Path) -> str:
    try:
        with (folder / "log.txt").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_CHUNK))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return "nothing."
    last = next((line for line in reversed(lines) if line.strip()), "nothing.")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        last = str(json.loads(last)["message"])
    return last[-LAST_WORDS:]


def _signal(folder: Path, number: int) -> bool:
    """Signal the run's process group; False while its process id is not known yet."""
    try:
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        return False
    # The group by its number, also when its first process is gone and only children hold the lock. A run that
    # was started by hand, in the foreground, has no group of its own.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, number)
            break
    return True
