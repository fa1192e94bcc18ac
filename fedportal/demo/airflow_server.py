"""A real, minimal Airflow server on loopback: a hospital of the demo and of the tests.

Each generation has its own virtual environment, made by ``make airflow`` (``.venv-airflow-2``, ``.venv-airflow-3``).
Nothing here is for production: SQLite, one worker, a cheap password hash.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
USER = "fedportal"
STOP_PATIENCE = 6.0
LOCKED_PATIENCE = 20
"""Seconds that one of Airflow's processes waits while another writes. With SQLite's default of 5 s it answers 500 on a
busy machine, where a write takes longer."""

_CREATE_USER_2 = """
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from werkzeug.security import generate_password_hash
with get_application_builder() as ab:
    ab.sm.sync_roles()
    ab.sm.add_user("fedportal", "Fed", "Portal", "portal@example.org", ab.sm.find_role("Op"),
                   hashed_password=generate_password_hash("template", method="pbkdf2:sha256:1000"))
"""
_LET_IN_2 = """
import sqlite3, sys
from werkzeug.security import generate_password_hash
with sqlite3.connect(sys.argv[1]) as db:
    db.execute("pragma journal_mode=wal")
    db.execute("update ab_user set password=?", (generate_password_hash(sys.argv[2], method="pbkdf2:sha256:1000"),))
"""
_WEB_CONFIG_2 = "from flask_appbuilder.const import AUTH_DB\nAUTH_TYPE = AUTH_DB\nAUTH_ROLE_PUBLIC = None\n"


class AirflowServer:
    """One Airflow. ``version``: 2 or 3. ``folder``: its home, with its ``dags``. ``prefix``: path of its web server,
    e.g. ``/flow``. ``preexec``: runs in each process before it becomes Airflow.
    """

    def __init__(
        self,
        version: int,
        folder: Path,
        port: int,
        prefix: str = "",
        *,
        password: str = "",
        environment: Mapping[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> None:
        self.version, self.folder, self.port, self.prefix = version, folder.absolute(), port, prefix.rstrip("/")
        self.user = USER
        self._more, self._preexec = dict(environment or {}), preexec
        self._wanted_password = password
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}{self.prefix}"

    @property
    def dags(self) -> Path:
        return self.folder / "dags"

    @property
    def bin(self) -> Path:
        return ROOT / f".venv-airflow-{self.version}" / "bin"

    @property
    def password(self) -> str:
        return self._remembered()["password"]

    @property
    def is_installed(self) -> bool:
        return (self.bin.parent / ".ready").exists()

    # --- life ----------------------------------------------------------------------------------------

    def start(self, *, timeout: float = 120, wait: bool = True) -> AirflowServer:
        """Start it, and return when its interface answers. The first start creates its database."""
        if not self.is_installed:
            raise RuntimeError(f"Airflow {self.version} is not installed. Run `make airflow` first.")
        self.kill()  # whatever an earlier start left running: Airflow's children outlive their parent
        self.dags.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        if not (self.folder / "airflow.db").exists():
            self._make_database()
        for name, command in self._commands().items():
            self._processes[name] = self._spawn(name, command)
        if wait:
            self.wait(timeout=timeout)
        return self

    def wait(self, *, timeout: float = 120) -> None:
        """Return when the interface answers and tasks can start without delay."""
        self._wait_for(f"{self.url}/api/v{'1' if self.version == 2 else '2'}/version", timeout)
        if (
            self.version == 3
        ):  # the first request takes 5 s, in which the API for tasks is built: no run should wait for that
            self._wait_for(f"{self.url}/execution/health", timeout)

    def wait_for_dag(self, dag_id: str = "fp-train", *, timeout: float = 60) -> None:
        """Return when the scheduler has read a DAG. Looks into the database, which needs no login."""
        import sqlite3

        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with (
                contextlib.suppress(sqlite3.OperationalError),
                contextlib.closing(
                    sqlite3.connect(f"file:{self.folder / 'airflow.db'}?mode=ro", uri=True, timeout=5)
                ) as db,
            ):
                if db.execute("select 1 from serialized_dag where dag_id=?", (dag_id,)).fetchone():
                    return
            self.check_alive()
            time.sleep(0.3)
        raise RuntimeError(
            f"The DAG {dag_id} did not appear: {self.last_words('dag-processor' if self.version == 3 else 'scheduler')}"
        )

    def stop(self) -> None:
        """End it: with SIGTERM, then with SIGKILL for it and everything it started."""
        tree = self.tree()
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + STOP_PATIENCE
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
        self._kill(tree | self.tree())

    def kill(self) -> None:
        """Kill it as a power cut would, except for the trainer's own processes."""
        self._kill(self.tree())

    def revive(self) -> list[str]:
        """Restart those of its processes that died, as a hospital's service manager does; return their names."""
        dead = [name for name, process in self._processes.items() if process.poll() is not None]
        for name in dead:
            self._processes[name] = self._spawn(name, self._commands()[name])
        return dead

    def pid(self, name: str) -> int:
        """Return the process id of one of its services (``scheduler``, …), whoever started it."""
        return int((self.folder / "logs" / f"{name}.pid").read_text())

    def check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"Airflow's {name} ended ({process.returncode}):\n{self.last_words(name)}")

    def last_words(self, name: str) -> str:
        lines = (self.folder / "logs" / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:])

    # --- internals --------------------------------------------------------------------------------------

    @property
    def services(self) -> tuple[str, ...]:
        """The names of its processes."""
        return tuple(self._commands())

    def _commands(self) -> dict[str, list[str]]:
        airflow = str(self.bin / "airflow")
        if self.version == 2:
            return {
                "webserver": [
                    *(str(self.bin / "gunicorn"), "--no-control-socket", "-w", "1", "-k", "gthread", "--threads", "4"),
                    *("--timeout", "120", "-b", f"{HOST}:{self.port}", "airflow.www.app:cached_app()"),
                ],
                "scheduler": [airflow, "scheduler", "--skip-serve-logs"],
            }
        return {
            "api-server": [airflow, "api-server"],
            "scheduler": [airflow, "scheduler", "--skip-serve-logs"],
            "dag-processor": [airflow, "dag-processor"],
        }

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "TZ") if name in os.environ}
        secret = self._remembered()["secret"]
        common = {
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": "2",
            "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.folder / 'airflow.db'}?timeout={LOCKED_PATIENCE}",
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.folder / "logs"),
            "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.25",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "20",
            "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
            "PYTHONWARNINGS": "ignore",
        }
        if self.version == 2:
            own = {
                "_AIRFLOW__SKIP_DATABASE_EXECUTOR_COMPATIBILITY_CHECK": "1",
                "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.session,airflow.api.auth.backend.basic_auth",
                "AIRFLOW__WEBSERVER__BASE_URL": self.url,
                "AIRFLOW__WEBSERVER__SECRET_KEY": secret,
                "AIRFLOW__SCHEDULER__JOB_HEARTBEAT_SEC": "1",
                "AIRFLOW__SCHEDULER__SCHEDULER_ZOMBIE_TASK_THRESHOLD": "30",
                "AIRFLOW__SCHEDULER__PARSING_PROCESSES": "1",
                "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "5",
            }
        else:
            own = {
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:op",
                "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.folder / "passwords.json"),
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
                "AIRFLOW__API__HOST": HOST,
                "AIRFLOW__API__PORT": str(self.port),
                "AIRFLOW__API__WORKERS": "1",
                "AIRFLOW__API__BASE_URL": self.url,
                "AIRFLOW__API__SECRET_KEY": secret,
                "AIRFLOW__API_AUTH__JWT_SECRET": secret * 2,
                "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
                "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
                "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
                "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
            }
        return {**kept, **common, **own, **self._more}

    def _remembered(self) -> dict[str, str]:
        file = self.folder / "server.json"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            values = {"password": self._wanted_password or secrets.token_urlsafe(12), "secret": secrets.token_hex(40)}
            file.touch(mode=0o600)
            file.write_text(json.dumps(values))
        return dict(json.loads(file.read_text()))

    def _make_database(self) -> None:
        """Copy the database from the generation's template, which is made once and takes some 15 s."""
        template = self.bin.parent / "template" / "airflow.db"
        if not template.exists():
            self._make_template(template)
        shutil.copyfile(template, self.folder / "airflow.db.new")
        if self.version == 2:
            (self.folder / "webserver_config.py").write_text(_WEB_CONFIG_2)
            self._python(_LET_IN_2, str(self.folder / "airflow.db.new"), self.password)
        else:
            (self.folder / "passwords.json").write_text(json.dumps({USER: self.password}))
        (self.folder / "airflow.db.new").replace(self.folder / "airflow.db")

    def _make_template(self, template: Path) -> None:
        home = template.with_name(f"making-{os.getpid()}")
        maker = AirflowServer(self.version, home, 1, password="template")  # noqa: S106
        maker.dags.mkdir(parents=True)
        subprocess.run(
            [str(self.bin / "airflow"), "db", "migrate"], env=maker.environment(), check=True, capture_output=True
        )
        if self.version == 2:
            maker._python(_CREATE_USER_2)
        template.parent.mkdir(exist_ok=True)
        # everything into one file, and the journal mode that lets readers and a writer work at the same time
        script = "import sqlite3, sys\ndb = sqlite3.connect(sys.argv[1])\ndb.execute('pragma wal_checkpoint(truncate)')\ndb.execute('pragma journal_mode=wal')\ndb.close()"
        maker._python(script, str(home / "airflow.db"))
        (home / "airflow.db").replace(template)
        shutil.rmtree(home)

    def _python(self, script: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.bin / "python"), "-c", script, *arguments],
            env=self.environment(),
            check=True,
            capture_output=True,
        )

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment(),
                preexec_fn=self._preexec,
            )
        (self.folder / "logs" / f"{name}.pid").write_text(str(process.pid))
        return process

    def _wait_for(self, url: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310  (our own loopback address)
                    if answer.status == 200:
                        return
            except (OSError, ValueError) as error:
                self.check_alive()
                if time.monotonic() > end:
                    raise RuntimeError(f"{url} does not answer ({error})") from error
            time.sleep(0.3)

    def tree(self) -> set[int]:
        """Return the server's processes, including orphans of earlier ones, but not the trainer's.

        They are recognised by their working folder: Airflow's children rename themselves and start their own process groups.
        """
        found = {process.pid for process in self._processes.values() if process.poll() is None}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    here = (entry / "cwd").readlink() == self.folder
                    # a shell may be there, too: take only what has loaded this Airflow's libraries
                    if here and str(self.bin.parent.resolve()) in (entry / "maps").read_text():
                        found.add(int(entry.name))
        return found

    def _kill(self, pids: set[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        end = time.monotonic() + STOP_PATIENCE
        while self.tree() and time.monotonic() < end:  # orphans are not our children, so there is no wait()
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
