"""A manifest's arrival wakes the orchestrator: nobody waits for the next question to a site."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.airflow.hospital import PATIENCE, Hospital
from tests.stage import report_of

pytestmark = [pytest.mark.store, pytest.mark.slow]
AT_ONCE = 60.0
"""Seconds in which even a crowded machine has fetched and judged an update."""


@pytest.mark.parametrize("running_hospital", [3], indirect=True)  # what wakes the portal is no Airflow's doing
def test_a_portal_that_asks_its_sites_once_an_hour_takes_every_update_at_once(
    running_hospital: Hospital, tmp_path: Path
) -> None:
    server = running_hospital.server
    options = ["--airflow", str(server.version), "--folder", str(server.folder), "--port", str(server.port)]
    try:
        ways = json.loads(report_of("tests.airflow.waking", *options, to=tmp_path / "report.json"))
    finally:
        running_hospital.install()
        running_hospital.server.wait_for_dag("fp-train", timeout=PATIENCE)
    for told in (ways["told"], ways["silent"]):
        assert told["state"] == "completed", told["journal"]
        assert len(told["taken_after"]) == 6, "three sites, a round and the measuring of the model"
        assert max(told["taken_after"].values()) < AT_ONCE, told["taken_after"]
