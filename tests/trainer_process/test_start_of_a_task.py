"""Every round waits for the start of a task, so it imports little."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import trainer.contract
from fedportal.connectors.trainer_process import ROOT

DEAR = {"dataclasses", "inspect", "requests", "shutil", "torch", "trainer.contract.plan", "trainer.exchange"}
SCRIPT = "import json, sys; before = set(sys.modules); import trainer.task; print(json.dumps(sorted(set(sys.modules) - before)))"


def test_a_task_starts_without_what_it_needs_later_or_never() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(json.loads(done.stdout))
    assert "trainer.contract.signing" in imported
    assert imported & DEAR == set()


def test_the_contract_gives_each_of_its_names_when_it_is_asked_for() -> None:
    assert all(getattr(trainer.contract, name) is not None for name in trainer.contract.__all__)
    assert trainer.contract.TrainingPlan is sys.modules["trainer.contract.plan"].TrainingPlan
    with pytest.raises(AttributeError, match="no attribute 'Mapping'"):
        trainer.contract.Mapping  # noqa: B018
