"""A whole experiment with a Kaapana in it (see :mod:`tests.kaapana.federation`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.airflow_server import AirflowServer
from tests.stage import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.store]


def test_an_experiment_completes_with_a_kaapana_behind_its_front_door(tmp_path: Path) -> None:
    if not AirflowServer(2, tmp_path / "unused", 1).is_installed:
        pytest.fail("Airflow 2 is not installed: run `make airflow`.")
    report = tmp_path / "report.json"
    # A process of its own: it needs the real settings and database.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kaapana.federation", "--rounds", "1", "--json", str(report)],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert report.exists(), f"{done.stdout}\n{done.stderr}"
    told = json.loads(report.read_text())
    assert told["state"] == "completed", told["journal"]
    assert told["datasets"] == ["Task01_BrainTumour"]
    # One round of training, one that measures the final model; nothing ran twice.
    assert told["site_runs"] == ["admitted", "admitted"]
    assert told["attempts"] == len(told["dag_runs"]) == 2
