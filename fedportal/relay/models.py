"""What the portal keeps for sites that poll it: what each has told of itself, and the jobs that wait for it."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils import timezone

from fedportal.connectors.job_queue import JobState
from fedportal.sites.fields import EncryptedJSONField
from fedportal.sites.models import Site


class RemoteInstance(models.Model):
    """A polling site, as Kaapana calls it. Its token lies with the site's secrets; here is only what finds it."""

    site = models.OneToOneField(Site, on_delete=models.CASCADE, related_name="remote_instance")
    token_digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the token of the site.")
    allowed_dags = models.JSONField(default=dict, help_text="DAG → its forms, as the site advertises them.")
    allowed_datasets = models.JSONField(
        default=list, help_text="name, username and identifiers, which only the site itself can decrypt."
    )
    advert_sha256 = models.CharField(max_length=64, blank=True, help_text="Of what the site advertised last.")
    automatic_update = models.BooleanField(default=False, help_text="The site polls by itself.")
    automatic_workflow_execution = models.BooleanField(default=False, help_text="No steward confirms each run.")
    dialect = models.CharField(max_length=8, blank=True, help_text="Which form of the protocol the site speaks.")
    agent = models.CharField(max_length=80, blank=True, help_text="User-Agent of its polls.")
    heard_at = models.DateTimeField(null=True, blank=True, help_text="Its last poll.")
    clock_skew = models.FloatField(null=True, blank=True, help_text="Seconds that its clock is ahead.")

    class Meta:
        ordering = ["site"]

    def __str__(self) -> str:
        return f"polling site {self.site.slug}"


class RemoteJob(models.Model):
    """A run that a polling site fetches. The primary key is the job's number in the protocol.

    ``conf`` holds presigned addresses, so it is encrypted, and emptied when the job is over.
    """

    site = models.ForeignKey(Site, on_delete=models.CASCADE, related_name="remote_jobs")
    run = models.CharField(max_length=40, unique=True)
    dag_id = models.CharField(max_length=64)
    conf = EncryptedJSONField(default=dict, blank=True)
    state = models.CharField(max_length=16, default=JobState.QUEUED)
    description = models.TextField(blank=True, help_text="The site's own words.")
    remote_run_id = models.CharField(max_length=250, blank=True, help_text="What the site's Airflow calls it.")
    is_check = models.BooleanField(default=False, help_text="A look at the site, not a part of an experiment.")
    created_at = models.DateTimeField(default=timezone.now)
    delivered_at = models.DateTimeField(null=True, blank=True, help_text="The last poll that it was handed out with.")
    heard_at = models.DateTimeField(null=True, blank=True, help_text="The site's last report of it.")
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
