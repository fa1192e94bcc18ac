"""``fp-predict`` on real Airflow servers: the form, the task, the segmentations that stay at the hospital."""

from __future__ import annotations

import json
import secrets

import nibabel
import numpy as np
import pytest

from fedportal.connectors.errors import SiteError
from tests.airflow.hospital import Hospital
from tests.trainer.conftest import BRAIN, SMALL, save, volumes
from tests.trainer_process.bench import wait_for
from trainer.contract import TrainingPlan
from trainer.initial import init

pytestmark = pytest.mark.slow


def test_a_hospital_applies_a_model_to_its_own_images(hospital: Hospital) -> None:
    plan = TrainingPlan(task=BRAIN, network=SMALL)
    model = hospital.work_dir / "models" / "brains-r3"
    model.mkdir(parents=True, exist_ok=True)
    init(plan, model / "model.safetensors")
    (model / "recipe.json").write_text(json.dumps({"plan": plan.to_json()}))
    save(hospital.data_root / "ward" / "Anna.nii.gz", volumes(1)[0])
    api, run = hospital.api, f"by-hand-{secrets.token_hex(4)}"
    api.trigger("fp-predict", run, {"model": "brains-r3", "dataset": "ward"})
    wait_for(lambda: api.run("fp-predict", run).state in ("success", "failed"), seconds=180)
    log = api.log("fp-predict", run, "predict", 1)
    assert api.run("fp-predict", run).state == "success", log
    told = json.loads(api.result("fp-predict", run, "predict"))
    assert told == {"images": 1, "segmented": 1, "kept": 0, "failed": 0}
    assert "Anna" not in log, "the portal can read this log"
    made = nibabel.load(hospital.work_dir / "predictions/ward/brains-r3/Anna.nii.gz")
    np.testing.assert_allclose(made.affine, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_the_form_asks_for_model_and_dataset(hospital: Hospital) -> None:
    for conf in ({}, {"model": "../../etc", "dataset": "ward"}):
        with pytest.raises(SiteError):
            hospital.api.trigger("fp-predict", f"by-hand-{secrets.token_hex(4)}", conf)
