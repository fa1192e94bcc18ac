"""A batch of Kaapana's series becomes a dataset: labels by name, patients apart, nothing of the hospital's names."""

from __future__ import annotations

import html
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.kaapana.conftest import SITE_KEY
from tests.trainer_process.bench import Bench
from trainer.cases import read_dataset
from trainer.contract import Exit
from trainer.job import Fault
from trainer.kaapana.__main__ import SKIP, main
from trainer.kaapana.batch import ABANDONED, DESCRIPTION, Folders, build, digest_of, is_prepared, labels_of, read_batch

FOLDERS = Folders(dicom="get-input", images="dcm-converter-ct", masks="mask2nifti")
LABELS = {0: "background", 1: "liver", 2: "tumour"}
GRID = np.diag([1.0, 1.0, 2.0, 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray = GRID) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)


def dicom(path: Path, patient: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.PatientID = patient
    header.PatientName = "Doe^Jane"
    header.save_as(path)


def series(batch: Path, number: int, *, patient: str = "", masks: dict[str, np.ndarray] | None = None) -> Path:
    folder = batch / f"1.2.826.0.{number}"
    save(folder / "dcm-converter-ct" / f"9.9.{number}.nii.gz", np.full((6, 7, 5), float(number), np.float32))
    whole = np.ones((6, 7, 5), np.uint8)
    for order, (label, mask) in enumerate((masks or {"Liver": whole}).items(), start=1):
        save(folder / "mask2nifti" / f"seg--{order}--{label}.nii.gz", mask)
    if patient:
        dicom(folder / "get-input" / "0.dcm", patient)
    return folder


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    (tmp_path / "batch").mkdir()
    return tmp_path / "batch"


def made(batch: Path, tmp_path: Path, **options) -> dict:
    options = {"title": "liver", "channels": {"CT": "*"}, "labels": LABELS, **options}
    build(read_batch(batch, FOLDERS), tmp_path / "data" / "liver", **options)
    return dict(json.loads((tmp_path / "data" / "liver" / DESCRIPTION).read_text()))


def labels_in(tmp_path: Path) -> list[np.ndarray]:
    return [np.asanyarray(nibabel.load(p).dataobj) for p in sorted((tmp_path / "data/liver/labelsTr").iterdir())]


def test_the_trainer_reads_what_was_made(batch: Path, tmp_path: Path) -> None:
    for number in range(5):
        series(batch, number)
    made(batch, tmp_path)
    dataset = read_dataset(tmp_path / "data", "liver")
    assert (len(dataset.training), len(dataset.validation)) == (4, 1)
    assert dataset.channels == ("CT",)
    assert dict(dataset.labels) == LABELS


def test_what_killed_pods_left_half_made_is_swept(batch: Path, tmp_path: Path) -> None:
    killed, at_work, others = (tmp_path / "data" / name for name in (".liver-k1l", ".liver-a2t", ".spleen-k1l"))
    for folder in (killed, at_work, others):
        (folder / "imagesTr").mkdir(parents=True)
    for folder in (killed, others):
        os.utime(folder, (time.time() - ABANDONED - 60,) * 2)
    series(batch, 1)
    made(batch, tmp_path)
    assert [folder.exists() for folder in (killed, at_work, others)] == [False, True, True]


def test_labels_are_told_by_name_whatever_number_the_site_gave_them(batch: Path, tmp_path: Path) -> None:
    part = np.zeros((6, 7, 5), np.uint8)
    part[:3] = 1
    series(batch, 1, masks={"TUMOUR": part, " liver": np.ones_like(part)})
    made(batch, tmp_path)
    (segmentation,) = labels_in(tmp_path)
    assert (segmentation[:3] == 2).all()  # the higher number wins where both are
    assert (segmentation[3:] == 1).all()


def test_a_mask_on_another_grid_is_brought_onto_the_images(batch: Path, tmp_path: Path) -> None:
    folder = series(batch, 1)
    coarse = np.zeros((3, 7, 5), np.uint8)
    coarse[0] = 1
    shifted = np.diag([2.0, 1.0, 2.0, 1.0])
    shifted[0, 3] = 0.5
    next((folder / "mask2nifti").iterdir()).unlink()
    save(folder / "mask2nifti" / "seg--1--liver.nii.gz", coarse, shifted)
    made(batch, tmp_path)
    (segmentation,) = labels_in(tmp_path)
    assert segmentation.shape == (6, 7, 5)
    assert set(np.unique(segmentation[:2])) == {1}
    assert not segmentation[2:].any()


def test_series_of_one_patient_are_on_one_side_of_the_split(batch: Path, tmp_path: Path) -> None:
    for number in range(12):
        series(batch, number, patient=f"P{number // 3}")
    document = made(batch, tmp_path)
    patients = {element.case: element.patient for element in read_batch(batch, FOLDERS)}

    def of(part: str) -> set[str]:
        return {patients[Path(pair["image"]).name.removesuffix(".nii.gz")] for pair in document[part]}

    assert of("training") & of("validation") == set()
    assert (len(of("training")), len(of("validation"))) == (3, 1)


def test_no_identifier_of_the_hospital_is_in_what_was_made(batch: Path, tmp_path: Path) -> None:
    series(batch, 1, patient="4711")
    image = next((batch / "1.2.826.0.1" / "dcm-converter-ct").iterdir())
    named = nibabel.load(image)
    named.header["descrip"] = b"Doe^Jane 4711"
    named.header["db_name"] = b"4711"
    nibabel.save(named, image)
    made(batch, tmp_path)
    for path in (tmp_path / "data").rglob("*"):
        assert "1.2.826" not in str(path)
        if path.is_file():
            data = nibabel.load(path).header.binaryblock if path.suffix == ".gz" else path.read_bytes()
            assert not any(word in data for word in (b"4711", b"Doe", b"1.2.826"))


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda f: next((f / "dcm-converter-ct").iterdir()).unlink(), Exit.MISSING_FILE),
        (lambda f: next((f / "mask2nifti").iterdir()).unlink(), Exit.EMPTY_MASK),
        (lambda f: next((f / "dcm-converter-ct").iterdir()).write_bytes(b"x"), Exit.UNREADABLE_IMAGE),
        (lambda f: save(f / "mask2nifti" / "s--3--spleen.nii.gz", np.ones((6, 7, 5), np.uint8)), Exit.LABELS_DIFFER),
        (lambda f: save(f / "mask2nifti" / "nameless.nii.gz", np.ones((6, 7, 5), np.uint8)), Exit.WRONG_LABEL),
    ],
)
def test_what_cannot_be_used_is_refused_by_case_and_leaves_nothing(
    batch: Path, tmp_path: Path, spoil, code: Exit
) -> None:
    spoil(series(batch, 1))
    with pytest.raises(Fault) as fault:
        made(batch, tmp_path)
    assert fault.value.exit is code
    assert "1.2.826" not in fault.value.message
    assert list((tmp_path / "data").glob("*")) == []


def test_an_older_dataset_stands_until_the_new_one_is_whole(batch: Path, tmp_path: Path) -> None:
    series(batch, 1)
    made(batch, tmp_path, identifiers=["a"])
    series(batch, 2, masks={"spleen": np.ones((6, 7, 5), np.uint8)})
    with pytest.raises(Fault):
        made(batch, tmp_path, identifiers=["a", "b"])
    assert is_prepared(tmp_path / "data" / "liver", ["a"])
    document = made(batch, tmp_path, identifiers=["a", "b"], labels={**LABELS, 3: "spleen"})
    assert len(document["training"]) + len(document["validation"]) == 2
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["liver"]


def test_a_dataset_is_made_anew_only_when_its_series_change(tmp_path: Path) -> None:
    folder = tmp_path / "liver"
    assert not is_prepared(folder, ["a"])
    folder.mkdir()
    (folder / DESCRIPTION).write_text("{}")
    assert is_prepared(folder, ["a"])  # laid there by hand: it is the hospital's word
    (folder / ".series").write_text(digest_of(["b", "a"]))
    assert is_prepared(folder, ["a", "b"])
    assert not is_prepared(folder, ["a", "b", "c"])


def test_labels_of_an_offer_are_numbered_in_the_order_that_the_steward_gives(batch: Path) -> None:
    series(batch, 1, masks={"Tumour": np.ones((6, 7, 5), np.uint8)})
    elements = read_batch(batch, FOLDERS)
    assert labels_of(elements, ["Liver ", " tumour"]) == {0: "background", 1: "Liver", 2: "tumour"}
    for order in ([], ["liver"], ["tumour", "Tumour"]):
        with pytest.raises(Fault):
            labels_of(elements, order)


# --- steps of the pods --------------------------------------------------------------------------------


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def told(conf: dict) -> Path:
        (tmp_path / "run" / "conf").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "conf" / "conf.json").write_text(json.dumps(conf))
        return tmp_path / "run"

    monkeypatch.setenv("WORKFLOW_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("FEDPORTAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDPORTAL_IMAGES", "dcm-converter-ct")
    return told


def test_look_skips_what_lies_ready(pod, tmp_path: Path) -> None:
    form = {"dataset_name": "liver", "identifiers": ["1.2"]}
    pod({"data_form": form})
    assert main(["look"]) == 0
    folder = tmp_path / "home" / "datasets" / "liver"
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_text("{}")
    assert main(["look"]) == SKIP
    pod({"data_form": {"dataset_name": "other", "identifiers": []}})
    assert main(["look"]) == SKIP  # nothing to convert: the run itself says what is missing


def test_an_offer_keeps_the_dataset_and_says_so(pod, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pod(
        {
            "data_form": {"dataset_name": "liver", "identifiers": ["1.2.826.0.1"]},
            "workflow_form": {"labels": "liver, tumour", "channel": "CT"},
        }
    )
    series(run / "batch", 1, patient="P1")
    series(run / "batch", 2, patient="P2")
    assert main(["offer"]) == 0
    assert "1 cases to train on, 1 to validate with" in json.loads(capsys.readouterr().out)["message"]
    assert read_dataset(tmp_path / "home" / "datasets", "liver").labels[2] == "tumour"


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(pod, name: str) -> None:
    pod({"data_form": {"dataset_name": name, "identifiers": ["1"]}})
    assert main(["look"]) == Exit.NO_DATASET


def test_a_training_that_somebody_starts_by_hand_ends_with_a_word(pod, capsys: pytest.CaptureFixture[str]) -> None:
    pod({"data_form": {"dataset_name": "liver", "identifiers": []}})
    assert main(["train"]) == Exit.BAD_JOB
    entry = json.loads(capsys.readouterr().out)
    assert entry["exit_code"] == Exit.BAD_JOB
    assert "not by hand" in entry["message"]


@pytest.mark.store
def test_a_dataset_in_which_kaapana_finds_no_case_fails_with_a_word(
    pod, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = bench.ticket("liver")
    # as Kaapana's own steps leave it: each ended with 126, so those after it were skipped, and there is no batch
    job = {"run": ticket.run, "spec_url": html.escape(ticket.spec_url), "dataset": "liver"}
    pod({"fedportal": job, "data_form": {"dataset_name": "liver", "identifiers": ["1.2"]}})
    monkeypatch.setenv("FEDPORTAL_SITE_KEY", SITE_KEY.hex())
    # a process of its own, as in the pod: a run keeps the signals that end it for itself
    assert subprocess.run([sys.executable, "-m", "trainer.kaapana", "train"]).returncode == Exit.NO_CASES
    manifest = bench.manifest(ticket)
    assert manifest.exit_code == Exit.NO_CASES
    assert "no image with a segmentation" in manifest.message


def test_a_header_is_what_the_tests_think(tmp_path: Path) -> None:
    dicom(tmp_path / "0.dcm", "P1")
    assert pydicom.dcmread(tmp_path / "0.dcm").PatientID == "P1"
