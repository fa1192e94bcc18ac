"""Runs that are workflows of a project, on the whole double: a real Airflow, and an account that is a member, no more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteRefused
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.kaapana import KaapanaConnector
from fedportal.connectors.trainer_process import is_locked
from tests.kaapana.conftest import SITE_KEY, connector, letterbox
from tests.kaapana_double.double import KaapanaDouble
from tests.stage import report_of
from tests.trainer_process.bench import Bench, wait_for

pytestmark = [pytest.mark.store, pytest.mark.slow]
SECONDS = 480.0


@pytest.fixture
def members(kaapana: KaapanaDouble) -> KaapanaDouble:
    kaapana.door.admit_members_only()
    return kaapana


def by_workflow(members: KaapanaDouble, **options) -> KaapanaConnector:
    return connector(members.door, by_workflow=True, **options)


def test_a_members_run_converts_trains_and_delivers_once(
    members: KaapanaDouble, bench: Bench, pacs: Callable[[int], list[str]]
) -> None:
    members.door.datasets["quick"] = pacs(3)
    members.door.faults.add("cut-after", "/client/workflow POST")
    site, ticket = by_workflow(members), bench.ticket("quick")
    assert site.launch(ticket) is True
    assert by_workflow(members).launch(ticket) is False
    wait_for(lambda: site.poll(ticket.run).state.is_over, seconds=SECONDS)
    assert site.poll(ticket.run).state is RunState.SUCCEEDED
    manifest = bench.manifest(ticket)
    assert manifest.exit_code == 0
    assert "convert" in manifest.seconds
    assert [state for _, state in members.runs()] == ["success"]
    assert bench.read(ticket, "log.txt").decode().count('"run begins"') == 1
    (job,) = members.door.backend.jobs
    assert "&amp;X-Amz-" in job["conf_data"]["fedportal"]["spec_url"], "Kaapana escapes what it is given"
    with pytest.raises(SiteRefused, match="403"):
        site.api.run_state("fp-train", job["run_id"])


def test_a_member_ends_a_run_with_its_process_and_learns_of_one_that_is_deleted(
    members: KaapanaDouble, bench: Bench
) -> None:
    site, first, second = by_workflow(members), bench.ticket("lasts", attempt=1), bench.ticket("lasts", attempt=2)
    for ticket in (first, second):
        site.launch(ticket)
    locks = [members.home / "work" / "runs" / ticket.run / "lock" for ticket in (first, second)]
    wait_for(lambda: all(is_locked(lock) for lock in locks), seconds=SECONDS)
    wait_for(lambda: site.poll(second.run).state is RunState.RUNNING, seconds=SECONDS)
    by_workflow(members).cancel(first.run)
    assert by_workflow(members).poll(first.run).state is RunState.CANCELLED
    wait_for(lambda: not is_locked(locks[0]), seconds=SECONDS)
    job = next(row for row in members.door.backend.jobs if second.run in row["workflow"]["workflow_name"])
    members.forget(job["run_id"])
    wait_for(lambda: site.poll(second.run).state.is_over, seconds=SECONDS)
    assert site.poll(second.run).state is RunState.LOST


def test_a_whole_experiment_runs_with_a_kaapana_that_knows_the_portal_as_a_member(
    members: KaapanaDouble, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(members.door.ca)
    options = ["--door", members.door.url, "--ca", str(tmp_path / "ca.pem"), "--hospital", str(members.folder)]
    try:
        said = json.loads(report_of("tests.kaapana.whole_run", *options, to=tmp_path / "said.json", timeout=2400))
    finally:
        members.give_key(SITE_KEY.hex())
    assert not said.get("trouble"), said["trouble"]
    assert said["problems"] == []
    assert {"Project", "Rights", "Workflows", "Logs", "Trainer", "Key", "Object store", "Datasets"} <= set(
        said["steps"]
    )
    assert said["state"] == "completed", said["reason"]
    assert said["states"] == ["admitted"] * len(said["runs"])
    assert '"run begins"' in said["logs"], "a run's log comes with its end"
    # the training and the final evaluation, each started once, and nothing asked of the Airflow
    assert len(members.runs()) == len(said["runs"]) >= 2
    wait_for(lambda: {state for _, state in members.runs()} == {"success"}, seconds=SECONDS)
    assert not [request for request in members.door.requests if " /flow/" in request]


def test_a_check_finds_another_key_in_the_report_that_the_trainer_leaves(members: KaapanaDouble, bench: Bench) -> None:
    context = SiteContext("mainz", key=b"t" * 32, letterbox=lambda: letterbox(bench.store))
    step = next(step for step in by_workflow(members, site=context).check().steps if step.ok is False)
    assert step.name == "Trainer"
    assert "another key" in step.message
    assert "Secret" in step.remedy
