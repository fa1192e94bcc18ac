"""The number formats of safetensors that models here may use, and the way from each to float64 and back.

Sums run in float64 and are rounded once, to nearest with ties to even, into the stored format.
bfloat16 has no numpy type; its two conversions are a dozen lines here, which is less than a dependency.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64s = NDArray[np.float64]


class Family(Enum):
    FLOAT = "float"
    INTEGER = "integer"
    BOOLEAN = "boolean"


@dataclass(frozen=True)
class DType:
    """A format: its safetensors name, bytes per element, and the little-endian numpy type of its stored form."""

    name: str
    size: int
    family: Family
    stored: np.dtype[Any]


def _dtype(name: str, stored: str, family: Family) -> DType:
    return DType(name=name, size=np.dtype(stored).itemsize, family=family, stored=np.dtype(stored))


_IN_FILE_ORDER = (
    _dtype("U64", "<u8", Family.INTEGER),
    _dtype("I64", "<i8", Family.INTEGER),
    _dtype("F64", "<f8", Family.FLOAT),
    _dtype("F32", "<f4", Family.FLOAT),
    _dtype("U32", "<u4", Family.INTEGER),
    _dtype("I32", "<i4", Family.INTEGER),
    _dtype("BF16", "<u2", Family.FLOAT),
    _dtype("F16", "<f2", Family.FLOAT),
    _dtype("U16", "<u2", Family.INTEGER),
    _dtype("I16", "<i2", Family.INTEGER),
    _dtype("I8", "<i1", Family.INTEGER),
    _dtype("U8", "<u1", Family.INTEGER),
    _dtype("BOOL", "<u1", Family.BOOLEAN),
)
DTYPES = {dtype.name: dtype for dtype in _IN_FILE_ORDER}
FILE_RANK = {dtype.name: rank for rank, dtype in enumerate(_IN_FILE_ORDER)}
"""Widest first, as the safetensors library lays its files out: so every tensor is aligned to its own width."""


def widened(stored: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Return stored floats as an array that numpy computes with; exact, and only a view unless bfloat16."""
    if dtype.name == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored


def narrowed(values: Float64s, dtype: DType) -> NDArray[Any]:
    """Round float64 values once into the stored form; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        if dtype.name == "BF16":
            return _bfloat16_bits(values)
        return values.astype(dtype.stored)


def _bfloat16_bits(values: Float64s) -> NDArray[np.uint16]:
    """Round to bfloat16 by way of float32 rounded to odd, without which two roundings could add up.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding
    to odd", IEEE Transactions on Computers 57 (2008): rounding to odd with two more bits makes the second
    rounding right.
    """
    near = values.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= np.abs(back) > np.abs(values)  # towards zero: one step less in magnitude
    bits |= back != values  # odd where something was cut off
    finite = np.isfinite(values)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    special = values.astype(np.float32).view(np.uint32) >> np.uint32(16)
    return np.where(finite, rounded, special | (np.isnan(values) * np.uint32(0x40))).astype(np.uint16)
