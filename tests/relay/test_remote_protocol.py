"""The portal as the central of Kaapana's own federation: what a site's backend gets for what it sends."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.utils import timezone
from django.utils.http import http_date

from fedportal.connectors.job_queue import JobState
from fedportal.relay import services
from fedportal.relay.models import RemoteInstance, RemoteJob
from fedportal.sites.services import update
from tests.relay.rows import PROJECT, Kaapana, advert, polling_site, put, token_of

pytestmark = pytest.mark.django_db
RUN = "fp-abcd-r1-mainz-a1"


@pytest.fixture
def ulm():
    polling_site("ulm")
    return Kaapana("ulm")


# --- the way of a job -----------------------------------------------------------------------------


def test_a_job_is_handed_out_taken_run_and_finished(mainz):
    queue = put(project_form=PROJECT)
    [job] = mainz.jobs()
    assert (job["dag_id"], job["status"], job["username"]) == ("fp-train", "queued", "fedportal")
    assert job["conf_data"]["project_form"] == PROJECT
    for status in ("pending", "scheduled", "running"):
        assert mainz.report(job["id"], status).status_code == 200
        assert mainz.jobs() == []
        assert queue.job(RUN).state == status
    mainz.report(job["id"], "finished")
    row = RemoteJob.objects.get(run=RUN)
    assert row.status is JobState.FINISHED
    assert row.remote_run_id == f"fp-train-2611230000{job['id']:08d}"
    assert row.conf == {}, "presigned addresses are not kept once the job is over"


def test_the_answer_has_kaapanas_shape(mainz):
    put()
    answer = mainz.poll().json()
    assert set(answer) == {"incoming_jobs", "incoming_workflows", "update_remote_instance_payload"}
    job, workflow = answer["incoming_jobs"][0], answer["incoming_workflows"][0]
    assert isinstance(job["id"], int)
    assert {"dag_id", "conf_data", "username", "status", "time_created", "time_updated"} <= set(job)
    assert job["run_id"] is None, "given a run id, Kaapana would look for that run and call the job deleted"
    assert workflow["involved_kaapana_instances"] == "{mainz.example}"
    assert workflow["involved_kaapana_instances"][1:-1].split(",") == ["mainz.example"]
    assert {"workflow_id", "workflow_name", "dag_id", "username", "federated"} <= set(workflow)
    assert len(workflow["workflow_id"]) <= 64
    assert answer["update_remote_instance_payload"] == {
        "instance_name": "127.0.0.1",
        "allowed_dags": {},
        "allowed_datasets": [],
        "automatic_update": False,
        "automatic_workflow_execution": False,
    }


def test_identifiers_go_back_as_the_site_sealed_them(mainz):
    mainz.poll()
    put()
    [job] = mainz.jobs()
    assert job["conf_data"]["data_form"] == {
        "dataset_name": "brats",
        "identifiers": ["gAAAAABsealed1", "gAAAAABsealed2"],
    }


def test_a_dataset_that_the_site_does_not_allow_has_no_identifiers(mainz):
    mainz.poll(allowed_datasets=[])
    put()
    [job] = mainz.jobs(allowed_datasets=[])
    assert "data_form" not in job["conf_data"]


def test_names_that_kaapana_has_escaped_are_read_as_people_wrote_them(mainz):
    put()
    [job] = mainz.jobs(allowed_datasets=[{"name": "T1 &amp; T2", "username": "k", "identifiers": ["a"]}])
    assert RemoteInstance.objects.get(site__slug="mainz").allowed_datasets[0]["name"] == "T1 & T2"
    mainz.report(job["id"], "failed", description="can&#x27;t pull &lt;image&gt;")
    assert RemoteJob.objects.get(run=RUN).description == "can't pull <image>"


def test_a_conf_that_kaapana_cannot_carry_is_refused_before_it_is_kept(mainz):
    from fedportal.connectors.errors import SiteRefused

    mainz.poll(allowed_datasets=[{"name": "brats", "identifiers": ["g" * 184] * 6000}])
    with pytest.raises(SiteRefused, match="too large for Kaapana"):
        put()
    assert not RemoteJob.objects.exists()


def test_no_secret_of_the_portal_is_in_a_conf(mainz):
    put()
    [job] = mainz.jobs()
    text = json.dumps(job)
    assert token_of("mainz") not in text
    assert "key" not in job["conf_data"]["fedportal"]


# --- double, late, lost ---------------------------------------------------------------------------


def test_a_job_is_handed_out_again_until_the_site_has_reported_it(mainz):
    put()
    first, second = mainz.jobs(), mainz.jobs()
    assert [job["id"] for job in first] == [job["id"] for job in second]
    assert RemoteJob.objects.count() == 1


def test_the_same_report_twice_changes_nothing(mainz):
    put()
    [job] = mainz.jobs()
    for _ in range(3):
        assert mainz.report(job["id"], "running").status_code == 200
    mainz.report(job["id"], "finished")
    ended = RemoteJob.objects.get(run=RUN).ended_at
    mainz.report(job["id"], "finished")
    assert RemoteJob.objects.get(run=RUN).ended_at == ended


@pytest.mark.parametrize("late", ["queued", "pending", "scheduled", "running", "failed", "deleted"])
def test_a_report_that_comes_after_the_end_is_ignored(mainz, late):
    put()
    [job] = mainz.jobs()
    mainz.report(job["id"], "finished")
    assert mainz.report(job["id"], late, description="late").status_code == 200
    row = RemoteJob.objects.get(run=RUN)
    assert (row.state, row.description) == ("finished", "")


def test_a_report_out_of_order_does_not_lead_back(mainz):
    put()
    [job] = mainz.jobs()
    mainz.report(job["id"], "running")
    mainz.report(job["id"], "pending")
    assert RemoteJob.objects.get(run=RUN).state == "running"
    assert mainz.jobs() == [], "it is not handed out a second time"


def test_putting_a_run_again_keeps_the_first(mainz):
    put()
    queue = put(other=True)
    assert queue.put(RUN, dag_id="fp-train", conf={}, dataset="") is False
    [job] = mainz.jobs()
    assert "other" not in job["conf_data"]


def test_a_job_that_the_site_deletes_is_over(mainz):
    queue = put()
    [job] = mainz.jobs()
    assert mainz.call("DELETE", f"job?job_id={job['id']}").json() == {"ok": True}
    assert queue.job(RUN).state is JobState.DELETED


def test_a_workflow_that_the_steward_aborts_is_over(mainz):
    queue = put()
    mainz.jobs()
    answer = mainz.call("PUT", "workflow", {"workflow_id": RUN, "workflow_status": "abort"})
    assert answer.json()["workflow_id"] == RUN
    assert queue.job(RUN).state is JobState.ABORTED
    assert "steward" in queue.job(RUN).message


def test_a_confirmed_workflow_changes_no_state_by_itself(mainz):
    queue = put()
    [job] = mainz.jobs()
    mainz.report(job["id"], "pending")
    assert mainz.call("PUT", "workflow", {"workflow_id": RUN, "workflow_status": "confirmed"}).status_code == 200
    assert queue.job(RUN).state is JobState.PENDING


# --- who may what ---------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "x", "x" * 64, "token-of-ulm-" + "x" * 32, "é" * 40])
def test_a_wrong_token_learns_nothing(mainz, token):
    put()
    stranger = Kaapana("mainz", token=token)
    for verb, path, body in [
        ("PUT", "sync-client-remote?instance_name=mainz.example&status=queued", advert("mainz")),
        ("PUT", "job", {"job_id": 1, "status": "failed"}),
        ("GET", "job?job_id=1", None),
        ("DELETE", "job?job_id=1", None),
        ("GET", "jobs", None),
        ("PUT", "workflow", {"workflow_id": RUN, "workflow_status": "abort"}),
        ("GET", "minio-presigned-url", None),
        ("POST", "minio-presigned-url", None),
    ]:
        response = stranger.call(verb, path, body)
        assert response.status_code == 401, path
        assert set(response.json()) == {"detail"}
    assert RemoteJob.objects.get(run=RUN).state == "queued"
    assert RemoteInstance.objects.filter(heard_at__isnull=False).count() == 0


def test_a_site_gets_no_jobs_of_another_and_cannot_pretend_to_be_it(mainz, ulm):
    put("mainz")
    assert ulm.jobs() == []
    assert ulm.poll(name="mainz.example").status_code == 403
    mixed = ulm.call("PUT", "sync-client-remote?instance_name=mainz.example&status=queued", advert("ulm"))
    assert mixed.status_code == 422
    assert RemoteInstance.objects.get(site__slug="ulm").heard_at is not None
    assert not RemoteInstance.objects.filter(site__slug="mainz", heard_at__isnull=False).exists()


def test_a_site_can_neither_read_nor_report_jobs_of_another(mainz, ulm):
    put("mainz")
    [job] = mainz.jobs()
    assert ulm.report(job["id"], "failed").status_code == 404
    assert ulm.call("GET", f"job?job_id={job['id']}").status_code == 404
    assert ulm.call("DELETE", f"job?job_id={job['id']}").status_code == 404
    assert ulm.call("GET", "jobs").json() == []
    assert ulm.call("GET", "jobs?instance_name=mainz.example").status_code == 403
    assert ulm.call("PUT", "workflow", {"workflow_id": RUN, "workflow_status": "abort"}).status_code == 404
    synced = ulm.sync({"job_id": job["id"], "status": "failed"}).json()
    assert synced["lost_client_to_remote_job_ids"] == [job["id"]]
    assert RemoteJob.objects.get(run=RUN).state == "queued"


def test_the_advert_of_one_site_never_touches_another(mainz, ulm):
    mainz.poll()
    ulm.poll(allowed_datasets=[{"name": "theirs", "identifiers": ["u"]}])
    assert RemoteInstance.objects.get(site__slug="mainz").allowed_datasets[0]["name"] == "brats"


def test_a_token_that_was_issued_anew_replaces_the_old_one(mainz):
    assert mainz.poll().status_code == 200
    site = RemoteInstance.objects.get(site__slug="mainz").site
    update(site, secrets={"portal_token": "another-token-" + "y" * 32})
    assert mainz.poll().status_code == 401
    assert Kaapana("mainz", token="another-token-" + "y" * 32).poll().status_code == 200
    assert RemoteInstance.objects.count() == 1


def test_trying_tokens_does_not_have_all_secrets_decrypted_each_time(mainz, django_assert_num_queries):
    stranger = Kaapana("mainz", token="z" * 43)
    for _ in range(2):  # the first time the site's own token is learned
        stranger.poll()
    with django_assert_num_queries(2):  # the token is looked for twice, and that is all
        assert stranger.poll().status_code == 401


def test_a_retired_site_is_refused(mainz):
    mainz.poll()
    site = RemoteInstance.objects.get(site__slug="mainz").site
    site.retired_at = timezone.now()
    site.save()
    assert mainz.poll().status_code == 401


def test_a_site_that_is_reached_in_another_way_is_refused(mainz):
    mainz.poll()
    site = RemoteInstance.objects.get(site__slug="mainz").site
    site.connector = "local"
    site.save()
    assert mainz.poll().status_code == 401


def test_signing_in_to_the_portal_is_no_token(mainz, client):
    from tests.factories import otto

    client.force_login(otto())
    assert client.get("/kaapana-backend/remote/jobs").status_code == 401


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        [],
        "x",
        {"job_id": "1", "status": "running"},
        {"job_id": True, "status": "running"},
        {"job_id": 1, "status": "exploded"},
        {"status": "running"},
    ],
)
def test_a_malformed_report_is_refused_with_a_reason(mainz, body):
    response = mainz.call("PUT", "job", body)
    assert response.status_code == 422
    assert response.json()["detail"]


@pytest.mark.parametrize(
    "changes",
    [{"instance_name": 5}, {"instance_name": "x" * 65}, {"allowed_dags": 3}, {"allowed_datasets": "x"}, {"allowed_datasets": [3]}],
)  # fmt: skip
def test_a_malformed_advert_is_refused(mainz, changes):
    body = advert("mainz", **changes)
    assert mainz.call("PUT", "sync-client-remote", body).status_code == 422


def test_bodies_are_bounded(mainz):
    assert mainz.call("PUT", "job", {"job_id": 1, "status": "failed", "description": "x" * 70_000}).status_code == 413
    many = [{"name": "d", "identifiers": ["x" * 1000] * 17_000}]
    assert mainz.poll(allowed_datasets=many).status_code == 413


def test_other_verbs_are_not_allowed(mainz):
    response = mainz.call("POST", "sync-client-remote", {})
    assert response.status_code == 405
    assert response.headers["Allow"] == "PUT"


# --- what a poll tells ----------------------------------------------------------------------------


def test_a_poll_books_contact_agent_and_clock(mainz):
    ahead = http_date((timezone.now() + timedelta(hours=1)).timestamp())
    body = advert("mainz")
    mainz.call("PUT", "sync-client-remote", body, Date=ahead)
    instance = RemoteInstance.objects.get(site__slug="mainz")
    assert instance.clock_skew == pytest.approx(3600, abs=5)
    assert (instance.agent, instance.dialect) == ("kaapana", "poll")
    assert timezone.now() - instance.heard_at < timedelta(minutes=1)
    mainz.poll()
    instance.refresh_from_db()
    assert instance.clock_skew is None, "Kaapana itself sends no time"


def test_a_poll_is_a_contact_of_the_site(mainz):
    mainz.poll()
    site = RemoteInstance.objects.get(site__slug="mainz").site
    assert timezone.now() - site.last_contact_at < timedelta(minutes=1)


def test_a_poll_that_brings_nothing_costs_few_queries(mainz, django_assert_max_num_queries):
    mainz.poll()
    with django_assert_max_num_queries(8):
        mainz.poll()


def test_a_changed_advert_has_the_site_checked_a_repeated_one_does_not(mainz):
    site = RemoteInstance.objects.create(site=polling_site("graz"), token_digest="0" * 64).site
    kaapana = Kaapana("graz")
    later = timezone.now() + timedelta(hours=1)
    for changes, asked in [({}, True), ({}, False), ({"allowed_dags": {}}, True)]:
        type(site).objects.filter(pk=site.pk).update(check_due_at=later)
        kaapana.poll(**changes)
        site.refresh_from_db()
        assert (site.check_due_at < later) is asked


def test_only_so_many_jobs_are_handed_out_at_once(mainz, monkeypatch):
    monkeypatch.setattr(services, "MOST_AT_ONCE", 2)
    for number in range(1, 4):
        put(run=f"fp-abcd-r{number}-mainz-a1")
    jobs = mainz.jobs()
    assert len(jobs) == 2
    for job in jobs:
        mainz.report(job["id"], "pending")
    assert len(mainz.jobs()) == 1
