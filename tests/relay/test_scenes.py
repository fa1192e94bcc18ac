"""Whole experiments over hospitals that poll, with real processes (see :mod:`tests.relay.scenes`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.relay.scenes import SCENES
from tests.stage import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.store]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """All scenes, one after the other in a process of its own: it needs the real settings and database."""
    report = tmp_path_factory.mktemp("scenes") / "results.jsonl"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.relay.scenes", "--json", report],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=900,
        check=False,
    )
    if not report.exists():
        pytest.fail(f"the scenes did not start:\n{done.stdout}\n{done.stderr}")
    return {row["scene"]: row for row in map(json.loads, report.read_text().splitlines())}


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_with_polling_sites_ends_as_it_should(results: dict, scene: str):
    assert results[scene]["ok"], results[scene]["said"]
