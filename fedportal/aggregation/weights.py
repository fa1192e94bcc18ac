"""Read and write safetensors files tensor by tensor, without trust in who wrote them.

The header is parsed here and not by the library, because the library maps the whole file (its pages then
count as memory, once per model) and because what a stranger sent is to be refused with a sentence.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import itertools
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedportal.aggregation.dtypes import DTYPES, FILE_RANK, DType, Family, widened
from fedportal.aggregation.errors import WeightsError, quoted

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_DIMENSIONS = 32
CHUNK = 65_536
"""Elements worked on at a time: three float64 buffers of it stay in a second-level cache (measured)."""
METADATA_KEY = "fedportal"


class Role(Enum):
    """What an entry of a model is, which decides how it is merged."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    COUNTER = "counter"
    FLAG = "flag"


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. ``start``: its first byte, counted from the beginning of the data section."""

    key: str
    dtype: DType
    shape: tuple[int, ...]
    start: int

    @cached_property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.size

    def __str__(self) -> str:
        return f"{self.dtype.name} {'×'.join(map(str, self.shape)) or 'scalar'}"


@dataclass(frozen=True)
class Header:
    """The table of contents of a file: entries in the order of their bytes, and the metadata.

    ``data_start``: bytes before the data section, the header's own length included.
    """

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int

    @cached_property
    def data_bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    @property
    def size(self) -> int:
        return self.data_start + self.data_bytes

    @property
    def buffers(self) -> frozenset[str]:
        """Names of the floating entries that no optimizer trains (running means and variances)."""
        return frozenset(self._own["buffers"])

    @property
    def local(self) -> frozenset[str]:
        """Names of the entries of which each site keeps its own; here they are the mean over the sites."""
        return frozenset(self._own.get("local", ()))

    @property
    def round(self) -> int:
        return int(self._own["round"])

    def role(self, entry: Entry) -> Role:
        if entry.dtype.family is Family.BOOLEAN:
            return Role.FLAG
        if entry.dtype.family is Family.INTEGER:
            return Role.COUNTER
        return Role.BUFFER if entry.key in self.buffers else Role.PARAMETER

    def difference(self, other: Header) -> str | None:
        """Return in a sentence how ``other`` differs in keys, formats or shapes, or ``None``."""
        missing = sorted(self.entries.keys() - other.entries.keys())
        if missing:
            return f"It lacks {_some(missing)}."
        unknown = sorted(other.entries.keys() - self.entries.keys())
        if unknown:
            return f"It has {_some(unknown)}, which the global model does not have."
        for key, entry in self.entries.items():
            theirs = other.entries[key]
            if (entry.dtype, entry.shape) != (theirs.dtype, theirs.shape):
                return f"{quoted(key)} is {theirs}, but the global model has {entry} there."
        return None

    @cached_property
    def _own(self) -> dict[str, Any]:
        text = self.metadata.get(METADATA_KEY, '{"buffers": [], "round": 0}')
        try:
            own = json.loads(text)
            names = [*own["buffers"], *own.get("local", ())]
            valid = all(isinstance(name, str) for name in names) and type(own["round"]) is int
        except (ValueError, KeyError, TypeError, RecursionError):
            valid = False
        if not valid:
            raise WeightsError("The file's note on buffers and round (metadata “fedportal”) cannot be read.")
        return dict(own)


def layout(
    tensors: Iterable[tuple[str, DType, tuple[int, ...]]],
    *,
    buffers: Iterable[str] = (),
    local: Iterable[str] = (),
    round: int = 0,
) -> Header:
    """Return the header of a file yet to be written; equal tensors give equal bytes whatever their order.

    Keys are sorted within a format, formats go from wide to narrow as the library does it.
    """
    own = {"buffers": sorted(buffers), "round": round}
    if kept := sorted(local):
        own["local"] = kept
    note = json.dumps(own, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    entries: dict[str, Entry] = {}
    start = 0
    for key, dtype, shape in sorted(tensors, key=lambda tensor: (FILE_RANK[tensor[1].name], tensor[0])):
        entries[key] = Entry(key=key, dtype=dtype, shape=shape, start=start)
        start += entries[key].bytes
    metadata = {METADATA_KEY: note}
    return Header(entries=entries, metadata=metadata, data_start=len(_encoded(entries, metadata)))


class WeightsFile:
    """An open file: its checked header, and its tensors read piece by piece into the caller's memory."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise WeightsError("There is no such file.") from error
        try:
            self.header = self._read_header()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def read_into(self, stored: NDArray[Any], entry: Entry, first: int = 0) -> None:
        """Fill ``stored`` (contiguous, of the entry's stored type) from element ``first`` of the entry on."""
        offset = self.header.data_start + entry.start + first * entry.dtype.size
        self._fill(bytes_of(stored), offset)

    def chunks(self, key: str, elements: int = CHUNK) -> Iterator[NDArray[Any]]:
        """Yield the tensor flat and in pieces, in its stored type (bfloat16: float32). Each is valid until the next."""
        entry = self.header.entries[key]
        buffer = np.empty(min(elements, entry.elements), entry.dtype.stored)
        for first in range(0, entry.elements, elements):
            piece = buffer[: min(elements, entry.elements - first)]
            self.read_into(piece, entry, first)
            yield widened(piece, entry.dtype)

    def _fill(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise WeightsError("The file ends in the middle of a tensor.")
            view, offset = view[count:], offset + count

    def _read_header(self) -> Header:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size < 10:
            raise WeightsError("The file is too short to hold a model.")
        prefix = bytearray(8)
        self._fill(memoryview(prefix), 0)
        length = int.from_bytes(prefix, "little")
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"The file's header claims {length} bytes; more than {MAX_HEADER_BYTES} are not read.")
        if 8 + length > status.st_size:
            raise WeightsError(f"The file is cut off: its header claims {length} bytes, the file has fewer.")
        text = bytearray(length)
        self._fill(memoryview(text), 8)
        return _parsed(bytes(text), data_bytes=status.st_size - 8 - length)


class WeightsWriter:
    """A file in the making, beside its place; it appears there, whole, with :meth:`commit` only.

    It is not forced onto the disk: what a power cut makes of it no longer has its SHA-256, and is made again.
    """

    _numbers = itertools.count()

    def __init__(self, path: Path, header: Header) -> None:
        self.header = header
        self.head = _encoded(header.entries, header.metadata)
        self._path = path
        self._part = path.with_name(f"{part_prefix(path, os.getpid())}{next(self._numbers)}.part")
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._open = True

    def __enter__(self) -> Self:
        try:
            self._write(memoryview(self.head), 0)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._open:
            self._discard()

    def write(self, data: NDArray[Any], offset: int) -> None:
        """Write an array's bytes at an offset of the data section; threads may write different places at once."""
        self._write(bytes_of(data), self.header.data_start + offset)

    def commit(self) -> None:
        os.close(self._fd)
        self._open = False
        self._part.replace(self._path)

    def _discard(self) -> None:
        os.close(self._fd)
        with suppress(FileNotFoundError):
            self._part.unlink()

    def _write(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.pwrite(self._fd, view, offset)
            view, offset = view[count:], offset + count


def part_prefix(path: Path, pid: int) -> str:
    """How the unfinished files of a process for ``path`` are called, so that they can be removed after its death."""
    return f".{path.name}.{pid}."


def bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _encoded(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    table: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, entry in entries.items():
        table[key] = {
            "dtype": entry.dtype.name,
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.start + entry.bytes],
        }
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parsed(text: bytes, *, data_bytes: int) -> Header:
    table = _table(text)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError("The file's metadata is not a list of texts.")
    entries = sorted(
        (_entry(key, value, data_bytes) for key, value in table.items()),
        key=lambda entry: (entry.start, entry.start + entry.bytes),
    )
    end = 0
    for entry in entries:
        if entry.start != end:
            trouble = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise WeightsError(f"In the file, {quoted(entry.key)} {trouble}.")
        end += entry.bytes
    if end != data_bytes:
        raise WeightsError(f"The file has {data_bytes - end} bytes that belong to no tensor.")
    return Header(entries={e.key: e for e in entries}, metadata=metadata, data_start=8 + len(text))


def _table(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise WeightsError(f"The file's header has {quoted(key)} twice.")
            table[key] = value
        return table

    try:
        if text[:1] != b"{":
            raise ValueError("no object")
        decoded = text.decode("utf-8")
        table = json.loads(decoded, object_pairs_hook=unique, parse_float=_refuse, parse_constant=_refuse)
        "".join(table).encode("utf-8")  # a lone surrogate, escaped in JSON, is no text
    except (ValueError, RecursionError) as error:
        raise WeightsError("The header cannot be read: this is not a safetensors file, or it is damaged.") from error
    return dict(table)


def _refuse(text: str) -> Any:
    raise ValueError(f"{text} has no place in a header")


def _entry(key: str, value: Any, data_bytes: int) -> Entry:
    def need(ok: Callable[[], bool], trouble: str) -> None:
        if not ok():
            raise WeightsError(f"In the file's header, {quoted(key)} {trouble}.")

    need(lambda: isinstance(value, dict) and value.keys() == {"dtype", "shape", "data_offsets"}, "is not a tensor")
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    need(lambda: isinstance(name, str) and name in DTYPES, f"has the number format {quoted(str(name))}, unknown here")
    need(lambda: _counts(shape) and len(shape) <= MAX_DIMENSIONS, "has no valid shape")
    need(lambda: _counts(offsets) and len(offsets) == 2, "has no valid place")
    start, end = offsets
    need(lambda: start <= end <= data_bytes, "lies outside the file")
    entry = Entry(key=key, dtype=DTYPES[name], shape=tuple(shape), start=start)
    need(lambda: entry.bytes == end - start, f"claims the shape {entry}, which does not fit its {end - start} bytes")
    return entry


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _some(keys: list[str]) -> str:
    named = ", ".join(quoted(key) for key in keys[:3])
    return named if len(keys) <= 3 else f"{named} and {len(keys) - 3} more"
