"""The trainer's small commands as the portal calls them: a process, its exit code, its last line."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.trainer.conftest import changed
from trainer.check import gpus
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


def test_a_gpu_that_does_not_tell_its_memory_is_found_all_the_same(tmp_path: Path, monkeypatch):
    shown = ["NVIDIA H100, 81559, 80994", "NVIDIA GB10, [N/A], [N/A]", "A name, with a comma, 100, 50", "No devices"]
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in shown) + "\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpus() == [
        {"name": "NVIDIA H100", "memory_mb": 81559, "free_mb": 80994},
        {"name": "NVIDIA GB10", "memory_mb": None, "free_mb": None},
        {"name": "A name, with a comma", "memory_mb": 100, "free_mb": 50},
    ]


def test_nothing_that_the_warm_server_imports_opens_cuda():
    """Whoever opens it before a fork takes it from all children."""
    script = """
import importlib, torch.cuda
asked = []
for name in ("init", "_lazy_init", "is_available", "device_count", "get_device_properties"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
from trainer.serve import PRELOAD
for module in PRELOAD:
    importlib.import_module(module)
print(asked)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr
