"""The messages of Kaapana's remote protocol: reads what a site sends, builds what the portal answers.

Two dialects are in use. ``poll`` (releases up to 0.6): the body of a poll is the site's advert, each state of a job
comes with a call of its own. ``sync`` (later releases): advert and all states travel in one body, and so do aborts.
Shapes were read from the public sources of kaapana-backend (``workflows/crud.py``, ``workflows/schemas.py``,
``workflows/routers/remote.py``). Unknown members are ignored, as Kaapana's own models do.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedportal.connectors.job_queue import JobState
from fedportal.relay.models import RemoteJob

Dialect = Literal["poll", "sync"]
MOST_JOBS = 1000
MOST_WORDS = 2000
ALIASES = {"created": "pending", "success": "finished", "restart": "scheduled", "upstream_failed": "failed"}
"""States that some versions use, and what they mean here."""


class Malformed(ValueError):
    """The message does not follow this protocol. The text is written for the sender."""


@dataclass(frozen=True)
class Advert:
    """What a site says about itself with every poll."""

    instance_name: str
    allowed_dags: dict[str, Any]
    allowed_datasets: list[dict[str, Any]]
    automatic_update: bool
    automatic_workflow_execution: bool

    @property
    def sha256(self) -> str:
        text = json.dumps([self.allowed_dags, self.allowed_datasets], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class JobReport:
    """A job's state as a site reports it."""

    job_id: int
    state: JobState
    run_id: str = ""
    description: str = ""


@dataclass(frozen=True)
class Poll:
    """One poll. ``wanted`` is the state of the jobs that the site asks for."""

    dialect: Dialect
    advert: Advert
    reports: tuple[JobReport, ...] = ()
    wanted: str = "queued"


def read_poll(body: Any, query: Mapping[str, str]) -> Poll:
    """Read a poll of either dialect. Raises :class:`Malformed`."""
    document = _object(body, "body")
    if "client_to_remote_instance" in document:
        reports = document.get("client_to_remote_jobs") or []
        if not isinstance(reports, list) or len(reports) > MOST_JOBS:
            raise Malformed(f"client_to_remote_jobs: expected a list of at most {MOST_JOBS}")
        return Poll("sync", _advert(document["client_to_remote_instance"]), tuple(map(read_report, reports)))
    advert = _advert(document)
    claimed = query.get("instance_name", advert.instance_name)
    if claimed != advert.instance_name:
        raise Malformed("instance_name: the address and the body name different instances")
    return Poll("poll", advert, wanted=query.get("status", "queued"))


def read_report(body: Any) -> JobReport:
    """Read a job's state. Raises :class:`Malformed`."""
    document = _object(body, "job")
    number, status = document.get("job_id"), str(document.get("status") or "pending")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 2**63:
        raise Malformed("job_id: expected a positive whole number")
    try:
        state = JobState(ALIASES.get(status, status))
    except ValueError as error:
        raise Malformed(f"status: {status[:40]!r} is not one of {', '.join(JobState)}") from error
    return JobReport(number, state, _words(document, "run_id")[:250], _words(document, "description"))


def job_to_json(job: RemoteJob, dialect: Dialect) -> dict[str, Any]:
    """Describe a job to a site.

    In the dialect ``poll`` the site's Airflow chooses the run id: given one, Kaapana would at once look for a run of
    that name and report the job as deleted.
    """
    aborts = job.abort_requested_at is not None
    return {
        "id": job.pk,
        "dag_id": job.dag_id,
        "run_id": job.run if dialect == "sync" else None,
        "status": (JobState.ABORTED if aborts else job.status).value,
        "description": None,
        "external_job_id": None,
        "owner_kaapana_instance_name": None,
        "service_job": False,
        "update_external": True,
        "conf_data": job.conf,
        "username": "fedportal",
        "workflow_id": job.run,
        **_times(job),
    }


def workflow_to_json(job: RemoteJob, instance_name: str) -> dict[str, Any]:
    """Describe the workflow around a job: one each, so that a steward confirms or aborts exactly that job."""
    return {
        "workflow_id": job.run,
        "workflow_name": job.run,
        "workflow_status": None,
        "dag_id": job.dag_id,
        "service_workflow": False,
        "federated": False,
        "username": "fedportal",
        "status": None,
        "automatic_execution": False,
        # a string; the site strips the braces
        "involved_kaapana_instances": "{" + instance_name + "}",
        **_times(job),
    }


def instance_to_json(name: str) -> dict[str, Any]:
    """Describe the portal itself: it runs nothing for others."""
    return {
        "instance_name": name,
        "allowed_dags": {},
        "allowed_datasets": [],
        "automatic_update": False,
        "automatic_workflow_execution": False,
    }


def _advert(body: Any) -> Advert:
    document = _object(body, "instance")
    name = document.get("instance_name")
    if not isinstance(name, str) or not 0 < len(name) <= 64:
        raise Malformed("instance_name: expected a text of at most 64 characters")
    dags = document.get("allowed_dags") or {}
    if isinstance(dags, list):
        dags = {str(dag): {} for dag in dags}
    datasets = document.get("allowed_datasets") or []
    if not isinstance(dags, dict) or not isinstance(datasets, list):
        raise Malformed("expected an object as allowed_dags and a list as allowed_datasets")
    return Advert(
        instance_name=name,
        allowed_dags=dags,
        allowed_datasets=[_dataset(dataset) for dataset in datasets],
        automatic_update=document.get("automatic_update") is True,
        automatic_workflow_execution=document.get("automatic_workflow_execution") is True,
    )


def _dataset(body: Any) -> dict[str, Any]:
    document = {"name": body} if isinstance(body, str) else _object(body, "allowed_datasets")
    name, identifiers = document.get("name"), document.get("identifiers") or []
    if not isinstance(name, str) or not isinstance(identifiers, list):
        raise Malformed("allowed_datasets: expected name and identifiers")
    # Kaapana escapes what passes through its backend: the name is for people, the identifiers go back unchanged.
    return {"name": html.unescape(name)[:120], "identifiers": [str(identifier) for identifier in identifiers]}


def _object(body: Any, where: str) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Malformed(f"{where}: expected an object")
    return body


def _words(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return html.unescape(str(value))[:MOST_WORDS] if value is not None else ""


def _times(job: RemoteJob) -> dict[str, str]:
    changed = job.heard_at or job.delivered_at or job.created_at
    return {"time_created": job.created_at.isoformat(), "time_updated": changed.isoformat()}
