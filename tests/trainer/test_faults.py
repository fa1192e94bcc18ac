"""Bad data and a machine at its end: each has its exit code and a sentence that names the case."""

import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tests.trainer.conftest import changed, edit_json, save, volumes
from trainer import augmentation, cache, weights
from trainer.cases import read_dataset
from trainer.contract import EXPLANATIONS, Exit, Kind
from trainer.failures import machine_faults
from trainer.job import Fault

IMAGE, LABEL = "imagesTr/CASE_001.nii.gz", "labelsTr/CASE_001.nii.gz"


def missing_image(folder: Path) -> None:
    (folder / IMAGE).unlink()


def missing_label(folder: Path) -> None:
    (folder / LABEL).unlink()


def truncated(folder: Path) -> None:
    data = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(data[: len(data) // 2])


def flipped_bits(folder: Path) -> None:
    data = bytearray((folder / LABEL).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 8] = b"\x00" * 8
    (folder / LABEL).write_bytes(bytes(data))


def no_image_at_all(folder: Path) -> None:
    (folder / IMAGE).write_text("a note, not an image")


def a_directory(folder: Path) -> None:
    (folder / IMAGE).unlink()
    (folder / IMAGE).mkdir()


def other_shape(folder: Path) -> None:
    save(folder / LABEL, volumes(1, shape=(16, 16, 15))[1])


def flat_label(folder: Path) -> None:
    save(folder / LABEL, np.ones((16, 16), np.uint8))


def label_seven(folder: Path) -> None:
    label = volumes(1)[1]
    label[8, 8, 8] = 7
    save(folder / LABEL, label)


def label_between(folder: Path) -> None:
    save(folder / LABEL, volumes(1)[1].astype(np.float32) + 0.5)


def label_near(folder: Path) -> None:
    save(folder / LABEL, volumes(1)[1].astype(np.float32) + 0.01)


def label_nan(folder: Path) -> None:
    label = volumes(1)[1].astype(np.float32)
    label[0, 0, 0] = np.nan
    save(folder / LABEL, label)


def image_nan(folder: Path) -> None:
    image = volumes(1)[0].astype(np.float32)
    image[3, 3, 3, 1] = np.nan
    save(folder / IMAGE, image)


def image_infinite(folder: Path) -> None:
    image = volumes(1)[0].astype(np.float32)
    image[3, 3, 3, 1] = np.inf
    save(folder / IMAGE, image)


def three_channels(folder: Path) -> None:
    save(folder / IMAGE, volumes(1, channels=3)[0])


def one_channel(folder: Path) -> None:
    save(folder / IMAGE, volumes(1, channels=4)[0][..., 0])


@pytest.mark.parametrize(
    ("damage", "exit", "named"),
    [
        (missing_image, Exit.MISSING_FILE, "image CASE_001.nii.gz"),
        (missing_label, Exit.MISSING_FILE, "segmentation CASE_001.nii.gz"),
        (truncated, Exit.UNREADABLE_IMAGE, "image CASE_001.nii.gz"),
        (flipped_bits, Exit.UNREADABLE_IMAGE, "segmentation CASE_001.nii.gz"),
        (no_image_at_all, Exit.UNREADABLE_IMAGE, "image CASE_001.nii.gz"),
        (a_directory, Exit.UNREADABLE_IMAGE, "image CASE_001.nii.gz"),
        (other_shape, Exit.SHAPE_MISMATCH, "16×16×16 and segmentation 16×16×15"),
        (flat_label, Exit.SHAPE_MISMATCH, "CASE_001"),
        (label_seven, Exit.WRONG_LABEL, "contains 7"),
        (label_between, Exit.WRONG_LABEL, "contains 0.5"),
        (label_near, Exit.WRONG_LABEL, "contains 0.01"),
        (label_nan, Exit.WRONG_LABEL, "contains nan"),
        (image_nan, Exit.NOT_FINITE, "CASE_001"),
        (image_infinite, Exit.NOT_FINITE, "CASE_001"),
        (three_channels, Exit.WRONG_CHANNELS, "found 3, expected 4"),
        (one_channel, Exit.WRONG_CHANNELS, "found 1, expected 4"),
    ],
)
def test_a_bad_case_is_named_with_what_is_wrong(plan, work, site, damage, exit, named):
    damage(site.data_root / "Brain")
    with pytest.raises(Fault) as caught:
        work(plan)
    assert caught.value.exit is exit
    assert caught.value.message.startswith(EXPLANATIONS[exit])
    assert "CASE_001" in caught.value.message
    assert named in caught.value.message
    assert str(site.data_root) not in caught.value.message, "a message names files, not the hospital's folders"


def test_a_bad_case_is_found_in_a_later_round_too(plan, work, site):
    work(plan)
    label_seven(site.data_root / "Brain")
    with pytest.raises(Fault) as caught:
        work(plan, round=2)
    assert caught.value.exit is Exit.WRONG_LABEL


def empty_masks(folder: Path, numbers) -> None:
    for number in numbers:
        save(folder / f"labelsTr/CASE_00{number}.nii.gz", np.zeros((16, 16, 16), np.uint8))


def test_training_cases_without_anything_segmented_are_refused(plan, work, site):
    empty_masks(site.data_root / "Brain", [0, 1])
    with pytest.raises(Fault) as caught:
        work(plan)
    assert caught.value.exit is Exit.EMPTY_MASK


@pytest.mark.parametrize("numbers", [[0], [2]])
def test_a_single_empty_case_is_no_fault(plan, work, site, numbers):
    empty_masks(site.data_root / "Brain", numbers)
    outcome, _ = work(plan)
    assert outcome.update is not None


@pytest.mark.parametrize(
    ("key", "kind", "word"),
    [
        ("training", Kind.TRAIN, "train on"),
        ("validation", Kind.TRAIN, "validate"),
        ("validation", Kind.EVALUATE, "validate"),
    ],
)
def test_a_dataset_without_cases_is_refused(plan, work, site, key, kind, word):
    edit_json(site.data_root / "Brain/dataset.json", **{key: []})
    with pytest.raises(Fault, match=word) as caught:
        work(plan, kind=kind)
    assert caught.value.exit is Exit.NO_CASES


def test_a_dataset_of_other_labels_is_refused(plan, work, site):
    edit_json(site.data_root / "Brain/dataset.json", labels={"0": "background", "1": "liver"})
    with pytest.raises(Fault, match="1 liver") as caught:
        work(plan)
    assert caught.value.exit is Exit.LABELS_DIFFER


def test_a_dataset_that_is_not_there_is_refused(plan, work):
    with pytest.raises(Fault, match="Lungs") as caught:
        work(plan, dataset="Lungs")
    assert caught.value.exit is Exit.NO_DATASET


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("modality"), "has no 'modality', which the Decathlon layout asks for"),
        (lambda d: d["training"][0].pop("label"), "has no 'label', which the Decathlon layout asks for"),
        (lambda d: d.update(labels={"background": 0, "edema": 1}), "labels does not give names to numbers"),
        (lambda d: d.update(modality=["MRI"]), "modality does not give names to numbers"),
        (lambda d: d.update(training=["./imagesTr/CASE_000.nii.gz"]), "its cases are not pairs"),
        (lambda d: d.update(validation=7), "its cases are not pairs"),
        (lambda d: d["training"][0].update(image=None), "its cases are not pairs"),
        (lambda d: d["training"].append(d["training"][0]), "an image is listed twice"),
    ],
)
def test_a_description_that_cannot_be_used_says_why(site, change, words):
    path = site.data_root / "Brain/dataset.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(Fault, match=re.escape(words)) as caught:
        read_dataset(site.data_root, "Brain")
    assert caught.value.exit is Exit.NO_DATASET


@pytest.mark.parametrize("text", ["[]", "7", "{", "[" * 100_000, ""])
def test_a_description_that_is_none_is_refused(site, text):
    (site.data_root / "Brain/dataset.json").write_text(text)
    with pytest.raises(Fault) as caught:
        read_dataset(site.data_root, "Brain")
    assert caught.value.exit is Exit.NO_DATASET


# --- the machine ----------------------------------------------------------------------------------


def out_of_cpu_memory() -> None:
    torch.empty(10**15)


def out_of_python_memory() -> None:
    np.ones(10**15)


@pytest.mark.parametrize("happens", [out_of_cpu_memory, out_of_python_memory])
def test_running_out_of_memory_has_its_exit_code(happens):
    with pytest.raises(Fault) as caught, machine_faults():
        happens()
    assert caught.value.exit is Exit.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),  # another has all of the GPU
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("std::bad_alloc"),
        SafetensorError("Error while deserializing header: I/O error: Cannot allocate memory (os error 12)"),
    ],
    ids=str,
)
def test_whoever_says_that_memory_ran_out_it_has_its_exit_code(error):
    with pytest.raises(Fault) as caught, machine_faults():
        raise error
    assert caught.value.exit is Exit.OUT_OF_MEMORY


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a bug"), machine_faults():
        raise RuntimeError("a bug")
    with pytest.raises(OSError, match="Permission"), machine_faults():
        raise OSError(errno.EACCES, "Permission denied")


def test_memory_that_ends_during_training_has_its_exit_code(plan, work, monkeypatch):
    monkeypatch.setattr(augmentation, "build", lambda _preset: lambda *_: out_of_cpu_memory())
    with pytest.raises(Fault) as caught:
        work(plan)
    assert caught.value.exit is Exit.OUT_OF_MEMORY


def full(tensors, path, **_):
    """What safetensors says when the disk is full, after it has written a part."""
    Path(path).write_bytes(b"part of a file")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_disk_that_is_full_when_the_update_is_written_has_its_exit_code(plan, work, site, monkeypatch):
    work(plan, kind=Kind.EVALUATE)  # the initial model is there before the disk is full
    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(Fault) as caught:
        work(plan)
    assert caught.value.exit is Exit.DISK_FULL
    assert not list(site.run_dir("fp-abcd-r1-mainz-a1").iterdir()), "no part of a file is left"


def test_a_disk_that_is_full_when_cases_are_prepared_has_its_exit_code(plan, work, site, monkeypatch):
    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(Fault) as caught:
        work(plan)
    assert caught.value.exit is Exit.DISK_FULL
    assert not list(site.cache.iterdir())


def test_a_full_disk_is_cured_by_dropping_the_cases_used_longest_ago(plan, work, site, monkeypatch):
    work(plan)
    used = sorted(site.cache.glob("*.safetensors"))
    real, refused = cache.save_file, []

    def once_full(tensors, path, **more):
        if not refused:
            refused.append(path)
            full(tensors, path)
        real(tensors, path, **more)

    monkeypatch.setattr(cache, "save_file", once_full)
    os.utime(used[1], (used[1].stat().st_mtime - 100,) * 2)
    work(changed(plan, spacing=(3.0, 3.0, 3.0)))
    assert refused
    assert [path.exists() for path in used] == [True, False, True]
    assert not list(site.cache.glob(".*.tmp"))
