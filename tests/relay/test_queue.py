"""The queue of a polling site's jobs: what its connector reads of the rows."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from django.conf import settings
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
from fedportal.sites.models import Site
from tests.factories import make_dataset, make_experiment
from tests.relay.rows import PROJECT, Kaapana, polling_site, put
from trainer.contract import CONTRACT_VERSION, LaunchTicket, attempt_key, signed, site_key

pytestmark = pytest.mark.django_db
RUN = "fp-abcd-r1-mainz-a1"
DATASET = {
    "name": "brats",
    "title": "BRATS",
    "train_cases": 8,
    "validation_cases": 4,
    "channels": ["FLAIR"],
    "labels": {"0": "background", "1": "edema"},
    "spacing": [1.0, 1.0, 1.0],
    "shape": [16, 16, 16],
    "problems": [],
}
REPORT = {"versions": {"contract": str(CONTRACT_VERSION), "torch": "2.9"}, "gpus": [], "datasets": [DATASET]}


@pytest.fixture
def mainz():
    polling_site("mainz")
    return Kaapana("mainz")


def connector(queue: SiteQueue | None = None, **options) -> KaapanaPullConnector:
    return KaapanaPullConnector(
        queue or SiteQueue("mainz"), portal_url="https://portal.example", patience=0.0, **options
    )


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


# --- what the site says of itself -----------------------------------------------------------------


@pytest.fixture
def checked(mainz, object_store: ObjectStore):
    """A function that lets the site answer ``fp-check`` with a report, and the queue that reads it."""
    queue = SiteQueue("mainz", store=lambda: object_store)

    def answer(report, *, key: bytes | None = None) -> None:
        mainz.poll()
        queue.look("https://portal.example")
        job = next(job for job in mainz.jobs() if job["dag_id"] == "fp-check")
        run = job["conf_data"]["fedportal"]["run"]
        key = key or site_key(settings.FEDPORTAL_ATTEMPT_SECRET, "mainz")
        object_store.put_bytes(f"fedportal/checks/mainz/{run}.json", signed(report, attempt_key(key, run)))
        mainz.report(job["id"], "finished")

    return queue, answer


@pytest.mark.store
def test_a_check_asks_once_and_reads_the_answer(mainz, checked):
    queue, answer = checked
    first = connector(queue).check()
    assert (first.steps[0].name, first.steps[0].ok) == ("Poll", False)
    assert all(step.ok is None for step in first.steps[1:])
    answer(REPORT)
    assert RemoteJob.objects.filter(is_check=True).count() == 1
    report = connector(queue).check()
    assert report.ok, report.steps
    assert [step.name for step in report.steps] == [
        "Poll", "Automatic sync", "Clock", "DAG", "Trainer", "Code", "Object store", "Datasets",
    ]  # fmt: skip
    assert report.datasets[0].labels == {0: "background", 1: "edema"}
    assert report.version == f"contract {CONTRACT_VERSION} · torch 2.9"
    assert RemoteJob.objects.filter(is_check=True).count() == 1, "a fresh report is not asked for again"


def much_later(**shift: float) -> None:
    """Let all jobs of the check be older."""
    for job in RemoteJob.objects.filter(is_check=True):
        by = timedelta(**shift)
        RemoteJob.objects.filter(pk=job.pk).update(
            created_at=job.created_at - by, ended_at=job.ended_at and job.ended_at - by
        )


@pytest.mark.store
def test_an_earlier_report_does_not_hide_that_the_check_fails_now(mainz, checked):
    queue, answer = checked
    answer(REPORT)
    assert connector(queue).check().ok
    much_later(hours=13)
    assert connector(queue).check().ok, "it is being asked anew"
    job = next(job for job in mainz.jobs() if job["dag_id"] == "fp-check")
    mainz.report(job["id"], "failed")
    for pause in (0, 1):  # also while it is asked for once more
        much_later(hours=pause)
        step = next(step for step in connector(queue).check().steps if not step.ok)
        assert (step.name, "could not report" in step.message) == ("Trainer", True)
    answer(REPORT)
    assert connector(queue).check().ok


@pytest.mark.store
def test_a_check_that_hangs_at_the_site_is_given_up_and_asked_for_again(mainz, checked):
    queue, answer = checked
    answer(REPORT)
    much_later(hours=13)
    connector(queue).check()
    first = next(job for job in mainz.jobs() if job["dag_id"] == "fp-check")
    mainz.report(first["id"], "running")
    much_later(hours=47)
    assert RemoteJob.objects.filter(is_check=True).count() == 2
    much_later(hours=2)
    report = connector(queue).check()
    assert RemoteJob.objects.filter(is_check=True).count() == 3
    assert RemoteJob.objects.get(pk=first["id"]).abort_requested_at is not None
    trainer = next(step for step in report.steps if step.name == "Trainer")
    assert (trainer.ok, "days ago" in trainer.message) == (True, True)
    assert "fp-check" in trainer.remedy


@pytest.mark.store
def test_the_answer_brings_the_next_check(mainz, checked):
    _queue, answer = checked
    Site.objects.update(check_due_at=timezone.now() + timedelta(hours=1))
    answer(REPORT)
    assert Site.objects.get(slug="mainz").check_due_at <= timezone.now()


@pytest.mark.store
def test_that_a_steward_has_to_confirm_the_look_at_the_site_is_shown_at_once(mainz, checked):
    queue, _answer = checked
    put_off = timezone.now() + timedelta(hours=1)
    mainz.poll(automatic_workflow_execution=False)
    step = next(step for step in connector(queue).check().steps if not step.ok)
    assert "It waits for the site's next poll" in step.message
    Site.objects.update(check_due_at=put_off)
    (job,) = mainz.jobs(automatic_workflow_execution=False)
    mainz.report(job["id"], "pending", run_id=None)
    assert Site.objects.get(slug="mainz").check_due_at <= timezone.now()
    step = next(step for step in connector(queue).check().steps if not step.ok)
    assert "It waits for the steward's confirmation" in step.message
    Site.objects.update(check_due_at=put_off)
    mainz.report(job["id"], "running")
    assert Site.objects.get(slug="mainz").check_due_at == put_off


@pytest.mark.store
def test_a_report_under_another_key_is_not_believed(mainz, checked):
    queue, answer = checked
    answer(REPORT, key=b"x" * 32)
    step = next(step for step in connector(queue).check().steps if not step.ok)
    assert step.name == "Trainer"
    assert step.remedy


@pytest.mark.store
@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"versions": {"contract": "999", "torch": "2"}}, "Trainer", "speaks contract 999"),
        ({"problems": ["The data folder cannot be read."]}, "Trainer", "cannot be read"),
        ({"store": {"ok": False, "error": "ConnectionError"}}, "Object store", "does not reach the object store"),
        ({"datasets": []}, "Datasets", "no dataset"),
        ({"datasets": [{"name": "x"}]}, "Datasets", "makes no sense"),
    ],
)
def test_a_check_says_what_is_wrong_and_what_to_do(mainz, checked, changes, name, words):
    queue, answer = checked
    answer({**REPORT, **changes})
    report = connector(queue).check()
    step = next(step for step in report.steps if not step.ok)
    assert step.name == name
    assert words in step.message
    assert step.remedy


@pytest.mark.store
@pytest.mark.parametrize(
    ("changes", "headers", "name"),
    [
        ({"automatic_update": False}, {}, "Automatic sync"),
        ({"allowed_dags": {"fp-check": {}}}, {}, "DAG"),
        ({}, {"Date": "Thu, 01 Jan 2015 00:00:00 GMT"}, "Clock"),
    ],
)
def test_what_a_poll_tells_is_checked(mainz, checked, changes, headers, name):
    from tests.relay.rows import advert

    queue, answer = checked
    answer(REPORT)
    mainz.call("PUT", "sync-client-remote", advert("mainz", **changes), **headers)
    step = next(step for step in connector(queue).check().steps if not step.ok)
    assert step.name == name
    assert step.remedy


def test_a_store_that_is_away_is_a_step_of_the_check(mainz):
    mainz.poll()
    gone = ObjectStore("127.0.0.1:9", "k", "s" * 16, "bucket", secure=False, timeout=1)
    step = next(s for s in connector(SiteQueue("mainz", store=lambda: gone)).check().steps if not s.ok)
    assert "object store does not answer" in step.message


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
