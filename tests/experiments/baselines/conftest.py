"""A run with three sites, before and after its start."""

from __future__ import annotations

import pytest

from fedportal.experiments import services
from fedportal.experiments.models import Experiment
from tests import factories


@pytest.fixture
def ada():
    return factories.ada()


@pytest.fixture
def draft(ada) -> Experiment:
    return factories.make_experiment(ada, title="Brains", rounds=4)


@pytest.fixture
def main(draft, ada) -> Experiment:
    """A run that has started, and nothing beside it."""
    services.start(experiment=draft, by=ada)
    return draft
