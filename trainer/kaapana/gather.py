"""Put the contrasts of a case beside its segmentation, where a dataset lists images and not segmentations alone.

Kaapana lays every listed series into an element of its own, and its operators look at one element at a time. Images of the
segmentation's study (of its patient, where the study has none) are moved into the element of the segmentation::

    batch/<uid of the segmentation>/gather/<n>-<…>.dcm     all contrasts; Kaapana's converter tells them apart by their UIDs
    batch/<uid of the segmentation>/gather/series.json     UID → description of the series
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError

SERIES = "series.json"
SEGMENTATIONS = frozenset({"SEG", "RTSTRUCT"})
TAGS = ["Modality", "SeriesInstanceUID", "StudyInstanceUID", "PatientID", "SeriesDescription"]


@dataclass(frozen=True)
class _Series:
    folder: Path
    files: tuple[Path, ...]
    uid: str
    study: str
    patient: str
    description: str
    is_segmentation: bool


def gather(batch: Path, *, dicom: str, out: str) -> tuple[int, int]:
    """Return how many image series were put beside segmentations, and how many belong to none and are left out.

    ``dicom``, ``out``: names of the folders inside an element. What cannot be read stays where it is: whoever needs it
    says what is wrong with it.
    """
    read = (_read(folder, dicom) for folder in sorted(batch.glob("*")) if folder.is_dir())
    series = [one for one in read if one is not None]
    images = [one for one in series if not one.is_segmentation]
    used: set[Path] = set()
    for segmentation in (one for one in series if one.is_segmentation):
        mine = [one for one in images if one.study == segmentation.study] or [
            one for one in images if one.patient and one.patient == segmentation.patient
        ]
        if not mine:
            continue
        target = segmentation.folder / out
        target.mkdir(exist_ok=True)
        for number, one in enumerate(mine):
            for file in one.files:
                _place(file, target / f"{number}-{file.name}")
        (target / SERIES).write_text(json.dumps({one.uid: one.description for one in mine}))
        used.update(one.folder for one in mine)
    # What follows takes every element for a segmentation.
    for one in images:
        shutil.rmtree(one.folder)
    return len(used), len(images) - len(used)


def _read(folder: Path, dicom: str) -> _Series | None:
    files = tuple(sorted((folder / dicom).glob("*.dcm")))
    try:
        header = pydicom.dcmread(files[0], stop_before_pixels=True, specific_tags=TAGS)
    except (IndexError, InvalidDicomError, OSError):
        return None

    def text(tag: str) -> str:
        return str(header.get(tag) or "").strip()

    return _Series(
        folder=folder,
        files=files,
        uid=text("SeriesInstanceUID") or folder.name,
        study=text("StudyInstanceUID"),
        patient=text("PatientID"),
        description=text("SeriesDescription"),
        is_segmentation=text("Modality") in SEGMENTATIONS,
    )


def _place(file: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, target)
