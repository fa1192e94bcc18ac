"""What a NIfTI header says, read without the voxels and without torch."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel
from nibabel.filebasedimages import ImageFileError

UNREADABLE = (ImageFileError, OSError, EOFError, ValueError, zlib.error)
"""What nibabel raises for a damaged file, after FileNotFoundError."""


def read_header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the shape in voxels (with channels last, if any) and the first three spacings in mm.

    Raises ``FileNotFoundError`` and what :data:`UNREADABLE` lists."""
    header = nibabel.load(path).header
    return tuple(int(edge) for edge in header.get_data_shape()), tuple(float(mm) for mm in header.get_zooms()[:3])
