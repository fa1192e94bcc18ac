"""Fixtures of the trainer's process."""

from pathlib import Path

import pytest

from tests.trainer_process.attempts import Attempt


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)
