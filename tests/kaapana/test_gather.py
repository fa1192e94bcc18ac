"""Several contrasts of a case: the series of a study come together beside their segmentation, and become channels."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.kaapana.test_batch import GRID, LABELS, save
from trainer.cases import read_dataset
from trainer.contract import Exit
from trainer.images import Recipe, read_case
from trainer.job import Fault
from trainer.kaapana.__main__ import SKIP, main
from trainer.kaapana.batch import Folders, build, channels_of, read_batch
from trainer.kaapana.gather import gather

FOLDERS = Folders(dicom="get-input", images="dcm-converter-ct", masks="mask2nifti")
SHAPE = (6, 7, 5)


def series(batch: Path, uid: str, *, study: str, modality: str = "MR", patient: str = "P1", words: str = "") -> Path:
    """Lay out a series as Kaapana's get-input does, of two files."""
    for number in range(2):
        path = batch / uid / "get-input" / f"{number}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"{uid}.{number}"
        header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        header.Modality, header.SeriesInstanceUID, header.StudyInstanceUID = modality, uid, study
        header.PatientID, header.SeriesDescription = patient, words
        header.save_as(path)
    return batch / uid


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    (tmp_path / "run" / "batch").mkdir(parents=True)
    return tmp_path / "run" / "batch"


def elements(batch: Path) -> list[str]:
    return sorted(path.name for path in batch.iterdir())


def test_images_come_to_the_segmentations_of_their_study(batch: Path) -> None:
    for case in (1, 2):
        series(batch, f"1.{case}.9", study=f"1.{case}", modality="SEG")
        series(batch, f"1.{case}.1", study=f"1.{case}", words="t2_FLAIR_tra")
        series(batch, f"1.{case}.2", study=f"1.{case}", words="t1 post")
    series(batch, "1.1.8", study="1.1", modality="RTSTRUCT")
    assert gather(batch, dicom="get-input", out="gather") == (4, 0)
    assert elements(batch) == ["1.1.8", "1.1.9", "1.2.9"], "what follows takes every element for a segmentation"
    for uid in elements(batch):
        study = uid.rpartition(".")[0]
        gathered = batch / uid / "gather"
        assert len(list(gathered.glob("*.dcm"))) == 4
        words = {f"{study}.1": "t2_FLAIR_tra", f"{study}.2": "t1 post"}
        assert json.loads((gathered / "series.json").read_text()) == words


def test_where_the_study_has_no_images_those_of_the_patient_count(batch: Path) -> None:
    series(batch, "1.9", study="1.5", modality="SEG", patient="P1")
    series(batch, "1.1", study="1.4", patient="P1", words="flair")
    series(batch, "1.2", study="1.4", patient="P2", words="flair")
    assert gather(batch, dicom="get-input", out="gather") == (1, 1)
    assert list(json.loads((batch / "1.9" / "gather" / "series.json").read_text())) == ["1.1"]
    assert elements(batch) == ["1.9"]


def test_without_images_the_step_is_skipped_and_nothing_changes(batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(batch, "1.9", study="1.3", modality="SEG")
    (batch.parent / "conf").mkdir()
    (batch.parent / "conf" / "conf.json").write_text("{}")
    monkeypatch.setenv("WORKFLOW_DIR", str(batch.parent))
    monkeypatch.setenv("FEDPORTAL_HOME", str(batch.parent / "home"))
    assert main(["gather"]) == SKIP
    assert not (batch / "1.9" / "gather").exists()
    series(batch, "1.1", study="1.3", words="flair")
    assert main(["gather"]) == 0
    assert main(["gather"]) == SKIP, "a repeated task finds nothing more to do"
    assert (batch / "1.9" / "gather" / "series.json").exists()


def test_what_does_not_say_what_it_is_stays_where_it_is(batch: Path) -> None:
    (batch / "1.2.3" / "get-input").mkdir(parents=True)
    (batch / "1.2.4" / "get-input").mkdir(parents=True)
    (batch / "1.2.4" / "get-input" / "0.dcm").write_bytes(b"no DICOM")
    assert gather(batch, dicom="get-input", out="gather") == (0, 0)
    assert elements(batch) == ["1.2.3", "1.2.4"]


# --- contrasts become channels ------------------------------------------------------------------------


def converted(batch: Path, uid: str, contrasts: dict[str, str], *, affine: np.ndarray = GRID) -> None:
    """Lay out what the converters make of a case: the reference image, the mask, the contrasts by uid."""
    folder = batch / uid
    save(folder / "dcm-converter-ct" / "ref.nii.gz", np.full(SHAPE, 7, np.float32))
    save(folder / "mask2nifti" / "seg--1--liver.nii.gz", np.ones(SHAPE, np.uint8))
    (folder / "gather").mkdir()
    (folder / "gather" / "series.json").write_text(json.dumps(contrasts))
    for number, name in enumerate(sorted(contrasts), start=1):
        ramp = np.indices(SHAPE)[0].astype(np.float32) + 100 * number
        save(folder / "dcm-converter-contrasts" / f"{name}.nii.gz", ramp, affine)


def made(batch: Path, tmp_path: Path, channels: str):
    target = tmp_path / "data" / "brains"
    build(read_batch(batch, FOLDERS), target, title="brains", channels=channels_of(channels), labels=LABELS)
    return read_dataset(tmp_path / "data", "brains")


def test_the_contrasts_become_channels_in_the_order_of_the_federation(batch: Path, tmp_path: Path) -> None:
    for case in range(2):
        converted(batch, f"1.{case}", {"2.1": "T1 mprage", "2.2": "t2_FLAIR_tra", "2.3": "localizer"})
    dataset = made(batch, tmp_path, "FLAIR, T1w=t1 *")
    assert dataset.channels == ("FLAIR", "T1w")
    (case,) = dataset.training
    values = np.asarray(nibabel.load(case.image).dataobj)
    assert values.shape == (*SHAPE, 2)
    assert (values[0, 0, 0, 0], values[0, 0, 0, 1]) == (200, 100)
    image, label, *_ = read_case(case, Recipe(order=(1, 0), labels=(0, 1, 2), spacing=None))
    assert (image.shape, label.shape) == ((2, *SHAPE), SHAPE), "the trainer reads it"


def test_contrasts_on_other_grids_are_brought_onto_that_of_the_reference(batch: Path, tmp_path: Path) -> None:
    shifted = GRID.copy()
    shifted[0, 3] = -1.0
    converted(batch, "1.1", {"2.1": "flair", "2.2": "t1"}, affine=shifted)
    converted(batch, "1.2", {"2.1": "flair", "2.2": "t1"})
    dataset = made(batch, tmp_path, "flair, t1")
    by_name = {
        case.name: np.asarray(nibabel.load(case.image).dataobj) for case in (*dataset.training, *dataset.validation)
    }
    still, moved = sorted(by_name.values(), key=lambda values: values[0, 0, 0, 0])
    np.testing.assert_allclose(moved[:5], still[:5] + 1, atol=1e-4)


@pytest.mark.parametrize(
    ("contrasts", "words"),
    [
        ({"2.1": "T1 Doe"}, "0 series fit FLAIR"),
        ({"2.1": "flair Doe", "2.2": "flair 2", "2.3": "t1"}, "2 series fit FLAIR"),
        ({"2.1": "flair t1 Doe"}, "another contrast's, too"),
        ({}, "0 series fit FLAIR"),
    ],
)
def test_a_case_without_exactly_one_series_for_each_contrast_is_refused(
    batch: Path, tmp_path: Path, contrasts: dict[str, str], words: str
) -> None:
    converted(batch, "1.2.826", contrasts)
    with pytest.raises(Fault, match=words) as caught:
        made(batch, tmp_path, "FLAIR, T1")
    assert caught.value.exit is Exit.WRONG_CHANNELS
    assert "Doe" not in caught.value.message
    assert "1.2.826" not in caught.value.message


def test_channels_are_read_as_people_write_them() -> None:
    assert channels_of(" FLAIR , T1w = *t1*pre* ,") == {"FLAIR": "*FLAIR*", "T1w": "*t1*pre*"}
    with pytest.raises(Fault):
        channels_of(" , ")
