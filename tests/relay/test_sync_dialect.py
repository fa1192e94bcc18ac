"""The dialect of later versions of Kaapana: advert and states in one call, aborts in its answer."""

from __future__ import annotations

import pytest

from fedportal.connectors.job_queue import JobState
from tests.relay.rows import advert, put

pytestmark = pytest.mark.django_db
RUN = "fp-abcd-r1-mainz-a1"


def test_later_versions_sync_everything_in_one_call(mainz):
    queue = put()
    answer = mainz.sync().json()
    [job] = answer["remote_to_client_jobs"]
    assert job["run_id"] == RUN, "here the site's Airflow takes the name that it is given"
    assert job["workflow_id"] == answer["remote_to_client_workflows"][0]["workflow_id"]
    assert answer["remote_to_client_instance"]["instance_name"] == "127.0.0.1"
    answer = mainz.sync(
        {"job_id": job["id"], "run_id": RUN, "status": "running"}, {"job_id": 10_000, "status": "running"}
    )
    assert answer.json()["updated_client_to_remote_job_ids"] == [job["id"]]
    assert answer.json()["lost_client_to_remote_job_ids"] == [10_000]
    assert answer.json()["remote_to_client_jobs"] == []
    assert queue.job(RUN).state is JobState.RUNNING


def test_later_versions_answer_under_their_own_path(mainz):
    body = {"client_to_remote_instance": advert("mainz"), "client_to_remote_jobs": []}
    response = mainz.client.put(
        "/kaapana-remote/remote/sync-client-remote", body, "application/json", headers=mainz.headers
    )
    assert response.status_code == 200


def test_later_versions_are_told_to_abort_until_they_confirm(mainz):
    queue = put()
    [job] = mainz.sync().json()["remote_to_client_jobs"]
    mainz.sync({"job_id": job["id"], "status": "running"})
    queue.cancel(RUN)
    for _ in range(2):
        [told] = mainz.sync().json()["remote_to_client_jobs"]
        assert (told["id"], told["status"]) == (job["id"], "aborted")
    answer = mainz.sync({"job_id": job["id"], "status": "aborted"}).json()
    assert answer["remote_to_client_jobs"] == []
    assert queue.job(RUN).state is JobState.ABORTED
