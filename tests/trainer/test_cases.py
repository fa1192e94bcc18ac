"""What dataset.json may say, and what it may not."""

import json
from pathlib import Path

import pytest

from tests.trainer.conftest import BRAIN, BRAIN_LABELS, changed, edit_json, write_dataset
from trainer.cases import check_task, hold_out, read_dataset
from trainer.contract import Exit, Region, regions_for
from trainer.job import Fault, Site


def fault_of(function, *args) -> Fault:
    with pytest.raises(Fault) as caught:
        function(*args)
    return caught.value


def test_cases_channels_and_labels_are_read_by_name(site: Site):
    dataset = read_dataset(site.data_root, "Brain")
    assert dataset.channels == ("FLAIR", "T1w", "t1gd", "T2w")
    assert dataset.labels == BRAIN_LABELS
    assert [case.name for case in dataset.training] == ["CASE_000", "CASE_001"]
    assert [case.name for case in dataset.validation] == ["CASE_002"]
    assert dataset.training[0].image == (site.data_root / "Brain/imagesTr/CASE_000.nii.gz").resolve()


def test_where_no_case_is_held_out_a_fifth_is_and_always_the_same(tmp_path: Path):
    write_dataset(tmp_path / "Brain", train=10, validation=None, shape=(4, 4, 4))
    first = read_dataset(tmp_path, "Brain")
    assert (len(first.training), len(first.validation)) == (8, 2)
    path = tmp_path / "Brain/dataset.json"
    edit_json(path, training=json.loads(path.read_text())["training"][::-1])
    second = read_dataset(tmp_path, "Brain")
    assert {c.name for c in second.validation} == {c.name for c in first.validation}
    assert not {c.name for c in first.validation} & {c.name for c in first.training}


def test_at_least_one_case_is_held_out(tmp_path: Path):
    write_dataset(tmp_path / "Brain", train=2, validation=None, shape=(4, 4, 4))
    training, validation = hold_out(read_dataset(tmp_path, "Brain").training)
    assert (len(training), len(validation)) == (0, 1)


@pytest.mark.parametrize("name", ["", ".", "..", "../outside", "/etc", "Brain/../../outside", "link"])
def test_a_job_cannot_point_the_trainer_out_of_the_data_folder(tmp_path: Path, name):
    write_dataset(tmp_path / "outside", shape=(4, 4, 4))
    root = tmp_path / "data"
    write_dataset(root / "Brain", shape=(4, 4, 4))
    (root / "link").symlink_to(tmp_path / "outside")
    assert fault_of(read_dataset, root, name).exit is Exit.NO_DATASET


@pytest.mark.parametrize("listed", ["../../outside/secret.nii.gz", "/etc/passwd", "imagesTr/link.nii.gz"])
def test_a_listed_image_cannot_lie_outside_the_data_folder(tmp_path: Path, listed):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.nii.gz").write_bytes(b"x")
    folder = write_dataset(tmp_path / "data/Brain", shape=(4, 4, 4))
    (folder / "imagesTr/link.nii.gz").symlink_to(tmp_path / "outside/secret.nii.gz")
    edit_json(folder / "dataset.json", training=[{"image": listed, "label": "./labelsTr/CASE_000.nii.gz"}])
    fault = fault_of(read_dataset, tmp_path / "data", "Brain")
    assert fault.exit is Exit.NO_DATASET
    assert "outside" in fault.message


def test_a_dataset_may_list_the_images_of_its_neighbour(tmp_path: Path):
    write_dataset(tmp_path / "Brain", shape=(4, 4, 4))
    pooled = write_dataset(tmp_path / "Pooled", shape=(4, 4, 4))
    entry = {"image": "../Brain/imagesTr/CASE_000.nii.gz", "label": "../Brain/labelsTr/CASE_000.nii.gz"}
    edit_json(pooled / "dataset.json", training=[entry])
    assert read_dataset(tmp_path, "Pooled").training[0].image.parts[-3] == "Brain"


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '{"modality": {"0": "MRI"}, "labels": {"0": "background"}, "training": 5}',
        '{"modality": {"0": "MRI"}, "labels": {"0": "background"}, "training": [{"image": "a.nii.gz"}]}',
        '{"modality": {"1": "MRI"}, "labels": {"0": "background"}, "training": [], "validation": []}',
        '{"modality": {"0": "MRI"}, "labels": {"300": "x"}, "training": [], "validation": []}',
        '{"modality": {"0": "MRI"}, "labels": {"zero": "x"}, "training": [], "validation": []}',
    ],
)
def test_a_description_that_is_none_is_told_by_its_name(tmp_path: Path, text):
    (tmp_path / "Brain").mkdir()
    (tmp_path / "Brain/dataset.json").write_text(text)
    fault = fault_of(read_dataset, tmp_path, "Brain")
    assert fault.exit is Exit.NO_DATASET
    assert "dataset.json" in fault.message


def test_a_missing_dataset_is_told_by_its_name(tmp_path: Path):
    fault = fault_of(read_dataset, tmp_path, "Brain")
    assert fault.exit is Exit.NO_DATASET
    assert "Brain" in fault.message
    assert str(tmp_path) not in fault.message


def test_labels_must_have_the_names_and_numbers_of_the_task(site: Site, plan):
    dataset = read_dataset(site.data_root, "Brain")
    swapped = {0: "background", 1: "non-enhancing tumor", 2: "edema", 3: "enhancing tumour"}
    task = changed(plan, task={"labels": swapped}).task
    fault = fault_of(check_task, dataset, task)
    assert fault.exit is Exit.LABELS_DIFFER
    assert "1 edema" in fault.message


def test_channels_must_have_the_names_of_the_task(site: Site, plan):
    dataset = read_dataset(site.data_root, "Brain")
    task = changed(plan, task={"channels": ("CT",)}).task
    assert fault_of(check_task, dataset, task).exit is Exit.WRONG_CHANNELS


def test_a_site_may_store_its_channels_in_another_order(site: Site, plan):
    dataset = read_dataset(site.data_root, "Brain")
    assert check_task(dataset, plan.task) == (0, 1, 2, 3)
    task = changed(plan, task={"channels": ("T2w", "flair", "T1w", "T1GD")}).task
    assert check_task(dataset, task) == (3, 0, 1, 2)


def test_the_brain_tumour_task_gets_its_regions_by_the_names_of_its_labels():
    assert regions_for(BRAIN_LABELS) == BRAIN.regions
    renumbered = {0: "background", 2: "edema", 1: "non-enhancing tumour", 4: "Enhancing tumor"}
    assert regions_for(renumbered) == (Region("WT", (1, 2, 4)), Region("TC", (1, 4)), Region("ET", (4,)))


def test_another_task_gets_a_region_for_each_label():
    labels = {0: "background", 1: "pancreas", 2: "cancer"}
    assert regions_for(labels) == (Region("pancreas", (1,)), Region("cancer", (2,)))
