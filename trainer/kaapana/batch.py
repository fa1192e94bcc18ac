"""Turn a batch of Kaapana's series into a dataset in Decathlon layout.

Kaapana's operators leave, for each segmentation of a dataset, a folder named after its SeriesInstanceUID::

    batch/<uid>/get-input/*.dcm                                   the segmentation itself
    batch/<uid>/dcm-converter/<…>.nii.gz                          the image that it refers to
    batch/<uid>/mask2nifti/<…>--<number>--<label>.nii.gz          one binary mask for each label
    batch/<uid>/dcm-converter-contrasts/<uid of a series>.nii.gz  all contrasts of the case, where the dataset lists them

Numbers of labels differ between sites, so labels are told by their names. No UID and no patient's number leaves this
module: cases are named after a hash, in the dataset and in every message.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from nibabel.processing import resample_from_to
from pydicom.errors import InvalidDicomError

from trainer.contract import Exit
from trainer.job import Fault
from trainer.kaapana.gather import SERIES as GATHERED

DESCRIPTION = "dataset.json"
SERIES = ".series"
"""File beside the description with the digest of the series that the dataset was made of."""
ABANDONED = 7 * 24 * 3600.0
"""Seconds. A dataset in the making that was begun so long ago is of a pod that was killed."""
SAME_GRID = 1e-3
"""Affines (mm) that differ by less are one grid."""


@dataclass(frozen=True)
class Element:
    """One segmentation of the batch with its image. ``patient``: a hash, the same for all series of a patient;
    ``contrasts``: description and image of each series that was gathered for it."""

    case: str
    patient: str
    image: Path
    masks: Mapping[str, Path]
    contrasts: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True)
class Folders:
    """Names of the operators' output folders inside an element of the batch."""

    dicom: str
    images: str
    masks: str
    gathered: str = "gather"
    contrasts: str = "dcm-converter-contrasts"


def channels_of(text: str) -> dict[str, str]:
    """Read channels with the pattern that each one's series description fits: ``FLAIR, T1w=*t1*pre*``; without a
    pattern the name must occur in it."""
    found = {}
    for part in text.split(","):
        name, _, pattern = (word.strip() for word in part.partition("="))
        if name:
            found[name] = pattern or f"*{name}*"
    if not found:
        raise Fault(Exit.WRONG_CHANNELS, "Name the contrast, or the contrasts in the federation's order.")
    return found


def digest_of(identifiers: Iterable[str]) -> str:
    """Return a text that changes with the series of a dataset, whatever their order."""
    return hashlib.sha256("\n".join(sorted(identifiers)).encode()).hexdigest()


def is_prepared(folder: Path, identifiers: Sequence[str]) -> bool:
    """Say whether a dataset lies ready: made of just these series, or laid there by hand (then it has no digest)."""
    if not (folder / DESCRIPTION).is_file():
        return False
    try:
        made_of = (folder / SERIES).read_text().strip()
    except FileNotFoundError:
        return True
    return not identifiers or made_of == digest_of(identifiers)


def read_batch(batch: Path, folders: Folders) -> list[Element]:
    """Return the elements of a batch, sorted by case. Raises :class:`Fault` for one without its image or its masks."""
    found = [_element(folder, folders) for folder in sorted(batch.glob("*")) if folder.is_dir()]
    return sorted(found, key=lambda element: element.case)


def labels_of(elements: Iterable[Element], order: Sequence[str]) -> dict[int, str]:
    """Number the labels in the given order, from 1; 0 is the background."""
    found = {label for element in elements for label in element.masks}
    wanted = [name.strip() for name in order if name.strip()]
    if len({_folded(name) for name in wanted}) != len(wanted) or not wanted:
        raise Fault(Exit.LABELS_DIFFER, "Give the labels in order, each once.")
    if unknown := sorted(found - {_folded(name) for name in wanted}):
        raise Fault(Exit.LABELS_DIFFER, f"Found, but not in the list: {', '.join(unknown)}.")
    return {0: "background", **dict(enumerate(wanted, start=1))}


def build(
    elements: Sequence[Element],
    target: Path,
    *,
    title: str,
    channels: Mapping[str, str],
    labels: Mapping[int, str],
    identifiers: Sequence[str] = (),
) -> tuple[int, int]:
    """Write a dataset and return its numbers of training and of validation cases.

    ``channels``: see :func:`channels_of`; a single one is the image that the segmentation refers to. ``labels``: number →
    name, 0 is the background. A voxel in several masks gets the highest number. The folder appears as a whole, in place of
    an older one. Raises :class:`Fault` for labels that are not in the list and for images that
    cannot be read.
    """
    if not elements:
        raise Fault(Exit.NO_CASES, "The batch is empty.")
    numbers = {_folded(name): number for number, name in labels.items()}
    for element in elements:
        if unknown := sorted(set(element.masks) - set(numbers)):
            raise Fault(Exit.LABELS_DIFFER, f"Case {element.case} has {', '.join(unknown)}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for folder in ("imagesTr", "labelsTr"):
            (made / folder).mkdir()
        for element in elements:
            _write_case(element, made, numbers, channels)
        held_out = _held_out(elements)
        document = {
            "name": title,
            "modality": {str(number): name for number, name in enumerate(channels)},
            "labels": {str(number): name for number, name in sorted(labels.items())},
            "training": [_pair(e) for e in elements if e.patient not in held_out],
            "validation": [_pair(e) for e in elements if e.patient in held_out],
        }
        (made / DESCRIPTION).write_text(json.dumps(document, indent=1, ensure_ascii=False))
        if identifiers:
            (made / SERIES).write_text(digest_of(identifiers))
        made.chmod(0o750)
        _put_in_place(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return len(document["training"]), len(document["validation"])


def _element(folder: Path, folders: Folders) -> Element:
    case = f"case-{hashlib.sha256(folder.name.encode()).hexdigest()[:12]}"
    images = sorted((folder / folders.images).glob("*.nii*"))
    if len(images) != 1:
        raise Fault(Exit.MISSING_FILE, f"Case {case}: {len(images)} images, one is needed.")
    masks: dict[str, Path] = {}
    for path in sorted((folder / folders.masks).glob("*.nii*")):
        parts = path.name.split(".nii")[0].split("--")
        if len(parts) < 3:
            raise Fault(Exit.WRONG_LABEL, f"Case {case}: a mask does not say which label it has.")
        masks[_folded("--".join(parts[2:]))] = path
    if not masks:
        raise Fault(Exit.EMPTY_MASK, f"Case {case} has no mask.")
    patient = _patient(folder / folders.dicom, fallback=case)
    return Element(case, patient, images[0], masks, _contrasts(folder, folders))


def _contrasts(folder: Path, folders: Folders) -> tuple[tuple[str, Path], ...]:
    try:
        described = json.loads((folder / folders.gathered / GATHERED).read_bytes())
    except FileNotFoundError:
        return ()
    found = {path.name.split(".nii")[0]: path for path in (folder / folders.contrasts).glob("*.nii*")}
    return tuple((str(described[uid]), found[uid]) for uid in sorted(described) if uid in found)


def _patient(folder: Path, *, fallback: str) -> str:
    """Return a hash of the patient's number in the segmentation's own header; the case, where there is none."""
    for path in sorted(folder.glob("*.dcm"))[:1]:
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
        except (InvalidDicomError, OSError):
            break
        number = str(header.get("PatientID") or "")
        if number:
            return hashlib.sha256(number.encode()).hexdigest()
    return fallback


def _held_out(elements: Sequence[Element]) -> set[str]:
    """Choose a fifth of the patients, at least one, the same ones at every time. One patient alone trains."""
    patients = sorted({element.patient for element in elements}, key=lambda p: hashlib.sha256(p.encode()).digest())
    return set(patients[: max(1, round(len(patients) / 5))]) if len(patients) > 1 else set()


def _picked(element: Element, channels: Mapping[str, str]) -> list[Path]:
    """Return the image of each channel. Raises :class:`Fault` where not exactly one series fits each."""
    if len(channels) == 1:
        return [element.image]
    picked = []
    for name, pattern in channels.items():
        fits = [path for words, path in element.contrasts if fnmatchcase(words.casefold(), pattern.casefold())]
        if len(fits) != 1 or fits[0] in picked:
            what = (
                f"{len(fits)} series fit {name}"
                if len(fits) != 1
                else f"the series of {name} is another contrast's, too"
            )
            raise Fault(
                Exit.WRONG_CHANNELS,
                f"Case {element.case}: {what}. The dataset must list one series for each contrast; fp-offer takes "
                "name=pattern of its description.",
            )
        picked.append(fits[0])
    return picked


def _loaded(path: Path, case: str) -> Any:
    image: Any = nibabel.load(path)
    if image.ndim == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if image.ndim != 3:
        raise Fault(Exit.WRONG_CHANNELS, f"Case {case}: an image has {image.ndim} dimensions.")
    return image


def _on_grid_of(image: Any, other: Any, **how: Any) -> Any:
    if other.shape == image.shape and np.allclose(other.affine, image.affine, atol=SAME_GRID):
        return other
    return resample_from_to(other, image, **how)


def _write_case(element: Element, made: Path, numbers: Mapping[str, int], channels: Mapping[str, str]) -> None:
    picked = _picked(element, channels)
    try:
        image = _loaded(element.image, element.case)
        if len(picked) == 1:
            voxels, kind = np.asanyarray(image.dataobj), image.get_data_dtype()
        else:
            others = (_on_grid_of(image, _loaded(path, element.case), order=1) for path in picked)
            voxels = np.stack([np.asarray(other.dataobj, np.float32) for other in others], axis=-1)
            kind = voxels.dtype
        segmentation = np.zeros(image.shape, np.uint8)
        for label in sorted(element.masks, key=lambda name: numbers[name]):
            # "constant" would cut half a voxel off at the edges of the mask.
            mask = _on_grid_of(image, nibabel.load(element.masks[label]), order=0, mode="grid-constant")
            segmentation[np.asanyarray(mask.dataobj) > 0] = numbers[label]
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise Fault(Exit.UNREADABLE_IMAGE, f"Case {element.case}.") from error
    # Written anew, not copied: a header of the hospital may say more than geometry.
    clean = nibabel.Nifti1Image(voxels, image.affine)
    clean.set_data_dtype(kind)
    nibabel.save(clean, made / "imagesTr" / f"{element.case}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(segmentation, image.affine), made / "labelsTr" / f"{element.case}.nii.gz")


def _pair(element: Element) -> dict[str, str]:
    return {"image": f"imagesTr/{element.case}.nii.gz", "label": f"labelsTr/{element.case}.nii.gz"}


def _sweep(target: Path) -> None:
    """Delete what killed pods left half made."""
    for left in target.parent.glob(f".{target.name}-*"):
        with contextlib.suppress(FileNotFoundError):  # another pod swept it
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


def _put_in_place(made: Path, target: Path) -> None:
    old = made.with_name(f"{made.name}-old")
    with contextlib.suppress(FileNotFoundError):
        target.rename(old)
    try:
        os.rename(made, target)  # noqa: PTH104  pathlib's has no way to say that a folder in the way is an error
    except OSError:
        # Another run was faster with the same dataset: its work is as good as ours.
        if not (target / DESCRIPTION).is_file():
            raise
    shutil.rmtree(old, ignore_errors=True)


def _folded(name: str) -> str:
    return name.strip().casefold()
