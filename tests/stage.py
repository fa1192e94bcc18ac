"""A whole federation of real processes in one folder: object store, portal, orchestrator, warm trainer, three sites with
tiny phantoms. For the kill matrix and the benchmarks; the tests of a room use fakes instead.

A process uses one stage: its environment is that of the Django settings.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedportal.connectors.weed import Weed
from fedportal.demo.processes import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
SITES = ("graz", "mainz", "ulm")
READY = 300.0
"""Seconds in which a process begins to answer, even on a crowded machine."""


class Stage:
    """``settings``: the portal's settings module. Constructing it prepares the environment and starts nothing."""

    def __init__(self, folder: Path, *, settings: str = "fedportal.settings") -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.weed = Weed(self.folder / "store", dies_with_parent=True)
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        store = self.weed.credentials
        self.environment = {
            "DJANGO_SETTINGS_MODULE": settings,
            "SECRET_KEY": "a-stage-of-the-tests-0123456789-abcdefghijklmnopqrstuvwxyz",
            "FEDPORTAL_KEYS": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
            "FEDPORTAL_STATE": str(self.folder / "portal"),
            "FEDPORTAL_TRAINER_SOCKET": str(self.folder / "trainer.sock"),
            "FEDPORTAL_HTTPS": "0",
            "FEDPORTAL_PUBLIC_URL": f"http://{HOST}:{self.port}",
            "FEDPORTAL_S3_ENDPOINT": self.weed.endpoint,
            "FEDPORTAL_S3_ACCESS_KEY": store.access_key,
            "FEDPORTAL_S3_SECRET_KEY": store.secret_key,
            "FEDPORTAL_S3_BUCKET": self.weed.bucket,
            "FEDPORTAL_S3_SECURE": "0",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
        }

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- processes --------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        for name in names:
            if name == "store":
                self.weed.start(timeout=READY)
                continue
            commands: dict[str, Sequence[str]] = {
                "portal": ["-m", "daphne", "-b", HOST, "-p", str(self.port), "fedportal.asgi:application"],
                "trainer": ["-m", "trainer", "serve", "--socket", self.environment["FEDPORTAL_TRAINER_SOCKET"]],
                "orchestrator": ["manage.py", "orchestrate"],
            }
            self.spawn(name, commands[name])
        if "trainer" in names:
            self._wait(
                lambda: Path(self.environment["FEDPORTAL_TRAINER_SOCKET"]).is_socket() and self._trainer_answers()
            )
        if "portal" in names:
            self._wait(self._portal_answers)

    def spawn(self, name: str, arguments: Sequence[str], **variables: str) -> subprocess.Popen[bytes]:
        """Start a Python process of the stage; its output goes to ``<name>.log`` in the folder."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = self.processes[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment, **variables},
                preexec_fn=die_with_parent,
            )
        return process

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        if name == "store":
            self.weed.kill()
            return
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def kill_runs(self) -> int:
        """Kill the trainers that work at the moment, with all their processes; return how many."""
        killed = 0
        for pid_file in self.folder.glob("work/*/runs/*/pid"):
            if (pid_file.parent / "exit.json").exists():
                continue
            try:
                os.killpg(int(pid_file.read_text()), signal.SIGKILL)
                killed += 1
            except (ValueError, ProcessLookupError, PermissionError):
                continue
        return killed

    def close(self) -> None:
        for name in list(self.processes):
            self.kill(name)
        self.kill_runs()
        self.weed.kill()

    def log(self, name: str, lines: int = 40) -> str:
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    # --- rows -------------------------------------------------------------------------------------

    def set_up(self, *, size: int = 16, train: int = 2, validation: int = 1) -> None:
        """Make database, data, sites with a passed check. Needs the store; leaves Django loaded in this process."""
        data = self.folder / "hospitals"
        if not data.exists():
            arguments = ["--out", data, "--site-names", ",".join(SITES), "--sites", len(SITES), "--size", size]
            counts = ["--train", train, "--validation", validation, "--workers", 1]
            command = [sys.executable, "-m", "trainer", "phantoms", *map(str, [*arguments, *counts])]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        self.load()
        from fedportal.connectors.local import LocalConnector
        from fedportal.sites import services
        from fedportal.sites.models import Site

        for slug in SITES:
            if Site.objects.filter(slug=slug).exists():
                continue
            config = {"data_root": str(data / slug), "work_dir": str(self.folder / "work" / slug), "threads": 1}
            site = services.register(slug=slug, name=slug.title(), connector="local", config=config)
            services.record_check(site, LocalConnector(**config).check())

    def load(self) -> None:
        """Load Django in this process and make the database."""
        os.environ.update(self.environment)
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)

    def experiment(self, *, plan: Mapping[str, Any], title: str = "Stage", **fields: Any) -> Any:
        """Create and start an experiment at all sites; return its row."""
        from fedportal.accounts.models import Role, User
        from fedportal.experiments import services
        from fedportal.sites.models import Dataset

        owner, _ = User.objects.get_or_create(username="ada", defaults={"role": Role.RESEARCHER})
        datasets = list(Dataset.objects.filter(site__is_pool=False).order_by("site__slug"))
        experiment = services.create_draft(owner=owner, preset="laptop", title=title, participants=datasets)
        services.update_draft(experiment=experiment, by=owner, plan=plan, fields=fields)
        services.start(experiment=experiment, by=owner)
        experiment.refresh_from_db()
        return experiment

    def wait_for_end(self, experiment: Any, *, timeout: float = 300) -> Any:
        """Return the experiment when it has ended. Raises ``TimeoutError`` with the journal's last lines, also when the
        orchestrator has ended by itself."""
        from fedportal.experiments.states import ExperimentState

        over = (ExperimentState.COMPLETED, ExperimentState.FAILED, ExperimentState.CANCELLED)
        orchestrator = self.processes.get("orchestrator")
        end = time.monotonic() + timeout
        while time.monotonic() < end and (orchestrator is None or orchestrator.poll() is None):
            experiment.refresh_from_db()
            if experiment.status in over:
                return experiment
            time.sleep(0.2)
        lines = [event.text for event in experiment.events.order_by("-pk")[:8]]
        raise TimeoutError(f"{experiment.key} is still {experiment.state}: {lines}\n{self.log('orchestrator')}")

    def journal(self, experiment: Any) -> str:
        return "\n".join(f"{event.at:%H:%M:%S} {event.text}" for event in experiment.events.order_by("pk"))

    # --- waiting ----------------------------------------------------------------------------------

    def _wait(self, ready: Any, timeout: float = READY) -> None:
        end = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f"not ready after {timeout:.0f} s\n{self.log('portal')}\n{self.log('trainer')}")
            time.sleep(0.1)

    def _trainer_answers(self) -> bool:
        from fedportal.connectors.trainer_process import TrainerProcess

        return TrainerProcess(Path(self.environment["FEDPORTAL_TRAINER_SOCKET"])).ping() is not None

    def _portal_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/accounts/login/", timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False


def report_of(module: str, *options: str, to: Path, timeout: float = 900) -> str:
    """Run a module of the tests in a process of its own, with real settings and database; return what it wrote to ``to``,
    the file of its option ``--json``. Raises ``RuntimeError`` with its output when it wrote none."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))}
    done = subprocess.run(
        [sys.executable, "-m", module, *options, "--json", str(to)],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    if not to.exists():
        raise RuntimeError(f"{module} did not come to an end:\n{done.stdout}\n{done.stderr}")
    return to.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def temporary_folder() -> Path:
    """Return a short-lived folder with a short name: a Unix socket's path has 108 bytes."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix=f"fp-{secrets.token_hex(2)}-"))
