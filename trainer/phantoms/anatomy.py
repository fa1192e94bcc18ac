"""One patient's anatomy: where each voxel of a phantom lies in the template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from trainer.phantoms.template import FIELD_OF_VIEW

Generator = np.random.Generator


@dataclass(frozen=True)
class Frame:
    """A cube of ``size``³ voxels over the field of view."""

    size: int

    @property
    def voxel(self) -> float:
        """Edge of a voxel in mm."""
        return FIELD_OF_VIEW / self.size

    def grid(self) -> np.ndarray:
        """Positions of the voxel centres in mm from the middle: float32 (3, N, N, N)."""
        axis = ((np.arange(self.size) - (self.size - 1) / 2) * self.voxel).astype(np.float32)
        return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))

    def affine(self) -> np.ndarray:
        """Voxel index to mm, RAS+, float64 (4, 4)."""
        affine = np.diag([self.voxel, self.voxel, self.voxel, 1.0])
        affine[:3, 3] = -(self.size - 1) / 2 * self.voxel
        return affine


@dataclass(frozen=True)
class Pose:
    """The patient's own shape: ``positions`` (3, N, N, N) of the voxels in the template, and the linear part
    ``matrix`` (3, 3), which carries a small shift of the patient's tissue into the template."""

    positions: np.ndarray
    matrix: np.ndarray

    def displaced(self, shift: np.ndarray) -> np.ndarray:
        """Positions after each voxel looks ``shift`` (3, N, N, N) mm further in the patient."""
        return self.positions + apply(self.matrix, shift)


def smooth_noise(rng: Generator, knots: int, size: int) -> np.ndarray:
    """A random field with ``knots``³ independent values, about unit variance, smooth between: float32 (N, N, N)."""
    field = rng.standard_normal((knots, knots, knots), dtype=np.float32)
    spline = _spline(knots, size)
    for _ in range(3):
        field = np.einsum("ni,ijk->jkn", spline, field)
    return field


@cache
def _spline(knots: int, size: int) -> np.ndarray:
    """Weights (size, knots) that interpolate along one axis. Three such products are an order of magnitude
    faster than ``zoom`` of a volume, and einsum without BLAS adds in the same order on every machine."""
    knot = np.eye(knots, dtype=np.float32)
    return ndimage.zoom(knot, (size / knots, 1), order=2, mode="nearest", grid_mode=True)


def pose(rng: Generator, frame: Frame) -> Pose:
    """Draw a head: tilted by a few degrees, of its own size and form, left and right swapped half of the time.

    The mean scale is below one because the MNI152 average is larger than most brains; the clipping keeps
    every brain inside the field of view.
    """
    tilt = rotation(np.deg2rad(rng.normal(0, 6, 3).clip(-12, 12)))
    scale = (0.92 * (1 + rng.normal(0, 0.04, 3)) * (1 + rng.normal(0, 0.03))).clip(0.82, 0.99)
    scale[0] *= rng.choice([-1, 1])
    matrix = (tilt / scale).astype(np.float32)
    shift = rng.normal(0, 2, (3, 1, 1, 1)).clip(-4, 4).astype(np.float32)
    bend = np.stack(
        [3.5 * smooth_noise(rng, 6, frame.size) + 1.2 * smooth_noise(rng, 12, frame.size) for _ in range(3)]
    )
    return Pose(apply(matrix, frame.grid()) + shift + bend, matrix)


def apply(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Multiply ``vectors`` (3, X, Y, Z) by ``matrix`` (3, 3)."""
    return np.einsum("ij,jxyz->ixyz", matrix, vectors)


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation by ``angles`` (3,) in radians about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
