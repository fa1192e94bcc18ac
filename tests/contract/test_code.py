"""The digest of the trainer's code: the same wherever the same code runs, whatever a site does not have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from trainer.contract.code import code_digest

PACKAGE = Path(__file__).resolve().parents[2] / "trainer"


def digest_in(folder: Path, arguments: str = "") -> str:
    code = f"from trainer.contract.code import code_digest; print(code_digest({arguments}))"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=folder, env={"PYTHONPATH": ""}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_trainer_without_dags_and_extension_is_of_the_same_code(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "dags", "phantoms", "extension", "processing-containers")
    shutil.copytree(PACKAGE, tmp_path / "trainer", ignore=ignored)
    assert digest_in(tmp_path) == digest_in(PACKAGE.parent)
    with (tmp_path / "trainer" / "train.py").open("a") as file:
        file.write("# changed\n")
    assert digest_in(tmp_path) != digest_in(PACKAGE.parent)


def test_the_dags_count_where_they_are_installed() -> None:
    assert code_digest(dags=True) != code_digest()
