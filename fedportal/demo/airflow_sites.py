"""The demo's hospitals as real Airflow servers (``make demo ARGS=--airflow``): 2.11 and 3 in turn, each with its own data."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from fedportal.demo.airflow_server import ROOT, AirflowServer, free_port
from fedportal.demo.processes import die_with_parent
from fedportal.demo.state import DemoError, DemoState

GENERATIONS = (2, 3, 2)
START_TIMEOUT = 240.0


class AirflowSites:
    """One server for each hospital (slug, name, city)."""

    def __init__(self, state: DemoState, hospitals: Sequence[tuple[str, str, str]]) -> None:
        self._state = state
        self.servers = {
            slug: AirflowServer(
                GENERATIONS[number % len(GENERATIONS)],
                state.folder / "airflow" / slug,
                _port(state, slug),
                preexec=die_with_parent,
            )
            for number, (slug, _name, _city) in enumerate(hospitals)
        }
        lacking = sorted({str(server.version) for server in self.servers.values() if not server.is_installed})
        if lacking:
            raise DemoError(f"Airflow {' and '.join(lacking)} is not installed. Run `make airflow` first.")

    def start(self) -> None:
        """Start the servers without waiting for them."""
        for server in self.servers.values():
            server.start(wait=False)

    def install(self, slug: str, key: str) -> None:
        """Install trainer and DAGs at a hospital as its administrator would."""
        home = self._state.folder / "airflow" / slug / "trainer"
        home.mkdir(parents=True, exist_ok=True)
        (home / "key").touch(mode=0o600)
        (home / "key").write_text(key)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "trainer.install", "--dags", str(self.servers[slug].dags), "--home", str(home)),
                *("--data-root", str(self._state.hospitals / slug), "--key-file", str(home / "key")),
                *("--work-dir", str(self._state.folder / "work" / slug), "--threads", "1"),
                *("--python", sys.executable, "--socket", str(self._state.trainer.socket_path)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DemoError(f"The trainer could not be installed at {slug}:\n{done.stderr}")

    def wait(self) -> None:
        """Return when every server answers and has read its DAGs."""
        for server in self.servers.values():
            try:
                server.wait(timeout=START_TIMEOUT)
                server.wait_for_dag("fp-train", timeout=START_TIMEOUT)
                server.wait_for_dag("fp-check", timeout=START_TIMEOUT)
            except RuntimeError as error:
                raise DemoError(f"An Airflow server did not start: {error}") from error

    def connection(self, slug: str) -> dict[str, Any]:
        """Return how the portal reaches a hospital: connector, config and secrets."""
        server = self.servers[slug]
        return {
            "connector": "airflow",
            "config": {"url": server.url, "user": server.user},
            "secrets": {"password": server.password},
        }

    def watch(self) -> list[str]:
        """Restart processes that died; return their names."""
        return [f"Airflow of {slug} ({name})" for slug, server in self.servers.items() for name in server.revive()]

    def stop(self) -> None:
        """Stop all servers in parallel: each takes some seconds."""
        threads = [threading.Thread(target=server.stop) for server in self.servers.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def end_orphans(state: DemoState) -> None:
    """End the Airflow servers that a killed demo left behind."""
    for database in (state.folder / "airflow").glob("*/airflow.db"):
        for version in set(GENERATIONS):
            AirflowServer(version, database.parent, 0).kill()


def _port(state: DemoState, slug: str) -> int:
    """Return the port of a hospital's server, chosen once: the portal keeps the address."""
    file = state.folder / "airflow" / f"{slug}.port"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(free_port()))
    return int(file.read_text())
