"""The average brain that every phantom is bent from: MNI152 T1 with its grey and white matter maps.

The maps lie inside the installed ``nilearn`` wheel and are read by path; nilearn itself is never imported.
"""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

FIELD_OF_VIEW = 192.0
"""Edge of the cube that a phantom shows, in mm: a brain and a little air."""
CENTRE = (98, 118, 78)
"""Voxel of the 1 mm maps in the middle of the field of view: on the midline, in the middle of the brain."""
GRID = 96
SPACING = FIELD_OF_VIEW / GRID
"""The reduced maps: 96³ voxels of 2 mm."""
T1_OF_TISSUE = {"gm": 0.67, "wm": 0.88, "csf": 0.17}
"""Least-squares fit of the T1 template by its tissues; what the fit leaves over is the texture."""

_FILES = {
    name: f"nilearn/datasets/data/mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")
}


class TemplateMissing(Exception):
    """The MNI152 maps are not installed. ``pip install --no-deps -r requirements-demo.txt`` brings them."""

    def __init__(self) -> None:
        super().__init__(self.__doc__)


@dataclass(frozen=True)
class Tissues:
    """Shares of tissue in [0, 1], the texture of T1 that they do not explain, and how much of a voxel is brain.
    All float32 of one shape (X, Y, Z)."""

    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    texture: np.ndarray
    brain: np.ndarray


@dataclass(frozen=True)
class Template:
    """The maps on the 2 mm grid, float32 (4, 96, 96, 96): gm, wm, texture, brain."""

    maps: np.ndarray

    def white_matter(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sample only white matter and brain, each (X, Y, Z): enough to place a tumour."""
        wm, brain = (_sampled(self.maps[i], positions) for i in (1, 3))
        return wm, brain

    def at(self, positions: np.ndarray) -> Tissues:
        """Sample at ``positions`` (3, X, Y, Z) in mm from the middle of the field of view; outside it is air."""
        gm, wm, texture, brain = (_sampled(tissue, positions) for tissue in self.maps)
        return Tissues(gm=gm, wm=wm, csf=np.clip(brain - gm - wm, 0, 1), texture=texture, brain=brain)


def prepare(path: Path) -> None:
    """Reduce the installed 1 mm maps to the 2 mm grid and keep them in ``path`` (npz); nothing to do if it is there.

    Raises :class:`TemplateMissing`.
    """
    if path.exists():
        return
    try:
        wheel = importlib.metadata.distribution("nilearn")
        whole = {name: np.asarray(nibabel.load(wheel.locate_file(file)).dataobj) for name, file in _FILES.items()}
    except (importlib.metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise TemplateMissing from error
    maps = {name: _reduced(volume) for name, volume in whole.items()}
    maps["brain"] = _reduced(np.where(whole["t1"] > 0, np.uint8(255), np.uint8(0)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        np.savez_compressed(file, **maps)
    partial.replace(path)


@cache
def load(path: Path, voxel: float) -> Template:
    """Read what :func:`prepare` kept, blurred to what a voxel of ``voxel`` mm sees (partial volume)."""
    with np.load(path, allow_pickle=False) as kept:
        t1, gm, wm, brain = (kept[name].astype(np.float32) / 255 for name in ("t1", "gm", "wm", "brain"))
    csf = np.clip(brain - gm - wm, 0, 1)
    texture = t1 - T1_OF_TISSUE["gm"] * gm - T1_OF_TISSUE["wm"] * wm - T1_OF_TISSUE["csf"] * csf
    sigma = 0.35 * np.sqrt(max(0.0, (voxel / SPACING) ** 2 - 1))
    return Template(np.stack([ndimage.gaussian_filter(m, sigma) for m in (gm, wm, texture * (brain > 0.5), brain)]))


def _sampled(volume: np.ndarray, positions: np.ndarray) -> np.ndarray:
    index = positions / np.float32(SPACING) + np.float32((GRID - 1) / 2)
    return ndimage.map_coordinates(volume, index, order=1, prefilter=False)


def _reduced(volume: np.ndarray) -> np.ndarray:
    """Cut the field of view out of a 1 mm volume and average 2 × 2 × 2 voxels: uint8 (96, 96, 96)."""
    edge = int(FIELD_OF_VIEW)
    cube = np.zeros((edge,) * 3, dtype=np.uint8)
    starts = [centre - edge // 2 for centre in CENTRE]
    source = tuple(slice(max(0, s), min(n, s + edge)) for s, n in zip(starts, volume.shape, strict=True))
    target = tuple(slice(cut.start - s, cut.stop - s) for cut, s in zip(source, starts, strict=True))
    cube[target] = volume[source]
    blocks = cube.reshape(GRID, 2, GRID, 2, GRID, 2).mean(axis=(1, 3, 5), dtype=np.float32)
    return np.rint(blocks).astype(np.uint8)
