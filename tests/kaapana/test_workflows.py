"""A Kaapana whose runs are workflows of a project: what the portal's account needs, and that nothing runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fedportal.connectors.base import LogChunk, RunState, RunStatus
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.kaapana import KaapanaConnector
from fedportal.connectors.kaapana_workflows import JOBLESS
from tests.kaapana.conftest import SITE_KEY, connector
from tests.kaapana_double.door import Door
from tests.trainer_process.bench import wait_for
from trainer.contract import LaunchTicket

SPEC_URL = "https://store.example/spec.json?X-Amz-Expires=60&X-Amz-Signature=%22<'>"
TICKET = LaunchTicket("fp-abcd-r1-mainz-a1", SPEC_URL, "k" * 64, "lung")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    """A door with a backend behind it and no Airflow: tests say how jobs are."""
    by_path = getattr(request, "param", False)
    door = Door(by_path=by_path)
    door.backend.id_first = door.backend.counts = not by_path
    door.backend.thread_takes = 0.0
    door.admit_members_only()
    yield door
    door.close()


both_generations = pytest.mark.parametrize("door", [False, True], ids=["until-0.6", "from-0.7"], indirect=True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def site(door: Door, clock: Clock) -> KaapanaConnector:
    return by_workflow(door, clock)


def by_workflow(door: Door, clock: Clock | None = None, **options: Any) -> KaapanaConnector:
    clock = clock or Clock()
    return connector(door, by_workflow=True, sleep=clock.sleep, clock=clock, **options)


def job_of(door: Door) -> dict[str, Any]:
    return wait_for(lambda: door.backend.jobs, seconds=30)[-1]


def becomes(door: Door, site: KaapanaConnector, status: str) -> RunStatus:
    job_of(door)["status"] = status
    return site.poll(TICKET.run)


# --- rights -------------------------------------------------------------------------------------------


@both_generations
def test_a_member_of_the_project_is_refused_at_the_airflow_and_may_start_workflows(door: Door) -> None:
    with pytest.raises(SiteRefused, match="403"):
        connector(door).launch(TICKET)
    rights = next(step for step in connector(door).check().steps if step.ok is False)
    assert rights.name == "Rights"
    assert "workflows of the project" in rights.remedy
    assert by_workflow(door).launch(TICKET) is True
    assert [row["username"] for row in door.backend.workflows] == ["portal"]
    scope = f"/project/{door.project['id']}" if door.by_path else ""
    assert f"POST {scope}/kaapana-backend/client/workflow" in door.requests
    assert not [request for request in door.requests if request.startswith("POST /flow/")]


@pytest.mark.parametrize("lacks", ["membership", "software"])
def test_what_an_account_lacks_is_told_with_the_remedy(door: Door, site: KaapanaConnector, lacks: str) -> None:
    if lacks == "membership":
        door.keycloak.rights = ["all_another-project"]
    else:
        door.backend.software.clear()
    with pytest.raises(SiteRefused, match="403") as refused:
        site.launch(TICKET)
    assert "member of the project" in refused.value.remedy
    assert "project's software" in refused.value.remedy
    assert door.backend.workflows == []
    failed = next(step for step in site.check().steps if step.ok is False)
    assert failed.name == {"membership": "Rights", "software": "Workflows"}[lacks]


# --- starting -----------------------------------------------------------------------------------------


def test_a_conf_is_the_projects_own_and_holds_no_secret(door: Door, site: KaapanaConnector) -> None:
    door.datasets["lung"] = ["1.2.3", "1.2.4"]
    site.launch(TICKET)
    conf = job_of(door)["conf_data"]
    assert conf["project_form"] == door.project
    assert conf["data_form"] == {"dataset_name": "lung", "identifiers": ["1.2.3", "1.2.4"]}
    assert conf["workflow_form"]["runner_instances"] == ["hospital"]
    assert conf["fedportal"]["run"] == TICKET.run
    assert "federated_form" not in conf  # it would move the run into another namespace
    for secret in (TICKET.key, SITE_KEY.hex(), "client-secret", "pass-word", site.provider.token().access):
        assert secret not in str(conf)


def test_a_dataset_that_kaapana_does_not_know_is_left_to_the_trainer(door: Door, site: KaapanaConnector) -> None:
    site.launch(TICKET)
    assert "data_form" not in job_of(door)["conf_data"]  # the backend would make no job of it


def test_a_name_that_kaapana_would_change_is_refused(door: Door, site: KaapanaConnector) -> None:
    with pytest.raises(SiteRefused, match="change the dataset's name"):
        site.launch(LaunchTicket(TICKET.run, TICKET.spec_url, TICKET.key, "lung & liver"))
    assert door.backend.workflows == []


def test_a_list_of_series_that_kaapana_cannot_carry_is_refused_before_it_is_sent(
    door: Door, site: KaapanaConnector
) -> None:
    door.datasets["lung"] = [f"1.2.826.0.1.3680043.8.498.{number:038d}" for number in range(16_000)]
    with pytest.raises(SiteRefused, match="1 MiB"):
        site.launch(TICKET)
    assert door.backend.workflows == []


@both_generations
def test_launching_twice_launches_once_also_from_another_process(door: Door, site: KaapanaConnector) -> None:
    assert [site.launch(TICKET), site.launch(TICKET), by_workflow(door).launch(TICKET)] == [True, False, False]
    tenth = LaunchTicket(f"{TICKET.run}0", TICKET.spec_url, TICKET.key, "lung")
    assert by_workflow(door).launch(tenth) is True, "a10 is not a1"
    assert len(door.backend.workflows) == 2


@both_generations
def test_a_launch_whose_answer_is_lost_is_found_and_not_repeated(door: Door, site: KaapanaConnector) -> None:
    door.faults.add("cut-after", "/client/workflow POST")
    assert site.launch(TICKET) is True
    assert site.launch(TICKET) is False
    assert len(door.backend.workflows) == 1


def test_a_launch_whose_answer_is_lost_while_the_site_goes_away_is_found_later(door: Door, clock: Clock) -> None:
    door.faults.add("cut-after", "/client/workflow POST")
    sleep = clock.sleep

    def goes_away(seconds: float) -> None:
        sleep(seconds)
        door.faults.add("503", "/client/workflows GET", 2)  # each look is tried twice

    slow = connector(door, by_workflow=True, sleep=goes_away, clock=clock)
    with pytest.raises(SiteUnreachable):
        slow.launch(TICKET)
    assert slow.launch(TICKET) is False
    assert len(door.backend.workflows) == 1


@pytest.mark.parametrize("fault", ["cut", "500", "503"])
def test_a_launch_that_never_arrived_can_be_repeated(door: Door, site: KaapanaConnector, fault: str) -> None:
    door.faults.add(fault, "/client/workflow POST")
    with pytest.raises(SiteUnreachable):
        site.launch(TICKET)
    assert door.backend.workflows == []
    assert site.launch(TICKET) is True
    assert len(door.backend.workflows) == 1


# --- while it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("queued", RunState.WAITING),
        ("pending", RunState.WAITING),
        ("scheduled", RunState.WAITING),
        ("running", RunState.RUNNING),
        ("finished", RunState.SUCCEEDED),
        ("failed", RunState.FAILED),
        ("aborted", RunState.FAILED),
        ("deleted", RunState.LOST),
    ],
)
def test_a_run_is_what_its_job_is(door: Door, site: KaapanaConnector, status: str, state: RunState) -> None:
    site.launch(TICKET)
    found = becomes(door, site, status)
    assert found.state is state
    assert found.message or state in (RunState.RUNNING, RunState.SUCCEEDED)
    assert by_workflow(door).poll(TICKET.run).state is state, "another process says the same"


def test_a_workflow_has_no_job_at_first(door: Door, site: KaapanaConnector, clock: Clock) -> None:
    door.backend.thread_takes = 3600.0
    site.launch(TICKET)
    assert site.poll(TICKET.run).state is RunState.WAITING
    clock.sleep(JOBLESS + 1)
    lost = site.poll(TICKET.run)
    assert lost.state is RunState.LOST, "the thread has died of something"
    assert "kaapana-backend" in lost.message


@pytest.mark.parametrize("what", ["job", "workflow"])
def test_what_somebody_deletes_is_lost(door: Door, site: KaapanaConnector, what: str) -> None:
    site.launch(TICKET)
    assert becomes(door, site, "running").state is RunState.RUNNING
    if what == "job":
        door.backend.jobs.clear()
    else:
        door.backend.delete(TICKET.run)
    lost = site.poll(TICKET.run)
    assert lost.state is RunState.LOST
    assert "deleted" in lost.message


def test_polling_rides_out_what_passes_and_a_token_that_ends(door: Door, site: KaapanaConnector) -> None:
    site.launch(TICKET)
    becomes(door, site, "running")
    for fault in ("503", "cut"):
        door.faults.add(fault, "/client/jobs GET")
        assert site.poll(TICKET.run).state is RunState.RUNNING
    door.faults.skew = 7200.0
    assert site.poll(TICKET.run).state is RunState.RUNNING
    door.faults.add("500", "/client/jobs GET", 2)
    with pytest.raises(SiteUnreachable):
        site.poll(TICKET.run)


# --- its end ------------------------------------------------------------------------------------------


@both_generations
def test_a_cancelled_run_is_over_when_cancel_returns(door: Door, site: KaapanaConnector) -> None:
    site.launch(TICKET)
    becomes(door, site, "running")
    site.cancel(TICKET.run)
    for process in (site, by_workflow(door)):
        assert process.poll(TICKET.run).state is RunState.CANCELLED
        process.cancel(TICKET.run)
        assert process.launch(TICKET) is False
    assert len([request for request in door.requests if request.startswith("PUT ")]) == 1


def test_a_run_is_cancelled_before_it_has_a_job(door: Door, site: KaapanaConnector, clock: Clock) -> None:
    door.backend.thread_takes = 3600.0
    site.launch(TICKET)
    with pytest.raises(SiteUnreachable, match="not ended"):
        site.cancel(TICKET.run)
    door.backend.make_job(door.backend.workflows[0], "fp-train", {})
    site.cancel(TICKET.run)
    assert site.poll(TICKET.run).state is RunState.CANCELLED


def test_an_abort_that_breaks_off_is_looked_after(door: Door, site: KaapanaConnector) -> None:
    site.launch(TICKET)
    becomes(door, site, "queued")
    door.faults.add("cut-after", "/client/job PUT", 2)  # carried out, and the answer is lost
    site.cancel(TICKET.run)
    assert site.poll(TICKET.run).state is RunState.CANCELLED
    site.cancel("fp-abcd-r1-mainz-a9")  # never was


def test_no_log_is_shown_while_a_run_goes_on(door: Door, site: KaapanaConnector) -> None:
    site.launch(TICKET)
    becomes(door, site, "running")
    assert site.logs(TICKET.run, offset=7) == LogChunk("", 7)
