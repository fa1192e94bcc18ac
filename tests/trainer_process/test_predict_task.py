"""The duty of ``fp-predict``: a model that lies at the site, images that lie at the site, and counts for whoever watches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedportal.connectors.trainer_process import ROOT
from tests.trainer.conftest import BRAIN, SMALL, save, volumes
from trainer.contract import Exit, TrainingPlan
from trainer.initial import init


def lay_out(folder: Path) -> Path:
    """Put a model and two images where an administrator would; return the site's file."""
    plan = TrainingPlan(task=BRAIN, network=SMALL)
    model = folder / "work" / "models" / "brains-r3"
    model.mkdir(parents=True)
    init(plan, model / "fedportal-k7mw2xq9-r3.safetensors")
    (model / "fedportal-k7mw2xq9-r3-recipe.json").write_text(json.dumps({"plan": plan.to_json()}))
    for number, name in enumerate(("Anna", "Berta")):
        save(folder / "data" / "ward" / f"{name}.nii.gz", volumes(number)[0])
    site = folder / "site.json"
    values = {"data_root": str(folder / "data"), "work_dir": str(folder / "work"), "key": "ab" * 32, "threads": 1}
    site.write_text(json.dumps(values))
    return site


def run_task(site: Path, **conf: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FEDPORTAL_SITE": str(site), "FEDPORTAL_CONF": json.dumps(conf)}
    command = [sys.executable, "-m", "trainer.task", "predict"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)


def test_the_segmentations_stay_at_the_site_and_only_counts_are_told(tmp_path: Path) -> None:
    done = run_task(lay_out(tmp_path), model="brains-r3", dataset="ward")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"images": 2, "segmented": 2, "kept": 0, "failed": 0}
    out = tmp_path / "work" / "predictions" / "ward" / "brains-r3"
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["Anna.nii.gz", "Berta.nii.gz"]
    assert "Anna" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("conf", "code", "words"),
    [
        ({}, Exit.BAD_JOB, "Say which model"),
        ({"model": "../../etc", "dataset": "ward"}, Exit.BAD_JOB, "not the name of a folder"),
        ({"model": "brains-r3", "dataset": "/etc"}, Exit.BAD_JOB, "not the name of a folder"),
        ({"model": "brains-r4", "dataset": "ward"}, Exit.BAD_JOB, "Put one model"),
        ({"model": "brains-r3", "dataset": "attic"}, Exit.NO_DATASET, "no folder"),
    ],
)
def test_who_starts_it_can_name_folders_of_the_site_and_nothing_else(
    tmp_path: Path, conf: dict[str, str], code: Exit, words: str
) -> None:
    done = run_task(lay_out(tmp_path), **conf)
    assert done.returncode == code
    assert words in json.loads(done.stdout.splitlines()[-1])["message"]
    assert not (tmp_path / "work" / "predictions").exists()
