"""The downloaded bundle, as somebody who has MONAI but not fedportal would use it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.trainer.conftest import Recorder, changed, make_spec, save, volumes
from trainer import networks, weights
from trainer.bundle import build
from trainer.cases import Case
from trainer.contract import Exit, plan_from_json
from trainer.gather import recipe_for
from trainer.images import read_case
from trainer.inference import predict
from trainer.initial import init
from trainer.job import Fault
from trainer.machine import settle

SCRIPT = """
import sys, monai.bundle
assert not any(name.split(".")[0] in ("trainer", "fedportal") for name in sys.modules)
monai.bundle.run(config_file="configs/inference.json", meta_file="configs/metadata.json", bundle_root=".",
                 dataset_dir=sys.argv[1], output_dir=sys.argv[2])
"""

# turned, mirrored and anisotropic: what a scanner may store
SCANNER = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -5], [0, 0, -3.0, 7], [0, 0, 0, 1]])


def pack(folder: Path, recipe, name: str = "b.zip") -> None:
    (folder / "recipe.json").write_text(json.dumps(recipe))
    build(folder / "model.safetensors", folder / "recipe.json", folder / name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("whole volumes", {}),
        ("patches, resampled", {"patch": (16, 16, 8), "spacing": (2.0, 2.0, 2.5)}),
    ],
)
def test_the_bundle_segments_like_the_trainer_with_monai_alone(plan, tmp_path: Path, name, changes):
    plan = changed(plan, **changes)
    init(plan, tmp_path / "model.safetensors")
    pack(tmp_path, {"plan": plan.to_json()})
    image, label = volumes(5, shape=(20, 17, 13))
    save(tmp_path / "images" / "CASE.nii.gz", image, SCANNER)
    save(tmp_path / "label.nii.gz", label, SCANNER)

    zipfile.ZipFile(tmp_path / "b.zip").extractall(tmp_path / "there")
    (folder,) = (tmp_path / "there").iterdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / "images"), str(tmp_path / "out")],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    (written,) = (tmp_path / "out").glob("*.nii.gz")
    result = nibabel.load(written)
    assert result.shape == (20, 17, 13, 3)
    np.testing.assert_allclose(result.affine, SCANNER)
    found = np.asarray(result.dataobj)
    assert set(np.unique(found)) == {0, 1}, "an untrained network marks some voxels and not others"

    network = networks.build(plan.task, plan.network)
    weights.load_model(tmp_path / "model.safetensors", network)
    network.eval()
    case = Case("CASE", tmp_path / "images" / "CASE.nii.gz", tmp_path / "label.nii.gz")
    prepared, *_ = read_case(case, recipe_for(make_spec(plan), (0, 1, 2, 3)))
    machine = settle(plan, allowed=1, seed=0, say=Recorder().say)
    with torch.inference_mode():
        ours = (predict(network, prepared, plan, machine=machine).sigmoid() >= 0.5).numpy()
    if plan.spacing is None:
        # RAS of this scanner's axes: x from the second (mirrored), y from the first, z mirrored
        back = ours[:, ::-1, :, ::-1].transpose(2, 1, 3, 0)
        assert np.mean(back == found) > 0.999
    else:
        # the grids differ: compare how much was marked, in ml
        ours_ml = ours.reshape(3, -1).sum(1) * 2 * 2 * 2.5
        found_ml = found.reshape(-1, 3).sum(0) * 2 * 1.5 * 3
        np.testing.assert_allclose(found_ml, ours_ml, rtol=0.1, atol=200)


def test_the_bundle_follows_the_layout_that_monai_specifies(plan, tmp_path: Path):
    init(plan, tmp_path / "model.safetensors")
    pack(tmp_path, {"plan": plan.to_json(), "experiment": "abcd", "round": 12})
    archive = zipfile.ZipFile(tmp_path / "b.zip")
    assert set(archive.namelist()) == {
        f"brats_unet/{name}"
        for name in ("configs/metadata.json", "configs/inference.json", "docs/README.md", "models/model.pt")
    }
    metadata = json.loads(archive.read("brats_unet/configs/metadata.json"))
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "WT", "1": "TC", "2": "ET"}
    assert plan_from_json(metadata["fedportal"].pop("plan")) == plan
    assert metadata["fedportal"] == {"experiment": "abcd", "round": 12}
    assert {"version", "changelog", "monai_version", "pytorch_version", "numpy_version"} <= set(metadata)


def test_the_same_model_packs_to_the_same_bytes(plan, tmp_path: Path):
    init(plan, tmp_path / "model.safetensors")
    for name in ("a.zip", "b.zip"):
        pack(tmp_path, plan.to_json(), name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_model_of_another_network_is_not_packed(plan, tmp_path: Path):
    init(plan, tmp_path / "model.safetensors")
    other = changed(plan, network={"channels": (8, 16)})
    with pytest.raises(Fault) as caught:
        pack(tmp_path, other.to_json())
    assert caught.value.exit is Exit.MODEL_MISMATCH
    assert not (tmp_path / "b.zip").exists()


@pytest.mark.parametrize("recipe", [[], {}, {"task": {"name": "BRATS"}}, {"plan": 5}])
def test_a_recipe_without_a_plan_is_refused(tmp_path: Path, recipe):
    with pytest.raises(Fault, match="no training plan") as caught:
        pack(tmp_path, recipe)
    assert caught.value.exit is Exit.BAD_JOB
