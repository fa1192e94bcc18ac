"""What goes wrong between the portal and a Kaapana, on the whole double: nothing runs twice, and the words are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteNotReady, SiteRefused, SiteUnreachable
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.kaapana import KaapanaConnector
from fedportal.connectors.trainer_process import is_locked
from tests.kaapana.conftest import SITE_KEY, connector, letterbox
from tests.kaapana_double.double import KaapanaDouble
from tests.trainer_process.bench import Bench, wait_for
from trainer.contract import Exit, LaunchTicket, records_in_log

pytestmark = [pytest.mark.store, pytest.mark.slow]
SECONDS = 90.0


@pytest.fixture
def site(kaapana: KaapanaDouble) -> KaapanaConnector:
    return connector(kaapana.door, sleep=lambda _: None)


def over(site: KaapanaConnector, ticket: LaunchTicket) -> RunState:
    wait_for(lambda: site.poll(ticket.run).state.is_over, seconds=SECONDS)
    return site.poll(ticket.run).state


def named(state: RunState, site: KaapanaConnector, ticket: LaunchTicket) -> None:
    wait_for(lambda: site.poll(ticket.run).state is state, seconds=SECONDS)


def keyless(ticket: LaunchTicket) -> LaunchTicket:
    return LaunchTicket(ticket.run, ticket.spec_url, dataset=ticket.dataset)


# --- starting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_session", [True, False], ids=["session", "no-session"])
def test_a_launch_whose_answer_is_lost_is_found_and_not_repeated(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench, has_session: bool
) -> None:
    kaapana.door.faults.has_airflow_login = has_session
    kaapana.door.faults.add("cut-after", "/api/trigger/")
    ticket = bench.ticket("lasts")
    assert site.launch(ticket) is True
    assert len(kaapana.runs()) == 1
    assert site.launch(ticket) is False
    named(RunState.RUNNING, site, ticket)


@pytest.mark.parametrize("fault", ["cut", "500", "503"])
def test_a_launch_that_never_arrived_can_be_repeated(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench, fault: str
) -> None:
    kaapana.door.faults.add(fault, "/api/trigger/")
    ticket = bench.ticket("lasts")
    with pytest.raises(SiteUnreachable):
        site.launch(ticket)
    assert kaapana.runs() == []
    assert site.launch(ticket) is True
    assert len(kaapana.runs()) == 1


def test_another_portal_process_finds_the_run_by_its_name(kaapana: KaapanaDouble, bench: Bench) -> None:
    ticket = bench.ticket("lasts")
    assert connector(kaapana.door).launch(ticket) is True
    other = connector(kaapana.door)
    assert other.launch(ticket) is False
    named(RunState.RUNNING, other, ticket)
    other.cancel(ticket.run)
    assert connector(kaapana.door).poll(ticket.run).state is RunState.CANCELLED


def test_a_paused_workflow_is_waited_for_with_the_remedy(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    kaapana.set_paused("fp-train", paused=True)
    with pytest.raises(SiteNotReady, match="paused") as refused:
        site.launch(bench.ticket("quick"))
    assert "Switch it on" in refused.value.remedy
    assert kaapana.runs() == []


def test_a_workflow_that_is_not_installed_is_named(site: KaapanaConnector) -> None:
    with pytest.raises(SiteRefused, match="fp-nothing is not installed") as refused:
        site.api.is_paused("fp-nothing")
    assert "Install the extension" in refused.value.remedy


def test_a_conf_is_the_sites_own_and_holds_no_secret(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    kaapana.door.datasets["lasts"] = ["1.2.840.1", "1.2.840.2"]
    ticket = bench.ticket("lasts")
    site.launch(ticket)
    conf = next(iter(site.api.newest_runs("fp-train"))).conf
    assert conf["project_form"] == kaapana.door.project
    assert conf["data_form"] == {"dataset_name": "lasts", "identifiers": ["1.2.840.1", "1.2.840.2"]}
    assert conf["fedportal"] == {"run": ticket.run, "spec_url": ticket.spec_url, "dataset": "lasts"}
    assert "federated_form" not in conf  # it would move the run into another namespace
    # Kaapana prints it into the web server's log, whatever is in it.
    printed = (kaapana.airflow.folder / "logs" / "webserver.log").read_text(errors="replace")
    told = json.dumps(conf) + printed
    assert ticket.run in printed
    for secret in (ticket.key, SITE_KEY.hex(), "client-secret", "pass-word", site.provider.token().access):
        assert secret not in told


def test_a_list_of_series_that_kaapana_cannot_carry_is_refused_before_it_is_sent(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    kaapana.door.datasets["quick"] = [f"1.2.826.0.1.3680043.8.498.{number:038d}" for number in range(16_000)]
    with pytest.raises(SiteRefused, match="1 MiB"):
        site.launch(bench.ticket("quick"))
    assert not any("trigger" in request for request in kaapana.door.requests[-3:])


# --- while it runs ------------------------------------------------------------------------------------


def test_a_run_that_somebody_deletes_is_lost(kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench) -> None:
    ticket = bench.ticket("lasts")
    site.launch(ticket)
    named(RunState.RUNNING, site, ticket)
    kaapana.forget(kaapana.runs()[0][0])
    status = site.poll(ticket.run)
    assert status.state is RunState.LOST
    assert "deleted" in status.message


def test_polling_rides_out_what_passes_and_a_token_that_ends(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    ticket = bench.ticket("lasts")
    site.launch(ticket)
    named(RunState.RUNNING, site, ticket)
    kaapana.door.faults.add("503", "/dagdetails/")
    assert site.poll(ticket.run).state is RunState.RUNNING
    kaapana.door.faults.add("cut", "/dagdetails/")
    assert site.poll(ticket.run).state is RunState.RUNNING
    kaapana.door.faults.skew = 7200.0
    assert site.poll(ticket.run).state is RunState.RUNNING
    kaapana.door.faults.add("500", "/dagdetails/", 2)
    with pytest.raises(SiteUnreachable):
        site.poll(ticket.run)


def test_a_project_without_the_sites_key_fails_with_a_word(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    stored = kaapana.secrets.read_text()
    kaapana.secrets.write_text("{}")
    try:
        ticket = bench.ticket("quick")
        site.launch(ticket)
        assert over(site, ticket) is RunState.FAILED
        assert "log of its pod" in site.poll(ticket.run).message
    finally:
        kaapana.secrets.write_text(stored)


def test_a_run_of_a_site_without_a_session_is_followed_by_its_states(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    kaapana.door.faults.has_airflow_login = False
    ticket = bench.ticket("quick")
    assert site.launch(keyless(ticket)) is True
    assert over(site, ticket) is RunState.SUCCEEDED
    assert bench.manifest(ticket).exit_code == 0
    assert site.logs(ticket.run).text == ""
    assert connector(kaapana.door).poll(ticket.run).state is RunState.LOST


def test_cancelling_before_a_task_has_begun_leaves_nothing_behind(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    blockers = [bench.ticket("lasts", attempt=number) for number in (2, 3)]
    for blocker in blockers:
        site.launch(blocker)
    for blocker in blockers:
        wait_for(lambda b=blocker: "scripted work" in site.logs(b.run).text, seconds=SECONDS)
    # Both of the double's workers are taken now.
    ticket = bench.ticket("quick")
    site.launch(ticket)
    site.cancel(ticket.run)
    assert over(site, ticket) is RunState.CANCELLED
    assert not bench.has(ticket, "manifest.json")


def test_the_training_process_is_gone_when_cancel_returns(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    ticket = bench.ticket("computes")
    site.launch(ticket)
    wait_for(lambda: "scripted work" in site.logs(ticket.run).text, seconds=SECONDS)
    lock = kaapana.home / "work" / "runs" / ticket.run / "lock"
    assert is_locked(lock)
    connector(kaapana.door).cancel(ticket.run)
    assert not is_locked(lock)
    assert site.poll(ticket.run).state is RunState.CANCELLED


def test_a_scheduler_that_is_killed_in_the_middle_costs_time_only(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    ticket = bench.ticket("quick")
    site.launch(ticket)
    named(RunState.RUNNING, site, ticket)
    kaapana.kill_scheduler()
    assert over(site, ticket) is RunState.SUCCEEDED
    assert bench.manifest(ticket).exit_code == 0
    assert bench.read(ticket, "log.txt").decode().count('"run begins"') == 1
    assert len(kaapana.runs()) == 1


def test_curves_come_by_the_log_where_a_pod_cannot_reach_the_portal(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench
) -> None:
    ticket = bench.ticket("lasts", metrics_url="http://127.0.0.1:9/api/metrics")
    site.launch(ticket)
    wait_for(lambda: records_in_log(site.logs(ticket.run).text), seconds=SECONDS)
    (record,) = records_in_log(site.logs(ticket.run).text)
    assert (record.name, record.value, record.progress) == ("loss", 0.5, 0.5)
    assert site.poll(ticket.run).state is RunState.RUNNING


# --- data ---------------------------------------------------------------------------------------------


def described(kaapana: KaapanaDouble, name: str) -> dict:
    return dict(json.loads((kaapana.home / "datasets" / name / "dataset.json").read_text()))


def task_states(site: KaapanaConnector, run_id: str) -> dict[str, str]:
    return site.api.task_states("fp-train", run_id)


def test_series_are_converted_once_and_then_lie_ready(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench, pacs: Callable[[int], list[str]]
) -> None:
    kaapana.door.datasets["quick"] = pacs(5)
    first, second = bench.ticket("quick", attempt=1), bench.ticket("quick", attempt=2)
    site.launch(first)
    assert over(site, first) is RunState.SUCCEEDED
    states = task_states(site, kaapana.runs()[0][0])
    assert states["get-input"] == states["get-ref-series-ct"] == states["mask2nifti"] == "success"
    assert states["gather"] == states["dcm-converter-contrasts"] == "skipped", "the dataset lists no images"
    document = described(kaapana, "quick")
    assert document["labels"] == {"0": "background", "1": "edema"}
    assert (len(document["training"]), len(document["validation"])) == (4, 1)
    assert "convert" in bench.manifest(first).seconds
    site.launch(second)
    assert over(site, second) is RunState.SUCCEEDED
    states = task_states(site, kaapana.runs()[1][0])
    assert states["look"] == states["get-input"] == states["get-ref-series-ct"] == states["mask2nifti"] == "skipped"
    assert states["train"] == "success"
    # The hospital's identifiers stay where they are.
    for told in (site.logs(first.run).text, site.logs(second.run).text, bench.read(first, "log.txt").decode()):
        assert "1.2.826" not in told


def test_a_label_that_the_experiment_does_not_know_is_told_with_its_case(
    kaapana: KaapanaDouble, site: KaapanaConnector, bench: Bench, pacs: Callable[[int], list[str]]
) -> None:
    kaapana.door.datasets["quick"] = pacs(2)
    odd = next(kaapana.pacs.glob("*/mask2nifti/*.nii.gz"))
    odd.rename(odd.with_name("seg--8--Haemorrhage.nii.gz"))
    ticket = bench.ticket("quick")
    site.launch(ticket)
    assert over(site, ticket) is RunState.FAILED
    status = site.poll(ticket.run)
    assert status.exit_code == Exit.LABELS_DIFFER
    assert "haemorrhage" in status.message
    assert bench.manifest(ticket).exit_code == Exit.LABELS_DIFFER


# --- the whole check ----------------------------------------------------------------------------------


def test_a_site_that_is_well_passes_every_step(
    kaapana: KaapanaDouble, bench: Bench, pacs: Callable[[int], list[str]], tmp_path: Path
) -> None:
    offered = {"dataset_name": "lung", "identifiers": pacs(3)}
    conf = {
        "project_form": kaapana.door.project,
        "data_form": offered,
        "workflow_form": {"labels": "Edema", "channel": "CT", "confirmation": True},
    }
    bench.store.put_bytes("probe", b"x" * 100_000)

    def probe() -> dict[str, str]:
        hour = timedelta(hours=1)
        return {"get": bench.store.presign_get("probe", hour), "put": bench.store.presign_put("probe", hour)}

    site = connector(kaapana.door, site=SiteContext("mainz", key=SITE_KEY, probe=probe))
    run_id = site.api.trigger("fp-offer", conf)
    wait_for(lambda: site.api.run_state("fp-offer", run_id) in ("success", "failed"), seconds=SECONDS)
    report = site.check()
    assert [(step.name, step.message) for step in report.steps if not step.ok] == []
    assert [dataset.name for dataset in report.datasets] == ["lung"]
    assert report.datasets[0].labels == {0: "background", 1: "Edema"}
    assert report.datasets[0].shape == (8, 9, 10)
    assert "torch" in report.version
    assert report.facts["store"]["ok"] is True
    assert [state for _, state in kaapana.runs("fp-check")] == ["success"]


def test_a_site_with_another_key_is_found_by_its_check(kaapana: KaapanaDouble) -> None:
    report = connector(kaapana.door, site=SiteContext("mainz", key=b"t" * 32)).check()
    failed = next(step for step in report.steps if step.ok is False)
    assert failed.name == "Key"
    assert "another key" in failed.message


@pytest.mark.parametrize("fits", [True, False], ids=["own-key", "other-key"])
def test_without_a_session_at_airflow_the_report_is_left_in_the_store(
    kaapana: KaapanaDouble, bench: Bench, fits: bool
) -> None:
    kaapana.door.faults.has_airflow_login = False
    key = SITE_KEY if fits else b"t" * 32
    context = SiteContext("mainz", key=key, letterbox=lambda: letterbox(bench.store))
    steps = {step.name: step for step in connector(kaapana.door, site=context).check().steps}
    assert "does not open" in steps["Airflow"].message
    assert steps["Trainer"].ok is fits
    if fits:
        assert "GPUs not looked at" in steps["Trainer"].message
        assert all(steps[name].ok for name in ("Code", "Key", "Clock", "Disk"))
    else:
        assert "another key" in steps["Trainer"].message
        assert "Secret" in steps["Trainer"].remedy
