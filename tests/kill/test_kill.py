"""kill -9 of every part, with real processes: the experiment ends by itself with the models of the undisturbed run.

Here the orchestrator in every step, and each other part while sites train. Every part in every step:
``python -m tests.kill.matrix``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kill.matrix import STEPS

ROOT = Path(__file__).resolve().parents[2]
CASES = [("orchestrator", step) for step in STEPS] + [(who, "training") for who in ("portal", "runs", "store")]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict]:
    """All cases, one after the other in a process of its own: it needs the real settings and database."""
    report = tmp_path_factory.mktemp("kill") / "results.jsonl"
    cases = ",".join(":".join(case) for case in CASES)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEDPORTAL_", "DJANGO_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.kill.matrix", "--cases", cases, "--json", report],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=900,
        check=False,
    )
    if not report.exists():
        pytest.fail(f"the matrix did not start:\n{done.stdout}\n{done.stderr}")
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    return {(row["who"], row["step"]): row for row in rows}


@pytest.mark.parametrize(("who", "step"), CASES)
def test_a_killed_part_changes_neither_end_nor_models(results: dict, who: str, step: str):
    row = results[who, step]
    assert row["ok"], row["trouble"]
    assert row["killed"] >= 1
