"""Judge one update before it may touch the global model: keys, shapes, formats, finite values, distance.

An update is read once, in pieces, beside the global model it started from; neither is ever held whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedportal.aggregation.dtypes import DTYPES, Family, Float64s, widened
from fedportal.aggregation.errors import AggregationRefused, WeightsError, quoted
from fedportal.aggregation.weights import CHUNK, Entry, Header, Role, WeightsFile, layout

VARIANCE = "running_var"
"""How torch ends the names of a normalisation's variances. One below zero would be NaN at every site."""


@dataclass(frozen=True)
class Admission:
    """The verdict on an update, with the reason as a sentence that names the key where it is not admitted.

    ``norm``: Euclidean length of update − reference over the trained parameters (buffers and counters move at
    scales of their own and are not in it). ``relative_norm``: the same as a share of the reference's own
    length (of 1 where that is 0). ``cosine``: of update and reference, 1 = same direction. All 0 when the
    verdict fell before they were known.
    """

    admitted: bool
    reason: str = ""
    norm: float = 0.0
    relative_norm: float = 0.0
    cosine: float = 0.0


def admit(update: Path, reference: Path, *, max_relative_norm: float | None = None) -> Admission:
    """Judge the update in a file against the global model that it was trained from.

    A bad update is a verdict, not an error. Raises :class:`AggregationRefused` when the update is sound and
    the reference is not. Compared with itself, a file is judged for what it is alone.
    """
    try:
        with WeightsFile(update) as weights, _opened_reference(reference) as base:
            return _verdict(weights, base, max_relative_norm)
    except WeightsError as error:
        return Admission(admitted=False, reason=error.reason)


def admit_state(state: Path, model: Path, entries: Sequence[str]) -> Admission:
    """Judge an optimizer's state: ``entries`` for each trained parameter of the global model and nothing else, finite.

    ``step`` is one count, the others have the parameter's shape; those named ``…_sq`` are means of squares. An honest
    trainer divides by their roots: a negative number would make its weights NaN.
    """
    try:
        with WeightsFile(state) as weights, _opened_reference(model) as base:
            reason = _state_of(base.header, entries).difference(weights.header) or _why_no_state(weights)
            return Admission(admitted=not reason, reason=reason)
    except WeightsError as error:
        return Admission(admitted=False, reason=error.reason)


def _why_no_state(weights: WeightsFile) -> str:
    for key, entry in weights.header.entries.items():
        if entry.dtype.family is Family.FLOAT and not all(np.isfinite(part).all() for part in weights.chunks(key)):
            return f"{quoted(key)} is not finite."
        if key.partition(".")[0].endswith("_sq") and _has_negative(weights, key):
            return f"{quoted(key)} is a mean of squares, but below zero."
    return ""


def _has_negative(weights: WeightsFile, key: str) -> bool:
    return any((part < 0).any() for part in weights.chunks(key))


def _state_of(model: Header, entries: Sequence[str]) -> Header:
    trained = [entry for entry in model.entries.values() if model.role(entry) is Role.PARAMETER]
    return layout(
        (f"{name}.{entry.key}", *((DTYPES["I64"], ()) if name == "step" else (entry.dtype, entry.shape)))
        for name in entries
        for entry in trained
    )


def _opened_reference(path: Path) -> WeightsFile:
    try:
        return WeightsFile(path)
    except WeightsError as error:
        raise AggregationRefused(f"The global model cannot be used: {error.reason}") from error


@dataclass
class _Sums:
    """Sums over trained parameters: squared difference, squared update and reference, and their product."""

    difference: float = 0.0
    update: float = 0.0
    reference: float = 0.0
    product: float = 0.0

    def add(self, other: _Sums) -> None:
        self.difference += other.difference
        self.update += other.update
        self.reference += other.reference
        self.product += other.product


def _verdict(update: WeightsFile, reference: WeightsFile, max_relative_norm: float | None) -> Admission:
    difference = reference.header.difference(update.header)
    if difference:
        return Admission(admitted=False, reason=difference)
    total, furthest, furthest_key = _Sums(), -1.0, ""
    scratch = _Scratch()
    for key, entry in reference.header.entries.items():
        if entry.dtype.family is not Family.FLOAT:
            if reference.header.role(entry) is Role.FLAG and not _same(update, reference, key):
                return Admission(admitted=False, reason=f"{quoted(key)} is a fixed flag, but it was changed.")
            continue
        sums = _compared(update, reference, key, scratch)
        if not math.isfinite(sums.update + sums.difference):
            return Admission(admitted=False, reason=_not_finite(update, reference, entry))
        if key.endswith(VARIANCE) and _has_negative(update, key):
            return Admission(admitted=False, reason=f"{quoted(key)} is a variance, but below zero.")
        if reference.header.role(entry) is Role.PARAMETER:
            total.add(sums)
            if sums.difference > furthest:
                furthest, furthest_key = sums.difference, key
    if not math.isfinite(total.update + total.difference):
        return Admission(admitted=False, reason=f"{quoted(furthest_key)} holds values too large to be averaged.")
    length = math.sqrt(total.reference)
    norm = math.sqrt(total.difference)
    relative = norm / (length or 1.0)
    both = length * math.sqrt(total.update)
    cosine = total.product / both if both else 0.0
    reason = ""
    if max_relative_norm is not None and relative > max_relative_norm:
        reason = (
            f"It is too far from the global model: {relative:.3g} times the model's own length, the limit is "
            f"{max_relative_norm:.3g}. {quoted(furthest_key)} moved most."
        )
    return Admission(admitted=not reason, reason=reason, norm=norm, relative_norm=relative, cosine=cosine)


class _Scratch:
    """Memory made once. With new memory for each chunk, half of the time went into having it cleared by the system."""

    def __init__(self) -> None:
        self.raw = np.empty(CHUNK * 8, np.uint8)
        self.ours, self.theirs = np.empty(CHUNK), np.empty(CHUNK)


def _compared(update: WeightsFile, reference: WeightsFile, key: str, scratch: _Scratch) -> _Sums:
    sums = _Sums()
    elements = reference.header.entries[key].elements
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, elements, CHUNK):
            count = min(CHUNK, elements - first)
            ours, theirs = scratch.ours[:count], scratch.theirs[:count]
            _read(reference, key, first, ours, scratch)
            _read(update, key, first, theirs, scratch)
            sums.update += _dot(theirs, theirs)
            sums.reference += _dot(ours, ours)
            sums.product += _dot(theirs, ours)
            theirs -= ours
            sums.difference += _dot(theirs, theirs)
    return sums


def _read(weights: WeightsFile, key: str, first: int, out: Float64s, scratch: _Scratch) -> None:
    entry = weights.header.entries[key]
    stored = scratch.raw[: out.size * entry.dtype.size].view(entry.dtype.stored)
    weights.read_into(stored, entry, first)
    out[:] = widened(stored, entry.dtype)


def _dot(left: Float64s, right: Float64s) -> float:
    # Not np.dot: BLAS would start threads of its own, and their number would decide about the last bits.
    return float(np.einsum("i,i->", left, right))


def _not_finite(update: WeightsFile, reference: WeightsFile, entry: Entry) -> str:
    """Say which value of an entry is to blame; the sums of squares are not finite."""
    for weights in (update, reference):
        first = 0
        for chunk in weights.chunks(entry.key):
            wrong = np.flatnonzero(~np.isfinite(chunk))
            if wrong.size and weights is reference:
                raise AggregationRefused(f"The global model is not finite in {quoted(entry.key)}.")
            if wrong.size:
                number, value = first + int(wrong[0]) + 1, chunk[wrong[0]]
                return f"{quoted(entry.key)} is not finite: its value number {number} is {value}."
            first += chunk.size
    return f"{quoted(entry.key)} holds values too large to be averaged."


def _same(update: WeightsFile, reference: WeightsFile, key: str) -> bool:
    pairs = zip(update.chunks(key), reference.chunks(key), strict=True)
    return all(_equal(new, old) for new, old in pairs)


def _equal(new: NDArray[Any], old: NDArray[Any]) -> bool:
    return bool(np.array_equal(new, old))
