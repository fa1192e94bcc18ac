"""NIfTI files as others have written them: what the header says, and the whole image, read without torch."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import nibabel
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.exceptions import DTypePromotionError

UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    DTypePromotionError,  # colours where numbers belong
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
"""What nibabel raises for a damaged file, after FileNotFoundError."""
NIFTI2 = ((540).to_bytes(4, "little"), (540).to_bytes(4, "big"))
"""First bytes of a NIfTI-2 file, its header's size; NIfTI-1 has 348."""
LARGEST = 2**32
"""Bytes of an image, decompressed, at most: no scanner writes so many, but a damaged header may claim them."""
PADDING = 2**20
"""Bytes that may follow the voxels."""


def read_header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the shape in voxels (with channels last, if any) and the first three spacings in mm.

    Raises ``FileNotFoundError`` and what :data:`UNREADABLE` lists."""
    header = nibabel.load(path).header
    return tuple(int(edge) for edge in header.get_data_shape()), tuple(float(mm) for mm in header.get_zooms()[:3])


def read_image(path: Path) -> nibabel.Nifti1Image:
    """Return an image with its voxels, still as they are stored. Of a compressed file no more is kept than its header says.

    Raises what :func:`read_header` does.
    """
    # all of it, to the end: nibabel stops before the checksum and would take damaged voxels for values
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.read(540)
        kind = nibabel.Nifti2Image if head[:4] in NIFTI2 else nibabel.Nifti1Image
        header = kind.header_class(head[: kind.header_class.sizeof_hdr])
        size = header.get_data_offset() + math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
        if not 0 < size <= LARGEST:
            raise ValueError(f"the header claims {size} bytes")
        data = head + file.read(size + PADDING - len(head))
        if file.read(1):
            raise ValueError("there is more than the header says")
    if len(data) < size:
        raise EOFError
    return kind.from_bytes(data)
