"""Images that no scanner writes: refused as unreadable, and nothing is unpacked beyond what their headers say."""

from __future__ import annotations

import gzip
import random
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest

from trainer.headers import UNREADABLE, read_image

VOXELS = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
WHOLE = nibabel.Nifti1Image(VOXELS, np.eye(4)).to_bytes()
FIELDS = {"dim": (40, 56), "datatype": (70, 72), "bitpix": (72, 74), "pixdim": (76, 108), "vox_offset": (108, 112)}


def read(data: bytes, folder: Path, *, name: str = "image.nii.gz") -> np.ndarray:
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return np.asarray(read_image(folder / name).get_fdata(dtype=np.float32, caching="unchanged"))


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
@pytest.mark.parametrize("data", [WHOLE, WHOLE + bytes(1000), nibabel.Nifti2Image(VOXELS, np.eye(4)).to_bytes()])
def test_images_are_read_whole(tmp_path, data, name):
    np.testing.assert_array_equal(read(data, tmp_path, name=name), VOXELS)


def test_a_file_that_was_compressed_in_pieces_is_read_whole(tmp_path):
    (tmp_path / "image.nii.gz").write_bytes(gzip.compress(WHOLE[:200]) + gzip.compress(WHOLE[200:]))
    np.testing.assert_array_equal(read_image(tmp_path / "image.nii.gz").get_fdata(), VOXELS)


@pytest.mark.parametrize("field", FIELDS)
def test_a_damaged_header_is_an_unreadable_image_and_no_unknown_error(tmp_path, field):
    luck = random.Random(field)
    for _ in range(100):
        data = bytearray(WHOLE)
        data[luck.randrange(*FIELDS[field])] = luck.randrange(256)
        with suppress(*UNREADABLE):  # some damage only changes what is read
            read(bytes(data), tmp_path, name="image.nii")


def claims(**fields: object) -> bytes:
    header = nibabel.Nifti1Header(WHOLE[:348])
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + WHOLE[348:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        WHOLE[:200],
        WHOLE[:-1],
        claims(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
        claims(dim=[7, 32767, 32767, 32767, 32767, 32767, 32767, 32767]),
        claims(dim=[3, 4, 4, 8, 1, 1, 1, 1]),
        claims(dim=[3, -4, 4, 4, 1, 1, 1, 1]),
        claims(vox_offset=3e38),
        claims(datatype=999),
        claims(datatype=128, bitpix=24),
    ],
    ids=["empty", "half a header", "cut", "huge", "seven dimensions", "more than there is", "negative", "far", "type", "colours"],
)  # fmt: skip
def test_what_an_image_cannot_be_is_refused(tmp_path, data):
    with pytest.raises(UNREADABLE):
        read(data, tmp_path)


def test_a_small_file_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    press = zlib.compressobj(1, wbits=31)
    pieces = [press.compress(WHOLE), *(press.compress(bytes(2**24)) for _ in range(8)), press.flush()]
    (tmp_path / "image.nii.gz").write_bytes(b"".join(pieces))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than the header says"):
            read_image(tmp_path / "image.nii.gz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
