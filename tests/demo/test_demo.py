"""``python -m fedportal.demo`` where something is in its way. That it works: ``tests/e2e``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedportal.connectors.trainer_process import ROOT
from fedportal.connectors.weed import Weed
from fedportal.demo.__main__ import greet, remove
from fedportal.demo.airflow_server import AirflowServer
from fedportal.demo.airflow_sites import end_orphans
from fedportal.demo.state import DemoState
from tests.trainer_process.bench import wait_for

pytestmark = pytest.mark.store


def test_a_demo_whose_store_does_not_start_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert Weed(tmp_path / "store", port=taken.getsockname()[1]).credentials, "its port is remembered"
        done = subprocess.run(
            [sys.executable, "-m", "fedportal.demo", "--headless", "--state", str(tmp_path)],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 1
    assert "The object store did not start" in done.stderr
    assert "Traceback" not in done.stderr
    wait_for(lambda: not running(tmp_path), seconds=300)


def test_the_greeting_leads_to_the_portal_and_to_the_hospitals_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = AirflowServer(3, tmp_path, 4321)
    greet("http://127.0.0.1:8000", "k7mw2xq9", {"researcher": "rose"}, 60.0, {"linden": server})
    told = capsys.readouterr().out
    assert "http://127.0.0.1:8000/experiments/k7mw2xq9/" in told
    assert "researcher   rose" in told
    assert f"linden       http://127.0.0.1:4321   {server.password}" in told


def test_removing_the_demo_ends_a_training_that_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "work/linden/runs/fp-k7mw2xq9-r1-linden-a1"
    run.mkdir(parents=True)
    script = "import fcntl, time; lock = open('lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX); print(flush=True); time.sleep(9999)"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=run, stdout=subprocess.PIPE, start_new_session=True) as training:
        try:
            training.stdout.readline()
            (run / "pid").write_text(str(training.pid))
            assert remove(DemoState(tmp_path)) == 0
            assert training.wait(60) == -signal.SIGTERM
        finally:
            training.kill()
    assert not tmp_path.exists()


@pytest.mark.parametrize("version", [2, 3])
def test_removing_a_demo_ends_what_is_left_of_its_airflows(tmp_path: Path, version: int) -> None:
    folder = tmp_path / "airflow" / "linden"
    server = AirflowServer(version, folder, 4321)
    if not server.is_installed:
        pytest.fail("Airflow is not installed: run `make airflow`.")
    folder.mkdir(parents=True)
    (folder / "airflow.db").touch()
    script = "import markupsafe._speedups, time; print('loaded', flush=True); time.sleep(3600)"
    with subprocess.Popen([server.bin / "python", "-c", script], cwd=folder, stdout=subprocess.PIPE) as orphan:
        try:
            assert orphan.stdout.readline() == b"loaded\n"
            assert server.tree() == {orphan.pid}
            end_orphans(DemoState(tmp_path))
            assert orphan.wait(60) == -signal.SIGKILL
        finally:
            orphan.kill()


def running(folder: Path) -> list[str]:
    """Return the command lines of all processes that have something to do with a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command:
                found.append(command)
    return found
