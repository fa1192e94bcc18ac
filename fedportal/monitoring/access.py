"""Fetching what a person may see, in one call. A stranger learns nothing: not even that it exists."""

from __future__ import annotations

from django.shortcuts import get_object_or_404

from fedportal.accounts.models import User
from fedportal.experiments.models import Experiment


def visible_experiment(user: User, key: str) -> Experiment:
    """Return an experiment that ``user`` may see. Raises ``Http404``."""
    return get_object_or_404(Experiment.objects.visible_to(user).select_related("owner"), key=key)


def visible_head(user: User, key: str) -> Experiment:
    """Return the first experiment of the family that an experiment belongs to. Raises ``Http404``."""
    found = visible_experiment(user, key)
    return found if found.is_head else visible_experiment(user, found.head.key)
