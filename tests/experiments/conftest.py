"""Fixtures of the tests of experiments."""

from __future__ import annotations

import pytest
from rest_framework.test import APIClient

from fedportal.experiments.models import Experiment
from tests.factories import ada, make_experiment


@pytest.fixture
def api() -> APIClient:
    client = APIClient()
    client.force_authenticate(ada())
    return client


@pytest.fixture
def owner(api):
    return api.handler._force_user


@pytest.fixture
def draft(owner) -> Experiment:
    return make_experiment(owner)
