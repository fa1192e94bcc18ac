"""The connector against real Airflow servers of both generations: the contract of all connectors, and Airflow's own."""

from __future__ import annotations

import json
import secrets

import pytest

from fedportal.connectors.airflow import AirflowConnector
from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.objectstore import ObjectStore
from tests.airflow.hospital import Hospital
from tests.connectors.contract import ConnectorContract
from tests.trainer_process.bench import Bench, wait_for
from trainer.contract import Kind, LaunchTicket

pytestmark = [pytest.mark.store, pytest.mark.slow]


class TestAirflow(ConnectorContract):
    seconds = 90.0  # on a crowded machine a scheduler takes its time

    @pytest.fixture
    def site(self, hospital: Hospital) -> AirflowConnector:
        return hospital.connector()


def test_no_key_is_in_the_configuration_of_a_run(hospital: Hospital, bench: Bench) -> None:
    ticket = bench.ticket("quick")
    site = hospital.connector()
    site.launch(ticket)
    wait_for(lambda: site.poll(ticket.run).state.is_over, seconds=90)
    document = hospital.api._call("GET", f"dags/fp-train/dagRuns/{ticket.run}").fields()
    assert document["conf"] == {"run": ticket.run, "spec_url": ticket.spec_url, "contract": 1}


def test_another_connector_finds_the_run_and_knows_that_it_was_cancelled(hospital: Hospital, bench: Bench) -> None:
    ticket = bench.ticket("lasts")
    hospital.connector().launch(ticket)
    wait_for(lambda: hospital.connector().poll(ticket.run).state is RunState.RUNNING, seconds=90)
    wait_for(lambda: hospital.is_alive(ticket.run))
    hospital.connector().cancel(ticket.run)
    assert not hospital.is_alive(ticket.run), "its processes have ended, not only its row"
    assert hospital.connector().poll(ticket.run).state is RunState.CANCELLED


def test_a_run_that_was_deleted_by_hand_is_lost(hospital: Hospital, bench: Bench) -> None:
    ticket = bench.ticket("quick")
    site = hospital.connector()
    site.launch(ticket)
    wait_for(lambda: site.poll(ticket.run).state.is_over, seconds=90)
    hospital.api._call("DELETE", f"dags/fp-train/dagRuns/{ticket.run}")
    assert site.poll(ticket.run).state is RunState.LOST


def test_many_open_runs_are_asked_for_at_once(hospital: Hospital, object_store: ObjectStore) -> None:
    site = hospital.connector()
    tickets = [Bench(object_store, experiment=secrets.token_hex(3)).ticket("lasts") for _ in range(4)]
    for ticket in tickets:
        site.launch(ticket)
    wait_for(lambda: {site.poll(t.run).state for t in tickets} >= {RunState.RUNNING}, seconds=90)
    calls: list[str] = []
    api = site._airflow()
    send = api._http.request
    api._http.request = lambda method, path, **options: (calls.append(path), send(method, path, **options))[1]  # type: ignore[method-assign]
    states = [site.poll(ticket.run).state for ticket in tickets]
    assert len([path for path in calls if path.endswith("dagRuns/list")]) <= 1
    assert not any(state.is_over for state in states)


def test_evaluations_have_a_dag_of_their_own(hospital: Hospital, bench: Bench) -> None:
    trained = bench.ticket("quick", attempt=7)
    ticket = LaunchTicket(trained.run, trained.spec_url, kind=Kind.EVALUATE)
    hospital.connector().launch(ticket)
    assert hospital.api.run("fp-train", ticket.run) is None
    wait_for(lambda: hospital.connector().poll(ticket.run).state is RunState.SUCCEEDED, seconds=90)


def test_a_paused_dag_is_told_with_the_remedy_and_the_run_goes_on_when_it_is_switched_on(
    hospital: Hospital, bench: Bench
) -> None:
    site, ticket = hospital.connector(), bench.ticket("quick")
    try:
        hospital.api._call("PATCH", "dags/fp-train", json={"is_paused": True})
        with pytest.raises(SiteUnreachable, match="paused") as refusal:
            site.launch(ticket)
        assert "Switch it on" in refusal.value.remedy
        # paused after the look and before the start: Airflow takes the run and lets it wait
        assert hospital.api.trigger(
            "fp-train", ticket.run, {"run": ticket.run, "spec_url": ticket.spec_url, "contract": 1}
        )
        with pytest.raises(SiteUnreachable, match="paused"):
            wait_for(lambda: site.poll(ticket.run).state is not RunState.WAITING, seconds=3)
    finally:
        hospital.api._call("PATCH", "dags/fp-train", json={"is_paused": False})
    wait_for(lambda: site.poll(ticket.run).state is RunState.SUCCEEDED, seconds=90)


def test_a_wrong_password_is_refused(hospital: Hospital) -> None:
    site = hospital.connector(password="wrong")
    with pytest.raises(SiteRefused) as refusal:
        site.poll("fp-abcd-r1-mainz-a1")
    assert "password" in refusal.value.remedy
    assert [step.name for step in site.check().steps if step.ok is False] == ["Login"]


def test_an_address_that_is_no_airflow_is_said_plainly(hospital: Hospital) -> None:
    with pytest.raises(SiteMisbehaved, match="no Airflow"):
        hospital.connector(url=f"{hospital.server.url}/elsewhere").poll("fp-abcd-r1-mainz-a1")


def test_a_trainer_of_another_contract_is_not_started(hospital: Hospital, bench: Bench) -> None:
    """The DAG's tag says which; where it lies, the trainer itself refuses."""
    ticket = bench.ticket("quick")
    assert hospital.api.trigger(
        "fp-train", ticket.run, {"run": ticket.run, "spec_url": ticket.spec_url, "contract": 99}
    )
    site = hospital.connector()
    wait_for(lambda: site.poll(ticket.run).state is RunState.FAILED, seconds=90)
    status = site.poll(ticket.run)
    assert (status.exit_code, "contract 99" in status.message) == (10, True)
    assert not bench.has(ticket, "manifest.json")


def test_what_the_portal_sends_never_becomes_a_command(hospital: Hospital) -> None:
    experiment, trap = secrets.token_hex(3), hospital.folder / "trap"
    for number, evil in enumerate((f"$(touch {trap})", f"'; touch {trap} #", "{{ 7919 * 7919 }}")):
        name = f"fp-{experiment}-r1-mainz-a{number + 1}"
        hospital.api.trigger("fp-train", name, {"run": name, "spec_url": evil, "contract": 1})
        site = hospital.connector()
        wait_for(lambda: site.poll(name).state is RunState.FAILED, seconds=90)  # noqa: B023
        assert str(7919 * 7919) not in site.logs(name).text
    assert not trap.exists()


def test_a_token_that_ended_is_renewed(hospital: Hospital) -> None:
    if hospital.version == 2:
        pytest.skip("2.x sends its password with every request")
    api = hospital.api
    api.login()
    for token in ("", "garbage", f"{'.'.join(api._token.split('.')[:2])}.x"):
        api._token, api._until = token, float("inf")
        assert api.dag("fp-train") is not None


def test_a_check_finds_all_from_the_name_to_the_key(hospital: Hospital) -> None:
    report = hospital.connector().check()
    failed = [step for step in report.steps if step.ok is False]
    assert [(step.name, step.message) for step in failed] == [("Datasets", "There is no dataset.")]
    assert report.version.startswith(f"airflow {hospital.version}.")
    assert report.facts["free_bytes"] > 0
    steps = {step.name: step for step in report.steps}
    assert "The site has the right one." in steps["Key"].message
    assert "warm start" in steps["Trainer"].message
    assert "the portal's own" in steps["Code"].message
    assert "the portal's own" in steps["DAGs"].message


def test_a_site_with_another_key_is_found_out(hospital: Hospital) -> None:
    site = hospital.connector()
    site._site = type(site._site)(slug="mainz", key=b"x" * 32)
    failed = [step for step in site.check().steps if step.ok is False]
    assert [step.name for step in failed] == ["Key"]
    assert json.dumps(KEY_HEX) not in json.dumps([step.message for step in failed])


KEY_HEX = (b"s" * 32).hex()
