"""What the portal stores for sites that poll it: what each site says about itself, and its jobs."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils import timezone

from fedportal.connectors.job_queue import JobState
from fedportal.sites.fields import EncryptedJSONField
from fedportal.sites.models import Site


class RemoteInstance(models.Model):
    """A polling site; the name is Kaapana's. Its token is among the site's secrets; here is only a digest to look it up."""

    site = models.OneToOneField(Site, on_delete=models.CASCADE, related_name="remote_instance")
    token_digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the site's token.")
    allowed_dags = models.JSONField(default=dict, help_text="DAG → its forms, as advertised by the site.")
    allowed_datasets = models.JSONField(
        default=list, help_text="Names and identifiers; only the site itself can decrypt the identifiers."
    )
    advert_sha256 = models.CharField(max_length=64, blank=True, help_text="SHA-256 of the site's latest advert.")
    automatic_update = models.BooleanField(default=False, help_text="The site polls automatically.")
    automatic_workflow_execution = models.BooleanField(
        default=False, help_text="Runs start without confirmation by a steward."
    )
    dialect = models.CharField(max_length=8, blank=True, help_text="Which variant of the protocol the site uses.")
    agent = models.CharField(max_length=80, blank=True, help_text="User-Agent of the site's polls.")
    heard_at = models.DateTimeField(null=True, blank=True, help_text="When the site last polled.")
    clock_skew = models.FloatField(null=True, blank=True, help_text="Seconds by which the site's clock is ahead.")

    class Meta:
        ordering = ["site"]

    def __str__(self) -> str:
        return f"polling site {self.site.slug}"


class RemoteJob(models.Model):
    """A run that a polling site fetches. The primary key is the job's number in the protocol.

    ``conf`` contains presigned addresses, so it is encrypted, and emptied when the job has ended.
    """

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="remote_jobs")
    run = models.CharField(max_length=40, unique=True)
    dag_id = models.CharField(max_length=64)
    conf = EncryptedJSONField(default=dict, blank=True)
    state = models.CharField(max_length=16, default=JobState.QUEUED)
    description = models.TextField(blank=True, help_text="The site's own words.")
    remote_run_id = models.CharField(max_length=250, blank=True, help_text="Name of the run in the site's Airflow.")
    is_check = models.BooleanField(default=False, help_text="A check of the site, not part of an experiment.")
    created_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True, blank=True, help_text="When a poll last handed it out.")
    heard_at = models.DateTimeField(null=True, blank=True, help_text="When the site last reported its state.")
    ended_at = models.DateTimeField(null=True, blank=True)
    abort_requested_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["site", "state"])]
        constraints = [
            models.CheckConstraint(name="remote_job_state_is_known", condition=Q(state__in=[s.value for s in JobState]))
        ]

    def __str__(self) -> str:
        return self.run

    @property
    def status(self) -> JobState:
        return JobState(self.state)
