"""A hospital for tests: a real Airflow, the DAGs installed as a site does it, the scripted trainer behind them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fedportal.connectors.airflow import AirflowConnector
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.trainer_process import ROOT, TrainerProcess, is_locked
from tests.airflow_server import AirflowServer, free_port
from tests.trainer_process.bench import SCRIPTED

KEY = b"s" * 32
"""The key of the site, as :class:`tests.trainer_process.bench.Bench` signs with it."""
SCHEDULER_TURN = 2.0
"""Seconds after which Airflow 2's scheduler has forgotten a run that ended: what it has in hand it would write anew."""


PATIENCE = 600.0
"""Seconds that an Airflow may take to come up: 10 on a machine at rest, minutes where forty others want the processor."""


class Hospital:
    """``folder`` holds all of it. The warm trainer does scripted work; a cold one would be the real trainer."""

    def __init__(self, version: int, folder: Path) -> None:
        self.version, self.folder = version, folder
        self.server = AirflowServer(version, folder / "airflow", free_port())
        self.data_root, self.work_dir, self.socket = folder / "data", folder / "work", folder / "s"
        self.warm = TrainerProcess(self.socket, command=SCRIPTED)

    def start(self) -> Hospital:
        self.data_root.mkdir(parents=True)
        self.install()
        self.warm.start_server(timeout=PATIENCE)
        self.server.start(timeout=PATIENCE)
        self.server.wait_for_dag("fp-train", timeout=PATIENCE)
        self.server.wait_for_dag("fp-check", timeout=PATIENCE)
        return self

    def install(self, *more: str) -> None:
        (self.folder / "key").write_text(KEY.hex())
        subprocess.run(
            [
                *(sys.executable, "-m", "trainer.install", "--dags", self.server.dags, "--home", self.folder / "home"),
                *("--data-root", self.data_root, "--work-dir", self.work_dir, "--socket", self.socket),
                *("--key-file", self.folder / "key", "--python", sys.executable, "--threads", "1", *more),
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )

    def stop(self) -> None:
        self.server.stop()
        self.warm.stop_server()

    def connector(self, **changes: Any) -> AirflowConnector:
        options = {"url": self.server.url, "user": self.server.user, "password": self.server.password, **changes}
        return AirflowConnector(**options, site=SiteContext(slug="mainz", key=KEY))

    @property
    def api(self) -> Any:
        return self.connector()._airflow()

    def is_alive(self, run: str) -> bool:
        """Say whether some process of the run lives, whatever Airflow says."""
        return is_locked(self.work_dir / "runs" / run / "lock")

    def forget_runs(self) -> None:
        """End and delete all runs, so that the next test may use their names."""
        api = self.api
        rows = api._call("POST", "dags/~/dagRuns/list", json={"dag_ids": ["fp-train", "fp-evaluate"]}).fields()[
            "dag_runs"
        ]
        runs = [(str(row["dag_id"]), str(row["dag_run_id"]), str(row["state"])) for row in rows]
        for dag_id, run, state in runs:
            if state in ("queued", "running"):
                api.fail(dag_id, run, "The test is over.")
        end = time.monotonic() + 15
        while any(self.is_alive(run) for _, run, _ in runs) and time.monotonic() < end:
            time.sleep(0.1)
        if any(state in ("queued", "running") for *_, state in runs):
            time.sleep(SCHEDULER_TURN)
        for dag_id, run, _ in runs:
            api._call("DELETE", f"dags/{dag_id}/dagRuns/{run}", missing=True)
        # a deleted run leaves its log file, to which one of the same name would append
        for folder in (self.server.folder / "logs").glob("dag_id=fp-*/run_id=*"):
            shutil.rmtree(folder)
        for folder in (self.work_dir / "runs").glob("*"):
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
