"""Merge admitted updates into one model: tensor by tensor, in chunks, with the same bytes for any order of arrival.

Each key is merged by itself, by its role: trained parameters become what the strategy makes of them, floating
buffers the weighted mean (with a robust strategy its own); counters (``num_batches_tracked``) are never divided,
the largest counts; flags are part of the network and copied from the reference. A thread holds one chunk, whatever
the number of sites; with the median and the trimmed mean one chunk of each site.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedportal.aggregation.dtypes import DTYPES, Float64s, narrowed, widened
from fedportal.aggregation.errors import AggregationRefused, NothingToAggregate, WeightsError, quoted
from fedportal.aggregation.strategies import STRATEGIES, OptionValue, Strategy, complete_options, refusal, weighted_mean
from fedportal.aggregation.weights import (
    CHUNK,
    Entry,
    Header,
    Role,
    WeightsFile,
    WeightsWriter,
    bytes_of,
    layout,
)

BLOCK = 16 * CHUNK
"""Elements that a thread takes at a time: 4 MiB of float32, so that handing over costs nothing."""
THREADS = 2
MAX_CASES = 10**7
"""As the contract has it; a float32 value times this is exact in float64."""


@dataclass(frozen=True)
class Contribution:
    """A site's admitted update and the number of cases that it was really trained on."""

    site: str
    path: Path
    cases: int


@dataclass(frozen=True)
class Aggregate:
    """The merged model: its file, SHA-256 (hex), size in bytes, and each site's share in it (they add up to 1)."""

    path: Path
    sha256: str
    size: int
    weights: dict[str, float]


def aggregate(
    *,
    reference: Path,
    contributions: Sequence[Contribution],
    strategy: str,
    options: Mapping[str, Any],
    state_in: Path | None,
    out: Path,
    state_out: Path | None,
    round: int | None = None,
    threads: int = THREADS,
) -> Aggregate:
    """Merge contributions into ``out`` (and, for a strategy with server state, ``state_out``).

    ``reference`` is the global model that the sites started from; for averaged optimizer state, whose first
    round has none, the first contribution. ``round`` is noted in the file (default: the reference's, plus 1).
    ``threads`` changes the time, never a bit. Both files appear whole or not at all, the model last. Raises
    :class:`NothingToAggregate`, :class:`AggregationRefused`, or :class:`WeightsError` naming the site.
    """
    method = STRATEGIES.get(strategy)
    trouble = refusal(strategy, sites=len(contributions), options=options)
    if not contributions:
        raise NothingToAggregate
    if method is None or trouble:
        raise AggregationRefused(trouble or "")
    chosen = complete_options(method, options)
    counted = _counted(contributions, method, chosen)
    trouble = refusal(strategy, sites=len(counted), options=options)
    if trouble:  # some sites trained on no case
        raise AggregationRefused(trouble)
    total = sum(count for _, count in counted)
    with ExitStack() as files:
        base = files.enter_context(_opened(reference, "The global model"))
        sites = [files.enter_context(_opened(site.path, f"The update of site {site.site}")) for site, _ in counted]
        for (site, _), weights in zip(counted, sites, strict=True):
            difference = base.header.difference(weights.header)
            if difference:
                raise AggregationRefused(f"The update of site {site.site} does not fit. {difference}")
        header = layout(
            ((entry.key, entry.dtype, entry.shape) for entry in base.header.entries.values()),
            buffers=base.header.buffers,
            # of the updates, not of the reference: a warm start may come from an experiment with other layers
            local=frozenset.intersection(*(site.header.local for site in sites)),
            round=base.header.round + 1 if round is None else round,
        )
        state = _ServerState(files, base.header, method.slots(chosen), state_in, state_out)
        writer = files.enter_context(WeightsWriter(out, header))
        merge = _Merge(base, sites, [count for _, count in counted], method, chosen, state, writer)
        digest = hashlib.sha256(writer.head)
        for block in merge.blocks(threads):
            digest.update(bytes_of(block))
        state.commit()
        writer.commit()
    shares = {site.site: 0.0 for site in sorted(contributions, key=lambda c: c.site)}
    shares.update({site.site: count / total for site, count in counted})
    return Aggregate(path=out, sha256=digest.hexdigest(), size=header.size, weights=shares)


def _counted(
    contributions: Sequence[Contribution], method: Strategy, options: Mapping[str, OptionValue]
) -> list[tuple[Contribution, int]]:
    """Return the contributions that count, by name of site, each with its whole-number weight in lowest terms."""
    ordered = sorted(contributions, key=lambda contribution: contribution.site)
    for before, after in itertools.pairwise(ordered):
        if before.site == after.site:
            raise AggregationRefused(f"Site {after.site} contributes twice.")
    for contribution in ordered:
        if type(contribution.cases) is not int or not 0 <= contribution.cases <= MAX_CASES:
            raise AggregationRefused(f"Site {contribution.site} reports {contribution.cases} cases.")
    counts = method.counts([contribution.cases for contribution in ordered], options)
    divisor = math.gcd(*counts)
    if divisor == 0:
        raise NothingToAggregate
    return [(site, count // divisor) for site, count in zip(ordered, counts, strict=True) if count]


def _opened(path: Path, whose: str) -> WeightsFile:
    try:
        return WeightsFile(path)
    except WeightsError as error:
        raise WeightsError(f"{whose} cannot be used: {error.reason}") from error


class _ServerState:
    """What a strategy keeps per trained parameter from round to round: float32 entries ``<slot>.<key>``."""

    def __init__(
        self, files: ExitStack, model: Header, slots: Mapping[str, float], path_in: Path | None, path_out: Path | None
    ) -> None:
        self.slots = slots
        self._old: WeightsFile | None = None
        self._new: WeightsWriter | None = None
        if not slots:
            return
        if path_out is None:
            raise AggregationRefused("This strategy keeps a state from round to round, which needs a place.")
        trained = [entry for entry in model.entries.values() if model.role(entry) is Role.PARAMETER]
        header = layout(
            ((f"{slot}.{entry.key}", DTYPES["F32"], entry.shape) for slot in slots for entry in trained),
            round=model.round + 1,
        )
        if path_in is not None:
            self._old = files.enter_context(_opened(path_in, "The state of the last round"))
            difference = header.difference(self._old.header)
            if difference:
                raise AggregationRefused(f"The state of the last round does not fit. {difference}")
        self._new = files.enter_context(WeightsWriter(path_out, header))

    def read(self, key: str, first: int, count: int) -> dict[str, Float64s]:
        values = {slot: np.full(count, initial) for slot, initial in self.slots.items()}
        if self._old is not None:
            stored = np.empty(count, np.float32)
            for slot in values:
                self._old.read_into(stored, self._old.header.entries[f"{slot}.{key}"], first)
                values[slot][:] = stored
        return values

    def write(self, key: str, first: int, values: Mapping[str, Float64s]) -> None:
        for slot, value in values.items():
            if self._new is not None:
                entry = self._new.header.entries[f"{slot}.{key}"]
                stored = narrowed(value, entry.dtype)
                if not np.isfinite(stored).all():
                    # an infinite second moment would hold its weight still for ever, and the model look sound
                    raise AggregationRefused(f"The strategy's memory would not be finite in {quoted(key)}.")
                self._new.write(stored, entry.start + first * entry.dtype.size)

    def commit(self) -> None:
        if self._new is not None:
            self._new.commit()


class _Scratch(threading.local):
    """The buffers of one thread, made once."""

    def __init__(self) -> None:
        self.raw = np.empty(CHUNK * 8, np.uint8)
        self.total = np.empty(CHUNK)
        self.spare = np.empty(CHUNK)


class _Values:
    """One chunk of one entry as the sites have it (a :class:`SiteValues`)."""

    def __init__(self, sites: Sequence[WeightsFile], weights: Sequence[int], entry: Entry, scratch: _Scratch) -> None:
        self.weights = weights
        self._entries = [site.header.entries[entry.key] for site in sites]
        self._sites = sites
        self._raw = scratch.raw[: CHUNK * entry.dtype.size].view(entry.dtype.stored)
        self._spare = scratch.spare
        self.seek(0, 0)

    def seek(self, first: int, count: int) -> None:
        self._first, self._piece = first, self._raw[:count]
        self.scratch = self._spare[:count]

    def read(self, site: int) -> NDArray[Any]:
        return widened(self.stored(site), self._entries[site].dtype)

    def stored(self, site: int) -> NDArray[Any]:
        self._sites[site].read_into(self._piece, self._entries[site], self._first)
        return self._piece


class _Merge:
    def __init__(
        self,
        base: WeightsFile,
        sites: Sequence[WeightsFile],
        weights: Sequence[int],
        method: Strategy,
        options: Mapping[str, OptionValue],
        state: _ServerState,
        writer: WeightsWriter,
    ) -> None:
        self._writer = writer
        self._base, self._sites, self._weights = base, sites, weights
        self._method, self._options, self._state = method, options, state
        self._scratch = _Scratch()

    def blocks(self, threads: int) -> Iterator[NDArray[Any]]:
        """Yield the merged model in the order of its file, computed and written a few blocks ahead by the threads."""
        work = (
            (entry, first, min(BLOCK, entry.elements - first))
            for entry in self._writer.header.entries.values()
            for first in range(0, entry.elements, BLOCK)
        )
        ahead: deque[Future[NDArray[Any]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for block in work:
                    ahead.append(pool.submit(self._block, *block))
                    if len(ahead) > 2 * threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _block(self, target: Entry, first: int, count: int) -> NDArray[Any]:
        merged = self._merged(self._base.header.entries[target.key], first, count)
        self._writer.write(merged, target.start + first * target.dtype.size)
        return merged

    def _merged(self, entry: Entry, first: int, count: int) -> NDArray[Any]:
        role = self._base.header.role(entry)
        merged = np.empty(count, entry.dtype.stored)
        if role is Role.FLAG:
            self._base.read_into(merged, entry, first)
            return merged
        values = _Values(self._sites, self._weights, entry, self._scratch)
        with np.errstate(over="ignore", invalid="ignore"):  # found below, with the key
            self._fill(merged, values, entry, first, role)
        if role is not Role.COUNTER and not np.isfinite(widened(merged, entry.dtype)).all():
            raise AggregationRefused(f"The merged model would not be finite in {quoted(entry.key)}.")
        return merged

    def _fill(self, merged: NDArray[Any], values: _Values, entry: Entry, first: int, role: Role) -> None:
        for start in range(0, merged.size, CHUNK):
            part = merged[start : start + CHUNK]
            values.seek(first + start, part.size)
            if role is Role.COUNTER:
                self._largest(values, part)
            else:
                part[:] = self._mean(values, entry, first + start, part.size, role)

    def _largest(self, values: _Values, out: NDArray[Any]) -> None:
        out[:] = values.stored(0)
        for site in range(1, len(self._sites)):
            np.maximum(out, values.stored(site), out=out)

    def _mean(self, values: _Values, entry: Entry, first: int, count: int, role: Role) -> NDArray[Any]:
        out = self._scratch.total[:count]
        if role is Role.BUFFER and not self._method.merges_buffers:
            weighted_mean(values, out)
            return narrowed(out, entry.dtype)
        self._method.combine(values, out, self._options)
        if self._state.slots and role is Role.PARAMETER:
            stored = np.empty(count, entry.dtype.stored)
            self._base.read_into(stored, entry, first)
            model = widened(stored, entry.dtype).astype(np.float64)
            state = self._state.read(entry.key, first, count)
            self._method.step(model, out, state, self._options)
            self._state.write(entry.key, first, state)
        return narrowed(out, entry.dtype)
