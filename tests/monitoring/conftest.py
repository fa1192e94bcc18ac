"""Fixtures of the live view."""

import pytest

from fedportal.monitoring import tail
from tests import factories
from tests.monitoring import scenes


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tail, "FASTEST", 0.01)
    monkeypatch.setattr(tail, "SLOWEST", 0.02)


@pytest.fixture
def ada(db):
    return factories.ada()


@pytest.fixture
def running(ada):
    return scenes.make_running(ada)
