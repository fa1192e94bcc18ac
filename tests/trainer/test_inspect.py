"""The report about a site's datasets."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from fedportal.connectors.base import DatasetReport
from tests.trainer.conftest import edit_json, save, write_dataset
from trainer.contract import POOL_DATASET, Exit
from trainer.inspect import inspect, inspect_pool
from trainer.job import Member


def test_a_report_has_counts_channels_labels_and_medians(tmp_path: Path):
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    write_dataset(
        tmp_path / "Brain", train=2, validation=1, shape=[(8, 8, 8), (10, 12, 14), (16, 16, 16)], affine=affine
    )
    write_dataset(tmp_path / "Heart", train=1, channels=("MRI",), labels={0: "background", 1: "left atrium"})
    brain, heart = inspect(tmp_path)
    assert brain == {
        "name": "Brain",
        "title": "BRATS",
        "train_cases": 2,
        "validation_cases": 1,
        "channels": ["FLAIR", "T1w", "t1gd", "T2w"],
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "spacing": [1.0, 1.5, 3.0],
        "shape": [10, 12, 14],
        "problems": [],
    }
    assert (heart["name"], heart["channels"], heart["problems"]) == ("Heart", ["MRI"], [])
    json.dumps([brain, heart])


def test_a_report_has_the_fields_that_the_portal_stores(tmp_path: Path):
    write_dataset(tmp_path / "Brain", shape=(4, 4, 4))
    assert set(inspect(tmp_path)[0]) == {field.name for field in fields(DatasetReport)}


def test_a_dataset_in_the_making_is_passed_over(tmp_path: Path):
    write_dataset(tmp_path / ".Brain-x7k-old", shape=(4, 4, 4))
    assert inspect(tmp_path) == []


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "nowhere")
    command = [sys.executable, "-m", "trainer", "inspect", "--data-root", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.NO_DATASET
    assert "cannot be read (No such file or directory)" in done.stderr


def test_what_is_wrong_is_told_case_by_case(tmp_path: Path):
    folder = write_dataset(tmp_path / "Brain", train=6, validation=1, shape=(8, 8, 8))
    (folder / "imagesTr/CASE_000.nii.gz").unlink()
    (folder / "labelsTr/CASE_001.nii.gz").write_bytes(b"not a gzip file")
    save(folder / "labelsTr/CASE_002.nii.gz", np.zeros((8, 8, 9), np.uint8))
    save(folder / "imagesTr/CASE_003.nii.gz", np.zeros((8, 8, 8, 3), np.int16))
    save(folder / "labelsTr/CASE_004.nii.gz", np.zeros((8, 8, 8), np.uint8), np.diag([-1.0, 1, 1, 1]))
    (report,) = inspect(tmp_path)
    assert [problem[:40] for problem in report["problems"]] == [
        "An image or a segmentation that dataset.",
        "An image or a segmentation is damaged an",
        "An image and its segmentation do not lie",
        "An image does not have the channels (con",
        "An image and its segmentation do not lie",
    ]
    assert all(f"CASE_00{i}" in problem for i, problem in enumerate(report["problems"]))
    assert report["shape"] == [8, 8, 8]


def test_a_hundred_bad_cases_make_a_short_report(tmp_path: Path):
    folder = write_dataset(tmp_path / "Brain", shape=(4, 4, 4))
    entries = [{"image": f"./imagesTr/no{i}.nii.gz", "label": f"./labelsTr/no{i}.nii.gz"} for i in range(100)]
    edit_json(folder / "dataset.json", training=entries)
    (report,) = inspect(tmp_path)
    assert len(report["problems"]) == 21
    assert report["problems"][-1].startswith("80 more")


def test_a_dataset_that_cannot_be_read_or_has_no_cases_is_reported_not_raised(tmp_path: Path):
    (tmp_path / "Broken").mkdir()
    (tmp_path / "Broken/dataset.json").write_text("{")
    write_dataset(tmp_path / "Empty", train=0, validation=0)
    broken, empty = inspect(tmp_path)
    assert broken["train_cases"] == 0
    assert "not valid JSON" in broken["problems"][0]
    assert len(empty["problems"]) == 2


def test_a_pool_is_reported_as_one_dataset(tmp_path: Path):
    write_dataset(tmp_path / "bonn/Brain", train=2, validation=1, shape=(8, 8, 8))
    write_dataset(tmp_path / "graz/Task01", train=4, validation=2, shape=(10, 12, 14))
    pool = [Member("bonn", tmp_path / "bonn", "Brain"), Member("graz", tmp_path / "graz", "Task01")]
    report = inspect_pool(pool)
    (alone,) = inspect(tmp_path / "graz")
    assert report == alone | {"name": POOL_DATASET, "title": "Pooled data", "train_cases": 6, "validation_cases": 3}
    edit_json(tmp_path / "graz/Task01/dataset.json", labels={"0": "background", "1": "liver"})
    (tmp_path / "bonn/Brain/imagesTr/CASE_001.nii.gz").unlink()
    problems = inspect_pool([*pool, Member("ulm", tmp_path, "Nowhere")])["problems"]
    assert [word for word, problem in zip(("graz", "ulm", "bonn/CASE_001"), problems, strict=True) if word in problem] == [
        "graz", "ulm", "bonn/CASE_001"
    ]  # fmt: skip
    assert "ulm" in inspect_pool([Member("ulm", tmp_path, "Nowhere")])["problems"][0]


def test_inspecting_needs_no_torch():
    code = "import sys, trainer.inspect; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])
