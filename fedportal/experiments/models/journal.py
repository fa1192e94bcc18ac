"""The append-only record of an experiment: events for people, metrics for curves, log text for whoever must look closer."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils import timezone

from fedportal.experiments.models.experiment import Experiment
from fedportal.experiments.models.round import Attempt, SiteRun


class Event(models.Model):
    """Something that happened, in one plain sentence. ``kind`` is for machines, ``data`` for the page."""

    class Level(models.TextChoices):
        INFO = "info", "Information"
        GOOD = "good", "Success"
        WARN = "warn", "Warning"
        BAD = "bad", "Problem"

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="events")
    round_number = models.PositiveIntegerField(null=True, blank=True)
    site = models.CharField(max_length=15, blank=True, help_text="Slug of the site it is about, if any.")
    kind = models.CharField(max_length=40)
    level = models.CharField(max_length=4, choices=Level, default=Level.INFO)
    text = models.TextField()
    data = models.JSONField(default=dict, blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["experiment", "id"])]

    def __str__(self) -> str:
        return self.text


class Metric(models.Model):
    """One number of one attempt, or (``site_run`` empty, phase ``global``) of a global model over all sites.

    ``round_number`` is the round in which it was measured; an ``incoming`` or ``global`` value of round *n*
    belongs to the model of round *n* − 1. ``value`` is empty where undefined.
    """

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="metrics")
    site_run = models.ForeignKey(SiteRun, null=True, blank=True, on_delete=models.CASCADE, related_name="metrics")
    site = models.CharField(max_length=15, blank=True)
    attempt = models.PositiveIntegerField(default=0)
    round_number = models.PositiveIntegerField()
    phase = models.CharField(max_length=8)
    name = models.CharField(max_length=32)
    region = models.CharField(max_length=40, blank=True)
    step = models.PositiveIntegerField(default=0)
    progress = models.FloatField(default=0.0)
    cases = models.PositiveIntegerField(default=0)
    value = models.FloatField(null=True, blank=True)
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["experiment", "id"])]
        constraints = [
            models.UniqueConstraint(
                fields=["site_run", "attempt", "phase", "name", "region", "step"],
                condition=Q(site_run__isnull=False),
                name="a_site_measures_a_number_once",
            ),
            models.UniqueConstraint(
                fields=["experiment", "round_number", "phase", "name", "region"],
                condition=Q(site_run__isnull=True),
                name="a_round_has_one_global_number",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.site or 'global'} r{self.round_number} {self.phase} {self.name} {self.region} = {self.value}"


class LogPiece(models.Model):
    """A piece of an attempt's log, from a byte offset on."""

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="log_pieces")
    offset = models.BigIntegerField()
    text = models.TextField()

    class Meta:
        ordering = ["attempt", "offset"]
        constraints = [models.UniqueConstraint(fields=["attempt", "offset"], name="a_piece_of_log_is_stored_once")]

    def __str__(self) -> str:
        return f"{self.attempt} from {self.offset}"
