"""Rounds, the sites' parts in them, and every attempt."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.utils import timezone

from fedportal.experiments.models.experiment import Experiment, Participation
from fedportal.experiments.states import RoundState, SiteRunState
from trainer.contract import run_name


class RoundKind(models.TextChoices):
    TRAIN = "train", "Training"
    EVALUATE = "evaluate", "Final evaluation"


class Round(models.Model):
    """One global cycle. It starts from the global model of ``number - 1`` (0 = initial) and publishes that of ``number``.

    After the last training round one round of kind EVALUATE (number = rounds planned + 1) measures the final model:
    in every round the sites first validate the incoming model, so the Dice of model *n* is measured in round *n* + 1.
    """

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField()
    kind = models.CharField(max_length=8, choices=RoundKind, default=RoundKind.TRAIN)
    state = models.CharField(max_length=16, choices=RoundState.choices(), default=RoundState.PENDING)
    reason = models.TextField(blank=True)
    started_at = models.DateTimeField(default=timezone.now)
    dispatched_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(null=True, blank=True)
    quorum_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    timings = models.JSONField(default=dict, blank=True, help_text="Seconds per part: total, slowest_site, overhead, …")

    class Meta:
        ordering = ["experiment", "number"]
        constraints = [
            models.UniqueConstraint(fields=["experiment", "number"], name="one_round_per_number"),
            models.CheckConstraint(name="round_state_is_known", condition=Q(state__in=[s.value for s in RoundState])),
        ]

    def __str__(self) -> str:
        return f"{self.title} of {self.experiment}"

    @property
    def title(self) -> str:
        if self.kind != RoundKind.EVALUATE:
            return f"Round {self.number}"
        return "Final evaluation" if self.number > 1 else "Cross-site evaluation"  # which trains no round before

    @property
    def status(self) -> RoundState:
        return RoundState(self.state)


class SiteRun(models.Model):
    """One site's part in one round. ``attempt`` is the number of the current attempt (0 = not started yet)."""

    round = models.ForeignKey(Round, on_delete=models.CASCADE, related_name="site_runs")
    participation = models.ForeignKey(Participation, on_delete=models.PROTECT, related_name="site_runs")
    state = models.CharField(max_length=16, choices=SiteRunState.choices(), default=SiteRunState.PENDING)
    attempt = models.PositiveIntegerField(default=0)
    reason = models.TextField(blank=True, help_text="Why it is in its state, in a sentence for people.")
    not_before = models.DateTimeField(null=True, blank=True, help_text="Back-off: the next attempt starts no earlier.")
    train_cases = models.PositiveIntegerField(default=0)
    validation_cases = models.PositiveIntegerField(default=0)
    steps = models.PositiveIntegerField(default=0)
    weight = models.FloatField(null=True, blank=True, help_text="Share in the aggregate, 0 to 1.")
    update_norm = models.FloatField(null=True, blank=True, help_text="L2 norm of the change against the global model.")
    update_sha256 = models.CharField(max_length=64, blank=True)
    update_size = models.BigIntegerField(default=0)
    seconds = models.JSONField(default=dict, blank=True, help_text="The manifest's seconds per step.")
    held_out = models.JSONField(default=list, blank=True, help_text="Pseudonyms of its validation cases.")

    class Meta:
        ordering = ["round", "participation__site__slug"]
        constraints = [
            models.UniqueConstraint(fields=["round", "participation"], name="one_site_run_per_round_and_site"),
            models.CheckConstraint(
                name="site_run_state_is_known", condition=Q(state__in=[s.value for s in SiteRunState])
            ),
        ]

    def __str__(self) -> str:
        return f"{self.participation.site} in {self.round}"

    @property
    def status(self) -> SiteRunState:
        return SiteRunState(self.state)

    @property
    def run_name(self) -> str:
        return self.name_of(self.attempt)

    def name_of(self, attempt: int) -> str:
        return run_name(
            experiment=self.round.experiment.key,
            round=self.round.number,
            site=self.participation.site.slug,
            attempt=attempt,
        )


class Attempt(models.Model):
    """One DAG run of a site run: when it began, how it ended, in the site's own words."""

    site_run = models.ForeignKey(SiteRun, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    run = models.CharField(max_length=40, unique=True)
    state = models.CharField(max_length=16, default="waiting", help_text="RunState as the site tells it.")
    exit_code = models.IntegerField(null=True, blank=True)
    message = models.TextField(blank=True)
    upload = models.JSONField(default=dict, blank=True, help_text="Multipart upload identifiers of this attempt.")
    launched_at = models.DateTimeField(null=True, blank=True)
    heard_at = models.DateTimeField(null=True, blank=True, help_text="Last sign of life (poll or metric record).")
    ended_at = models.DateTimeField(null=True, blank=True)
    log_offset = models.BigIntegerField(default=0)

    class Meta:
        ordering = ["site_run", "number"]
        constraints = [models.UniqueConstraint(fields=["site_run", "number"], name="one_attempt_per_number")]

    def __str__(self) -> str:
        return self.run
