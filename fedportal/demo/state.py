"""What the demo remembers in its folder: secrets, ports, passwords. Enough to resume after any interruption."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import IO, Any

from cryptography.fernet import Fernet

from fedportal.connectors.trainer_process import TrainerProcess
from fedportal.connectors.weed import Weed, is_free

HOST = "127.0.0.1"
DEFAULT_PORT = 8000
PEOPLE = ("researcher", "steward", "operator")


class DemoError(Exception):
    """The demo cannot continue; the message says why and what to do."""


class DemoState:
    """The demo's folder. Everything below it may be deleted by ``make clean-demo``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._lock: IO[str] | None = None
        self.weed = Weed(self.folder / "store", dies_with_parent=True)
        self.trainer = TrainerProcess(self.folder / "trainer.sock")

    def lock(self) -> None:
        """Lock the folder for this process. The lock ends with the process, however it ends."""
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(f"A demo is already running in {self.folder}. Stop it with Ctrl-C first.") from error

    def remember(self, *, port: int | None) -> dict[str, Any]:
        """Return the remembered values, generated at the first start; ``port`` overrides the last one."""
        file = self.folder / "demo.json"
        values = json.loads(file.read_text()) if file.exists() else {}
        values.setdefault("secret_key", secrets.token_urlsafe(48))
        values.setdefault("fernet_key", Fernet.generate_key().decode())
        values.setdefault("passwords", {name: secrets.token_urlsafe(9) for name in PEOPLE})
        values["port"] = self._port(port, values.get("port"))
        temporary = file.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps(values, indent=2))
        temporary.replace(file)
        return values

    def environment(self, values: dict[str, Any]) -> dict[str, str]:
        """Return the environment that the portal, the orchestrator and the trainer run in."""
        store = self.weed.credentials
        return {
            **os.environ,
            "DEBUG": "0",
            "DJANGO_SETTINGS_MODULE": "fedportal.settings",
            "SECRET_KEY": values["secret_key"],
            "FEDPORTAL_KEYS": values["fernet_key"],
            "FEDPORTAL_STATE": str(self.folder / "portal"),
            "FEDPORTAL_TRAINER_SOCKET": str(self.trainer.socket_path),
            "FEDPORTAL_HTTPS": "0",
            "FEDPORTAL_STATIC_FROM_SOURCE": "1",
            "FEDPORTAL_PUBLIC_URL": f"http://{HOST}:{values['port']}",
            "FEDPORTAL_S3_ENDPOINT": self.weed.endpoint,
            "FEDPORTAL_S3_ACCESS_KEY": store.access_key,
            "FEDPORTAL_S3_SECRET_KEY": store.secret_key,
            "FEDPORTAL_S3_BUCKET": self.weed.bucket,
            "FEDPORTAL_S3_SECURE": "0",
            # The hospitals share this machine: one thread each, no busy waiting, and all its memory as the limit.
            "FEDPORTAL_TRAINING_MEMORY_GB": os.environ.get("FEDPORTAL_TRAINING_MEMORY_GB", f"{memory_gb():.1f}"),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "PYTHONUNBUFFERED": "1",
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "INFO"),
        }

    @property
    def address_file(self) -> Path:
        """Contains the experiment's address once the demo is running, so that a script can wait for it."""
        return self.folder / "address"

    @property
    def hospitals(self) -> Path:
        """The hospitals' data, in a folder for each: ``hospitals/<slug>/<dataset>/``."""
        return self.folder / "hospitals"

    def connection(self, slug: str) -> dict[str, Any]:
        """Return how the portal reaches a demo hospital on this machine: connector and config."""
        config = {
            "data_root": str(self.hospitals / slug),
            "work_dir": str(self.folder / "work" / slug),
            "threads": 1,
        }
        return {"connector": "local", "config": config}

    def _port(self, wanted: int | None, last: int | None) -> int:
        if wanted is not None:
            if not is_free(wanted):
                raise DemoError(f'Port {wanted} is in use. Choose another one: make demo ARGS="--port {wanted + 10}"')
            return wanted
        for port in [last or DEFAULT_PORT, *range(DEFAULT_PORT, DEFAULT_PORT + 50)]:
            if is_free(port):
                return port
        raise DemoError('Ports 8000 to 8049 are all in use. Choose another one: make demo ARGS="--port 9000"')


def memory_gb() -> float:
    """Return this machine's memory in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
