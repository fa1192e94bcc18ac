"""A whole experiment with a Kaapana in it (see :mod:`tests.kaapana.federation`)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.airflow_server import AirflowServer
from tests.stage import report_of

pytestmark = [pytest.mark.slow, pytest.mark.store]


def test_an_experiment_completes_with_a_kaapana_behind_its_front_door(tmp_path: Path) -> None:
    if not AirflowServer(2, tmp_path / "unused", 1).is_installed:
        pytest.fail("Airflow 2 is not installed: run `make airflow`.")
    told = json.loads(report_of("tests.kaapana.federation", "--rounds", "1", to=tmp_path / "report.json"))
    assert told["state"] == "completed", told["journal"]
    assert told["datasets"] == ["Task01_BrainTumour"]
    # One round of training, one that measures the final model; nothing ran twice.
    assert told["site_runs"] == ["admitted", "admitted"]
    assert told["attempts"] == len(told["dag_runs"]) == 2
