"""Fixtures of the orchestrator's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.fakes import Federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
def auto(tmp_path: Path) -> Federation:
    """Sites that deliver as soon as they are started."""
    return Federation(tmp_path, auto=True)
