"""Somebody's wish for the MONAI bundle of a global model, until the orchestrator has fulfilled it."""

from __future__ import annotations

from datetime import datetime

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from fedportal.experiments.models.model import GlobalModel
from fedportal.experiments.states import ACTIVE


class BundleRequestQuerySet(models.QuerySet["BundleRequest"]):
    def due(self, now: datetime) -> BundleRequestQuerySet:
        """What an orchestrator should take up: asked for or left lying by a dead one, and the scores are in the rows."""
        is_measured = Q(model__dice__isnull=False) | ~Q(model__experiment__state__in=ACTIVE)
        return self.exclude(state=BundleRequest.State.FAILED).filter(
            is_measured, Q(lease_until=None) | Q(lease_until__lte=now)
        )


class BundleRequest(models.Model):
    """There is at most one for a model, and none once the bundle is there.

    ``claimed_by`` and ``lease_until`` belong to the orchestrator: which one makes it, and until when nobody else does.
    """

    class State(models.TextChoices):
        ASKED = "asked", "Asked for"
        MAKING = "making", "Being made"
        FAILED = "failed", "Could not be made"

    model = models.OneToOneField(GlobalModel, on_delete=models.CASCADE, related_name="bundle_request")
    state = models.CharField(max_length=8, choices=State, default=State.ASKED)
    message = models.TextField(blank=True, help_text="Why it could not be made, or why it is waited for.")
    asked_at = models.DateTimeField(default=timezone.now)
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    claimed_by = models.CharField(max_length=80, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)

    objects = BundleRequestQuerySet.as_manager()

    class Meta:
        ordering = ["asked_at", "pk"]

    def __str__(self) -> str:
        return f"Bundle of {self.model}: {self.get_state_display()}"
