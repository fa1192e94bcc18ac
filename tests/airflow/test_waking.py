"""A manifest's arrival wakes the orchestrator: nobody waits for the next question to a site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedportal.connectors.trainer_process import ROOT
from tests.airflow.hospital import Hospital

pytestmark = [pytest.mark.store, pytest.mark.slow]
AT_ONCE = 60.0
"""Seconds in which even a crowded machine has fetched and judged an update."""


@pytest.mark.parametrize("running_hospital", [3], indirect=True)  # what wakes the portal is no Airflow's doing
def test_a_portal_that_asks_its_sites_once_an_hour_takes_every_update_at_once(
    running_hospital: Hospital, tmp_path: Path
) -> None:
    server, report = running_hospital.server, tmp_path / "report.json"
    # A process of its own: it needs the real settings and database.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))}
    command = ["-m", "tests.airflow.waking", "--airflow", str(server.version), "--folder", str(server.folder)]
    try:
        done = subprocess.run(
            [sys.executable, *command, "--port", str(server.port), "--json", str(report)],
            cwd=ROOT,
            env=environment,
            text=True,
            capture_output=True,
            timeout=600,
            check=False,
        )
    finally:
        running_hospital.install()
        running_hospital.server.wait_for_dag("fp-train")
    assert report.exists(), f"{done.stdout}\n{done.stderr}"
    ways = json.loads(report.read_text())
    for told in (ways["told"], ways["silent"]):
        assert told["state"] == "completed", told["journal"]
        assert len(told["taken_after"]) == 6, "three sites, a round and the measuring of the model"
        assert max(told["taken_after"].values()) < AT_ONCE, told["taken_after"]
