"""kill -9 of every part, with real processes: the experiment ends by itself with the models of the undisturbed run.

Here the orchestrator in every step, twice in every round of all that remembers, and each other part while sites
train. Every part in every step: ``python -m tests.kill.matrix``.
"""

from __future__ import annotations

import json

import pytest

from tests.kill.matrix import STEPS
from tests.kill.memories import MEMORIES, step_of
from tests.stage import report_of

CASES = [("orchestrator", step) for step in STEPS] + [(who, "training") for who in ("portal", "runs", "store")]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict]:
    """All cases, one after the other on one stage."""
    report = tmp_path_factory.mktemp("kill") / "results.jsonl"
    cases = ",".join(":".join(case) for case in CASES)
    memories = [option for name in MEMORIES for option in ("--memory", name)]
    told = report_of("tests.kill.matrix", "--cases", cases, *memories, to=report, timeout=7200)
    rows = map(json.loads, told.splitlines())
    return {(row["who"], row["step"]): row for row in rows}


@pytest.mark.parametrize(("who", "step"), CASES)
def test_a_killed_part_changes_neither_end_nor_models(results: dict, who: str, step: str):
    row = results[who, step]
    assert row["ok"], row["trouble"]
    assert row["killed"] >= 1


@pytest.mark.parametrize("name", MEMORIES)
def test_deaths_in_every_round_change_no_byte_of_what_is_remembered(results: dict, name: str):
    row = results["orchestrator", step_of(name)]
    assert row["ok"], row["trouble"]
