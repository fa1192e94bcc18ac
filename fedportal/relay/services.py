"""What happens when a site polls or reports. Called by the protocol's views."""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from fedportal.connectors.job_queue import JobState
from fedportal.connectors.kaapana_pull import KaapanaPullConnector, portal_name
from fedportal.experiments.models import Attempt
from fedportal.relay.models import RemoteInstance, RemoteJob
from fedportal.relay.protocol import JobReport, Poll, instance_to_json, job_to_json, workflow_to_json
from fedportal.sites.models import Site
from fedportal.ui.errors import DomainError
from trainer.contract import ContractError, attempt_key, relay_token, site_key, site_of

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 50
"""The most jobs handed out with one poll; the others follow with the next."""
CONTACT_EVERY = timedelta(minutes=1)
"""A poll comes every five seconds; the site's page does not need each one."""
LEARN_EVERY = 1.0
"""Least seconds between two searches for new tokens that find none; a site polls again after five seconds."""
OPEN = (JobState.QUEUED, JobState.PENDING, JobState.SCHEDULED, JobState.RUNNING)

_learning = {"next": 0.0}


class WrongToken(DomainError):
    """The FederatedAuthorization header is missing, or its token belongs to no site of this portal."""

    status = HTTPStatus.UNAUTHORIZED


class OtherInstance(DomainError):
    """This token belongs to an instance with another name."""

    status = HTTPStatus.FORBIDDEN


class UnknownJob(DomainError):
    """This site has no such job."""

    status = HTTPStatus.NOT_FOUND


def authenticate(token: str) -> RemoteInstance:
    """Return the polling site that a token belongs to. Raises :class:`WrongToken`.

    The digest finds the row; the comparison with the site's current secret takes constant time.
    """
    if not 16 <= len(token) <= 200:
        raise WrongToken
    digest = hashlib.sha256(token.encode()).hexdigest()
    instance = _find(digest)
    if instance is None:
        _learn_tokens()
        instance = _find(digest)
    if instance is None:
        raise WrongToken
    site = instance.site
    is_theirs = hmac.compare_digest(str(site.secrets.get("portal_token", "")).encode(), token.encode())
    if not is_theirs or site.is_retired or site.connector != KaapanaPullConnector.KIND:
        raise WrongToken
    return instance


def authenticate_run(token: str) -> Site:
    """Return the site of a run that presents its own token, ``<run>.<relay_token>``. Raises :class:`WrongToken`.

    Every trainer can make such a token, whatever its site's connector. It gives access to the file relay only.
    """
    run, _, mac = token.partition(".")
    try:
        slug = site_of(run)
    except ContractError as error:
        raise WrongToken from error
    expected = relay_token(attempt_key(site_key(settings.FEDPORTAL_ATTEMPT_SECRET, slug), run))
    if not hmac.compare_digest(mac.encode(), expected.encode()):
        raise WrongToken
    site = Site.objects.active().filter(slug=slug).first()
    if site is None:
        raise WrongToken
    return site


def _find(digest: str) -> RemoteInstance | None:
    # the advert may be megabytes, and few callers need it
    rows = RemoteInstance.objects.defer("allowed_dags", "allowed_datasets").select_related("site")
    return rows.filter(token_digest=digest).first()


def _learn_tokens() -> None:
    """Update the digests to the sites' current tokens; a replaced token no longer matches.

    This decrypts every secret, so somebody trying out tokens must not be able to trigger it at will.
    """
    if time.monotonic() < _learning["next"]:
        return
    has_new = False
    for site in Site.objects.active().filter(connector=KaapanaPullConnector.KIND):
        token = str(site.secrets.get("portal_token", ""))
        digest = hashlib.sha256(token.encode()).hexdigest() if token else None
        known = RemoteInstance.objects.filter(site=site).values_list("token_digest", flat=True).first()
        if digest is not None and known != digest:
            RemoteInstance.objects.update_or_create(site=site, defaults={"token_digest": digest})
            has_new = True
    if not has_new:
        _learning["next"] = time.monotonic() + LEARN_EVERY


def require_name(instance: RemoteInstance, name: str) -> None:
    """Refuse an instance name that this token was not issued for."""
    if name != instance.site.config.get("instance_name"):
        logger.warning("the token of %s came with the name of another instance", instance.site.slug)
        raise OtherInstance


@transaction.atomic
def poll(instance: RemoteInstance, message: Poll, *, agent: str = "", skew: float | None = None) -> dict[str, Any]:
    """Record a poll and return its answer: the jobs that wait for the site.

    A job is handed out until the site reports its state, so a lost answer does no harm; Kaapana ignores a job that it
    already has.
    """
    require_name(instance, message.advert.instance_name)
    now = timezone.now()
    _book(instance, message, agent=agent, skew=skew, now=now)
    known, lost = [], []
    for report in message.reports:
        try:
            book_report(instance, report)
            known.append(report.job_id)
        except UnknownJob:
            lost.append(report.job_id)
    jobs = _due(instance, message)
    RemoteJob.objects.filter(pk__in=[job.pk for job in jobs]).update(delivered_at=now)
    name = str(instance.site.config["instance_name"])
    described = [job_to_json(job, message.dialect) for job in jobs]
    workflows = [workflow_to_json(job, name) for job in jobs]
    me = instance_to_json(portal_name(settings.FEDPORTAL_PUBLIC_URL))
    if message.dialect == "sync":
        return {
            "updated_client_to_remote_job_ids": known,
            "lost_client_to_remote_job_ids": lost,
            "remote_to_client_jobs": described,
            "remote_to_client_workflows": workflows,
            "remote_to_client_instance": me,
        }
    return {"incoming_jobs": described, "incoming_workflows": workflows, "update_remote_instance_payload": me}


def _book(instance: RemoteInstance, message: Poll, *, agent: str, skew: float | None, now: datetime) -> None:
    advert = message.advert
    fields: dict[str, Any] = {
        "heard_at": now,
        "dialect": message.dialect,
        "agent": agent[:80],
        "clock_skew": skew,
        "automatic_update": advert.automatic_update,
        "automatic_workflow_execution": advert.automatic_workflow_execution,
    }
    sha256 = advert.sha256
    if sha256 != instance.advert_sha256:
        fields |= {
            "advert_sha256": sha256,
            "allowed_dags": advert.allowed_dags,
            "allowed_datasets": advert.allowed_datasets,
        }
        # a failed check may have missed what the site allows now
        Site.objects.filter(pk=instance.site_id, check_due_at__gt=now).update(check_due_at=now)
    RemoteInstance.objects.filter(pk=instance.pk).update(**fields)
    last = instance.site.last_contact_at
    if last is None or now - last > CONTACT_EVERY:
        Site.objects.filter(pk=instance.site_id).update(last_contact_at=now)


def _due(instance: RemoteInstance, message: Poll) -> list[RemoteJob]:
    jobs = RemoteJob.objects.filter(site=instance.site_id)
    if message.dialect == "sync":
        waits = Q(state=JobState.QUEUED, abort_requested_at=None)
        ends = Q(state__in=OPEN) & ~Q(state=JobState.QUEUED) & Q(abort_requested_at__isnull=False)
        jobs = jobs.filter(waits | ends)
    else:
        jobs = jobs.filter(state=message.wanted, abort_requested_at=None)
    # locked: a job cancelled at this moment is either not handed out or known to have been
    return list(jobs.select_for_update().order_by("pk")[:MOST_AT_ONCE])


def report(instance: RemoteInstance, message: JobReport) -> RemoteJob:
    """Record a job's state that a site reports with a call of its own. Raises :class:`UnknownJob`."""
    now = timezone.now()
    with transaction.atomic():
        job = book_report(instance, message)
        RemoteInstance.objects.filter(pk=instance.pk).update(heard_at=now)
    return job


def book_report(instance: RemoteInstance, message: JobReport) -> RemoteJob:
    """Record a job's state. A late or repeated report changes nothing; the first final state stays."""
    job = RemoteJob.objects.select_for_update().filter(pk=message.job_id, site=instance.site_id).first()
    if job is None:
        raise UnknownJob
    job.heard_at = timezone.now()
    fields = ["heard_at"]
    if not job.status.is_over and message.state.rank >= job.status.rank:
        changed = message.state is not job.status
        job.state = message.state
        job.description = message.description or job.description
        job.remote_run_id = message.run_id or job.remote_run_id
        fields += ["state", "description", "remote_run_id"]
        if message.state.is_over:
            job.ended_at, job.conf = job.heard_at, {}
            fields += ["ended_at", "conf"]
        if changed:
            wake(job)
    job.save(update_fields=fields)
    return job


def find_job(instance: RemoteInstance, job_id: int) -> RemoteJob:
    """Return a job of this site. Raises :class:`UnknownJob`, also for another site's job."""
    job = RemoteJob.objects.filter(pk=job_id, site=instance.site_id).first()
    if job is None:
        raise UnknownJob
    return job


def find_jobs(instance: RemoteInstance, state: str) -> list[RemoteJob]:
    jobs = RemoteJob.objects.filter(site=instance.site_id)
    return list((jobs.filter(state=state) if state else jobs).order_by("-pk")[:MOST_AT_ONCE])


def signal(instance: RemoteInstance, workflow_id: str, status: str) -> RemoteJob:
    """Record that somebody at the site confirmed or aborted a workflow. Raises :class:`UnknownJob`."""
    job = RemoteJob.objects.filter(site=instance.site_id, run=workflow_id).first()
    if job is None:
        raise UnknownJob
    if status in ("abort", "aborted", "rejected", "deleted"):
        return report(instance, JobReport(job.pk, JobState.ABORTED, description="The steward rejected this run."))
    return job


def wake(job: RemoteJob) -> None:
    """Make the orchestrator look at once at whatever this job belongs to."""
    attempt = Attempt.objects.select_related("site_run__round__experiment").filter(run=job.run).first()
    if attempt is not None:
        attempt.site_run.round.experiment.wake()
    elif job.is_check and (job.status.is_over or _waits_for_a_steward(job)):
        Site.objects.filter(pk=job.site_id, retired_at=None).update(check_due_at=timezone.now())


def _waits_for_a_steward(job: RemoteJob) -> bool:
    instances = RemoteInstance.objects.filter(site=job.site_id, automatic_workflow_execution=False)
    return job.status is JobState.PENDING and instances.exists()
