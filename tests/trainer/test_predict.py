"""Segmenting images that have no segmentation: the right voxels, on the image's own grid, at the site and nowhere else."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch

from tests.trainer.conftest import BRAIN, Recorder, changed, edit_json, save, volumes, write_dataset
from trainer.bundle import build
from trainer.contract import Exit, Region, Task, regions_for
from trainer.initial import init
from trainer.job import Fault
from trainer.predict import labels_of, segment

ROOT = Path(__file__).resolve().parents[2]
# turned, mirrored and anisotropic: what a scanner may store
SCANNER = np.array([[0.0, -1.5, 0, 10], [2.0, 0, 0, -5], [0, 0, -3.0, 7], [0, 0, 0, 1]])
Segment = Callable[..., tuple[Exit, Any]]


@pytest.fixture
def apply(tmp_path: Path, plan, report: Recorder) -> Segment:
    """Apply an initial model to ``tmp_path/images``; what was said is in the report."""

    def run(plan=plan, **changes: Any):
        init(plan, tmp_path / "model.safetensors")
        (tmp_path / "recipe.json").write_text(json.dumps({"plan": plan.to_json(), "round": 3}))
        values = {
            "model": tmp_path / "model.safetensors",
            "recipe": tmp_path / "recipe.json",
            "images": tmp_path / "images",
            "out": tmp_path / "out",
            "threads": 1,
            "say": report.say,
        }
        return segment(**values | changes)

    return run


def image(path: Path, seed: int = 5, affine: np.ndarray = SCANNER, shape=(20, 17, 13)) -> Path:
    save(path, volumes(seed, shape=shape)[0], affine)
    return path


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize(
    "changes", [{}, {"patch": (16, 16, 8), "spacing": (2.0, 2.0, 2.5)}], ids=["whole volumes", "patches, resampled"]
)
def test_it_segments_like_the_bundle(plan, tmp_path: Path, apply: Segment, changes: dict[str, Any]) -> None:
    plan = changed(plan, **changes)
    image(tmp_path / "images" / "CASE.nii.gz")
    assert apply(plan)[0] is Exit.OK
    build(tmp_path / "model.safetensors", tmp_path / "recipe.json", tmp_path / "b.zip")
    zipfile.ZipFile(tmp_path / "b.zip").extractall(tmp_path / "there")
    (folder,) = (tmp_path / "there").iterdir()
    monai.bundle.run(
        config_file=str(folder / "configs/inference.json"),
        meta_file=str(folder / "configs/metadata.json"),
        bundle_root=str(folder),
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "eval"),
    )
    (written,) = (tmp_path / "eval").glob("*.nii.gz")
    masks = voxels(written).astype(bool)
    ours = voxels(tmp_path / "out" / "CASE.nii.gz")
    assert set(np.unique(ours)) == {0, 1, 2, 3}, "an untrained network sees everything somewhere"
    # Where the bundle's overlapping masks are those of some label, that label is what we wrote.
    decided = 0
    for number in BRAIN.labels:
        is_label = np.all(masks == [number in region.labels for region in BRAIN.regions], axis=-1)
        assert np.mean(ours[is_label] == number) > 0.999
        decided += is_label.sum()
    assert decided > 100


def test_a_segmentation_lies_where_its_image_lies(tmp_path: Path, apply: Segment) -> None:
    source = image(tmp_path / "images" / "CASE.nii.gz")
    file = nibabel.load(source)
    file.set_qform(SCANNER, code=1)
    file.set_sform(SCANNER, code=4)
    nibabel.save(file, source)
    apply()
    made = nibabel.load(tmp_path / "out" / "CASE.nii.gz")
    assert made.shape == (20, 17, 13)
    assert made.get_data_dtype() == np.uint8
    np.testing.assert_allclose(made.header.get_zooms(), (2.0, 1.5, 3.0))
    for ours, theirs in zip((*made.get_qform(coded=True), *made.get_sform(coded=True)),
                            (*file.get_qform(coded=True), *file.get_sform(coded=True)), strict=True):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_segmentation_is_named_as_its_image_is_in_the_folder_not_as_what_a_link_leads_to(
    tmp_path: Path, apply: Segment
) -> None:
    for name in ("Anna", "Berta"):
        image(tmp_path / "store" / name / "image.nii.gz")
        link = tmp_path / "images" / f"{name}.nii.gz"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "store" / name / "image.nii.gz")
    assert apply()[0] is Exit.OK
    assert {path.name for path in (tmp_path / "out").glob("*.nii.gz")} == {"Anna.nii.gz", "Berta.nii.gz"}
    for out in ("images", "store/Anna"):
        with pytest.raises(Fault, match="take the images' place"):
            apply(out=tmp_path / out)


@pytest.mark.parametrize(
    "task",
    [
        BRAIN,
        Task("organs", ("CT",), {0: "background", 3: "liver", 7: "spleen"}, regions_for({3: "liver", 7: "spleen"})),
        Task("part", ("CT",), {0: "background", 1: "skin", 2: "bone"}, (Region("bone", (2,)),)),
    ],
    ids=["nested", "apart", "a label in no region"],
)
def test_every_label_is_read_back_from_its_regions(task: Task) -> None:
    numbers = sorted(task.labels)
    patterns = {number: tuple(number in region.labels for region in task.regions) for number in numbers}
    told_apart = [n for n in numbers if all(patterns[m] != patterns[n] for m in numbers if m < n)]
    for number, sure in itertools.product(told_apart, (0.51, 0.9, 1.0)):
        probabilities = torch.tensor([sure if marked else 1 - sure for marked in patterns[number]])
        assert labels_of(probabilities[:, None, None, None], task).item() == number


def test_masks_that_contradict_each_other_give_the_label_that_is_most_likely() -> None:
    core_without_whole = torch.tensor([0.4, 0.9, 0.1])[:, None, None, None]
    assert labels_of(core_without_whole, BRAIN).item() == 2


def test_channels_are_taken_by_name_where_a_dataset_names_them(tmp_path: Path, apply: Segment) -> None:
    image(tmp_path / "images" / "CASE.nii.gz")
    apply()
    dataset = write_dataset(tmp_path / "data" / "Brain")
    turned = np.asarray(nibabel.load(tmp_path / "images" / "CASE.nii.gz").dataobj)[..., ::-1]
    save(dataset / "imagesTs" / "CASE.nii.gz", np.ascontiguousarray(turned), SCANNER)
    modality = {"0": "T2w", "1": "t1gd", "2": "T1w", "3": "FLAIR"}
    edit_json(dataset / "dataset.json", test=["./imagesTs/CASE.nii.gz"], modality=modality)
    assert apply(images=dataset, out=tmp_path / "other")[0] is Exit.OK
    np.testing.assert_array_equal(voxels(tmp_path / "other/CASE.nii.gz"), voxels(tmp_path / "out/CASE.nii.gz"))
    assert [path.name for path in (tmp_path / "other").glob("*.nii.gz")] == ["CASE.nii.gz"]


def test_what_is_done_is_done_once(plan, tmp_path: Path, apply: Segment) -> None:
    for number in (1, 2):
        image(tmp_path / "images" / f"{number}.nii.gz", seed=number)
    _, counts = apply()
    assert (counts.images, counts.segmented, counts.kept) == (2, 2, 0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    (tmp_path / "out" / ".1.nii.gz.0.tmp").touch()  # what a killed process leaves
    _, counts = apply()
    assert (counts.segmented, counts.kept) == (0, 2)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.nii.gz")}
    assert not list((tmp_path / "out").glob(".*.tmp"))
    image(tmp_path / "images" / "2.nii.gz", seed=7)
    _, counts = apply()
    assert (counts.segmented, counts.kept) == (1, 1), "another image"
    _, counts = apply(changed(plan, seed=plan.seed + 1))
    assert (counts.segmented, counts.kept) == (2, 0), "another model"


def test_one_image_at_fault_does_not_keep_the_others(tmp_path: Path, apply: Segment, report: Recorder) -> None:
    image(tmp_path / "images" / "Anna.nii.gz")
    (tmp_path / "images" / "Berta.nii.gz").write_bytes(b"no image")
    image(tmp_path / "images" / "Clara.nii.gz", seed=6)
    code, counts = apply()
    assert code is Exit.UNREADABLE_IMAGE
    assert (counts.segmented, counts.failed) == (2, 1)
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["image"] for entry in document["entries"] if "problem" in entry] == ["Berta.nii.gz"]
    assert (document["round"], document["failed"]) == (3, 1)
    said = " ".join(report.said)
    assert "1 of 3 images" in said
    assert not any(name in said for name in ("Anna", "Berta", "Clara")), "a scheduler's log is not only the hospital's"


def test_what_others_wrote_is_not_replaced(tmp_path: Path, apply: Segment) -> None:
    source = image(tmp_path / "images" / "CASE.nii.gz")
    theirs = image(tmp_path / "out" / "CASE.nii.gz")
    before = theirs.read_bytes()
    with pytest.raises(Fault, match="another folder") as caught:
        apply()
    assert caught.value.exit is Exit.BAD_JOB
    with pytest.raises(Fault, match="another folder"):
        apply(out=source.parent)
    assert theirs.read_bytes() == before


@pytest.mark.parametrize("name", ["nothing", "only others"])
def test_a_folder_without_images_is_refused(tmp_path: Path, apply: Segment, name: str) -> None:
    (tmp_path / "images").mkdir()
    if name == "only others":
        (tmp_path / "images" / "notes.txt").touch()
    with pytest.raises(Fault, match="no image to segment") as caught:
        apply()
    assert caught.value.exit is Exit.NO_CASES


def test_two_processes_never_write_into_one_folder(tmp_path: Path, apply: Segment, report: Recorder) -> None:
    image(tmp_path / "images" / "CASE.nii.gz")
    (tmp_path / "out").mkdir()
    results: list[Any] = []
    with (tmp_path / "out" / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: results.append(apply()))
        second.start()
        end = time.monotonic() + 60
        while not any("waiting" in line for line in report.said) and time.monotonic() < end:
            time.sleep(0.02)
        assert not (tmp_path / "out" / "CASE.nii.gz").exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
    second.join(60)
    assert results[0][1].segmented == 1


def test_the_command_ends_at_once_on_sigterm(plan, tmp_path: Path) -> None:
    init(plan, tmp_path / "model.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps({"plan": plan.to_json()}))
    image(tmp_path / "images" / "Anna.nii.gz")
    os.mkfifo(tmp_path / "images" / "Berta.nii.gz")  # reading it lasts until somebody writes
    names = ("model.safetensors", "recipe.json", "images", "out")
    options = [f"--{name.split('.')[0]}={tmp_path / name}" for name in names]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", "predict", *options], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    assert any("image 1 of 2 is segmented" in line for line in lines)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == Exit.CANCELLED
    assert "cancelled" in process.stderr.read()
    assert (tmp_path / "out" / "Anna.nii.gz").exists()
