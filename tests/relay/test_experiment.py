"""An experiment over hospitals that poll: real portal, orchestrator, object store, trainers, and a process per site."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stage import ROOT, Stage

SCENES = Path(__file__).with_name("scenes.py")


@pytest.mark.slow
@pytest.mark.store
@pytest.mark.parametrize("scene", ["dialects", "steward", "lost"])
def test_an_experiment_over_polling_sites(scene: str) -> None:
    """Each scene is a process of its own: the settings of a portal are those of its process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.relay.scenes", scene],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
