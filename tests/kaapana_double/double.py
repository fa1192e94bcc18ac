"""A Kaapana for tests: a real Airflow 2.11 below ``/flow`` with our plugin, behind a front door with Kaapana's habits.

The extension's own DAG file runs on it, unchanged; pods are processes (see ``platform/``).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from fedportal.connectors.trainer_process import is_locked
from tests.airflow_server import AirflowServer, free_port
from tests.kaapana_double.door import Door

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXTENSION = ROOT / "trainer" / "kaapana" / "extension" / "docker" / "files"
POD = (sys.executable, "-u", str(HERE / "pod.py"))
TRAINER = (sys.executable, "-u", "-m", "trainer.kaapana")
"""The entry of the trainer's image, with the real work."""
PATIENCE = 480.0
"""Seconds in which an Airflow starts on any machine."""

_WEB_CONFIG = """
from flask import current_app
from flask_appbuilder.const import AUTH_REMOTE_USER


class PassOn:
    "The name that the proxy passes on is who it is, as in Kaapana's own configuration."

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        user = environ.pop("HTTP_X_FORWARDED_PREFERRED_USERNAME", None)
        if user:
            environ["REMOTE_USER"] = user
        return self.app(environ, start_response)


AUTH_TYPE = AUTH_REMOTE_USER
AUTH_USER_REGISTRATION = True
AUTH_USER_REGISTRATION_ROLE = "Admin"
current_app.wsgi_app = PassOn(current_app.wsgi_app)
"""


class KaapanaAirflow(AirflowServer):
    """Airflow as Kubernetes runs it: what ends is started again. (A scheduler ends when a run that it holds is deleted.)"""

    def start(self, *, timeout: float = 120, wait: bool = True) -> AirflowServer:
        super().start(timeout=timeout, wait=wait)
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep_running, daemon=True)
        self._keeper.start()
        return self

    def stop(self) -> None:
        self._closing.set()
        self._keeper.join()
        super().stop()

    def _keep_running(self) -> None:
        while not self._closing.wait(1.0):
            for name, process in list(self._processes.items()):
                if process.poll() is not None:
                    self._processes[name] = self._spawn(name, self._commands()[name])

    def _make_database(self) -> None:
        super()._make_database()
        (self.folder / "webserver_config.py").write_text(_WEB_CONFIG)


class KaapanaDouble:
    """``pod``: the command that stands for the trainer's image. ``site_key`` (hex): the Secret of the project."""

    def __init__(
        self,
        folder: Path,
        *,
        site_key: str,
        pod: Sequence[str] = POD,
        by_path: bool = False,
        tls: bool = False,
        environment: Mapping[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        for name in ("data", "pacs", "home"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._seen = 0
        self.secrets = self.folder / "secrets.json"
        self.give_key(site_key)
        self.airflow = KaapanaAirflow(
            2,
            self.folder / "airflow",
            free_port(),
            "/flow",
            environment={
                "PYTHONPATH": str(HERE / "platform"),
                "AIRFLOW__CORE__PLUGINS_FOLDER": str(HERE / "plugins"),
                "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.session",
                "FEDPORTAL_HOME": str(self.home),
                "DOUBLE_ROOT": str(ROOT),
                "DOUBLE_DATA": str(self.folder / "data"),
                "DOUBLE_PACS": str(self.pacs),
                "DOUBLE_SECRETS": str(self.secrets),
                "DOUBLE_POD": json.dumps(list(pod)),
                **(environment or {}),
            },
            preexec=preexec,
        )
        self.door = Door(("127.0.0.1", self.airflow.port), by_path=by_path, tls=self.folder if tls else None)

    @property
    def home(self) -> Path:
        """Where the extension keeps datasets and working files."""
        return self.folder / "home"

    @property
    def pacs(self) -> Path:
        """``<series>/<operator>/`` with what Kaapana's operators would produce for a series."""
        return self.folder / "pacs"

    def start(self, *, wait: bool = True) -> KaapanaDouble:
        shutil.copytree(EXTENSION, self.airflow.dags, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        self.airflow.start(wait=False)
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Return when the interface answers and the workflows of the extension are there."""
        self.airflow.wait(timeout=PATIENCE)
        for dag in ("fp-train", "fp-check", "fp-offer"):
            self.airflow.wait_for_dag(dag, timeout=PATIENCE)

    def give_key(self, key: str) -> None:
        """Put the site's key (hex) into the Secret of the project, as the hospital's IT does."""
        self.secrets.write_text(json.dumps({"fedportal": {"site-key": key}}))

    def stop(self) -> None:
        self.door.close()
        self.airflow.stop()

    def kill_scheduler(self) -> None:
        self.airflow._processes["scheduler"].kill()

    def set_paused(self, dag: str, *, paused: bool) -> None:
        with self._database() as database, database:
            database.execute("update dag set is_paused=? where dag_id=?", (int(paused), dag))

    def runs(self, dag: str = "fp-train") -> list[tuple[str, str]]:
        """Return id and state of the runs of a DAG since the last :meth:`clear`, the oldest first."""
        with self._database() as database:
            query = "select run_id, state from dag_run where dag_id=? and id>? order by id"
            rows = database.execute(query, (dag, self._seen))
            return [(str(run_id), str(state)) for run_id, state in rows]

    def forget(self, run_id: str) -> None:
        """Delete a run, as somebody at the site may."""
        with self._database() as database, database:
            note = "delete from dag_run_note where dag_run_id in (select id from dag_run where run_id=?)"
            database.execute(note, (run_id,))
            database.execute("delete from task_instance where run_id=?", (run_id,))
            database.execute("delete from dag_run where run_id=?", (run_id,))

    def clear(self) -> None:
        """End all runs and remove what they have left at the site. Their rows stay: deleting one may end the scheduler."""
        self.set_paused("fp-train", paused=False)
        with self._database() as database, database:
            database.execute(
                "update task_instance set state='failed' where state is null or state in ('running', 'queued', 'scheduled')"
            )
            database.execute("update dag_run set state='failed' where state in ('running', 'queued')")
        # A process sees at its next heartbeat that its task is over; its run's folder is locked until it is gone.
        locks = list((self.home / "work" / "runs").glob("*/lock"))
        end = time.monotonic() + 20
        while any(is_locked(lock) for lock in locks) and time.monotonic() < end:
            time.sleep(0.2)
        with self._database() as database:
            self._seen = int(database.execute("select coalesce(max(id), 0) from dag_run").fetchone()[0])
        for folder in (self.home, self.pacs, self.folder / "data"):
            shutil.rmtree(folder)
            folder.mkdir()

    def _database(self) -> closing[sqlite3.Connection]:
        return closing(sqlite3.connect(self.airflow.folder / "airflow.db", timeout=20))


def dies_with_parent() -> None:
    """Have a process end with the test session, also when that is killed (Linux)."""
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
