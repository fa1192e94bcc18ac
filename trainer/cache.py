"""Preprocessed cases on the site's disk, so that only the first round decodes NIfTI.

One safetensors file per case, named by a hash of what it was made from (path, size and times of both images, and the
settings) and read through the page cache. Written under a temporary name and renamed: concurrent runs and kill -9
leave whole files only. What nobody used for a month goes; when the disk is full, what was used longest ago goes first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.cases import Case
from trainer.contract import Exit, canonical_json, case_pseudonym
from trainer.failures import is_disk_full
from trainer.images import Recipe, read_case
from trainer.job import Fault, Report
from trainer.weights import replacing

FORMAT = 2
"""Raised when the same source and settings give other files than before."""
UNUSED_SECONDS = 30 * 24 * 3600
ABANDONED_SECONDS = 24 * 3600
"""A temporary file of this age belongs to no living run."""
VOXELS_PER_LABEL = 2048
AT_ONCE = 4
"""Cases prepared at the same time, at most: each takes a gigabyte at the size of a real brain."""


@dataclass(frozen=True)
class PreparedCase:
    """A case as the network sees it. Tensors are views of the mapped file until they are converted."""

    name: str
    handle: Any

    @property
    def image(self) -> Tensor:
        """float16 [channel, x, y, z], normalised."""
        return self.handle.get_tensor("image")

    @property
    def label(self) -> Tensor:
        """uint8 [x, y, z], numbers as in the task."""
        return self.handle.get_tensor("label")

    @property
    def foreground(self) -> Tensor:
        """int32 [n, 4]: label number and voxel (x, y, z) of up to 2048 voxels of each label but 0."""
        return self.handle.get_tensor("foreground")

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per voxel along x, y, z."""
        return tuple(self.handle.get_tensor("spacing").tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.handle.get_slice("label").get_shape())

    def pseudonym(self, key: str) -> str:
        """Return the only name by which the case may leave its site. It depends on ``key`` and the image's voxels."""
        return case_pseudonym(key, self.handle.get_tensor("content").numpy().tobytes())


def prepare(
    cases: Sequence[Case], recipe: Recipe, *, cache: Path, threads: int, report: Report
) -> tuple[PreparedCase, ...]:
    """Return the cases in their order, preprocessing those that the cache does not have.

    Raises :class:`Fault` for the first case at fault, and DISK_FULL when making room did not help.
    """
    cache.mkdir(parents=True, exist_ok=True)
    keys = [_key(case, recipe) for case in cases]
    sweep(cache)
    missing = sum(not (cache / key).is_file() for key in keys)
    if missing:
        report.say(f"Preparing {missing} of {len(cases)} cases.", cases=missing)

    def one(case: Case, key: str) -> PreparedCase:
        path = cache / key
        handle = _open(path)
        if handle is None:
            _store(path, _tensors(case, recipe), keep=frozenset(keys))
            handle = _open(path)
            if handle is None:
                raise OSError(f"the prepared case {path} could not be read back")
        return PreparedCase(case.name, handle)

    with ThreadPoolExecutor(max(1, min(threads, AT_ONCE))) as pool:
        futures = [pool.submit(one, case, key) for case, key in zip(cases, keys, strict=True)]
        try:
            return tuple(future.result() for future in futures)
        finally:
            for future in futures:
                future.cancel()


def prepared(cases: Iterable[Case], recipe: Recipe, *, cache: Path) -> Iterator[PreparedCase]:
    """Yield those of the cases that the cache has. None is prepared, and none is a :class:`Fault`."""
    for case in cases:
        with suppress(Fault):
            handle = _open(cache / _key(case, recipe))
            if handle is not None:
                yield PreparedCase(case.name, handle)


def sweep(cache: Path) -> None:
    """Delete what no run used for a month, and what killed runs left half written."""
    now = time.time()
    for path in cache.iterdir():
        limit = ABANDONED_SECONDS if path.suffix == ".tmp" else UNUSED_SECONDS
        try:
            if now - path.stat().st_mtime > limit:
                path.unlink()
        except FileNotFoundError:
            continue  # another run swept it


def _key(case: Case, recipe: Recipe) -> str:
    sources = []
    for what, path in (("image", case.image), ("segmentation", case.label)):
        try:
            status = path.stat()
        except OSError as error:
            raise Fault(Exit.MISSING_FILE, f"Case {case.name}: {what} {path.name}.") from error
        # also when it was last written here: who unpacks or copies may set back the time of the change
        sources.append([str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    document = {"format": FORMAT, "sources": sources, "recipe": recipe.to_json()}
    return hashlib.sha256(canonical_json(document)).hexdigest() + ".safetensors"


def _open(path: Path) -> Any:
    """Map a prepared case and mark it as used; ``None`` where there is none or where it is damaged."""
    try:
        handle = safe_open(path, framework="pt")
        os.utime(path)
        return handle
    except FileNotFoundError:
        return None
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None


def _tensors(case: Case, recipe: Recipe) -> dict[str, Tensor]:
    image, label, spacing, content = read_case(case, recipe)
    return {
        # z-scores need no more than 11 bits; half the disk, half the reading
        "image": image.to(torch.float16).contiguous(),
        "label": label.contiguous(),
        "foreground": _foreground(label),
        "spacing": torch.tensor(spacing, dtype=torch.float64),
        "content": torch.frombuffer(bytearray(content), dtype=torch.uint8),
    }


def _foreground(label: Tensor) -> Tensor:
    rows = []
    flat = label.flatten()
    for number in flat.unique().tolist():
        if number == 0:
            continue
        places = (flat == number).nonzero()[:, 0]
        voxels = torch.unravel_index(places[_evenly(len(places))], label.shape)
        rows.append(torch.stack([torch.full_like(voxels[0], number), *voxels], dim=1))
    return torch.cat(rows).to(torch.int32) if rows else torch.zeros((0, 4), dtype=torch.int32)


def _evenly(count: int) -> Tensor:
    """Choose up to 2048 of ``count`` places, from the first to the last: any fixed choice is repeatable, this one favours
    no part of the volume."""
    chosen = torch.linspace(0, count - 1, min(count, VOXELS_PER_LABEL)).round().long()
    return chosen.clamp(max=count - 1)  # from 2²⁴ on float32 may round up, beyond the last


def _store(path: Path, tensors: dict[str, Tensor], *, keep: frozenset[str]) -> None:
    while True:
        try:
            with replacing(path) as temporary:
                save_file(tensors, temporary)
            return
        except (OSError, SafetensorError) as error:
            if not is_disk_full(error):
                raise
            if not _make_room(path.parent, keep):
                raise Fault(Exit.DISK_FULL, "There is no room for the preprocessed cases.") from error


def _make_room(cache: Path, keep: frozenset[str]) -> bool:
    """Delete the case used longest ago that this run does not need. A run that has it open keeps reading it."""
    others = []
    for path in cache.glob("*.safetensors"):
        try:
            if path.name not in keep:
                others.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue
    if not others:
        return False
    min(others)[1].unlink(missing_ok=True)
    return True
