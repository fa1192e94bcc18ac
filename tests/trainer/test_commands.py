"""The trainer's small commands as the portal calls them: a process, its exit code, its last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.trainer.conftest import changed
from trainer.contract import EXPLANATIONS, Exit

ROOT = Path(__file__).resolve().parents[2]


def test_an_initial_model_that_does_not_fit_into_its_memory_is_refused_in_a_sentence(plan, tmp_path: Path):
    plan = changed(plan, network={"channels": (1024, 2048, 2048), "strides": (2, 2)})
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    out = tmp_path / "model.safetensors"
    command = ["init", "--memory-mb", "1024", "--plan", str(tmp_path / "plan.json"), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == Exit.OUT_OF_MEMORY, done.stderr
    assert done.stderr.strip().splitlines()[-1] == EXPLANATIONS[Exit.OUT_OF_MEMORY]
    assert not out.exists()
