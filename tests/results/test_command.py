"""The whole way of ``make results``, small: real services, store, orchestrator and trainers, interrupted once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedportal.connectors.trainer_process import ROOT
from fedportal.results.plans import QUICK

pytestmark = [pytest.mark.store, pytest.mark.slow]
TIME_BOX = 480


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedportal.results", "--quick", "--state", str(folder), *more],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith(("DJANGO", "FEDPORTAL"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_one_command_goes_on_where_it_was_stopped_and_writes_a_complete_report(tmp_path: Path) -> None:
    first = start(tmp_path / "state")
    said = []
    for line in first.stdout:
        said.append(line)
        if "of the gradient steps" in line:
            first.send_signal(signal.SIGTERM)
            break
    rest, _ = first.communicate(timeout=TIME_BOX)
    assert first.returncode == 130, "".join(said) + rest

    second = start(tmp_path / "state")
    output, _ = second.communicate(timeout=TIME_BOX)
    assert second.returncode == 0, output

    markers = list((tmp_path / "state" / "hospitals").glob("*/*/.phantoms.json"))
    assert markers
    assert {json.loads(one.read_text())["parameters"]["seed"] for one in markers} == {QUICK.patients}

    docs = tmp_path / "state" / "docs"
    results = json.loads((docs / "results" / "results.json").read_text())
    text = (docs / "results.md").read_text()
    assert len(results["sessions"]) == 2
    assert [one["name"] for one in results["settings"]] == [one.name for one in QUICK.settings]
    for setting, declared in zip(results["settings"], QUICK.settings, strict=True):
        assert not setting["missing"]
        assert [one["name"] for one in setting["entries"]] == [one.name for one in declared.entries]
        for entry, plan in zip(setting["entries"], declared.entries, strict=True):
            assert not entry["unfinished"]
            roles = {model["role"] for model in entry["models"]}
            wanted = {"local" if kind == "local_only" else kind for kind in plan.baselines} | {"global"}
            assert wanted <= roles
            assert all(model["dice"]["value"] is not None for model in entry["models"])
            assert entry["title"] in text
            for sentence in entry["said"]:
                assert sentence in text
        assert f"results/{setting['name']}-baselines.svg" in text
    for figure in (docs / "results").glob("*.svg"):
        assert f"results/{figure.name}" in text
    assert "Not run" not in text
    assert "Not complete" not in text

    again = start(tmp_path / "state", "--write-only", "--out", str(tmp_path / "again"))
    output, _ = again.communicate(timeout=TIME_BOX)
    assert again.returncode == 0, output
    assert (tmp_path / "again" / "results.md").read_text() == text, "writing again computes nothing"
