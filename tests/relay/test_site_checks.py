"""The check of a polling site: what its trainer reported, when it is asked again, what is wrong and what to do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.utils import timezone

from fedportal.connectors.objectstore import ObjectStore
from fedportal.relay.models import RemoteJob
from fedportal.relay.queue import SiteQueue
from fedportal.sites.models import Site
from tests.relay.rows import connector
from trainer.contract import CONTRACT_VERSION, attempt_key, signed, site_key

pytestmark = pytest.mark.django_db
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
def test_giving_up_a_check_does_not_bring_back_what_a_failure_has_ended(mainz, checked):
    queue, answer = checked
    answer(REPORT)
    much_later(hours=13)
    connector(queue).check()
    failing = next(job for job in mainz.jobs() if job["dag_id"] == "fp-check")
    mainz.report(failing["id"], "failed")
    much_later(hours=1)
    connector(queue).check()
    queue.cancel(RemoteJob.objects.filter(is_check=True).latest("pk").run)
    assert RemoteJob.objects.filter(is_check=True).latest("pk").ended_at is not None
    step = next(step for step in connector(queue).check().steps if not step.ok)
    assert (step.name, "could not report" in step.message) == ("Trainer", True)


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
