"""The door for metric records: one token for each attempt, nothing twice, nothing malformed."""

from __future__ import annotations

import json

import pytest
from django.conf import settings
from django.test import Client

from fedportal.experiments import services
from fedportal.experiments.metrics_api import MAX_BYTES, MAX_RECORDS
from fedportal.experiments.models import Attempt, Experiment, Metric, SiteRun
from fedportal.experiments.states import SiteRunState
from tests.factories import ada, make_experiment
from trainer.contract import attempt_key, metrics_token, site_key, site_of

pytestmark = pytest.mark.django_db

LOSS = {"phase": "train", "name": "loss", "value": 0.42, "step": 8, "progress": 0.66, "at": 1790000000.5}


@pytest.fixture
def attempt() -> Attempt:
    experiment = make_experiment(ada())
    services.start(experiment=experiment, by=experiment.owner)
    part = experiment.participations.first()
    run = SiteRun.objects.create(
        round=experiment.current_round, participation=part, attempt=1, state=SiteRunState.RUNNING
    )
    return Attempt.objects.create(site_run=run, number=1, run=run.run_name)


def key_of(run: str) -> str:
    return attempt_key(site_key(settings.FEDPORTAL_ATTEMPT_SECRET, site_of(run)), run)


def token_of(run: str) -> str:
    return metrics_token(key_of(run))


def post(run: str, body, *, token: str | None = None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token_of(run) if token is None else token}"}
    return Client().post(f"/api/runs/{run}/metrics", data, content_type="application/json", headers=headers)


def records_of(*records, attempt: Attempt, **more):
    return {"run": attempt.run, "records": list(records), "finished": False, **more}


def test_records_are_stored_for_their_attempt_and_site(attempt):
    answer = post(attempt.run, records_of(LOSS, {**LOSS, "name": "learning_rate", "value": None}, attempt=attempt))
    assert (answer.status_code, answer.json()) == (200, {"accepted": 2})
    loss = Metric.objects.get(name="loss")
    assert (loss.site_run, loss.attempt, loss.round_number, loss.step) == (attempt.site_run, 1, 1, 8)
    assert (loss.site, loss.value, loss.at.timestamp()) == (
        attempt.site_run.participation.site.slug,
        0.42,
        1790000000.5,
    )
    assert Metric.objects.get(name="learning_rate").value is None


def test_records_that_come_again_are_stored_once(attempt):
    for _ in range(3):
        assert post(attempt.run, records_of(LOSS, LOSS, attempt=attempt)).status_code == 200
    assert Metric.objects.count() == 1


def test_a_post_is_a_sign_of_life(attempt):
    assert attempt.heard_at is None
    post(attempt.run, records_of(attempt=attempt))
    attempt.refresh_from_db()
    assert attempt.heard_at is not None


def test_a_finished_run_wakes_the_orchestrator_and_no_other_does(attempt):
    experiment = attempt.site_run.round.experiment
    before = Experiment.objects.get(pk=experiment.pk)
    post(attempt.run, records_of(LOSS, attempt=attempt))
    assert Experiment.objects.get(pk=experiment.pk).wakes == before.wakes
    post(attempt.run, records_of(attempt=attempt, finished=True))
    after = Experiment.objects.get(pk=experiment.pk)
    assert (after.wakes, after.version) == (before.wakes + 1, before.version)


def test_a_post_needs_no_session_and_no_csrf_token(attempt):
    strict = Client(enforce_csrf_checks=True)
    answer = strict.post(
        f"/api/runs/{attempt.run}/metrics",
        json.dumps(records_of(LOSS, attempt=attempt)),
        content_type="application/json",
        headers={"Authorization": f"Bearer {token_of(attempt.run)}"},
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("token", ["", "wrong", "é", "0" * 64])
def test_a_wrong_token_is_refused(attempt, token):
    answer = post(attempt.run, records_of(LOSS, attempt=attempt), token=token)
    assert (answer.status_code, answer.headers["Content-Type"]) == (401, "application/problem+json")
    assert not Metric.objects.exists()


def test_the_token_of_another_attempt_is_refused(attempt):
    other = attempt.run.removesuffix("1") + "2"
    assert post(attempt.run, records_of(LOSS, attempt=attempt), token=token_of(other)).status_code == 401


def test_the_key_itself_is_no_token(attempt):
    key = key_of(attempt.run)
    assert post(attempt.run, records_of(LOSS, attempt=attempt), token=key).status_code == 401


def test_a_missing_header_is_refused(attempt):
    answer = Client().post(f"/api/runs/{attempt.run}/metrics", b"{}", content_type="application/json")
    assert answer.status_code == 401


def test_a_stranger_costs_no_query(attempt, django_assert_num_queries):
    with django_assert_num_queries(0):
        post(attempt.run, records_of(LOSS, attempt=attempt), token="wrong")


def test_a_post_of_an_epoch_costs_few_queries(attempt, django_assert_max_num_queries):
    records = [{**LOSS, "step": step} for step in range(50)]
    with django_assert_max_num_queries(5):  # attempt, begin, insert, heard_at, end
        post(attempt.run, records_of(*records, attempt=attempt))


def test_an_unknown_run_is_not_found():
    assert post("fp-abcd2345-r1-mainz-a1", {"run": "fp-abcd2345-r1-mainz-a1", "records": []}).status_code == 404


def test_a_run_of_an_ended_experiment_is_gone(attempt):
    experiment = attempt.site_run.round.experiment
    assert post(attempt.run, records_of(LOSS, attempt=attempt)).status_code == 200
    services.cancel(experiment=experiment, by=experiment.owner)
    answer = post(attempt.run, records_of({**LOSS, "step": 9}, attempt=attempt))
    assert (answer.status_code, Metric.objects.count()) == (410, 1)
    Experiment.objects.update(state="cancelled", ended_at=experiment.started_at)
    assert post(attempt.run, records_of(LOSS, attempt=attempt)).status_code == 410


@pytest.mark.parametrize("state", ["timed_out", "run_failed", "rejected", "run_cancelled", "skipped"])
def test_a_run_that_nobody_waits_for_is_told_to_end(attempt, state):
    SiteRun.objects.filter(pk=attempt.site_run_id).update(state=state)
    assert post(attempt.run, records_of(LOSS, attempt=attempt)).status_code == 410


def test_the_last_records_of_an_admitted_run_are_taken(attempt):
    SiteRun.objects.filter(pk=attempt.site_run_id).update(state="admitted")
    assert post(attempt.run, records_of(LOSS, attempt=attempt)).status_code == 200


def test_an_attempt_that_was_replaced_is_not_heard(attempt):
    SiteRun.objects.filter(pk=attempt.site_run_id).update(attempt=2)
    answer = post(attempt.run, records_of(LOSS, attempt=attempt))
    assert (answer.status_code, Metric.objects.count()) == (409, 0)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        ({"run": "fp-abcd2345-r1-mainz-a1"}, "run"),
        ({"run": None}, "run"),
        ({"records": {}}, "records"),
        ({"records": "many"}, "records"),
        ({"finished": "yes"}, "finished"),
        ({"finished": 1}, "finished"),
        ({"records": [LOSS, 3]}, "records[1]"),
        ({"records": [LOSS, {}]}, "records[1]"),
        ({"records": [{**LOSS, "phase": "global"}]}, "records[0]"),
        ({"records": [{**LOSS, "phase": "sleep"}]}, "records[0]"),
        ({"records": [{**LOSS, "name": "<b>"}]}, "records[0]"),
        ({"records": [{**LOSS, "name": "x" * 33}]}, "records[0]"),
        ({"records": [{**LOSS, "region": "x" * 41}]}, "records[0]"),
        ({"records": [{**LOSS, "step": -1}]}, "records[0]"),
        ({"records": [{**LOSS, "step": 1.5}]}, "records[0]"),
        ({"records": [{**LOSS, "progress": 1.1}]}, "records[0]"),
        ({"records": [{**LOSS, "cases": True}]}, "records[0]"),
        ({"records": [{**LOSS, "at": "now"}]}, "records[0]"),
        ({"records": [{**LOSS, "value": "0.4"}]}, "records[0]"),
        ({"records": [{**LOSS, "value": float("nan")}]}, "records[0]"),
        ({"records": [{**LOSS, "value": float("inf")}]}, "records[0]"),
        ({"records": [{**LOSS, "colour": "red"}]}, "records[0]"),
    ],
)
def test_a_malformed_post_is_refused_as_a_whole_and_names_the_place(attempt, change, where):
    body = change if isinstance(change, bytes) else records_of(LOSS, attempt=attempt) | change
    answer = post(attempt.run, body)
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == [where]
    assert not Metric.objects.exists()


def test_a_moment_that_no_calendar_has_is_refused(attempt):
    answer = post(attempt.run, records_of({**LOSS, "at": 1e300}, attempt=attempt))
    assert answer.status_code == 400


def test_too_many_records_are_refused(attempt):
    assert post(attempt.run, records_of(*[LOSS] * (MAX_RECORDS + 1), attempt=attempt)).status_code == 413
    assert post(attempt.run, records_of(*[LOSS] * MAX_RECORDS, attempt=attempt)).status_code == 200


def test_too_many_bytes_are_refused(attempt):
    body = json.dumps(records_of(LOSS, attempt=attempt)).encode()
    assert post(attempt.run, body + b" " * (MAX_BYTES - len(body))).status_code == 200
    assert post(attempt.run, body + b" " * (MAX_BYTES - len(body) + 1)).status_code == 413


def test_reading_is_not_what_this_address_is_for(attempt):
    headers = {"Authorization": f"Bearer {token_of(attempt.run)}"}
    assert Client().get(f"/api/runs/{attempt.run}/metrics", headers=headers).status_code == 405
