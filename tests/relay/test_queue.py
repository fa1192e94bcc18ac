"""The queue of a polling site's jobs: what its connector reads of the rows."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteUnreachable
from fedportal.connectors.job_queue import JobState
from fedportal.connectors.kaapana_pull import KaapanaPullConnector
from fedportal.connectors.objectstore import ObjectStore
from fedportal.experiments.models import Attempt, Participation, Round, SiteRun
from fedportal.relay import services
from fedportal.relay.models import RemoteInstance, RemoteJob
from fedportal.relay.queue import TAKEN_WITHIN, SiteQueue
from tests.factories import make_dataset, make_experiment
from tests.relay.rows import PROJECT, connector, polling_site, put
from trainer.contract import CONTRACT_VERSION, LaunchTicket

pytestmark = pytest.mark.django_db
RUN = "fp-abcd-r1-mainz-a1"


def silent(seconds: float) -> None:
    RemoteInstance.objects.update(heard_at=timezone.now() - timedelta(seconds=seconds))


# --- runs -----------------------------------------------------------------------------------------


def test_a_job_carries_ticket_and_project_and_no_key(mainz):
    assert connector(project=PROJECT).launch(LaunchTicket(RUN, "https://s/x?a=1&b=2", "ab" * 32, "brats"))
    [job] = mainz.jobs()
    assert job["conf_data"]["fedportal"] == {
        "run": RUN,
        "spec_url": "https://s/x?a=1&b=2",
        "dataset": "brats",
        "contract": CONTRACT_VERSION,
    }
    assert job["conf_data"]["project_form"] == PROJECT
    assert "federated_form" not in job["conf_data"], "Kaapana would move the run to another namespace"
    assert "ab" * 32 not in str(job)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ("pending", RunState.WAITING),
        ("scheduled", RunState.WAITING),
        ("running", RunState.RUNNING),
        ("finished", RunState.SUCCEEDED),
        ("failed", RunState.FAILED),
        ("deleted", RunState.LOST),
        ("aborted", RunState.FAILED),
    ],
)
def test_states_of_kaapana_are_understood(mainz, told, state):
    queue = put()
    [job] = mainz.jobs()
    mainz.report(job["id"], told)
    assert connector(queue).poll(RUN).state is state


def test_a_site_that_starts_nothing_by_itself_waits_for_its_steward(mainz):
    queue = put()
    [job] = mainz.jobs(automatic_workflow_execution=False)
    mainz.report(job["id"], "pending")
    status = connector(queue).poll(RUN)
    assert status.state is RunState.WAITING
    assert "steward's confirmation" in status.message


def test_a_site_that_polls_by_hand_waits_for_somebody(mainz):
    mainz.poll(automatic_update=False)
    assert "sync remotes" in connector(put()).poll(RUN).message


@pytest.mark.parametrize(("seconds", "words"), [(90, "last poll 1 min ago"), (7300, "last poll 2 h ago")])
def test_a_silent_site_is_unreachable_and_says_since_when(mainz, seconds, words):
    queue = put()
    mainz.jobs()
    silent(seconds)
    with pytest.raises(SiteUnreachable, match=words):
        connector(queue).poll(RUN)


def test_the_end_of_a_run_is_known_though_the_site_is_silent(mainz):
    queue = put()
    [job] = mainz.jobs()
    mainz.report(job["id"], "finished")
    silent(10_000)
    assert connector(queue).poll(RUN).state is RunState.SUCCEEDED


def test_another_sites_run_is_unknown(mainz):
    polling_site("ulm")
    put("mainz")
    assert SiteQueue("ulm").job(RUN) is None
    SiteQueue("ulm").cancel(RUN)
    assert SiteQueue("mainz").job(RUN).state is JobState.QUEUED


# --- cancelling -----------------------------------------------------------------------------------


def test_what_nobody_has_fetched_is_taken_back(mainz):
    queue = put()
    connector(queue).cancel(RUN)
    assert connector(queue).poll(RUN).state is RunState.CANCELLED
    assert mainz.jobs() == []
    assert RemoteJob.objects.get(run=RUN).conf == {}


def test_what_a_steward_has_not_confirmed_is_taken_back(mainz):
    queue = put()
    [job] = mainz.jobs(automatic_workflow_execution=False)
    mainz.report(job["id"], "pending")
    connector(queue).cancel(RUN)
    assert connector(queue).poll(RUN).state is RunState.CANCELLED
    mainz.report(job["id"], "running")
    assert connector(queue).poll(RUN).state is RunState.CANCELLED


@pytest.mark.parametrize("told", ["pending", "scheduled", "running"])
def test_what_may_run_is_over_when_the_site_says_so(mainz, told):
    queue = put()
    [job] = mainz.jobs()
    mainz.report(job["id"], told)
    for _ in range(2):
        with pytest.raises(SiteUnreachable, match="not confirmed"):
            connector(queue).cancel(RUN)
    mainz.report(job["id"], "failed")
    connector(queue).cancel(RUN)
    assert connector(queue).poll(RUN).state is RunState.CANCELLED


def test_a_handed_out_job_that_never_arrived_can_be_taken_back(mainz):
    queue = put()
    mainz.jobs()
    with pytest.raises(SiteUnreachable):
        connector(queue).cancel(RUN)
    assert mainz.jobs() == [], "it is handed out no more"
    RemoteJob.objects.update(delivered_at=timezone.now() - TAKEN_WITHIN)
    connector(queue).cancel(RUN)
    assert connector(queue).poll(RUN).state is RunState.CANCELLED


@pytest.mark.django_db(transaction=True)
def test_a_job_that_is_cancelled_while_it_is_handed_out_is_not_taken_for_one_that_never_was(mainz, monkeypatch):
    queue = put()
    find = services._due

    def cancelled_meanwhile(*arguments):
        jobs = find(*arguments)
        thread.start()
        thread.join(0.5)  # it waits for the poll's transaction, or is over before
        return jobs

    def cancel():
        queue.cancel(RUN)
        connection.close()

    thread = threading.Thread(target=cancel)
    monkeypatch.setattr(services, "_due", cancelled_meanwhile)
    [job] = mainz.jobs()
    thread.join()
    kept = RemoteJob.objects.get(pk=job["id"])
    assert kept.abort_requested_at is not None
    assert not kept.status.is_over, "the site has it, and may run it"


# --- logs -----------------------------------------------------------------------------------------


@pytest.mark.store
def test_the_log_is_read_from_what_was_delivered(object_store: ObjectStore):
    site = polling_site("mainz")
    experiment = make_experiment(sites=0)
    part = Participation.objects.create(experiment=experiment, site=site, dataset=make_dataset(site))
    site_run = SiteRun.objects.create(round=Round.objects.create(experiment=experiment, number=1), participation=part)
    run = f"fp-{experiment.key}-r1-mainz-a1"
    Attempt.objects.create(site_run=site_run, number=1, run=run)
    queue = SiteQueue("mainz", store=lambda: object_store)
    assert queue.log(run, offset=0).text == ""
    object_store.put_bytes(f"fedportal/{experiment.key}/r00001/mainz/a1/log.txt", "größer\nzwei\n".encode())
    chunk = queue.log(run, offset=0)
    assert (chunk.text, chunk.next_offset) == ("größer\nzwei\n", len("größer\nzwei\n".encode()))
    assert queue.log(run, offset=chunk.next_offset).text == ""


# --- registering ----------------------------------------------------------------------------------


def test_the_handout_is_what_kaapana_pastes():
    from fedportal.connectors.fields import SiteContext

    secrets = {"portal_token": "t" * 43}
    made = KaapanaPullConnector.handout(
        {}, secrets, site=SiteContext("mainz", portal_url="https://portal.example:8443")
    )
    assert made == {
        "instance_name": "portal.example",
        "host": "portal.example",
        "port": 8443,
        "token": "t" * 43,
        "fernet_key": "deactivated",
        "ssl_check": True,
    }


@pytest.mark.parametrize(
    ("config", "secrets", "field"),
    [
        ({"instance_name": ""}, {}, "definition"),
        ({"instance_name": "a b"}, {}, "definition"),
        ({"instance_name": "a"}, {"fernet_key": "short"}, "definition"),
        ({"instance_name": "a", "dag": "FP Train"}, {}, "dag"),
        ({"instance_name": "a", "project": "no json"}, {}, "project"),
        ({"instance_name": "a", "project": '{"name": "x"}'}, {}, "project"),
    ],
)
def test_values_that_cannot_work_are_refused(config, secrets, field):
    from fedportal.connectors.fields import Unfit

    with pytest.raises(Unfit) as refusal:
        KaapanaPullConnector.clean_config(config, secrets)
    assert refusal.value.field == field
