"""Read a case from NIfTI and bring it into the form that every site and the downloaded bundle share.

Channels in the task's order, axes to RAS, resampled to the plan's spacing, each channel normalised to mean 0 and
deviation 1 over its voxels that are not zero. What is wrong with a file is told as a :class:`Fault` with its name.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, NormalizeIntensity, Orientation, Spacing
from torch import Tensor

from trainer.cases import Case, case_name
from trainer.contract import Exit
from trainer.headers import CONTRADICT, UNREADABLE, contradict, read_image
from trainer.job import Fault

AXES = "RAS"
ROUNDING = 1e-3
"""So far may a label be from its number: some tools store a segmentation as floats, or scaled."""
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


@dataclass(frozen=True)
class Recipe:
    """How cases are prepared. ``order``: where each channel of the task lies in the file; ``labels``: the numbers
    that may occur; ``spacing``: mm per voxel, ``None`` = as stored."""

    order: tuple[int, ...]
    labels: tuple[int, ...]
    spacing: tuple[float, float, float] | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scan:
    """An image without a segmentation. ``voxels``: float32 [channel, x, y, z] as the network sees it; ``header``: the
    file's."""

    voxels: Tensor
    header: nibabel.Nifti1Header
    placed: MetaTensor
    steps: tuple[InvertibleTransform, ...]

    def on_its_grid(self, values: Tensor) -> Tensor:
        """Bring float values [n, x, y, z] on the grid of ``voxels`` back to the file's own, linearly."""
        back = MetaTensor(values, meta=self.placed.meta, applied_operations=self.placed.applied_operations)
        for step in reversed(self.steps):
            back = step.inverse(back)
        return back.as_tensor()


def read_scan(path: Path, recipe: Recipe) -> Scan:
    """Read an image that has no segmentation, as :func:`read_case` reads those that have.

    Raises :class:`Fault` MISSING_FILE, UNREADABLE_IMAGE, WRONG_CHANNELS, NOT_FINITE.
    """
    name = case_name(path)
    values, affine, header = _read(path, name)
    channels = _channels(values, path, name, recipe)
    orientation = Orientation(axcodes=AXES, labels=AXIS_LABELS)
    image = _oriented(channels, affine, path, name, orientation)
    steps: tuple[InvertibleTransform, ...] = (orientation,)
    if recipe.spacing is not None:
        spacing = Spacing(recipe.spacing, mode="bilinear")
        image = spacing(image)
        steps = (orientation, spacing)
    return Scan(_normalised(image), header, image, steps)


def read_case(case: Case, recipe: Recipe) -> tuple[Tensor, Tensor, tuple[float, ...], bytes]:
    """Return image float32 [channel, x, y, z], label uint8 [x, y, z], the spacing in mm, and :func:`content_of` the image.

    Raises :class:`Fault` MISSING_FILE, UNREADABLE_IMAGE, WRONG_CHANNELS, NOT_FINITE, WRONG_LABEL, SHAPE_MISMATCH.
    """
    values, affine, _ = _read(case.image, case.name)
    channels = _channels(values, case.image, case.name, recipe)
    image = _oriented(channels, affine, case.image, case.name)
    numbers, label_affine = _label(case, recipe)
    label = _oriented(numbers[np.newaxis].astype(np.float32), label_affine, case.label, case.name)
    if image.shape[1:] != label.shape[1:]:
        sizes = f"{'×'.join(map(str, image.shape[1:]))} and segmentation {'×'.join(map(str, label.shape[1:]))} voxels"
        raise Fault(Exit.SHAPE_MISMATCH, f"Case {case.name}: image {sizes}.")
    if contradict(affine, values.shape, label_affine, numbers.shape):
        raise Fault(Exit.SHAPE_MISMATCH, f"Case {case.name}: {CONTRADICT}.")
    # the voxels of the pair belong together, even where the headers disagree by a rounding error
    label.affine = image.affine
    if recipe.spacing is not None:
        image = Spacing(recipe.spacing, mode="bilinear")(image)
        label = Spacing(recipe.spacing, mode="nearest")(label)
    spacing = tuple(float(mm) for mm in image.pixdim)
    return _normalised(image), label.as_tensor()[0].to(torch.uint8), spacing, content_of(channels)


def content_of(channels: np.ndarray) -> bytes:
    """Return the SHA-256 by which an image is known again, from its voxels [channel, x, y, z] before any resampling.

    It is taken over the sorted values of each channel. So a copy has the same one whatever its name, its header, its
    compression or data type, and however it is turned; one that was resampled, cropped or scaled has another.
    """
    digest = hashlib.sha256()
    for channel in channels:
        digest.update(np.sort(channel, axis=None) + np.float32(0))  # the sum makes one zero of -0 and +0
    return digest.digest()


def _normalised(image: MetaTensor) -> Tensor:
    return NormalizeIntensity(nonzero=True, channel_wise=True)(image.as_tensor())


def _channels(values: np.ndarray, path: Path, name: str, recipe: Recipe) -> np.ndarray:
    """Return the voxels [channel, x, y, z] in the task's order."""
    if values.ndim == 3:
        values = values[..., np.newaxis]
    if values.ndim != 4 or values.shape[-1] != len(recipe.order):
        found = values.shape[-1] if values.ndim == 4 else f"{values.ndim} dimensions"
        raise Fault(Exit.WRONG_CHANNELS, f"Case {name}: found {found}, expected {len(recipe.order)}.")
    if not np.isfinite(values).all():
        raise Fault(Exit.NOT_FINITE, f"Case {name}: {path.name}.")
    return np.moveaxis(values, -1, 0)[list(recipe.order)]


def _label(case: Case, recipe: Recipe) -> tuple[np.ndarray, np.ndarray]:
    """Return the label numbers uint8 [x, y, z] and the affine [4, 4], as the file has them."""
    values, affine, _ = _read(case.label, case.name, what="segmentation")
    if values.ndim == 4 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 3:
        raise Fault(Exit.SHAPE_MISMATCH, f"Case {case.name}: the segmentation has {values.ndim} dimensions.")
    known = np.isin(np.arange(256), recipe.labels)
    with np.errstate(invalid="ignore"):
        numbers = np.rint(values).astype(np.uint8)
    right = known[numbers] & (np.abs(values - numbers) < ROUNDING)
    if not right.all():
        raise Fault(Exit.WRONG_LABEL, f"Case {case.name}: {case.label.name} contains {values[~right][0]:g}.")
    return numbers, affine


def _read(path: Path, name: str, *, what: str = "image") -> tuple[np.ndarray, np.ndarray, nibabel.Nifti1Header]:
    """Return values float32, affine 4×4 and header of a NIfTI file."""
    try:
        file = read_image(path)
        values = np.asarray(file.get_fdata(dtype=np.float32, caching="unchanged"))
        return values, np.asarray(file.affine), file.header
    except FileNotFoundError as error:
        raise Fault(Exit.MISSING_FILE, f"Case {name}: {what} {path.name}.") from error
    except UNREADABLE as error:
        raise Fault(Exit.UNREADABLE_IMAGE, f"Case {name}: {what} {path.name}.") from error


def _oriented(
    values: np.ndarray, affine: np.ndarray, path: Path, name: str, orientation: Orientation | None = None
) -> MetaTensor:
    orientation = orientation or Orientation(axcodes=AXES, labels=AXIS_LABELS)
    try:
        return orientation(MetaTensor(torch.from_numpy(np.ascontiguousarray(values)), affine=torch.from_numpy(affine)))
    except (ValueError, np.linalg.LinAlgError) as error:
        raise Fault(Exit.UNREADABLE_IMAGE, f"Case {name}: {path.name} has no valid orientation.") from error
