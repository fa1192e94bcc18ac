"""NIfTI files as others have written them: what the header says, and the whole image, read without torch."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.exceptions import DTypePromotionError
from numpy.typing import NDArray

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
CONTRADICT = "the headers of image and segmentation contradict each other about orientation or place"


def read_header(path: Path) -> tuple[tuple[int, ...], tuple[float, ...], NDArray[np.float64]]:
    """Return the shape in voxels (with channels last, if any), the first three spacings in mm, and the affine [4, 4].

    Raises ``FileNotFoundError`` and what :data:`UNREADABLE` lists."""
    file = nibabel.load(path)
    shape = tuple(int(edge) for edge in file.header.get_data_shape())
    return shape, tuple(float(mm) for mm in file.header.get_zooms()[:3]), np.asarray(file.affine)


def contradict(
    image: NDArray[np.float64], image_shape: tuple[int, ...], label: NDArray[np.float64], label_shape: tuple[int, ...]
) -> bool:
    """Say whether the headers of a pair, affine [4, 4] and shape in voxels, put its voxels in different places.

    A pair stored in one orientation lies voxel upon voxel, whatever else its headers say. Of one that is not, both headers
    must be true, for each turns its own file: its corners must lie within a voxel of each other.
    """
    ways = io_orientation(image), io_orientation(label)
    if np.array_equal(*ways) or np.isnan(ways).any():  # no number: no orientation, which is told elsewhere
        return False
    turned = image @ inv_ornt_aff(ways[0], image_shape[:3]), label @ inv_ornt_aff(ways[1], label_shape[:3])
    edges = np.array(image_shape[:3])[ways[0][:, 0].argsort()] - 1
    corners = np.array([[*edges * where, 1] for where in np.ndindex(2, 2, 2)]).T
    apart = np.linalg.norm(((turned[0] - turned[1]) @ corners)[:3], axis=0).max()
    return bool(apart > np.linalg.norm(turned[0][:3, :3], axis=0).max())


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
