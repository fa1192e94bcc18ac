"""The reference experiment on three real Airflow servers, as ``make demo ARGS=--airflow`` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedportal.connectors.trainer_process import ROOT
from tests.airflow_server import free_port

pytestmark = [pytest.mark.store, pytest.mark.slow]
TIME_BOX = 480


def test_the_reference_experiment_completes_on_airflow_2_and_3(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fedportal.demo", "--airflow", "--headless", "--exit", "--rounds", "2"),
            *("--state", str(tmp_path / "demo"), "--port", str(free_port())),
        ],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("DJANGO")},
        capture_output=True,
        text=True,
        timeout=TIME_BOX,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert (summary["state"], summary["rounds"]) == ("completed", 2)
    assert summary["final_dice"] > 0
    assert len(list((tmp_path / "demo" / "airflow").glob("*/passwords.json"))) == 1, "one of the three is Airflow 3"
    assert len(list((tmp_path / "demo" / "airflow").glob("*/webserver_config.py"))) == 2, "two are Airflow 2"
