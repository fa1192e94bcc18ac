"""The job queue of one site, for its connector: rows, read and written from the orchestrator's threads."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Max, Q
from django.utils import timezone

from fedportal.connectors.base import LogChunk
from fedportal.connectors.errors import ObjectDamaged, ObjectMissing, SiteRefused
from fedportal.connectors.job_queue import JobState, Look, QueuedJob, Sighting
from fedportal.connectors.kaapana_pull import CHECK_DAG, read_project
from fedportal.connectors.objectstore import ObjectStore
from fedportal.experiments.models import Attempt
from fedportal.experiments.store import object_store
from fedportal.relay.models import RemoteInstance, RemoteJob
from fedportal.sites.models import Site
from fedportal.sites.threads import connection_of_a_thread
from trainer.contract import (
    LOG_NAME,
    ROOT,
    ContractError,
    attempt_key,
    attempt_prefix,
    check_name,
    site_key,
    verified,
)

logger = logging.getLogger(__name__)

LOG_CHUNK = 256 * 1024
MAX_LOG = 8 * 1024 * 1024
REPORT_EVERY = timedelta(hours=12)
REPORT_AGAIN = timedelta(minutes=5)
"""A failed check is repeated sooner."""
MAX_REPORT = 4 * 2**20
PROBE_SIZE = 256 * 1024
REPORT_URL_LIFETIME = timedelta(days=2)
"""A steward may confirm the run that describes the datasets on another day."""
TAKEN_WITHIN = timedelta(seconds=30)
"""A job that was handed out, but is not reported as taken within this time, has not arrived."""
MAX_CONF = 1_000_000
"""Kaapana hands the conf to its pods as a ConfigMap, which Kubernetes limits to 1 MiB."""


class SiteQueue:
    """:class:`~fedportal.connectors.job_queue.JobQueue` over the rows of a site."""

    def __init__(self, slug: str, *, store: Callable[[], ObjectStore] = object_store) -> None:
        self._slug = slug
        self._store = store

    def put(self, run: str, *, dag_id: str, conf: Mapping[str, Any], dataset: str) -> bool:
        with connection_of_a_thread():
            site = Site.objects.get(slug=self._slug)
            whole = {**conf, **self._data_form(site, dataset)}
            if len(json.dumps(whole)) > MAX_CONF:
                raise SiteRefused(
                    "The job is too large for Kaapana.",
                    remedy="Split the dataset: one run can name about 5,000 series.",
                )
            _job, created = RemoteJob.objects.get_or_create(
                run=run, defaults={"site": site, "dag_id": dag_id, "conf": whole}
            )
            return created

    def job(self, run: str) -> QueuedJob | None:
        with connection_of_a_thread():
            job = RemoteJob.objects.defer("conf").filter(run=run, site__slug=self._slug).first()
        return None if job is None else _queued_job(job)

    def cancel(self, run: str) -> None:
        with connection_of_a_thread(), transaction.atomic():
            # lock only the job: a poll locks the site's row before its jobs
            jobs = RemoteJob.objects.select_for_update(of=("self",))
            job = jobs.filter(run=run, site__slug=self._slug).first()
            if job is None or job.status.is_over:
                return
            now = timezone.now()
            job.abort_requested_at = job.abort_requested_at or now
            if not self._may_have_started(job):
                job.state, job.ended_at, job.conf = JobState.DELETED, now, {}
            job.save(update_fields=["abort_requested_at", "state", "ended_at", "conf"])

    def log(self, run: str, *, offset: int) -> LogChunk:
        """Return the log that the trainer stores when it ends: a polling site shows none before that."""
        with connection_of_a_thread():
            attempt = Attempt.objects.select_related("site_run__round__experiment").filter(run=run).first()
        if attempt is None:
            return LogChunk("", offset)
        round = attempt.site_run.round
        prefix = attempt_prefix(
            experiment=round.experiment.key, round=round.number, site=self._slug, attempt=attempt.number
        )
        try:
            data = self._store().get_bytes(f"{prefix}/{LOG_NAME}", max_bytes=MAX_LOG)
        except (ObjectMissing, ObjectDamaged):
            return LogChunk("", offset)
        piece = data[offset : offset + LOG_CHUNK]
        whole = piece.rfind(b"\n") + 1 or len(piece)
        return LogChunk(piece[:whole].decode(errors="replace"), offset + whole)

    def sighting(self) -> Sighting:
        with connection_of_a_thread():
            seen = RemoteInstance.objects.filter(site__slug=self._slug).first()
        if seen is None or seen.heard_at is None:
            return Sighting()
        return Sighting(
            silent_for=max(0.0, (timezone.now() - seen.heard_at).total_seconds()),
            agent=seen.agent,
            dialect=seen.dialect,
            dags=tuple(sorted(seen.allowed_dags)),
            datasets={d["name"]: len(d["identifiers"]) for d in seen.allowed_datasets},
            polls_by_itself=seen.automatic_update,
            starts_by_itself=seen.automatic_workflow_execution,
            skew=seen.clock_skew,
        )

    # --- what the site's trainer reports -----------------------------------------------------------

    def look(self, portal_url: str) -> Look:
        with connection_of_a_thread():
            checks = RemoteJob.objects.defer("conf").filter(site__slug=self._slug, is_check=True).order_by("-pk")
            newest = checks.first()
            if newest is None or timezone.now() - newest.created_at > self._pause(newest):
                if newest is not None:
                    self.cancel(newest.run)
                newest = self._put_check(portal_url)
            # What an earlier run reported does not hold once a later one has failed. One that was given up tells nothing.
            tells = Q(state=JobState.FINISHED) | Q(ended_at__isnull=False, abort_requested_at__isnull=True)
            last = checks.filter(tells).first()
        if last is None:
            return Look({}, _queued_job(newest))
        if last.status is not JobState.FINISHED:
            return Look({}, _queued_job(last))
        age = timezone.now() - (last.ended_at or last.created_at)
        return Look(self._read_report(last.run), _queued_job(newest), age.total_seconds())

    def _pause(self, last: RemoteJob) -> timedelta:
        """Return how long a job of the check counts. One that hangs is given up when its addresses end."""
        if not last.status.is_over:
            return REPORT_URL_LIFETIME
        return REPORT_EVERY if last.status is JobState.FINISHED else REPORT_AGAIN

    def _put_check(self, portal_url: str) -> RemoteJob:
        site, store = Site.objects.get(slug=self._slug), self._store()
        number = (RemoteJob.objects.aggregate(most=Max("pk"))["most"] or 0) + 1
        run = check_name(self._slug, number)
        probe = self._check_key("probe")
        if not store.exists(probe):
            store.put_bytes(probe, secrets.token_bytes(PROBE_SIZE))
        job = {
            "run": run,
            "report_url": store.presign_put(self._check_key(run), REPORT_URL_LIFETIME),
            "portal": f"{portal_url}/ui/healthz/",
            "store": {
                "get": store.presign_get(probe, REPORT_URL_LIFETIME),
                "put": store.presign_put(self._check_key("probe-back"), REPORT_URL_LIFETIME),
            },
        }
        conf: dict[str, Any] = {"fedportal": job, "workflow_form": {"username": "fedportal"}}
        if project := read_project(site.config.get("project")):
            conf["project_form"] = project
        row, _created = RemoteJob.objects.get_or_create(
            run=run, defaults={"site": site, "dag_id": CHECK_DAG, "conf": conf, "is_check": True}
        )
        return row

    def _check_key(self, name: str) -> str:
        return f"{ROOT}/checks/{self._slug}/{name}.json"

    def _read_report(self, run: str) -> dict[str, Any]:
        key = attempt_key(site_key(settings.FEDPORTAL_ATTEMPT_SECRET, self._slug), run)
        try:
            return verified(self._store().get_bytes(self._check_key(run), max_bytes=MAX_REPORT), key)
        except (ObjectMissing, ObjectDamaged, ContractError) as error:
            logger.warning("the report %s cannot be used: %s", run, error)
            return {}

    # --- internals ------------------------------------------------------------------------------------

    def _data_form(self, site: Site, dataset: str) -> dict[str, Any]:
        """Name the dataset as Kaapana does: by the encrypted identifiers that the site itself advertised."""
        seen = RemoteInstance.objects.filter(site=site).first()
        offered = next((d for d in (seen.allowed_datasets if seen else []) if d["name"] == dataset), None)
        if offered is None or not offered["identifiers"]:
            return {}
        return {"data_form": {"dataset_name": dataset, "identifiers": offered["identifiers"]}}

    def _may_have_started(self, job: RemoteJob) -> bool:
        """Whether the job may be running at the site: not if nobody fetched it or a steward has yet to confirm it."""
        if job.status is JobState.QUEUED:
            # Kaapana reports at once what it has taken; an answer that it never received leaves nothing there.
            return job.delivered_at is not None and timezone.now() - job.delivered_at < TAKEN_WITHIN
        confirms = RemoteInstance.objects.filter(site=job.site_id, automatic_workflow_execution=False)
        return not (job.status is JobState.PENDING and confirms.exists())


def _queued_job(job: RemoteJob) -> QueuedJob:
    return QueuedJob(job.status, job.description, job.abort_requested_at is not None)
