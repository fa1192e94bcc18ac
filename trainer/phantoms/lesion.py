"""A tumour: where it grows, how it pushes the tissue aside, and its labels as Task01 numbers them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from trainer.phantoms.anatomy import Frame, Generator, apply, rotation, smooth_noise
from trainer.phantoms.template import Tissues

EDEMA, NON_ENHANCING, ENHANCING = 1, 2, 3
LABELS = {0: "background", EDEMA: "edema", NON_ENHANCING: "non-enhancing tumor", ENHANCING: "enhancing tumour"}


@dataclass(frozen=True)
class Tumours:
    """What a site's tumours are like: median outer radius (with edema) and its limits in mm, and the share
    of cases without any enhancement."""

    radius: float = 26.0
    smallest: float = 14.0
    largest: float = 45.0
    non_enhancing: float = 0.1


@dataclass(frozen=True)
class Lesion:
    """One tumour: ``centre`` (3,) in mm from the middle of the field of view, ``radius`` with edema and
    ``core`` radius without, both in mm."""

    centre: np.ndarray
    radius: float
    core: float
    enhances: bool

    def push(self, frame: Frame) -> np.ndarray:
        """Mass effect: how far towards the centre each voxel has to look for its tissue, (3, N, N, N) in mm."""
        offset = frame.grid() - self.centre.reshape(3, 1, 1, 1)
        reach = np.linalg.norm(offset, axis=0) / np.float32(1.2 * self.radius)
        return -0.35 * np.exp(-(reach**2)) * offset


def seed_lesion(rng: Generator, frame: Frame, *, wm: np.ndarray, brain: np.ndarray, tumours: Tumours) -> Lesion:
    """Draw a tumour with its centre in the white matter, away from the brain's surface."""
    depth = ndimage.distance_transform_edt(brain > 0.5) * frame.voxel
    chance = (wm.astype(np.float64) ** 2 * np.clip((depth - 8) / 12, 0, 1)).ravel()
    chosen = np.searchsorted(np.cumsum(chance), rng.random() * chance.sum(), side="right")
    place = np.unravel_index(min(int(chosen), chance.size - 1), wm.shape)
    radius = float(np.clip(tumours.radius * np.exp(rng.normal(0, 0.25)), tumours.smallest, tumours.largest))
    return Lesion(
        centre=((np.array(place) - (frame.size - 1) / 2) * frame.voxel).astype(np.float32),
        radius=radius,
        core=radius * rng.uniform(0.5, 0.75),
        enhances=bool(rng.random() >= tumours.non_enhancing),
    )


def labels(rng: Generator, frame: Frame, tissues: Tissues, lesion: Lesion) -> np.ndarray:
    """Draw the tumour's outline: uint8 (N, N, N) with Task01's labels.

    Edema spreads along white matter and stops at fluid; the enhancing rim closes around a non-enhancing
    centre. At least the voxel at the centre is tumour.
    """
    distance = _uneven_distance(rng, frame, lesion.centre)
    outer, inner = (_ragged(rng, frame.size) for _ in range(2))
    brain = tissues.brain > 0.5
    spread = distance / lesion.radius * (1 + 0.18 * outer) / (0.8 + 0.45 * tissues.wm)
    edema = (spread < 1) & brain & (tissues.csf < 0.5)
    depth = distance / lesion.core * (1 + 0.2 * inner)
    core = (depth < 1) & brain
    core.flat[np.argmin(distance)] = True
    core = _around(core, distance)

    label = np.zeros(brain.shape, dtype=np.uint8)
    label[_around(edema | core, distance)] = EDEMA
    label[core] = NON_ENHANCING
    if lesion.enhances:
        # A rim thinner than a voxel would be gone; a core of one voxel enhances as a whole.
        thickness = max(0.38, 1.1 * frame.voxel / lesion.core)
        rim = core & (depth > 1 - thickness * (1 + 0.25 * outer))
        label[rim if rim.any() else core] = ENHANCING
    return label


def _around(tumour: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The part of ``tumour`` that hangs together with its centre: no specks far away."""
    parts, _ = ndimage.label(tumour)
    return parts == parts.flat[np.argmin(distance)]


def _ragged(rng: Generator, size: int) -> np.ndarray:
    """Two octaves of noise with unit variance."""
    noise = smooth_noise(rng, 8, size) + 0.5 * smooth_noise(rng, 16, size)
    return noise / noise.std()


def _uneven_distance(rng: Generator, frame: Frame, centre: np.ndarray) -> np.ndarray:
    """Distance from ``centre`` in mm, measured along random axes with unequal rulers."""
    axes = rotation(rng.uniform(-np.pi, np.pi, 3))
    rulers = np.exp(rng.normal(0, 0.18, 3))
    rulers /= np.cbrt(rulers.prod())
    offset = frame.grid() - centre.reshape(3, 1, 1, 1)
    return np.linalg.norm(apply((rulers * axes).T.astype(np.float32), offset), axis=0)
