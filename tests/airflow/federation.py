"""A federation of three hospitals with real Airflow servers (2.11, 3, 2.11), for tests that drive the whole portal.

Everything is the demo's own (``make demo ARGS=--airflow``): portal, orchestrator, object store, warm trainer, servers. The
demo is the hospitals' service manager, too: it starts again what dies of an Airflow. Before each server stands a
:class:`~tests.airflow.door.Door`, by which the portal reaches it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedportal.connectors.airflow import AirflowConnector
from fedportal.connectors.fields import SiteContext
from fedportal.demo.airflow_sites import GENERATIONS
from tests.airflow.door import Door
from tests.airflow_server import AirflowServer
from tests.e2e.conftest import ROOT, Stack
from tests.e2e.portal_client import Client, Sites

HOSPITALS = ("linden", "seeblick", "altberg")
"""The demo's names of them."""


@dataclass(eq=False)
class AirflowSite:
    """One hospital. ``hospital``: the demo's name of it; ``slug``: that of its registration."""

    hospital: str
    slug: str
    server: AirflowServer
    door: Door

    @property
    def version(self) -> int:
        return self.server.version

    @cached_property
    def api(self) -> Any:
        """Airflow's interface as somebody at the hospital uses it: not through the door."""
        options = {"url": self.server.url, "user": self.server.user, "password": self.server.password}
        return AirflowConnector(**options, site=SiteContext(self.slug))._airflow()

    def set_paused(self, *, paused: bool) -> None:
        self.api._call("PATCH", "dags/fp-train", json={"is_paused": paused})

    def fail_run(self, run: str) -> None:
        self.api._call("PATCH", f"dags/fp-train/dagRuns/{run}", json={"state": "failed"})

    def delete_run(self, run: str) -> None:
        self.api._call("DELETE", f"dags/fp-train/dagRuns/{run}")

    def runs(self, key: str) -> list[str]:
        """Return the names of an experiment's runs that this Airflow has."""
        rows = self.api._call("POST", "dags/~/dagRuns/list", json={"dag_ids": ["fp-train"]}).fields()["dag_runs"]
        return sorted(row["dag_run_id"] for row in rows if row["dag_run_id"].startswith(f"fp-{key}-"))


class Federation(Sites):
    """The running demo ``stack``, which was started with ``--airflow``. ``slugs``: how the hospitals are registered."""

    def __init__(self, stack: Stack, operator: Client, slugs: Sequence[str] = HOSPITALS) -> None:
        super().__init__(stack, operator)
        self.sites: list[AirflowSite] = []
        for hospital, slug, version in zip(HOSPITALS, slugs, GENERATIONS, strict=False):
            folder = stack.folder / "airflow" / hospital
            port = int(folder.with_suffix(".port").read_text())
            self.sites.append(AirflowSite(hospital, slug, AirflowServer(version, folder, port), Door(port)))

    def close(self) -> None:
        for site in self.sites:
            site.door.close()

    def of_generation(self, version: int) -> AirflowSite:
        return next(site for site in self.sites if site.version == version)

    def install(self, site: AirflowSite, key: str) -> None:
        """Install the trainer as the hospital's administrator does who was given the site's key."""
        home = site.server.folder / "trainer"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "trainer.install", "--dags", site.server.dags, "--home", home),
                *("--data-root", self.stack.folder / "hospitals" / site.hospital, "--work-dir", self.work(site.slug)),
                *("--socket", self.stack.folder / "trainer.sock", "--python", sys.executable, "--threads", "1"),
            ],
            cwd=ROOT,
            env={**os.environ, "FEDPORTAL_SITE_KEY": key},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    # --- what happens at the hospitals ----------------------------------------------------------------

    def run_folders(self, key: str, slug: str) -> list[Path]:
        return sorted((self.work(slug) / "runs").glob(f"fp-{key}-*"))

    def begins(self, key: str, slug: str) -> dict[str, int]:
        """Return how often each run of an experiment was begun at a site."""
        logs = {folder.name: folder / "log.txt" for folder in self.run_folders(key, slug)}
        return {name: log.read_text().count('"run begins"') if log.exists() else 0 for name, log in logs.items()}

    def log(self, key: str, slug: str, *, round: int = 1, attempt: int = 1) -> dict[str, float]:
        """Return when a run's trainer said what (its last time), in seconds since the epoch."""
        log = self.work(slug) / "runs" / f"fp-{key}-r{round}-{slug}-a{attempt}" / "log.txt"
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return {str(line["message"]): float(line["at"]) for line in lines}

    def at_work(self, key: str, slug: str) -> list[str]:
        """Return the runs of an experiment that have a process at a site at this moment."""
        found = []
        for folder in self.run_folders(key, slug):
            try:
                pid = int((folder / "pid").read_text())
            except (FileNotFoundError, ValueError):
                continue
            if self.is_alive(pid):
                found.append(folder.name)
        return found

    @contextmanager
    def watched(self, key: str) -> Iterator[dict[str, int]]:
        """Look all the time how many runs of an experiment are at work at each site; gives the largest numbers."""
        most: dict[str, int] = defaultdict(int)
        closing = threading.Event()

        def look() -> None:
            while not closing.wait(0.05):
                for site in self.sites:
                    most[site.slug] = max(most[site.slug], len(self.at_work(key, site.slug)))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield most
        finally:
            closing.set()
            thread.join()
