"""From prepared cases to batches: order, crops, padding, regions. Every choice is drawn from a seed that is computed
from the plan, the round, the site and the place in the epoch, never from what ran before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer.augmentation import Augment
from trainer.cache import PreparedCase
from trainer.contract import Task, TrainingPlan, input_shape


@dataclass(frozen=True)
class Batch:
    """image float32 [n, channel, x, y, z]; target float32 [n, region, x, y, z], 0 or 1."""

    image: Tensor
    target: Tensor


def seed_for(*words: object) -> int:
    """Return a 63-bit seed that depends on all words and nothing else."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:8], "big") >> 1


def batches(cases: Sequence[PreparedCase], plan: TrainingPlan, *, augment: Augment, seed: int) -> Iterator[Batch]:
    """Yield one epoch: every case once (whole volumes) or ``patches_per_case`` times (patches), in random order."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.repeat(np.arange(len(cases)), _samples_per_case(plan)))
    for start in range(0, len(order), plan.batch_size):
        samples = []
        for place, index in enumerate(order[start : start + plan.batch_size], start):
            own = seed_for(seed, place)
            image, label = _sample(cases[index], plan, own)
            samples.append(augment(image, label, own))
        yield _collate(samples, plan)


def ahead(made: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches, each made in a thread while the one before it is used; errors come through.

    Worth it beside a GPU; beside a CPU it would only take its cores. (MONAI's ThreadBuffer ends silently where its source
    raises.)
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, made, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, made, None)
            yield batch


def regions_of(label: Tensor, task: Task) -> Tensor:
    """Return bool [region, x, y, z] for label numbers uint8 [x, y, z]: a region is the union of its labels."""
    table = torch.zeros((len(task.regions), 256), dtype=torch.bool)
    for row, region in zip(table, task.regions, strict=True):
        row[list(region.labels)] = True
    return table[:, label.long()]


def pad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Pad the last three axes with zeros to ``shape``, evenly on both sides (the odd voxel comes after)."""
    widths = []
    for edge, wanted in zip(reversed(tensor.shape[-3:]), reversed(tuple(shape)), strict=True):
        missing = max(wanted - edge, 0)
        widths += [missing // 2, missing - missing // 2]
    return functional.pad(tensor, widths)


def unpad(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pad`: return the middle of ``tensor`` that has ``shape``."""
    for axis, edge in zip((-3, -2, -1), shape, strict=True):
        tensor = tensor.narrow(axis, (tensor.shape[axis] - edge) // 2, edge)
    return tensor


def _samples_per_case(plan: TrainingPlan) -> int:
    return plan.patches_per_case if plan.patch is not None else 1


def _sample(case: PreparedCase, plan: TrainingPlan, seed: int) -> tuple[Tensor, Tensor]:
    if plan.patch is None:
        return case.image.float(), case.label.clone()
    size = input_shape(plan.network, plan.patch)
    corner = _corner(case, size, np.random.default_rng(seed))
    window = tuple(slice(first, first + edge) for first, edge in zip(corner, size, strict=True))
    # only the window of the mapped file is read
    return pad(case.image[(slice(None), *window)].float(), size), pad(case.label[window].clone(), size)


def _corner(case: PreparedCase, size: Sequence[int], generator: np.random.Generator) -> list[int]:
    """Choose where a patch begins. Every second one is centred on a voxel of a label drawn evenly among
    those present (rare labels are seen as often as common ones), the others lie anywhere."""
    last = [max(edge - wanted, 0) for edge, wanted in zip(case.shape, size, strict=True)]
    foreground = case.foreground.numpy()
    if len(foreground) and generator.random() < 0.5:
        label = generator.choice(np.unique(foreground[:, 0]))
        centre = generator.choice(foreground[foreground[:, 0] == label])[1:]
        return [int(np.clip(c - wanted // 2, 0, top)) for c, wanted, top in zip(centre, size, last, strict=True)]
    return [int(generator.integers(top + 1)) for top in last]


def _collate(samples: Sequence[tuple[Tensor, Tensor]], plan: TrainingPlan) -> Batch:
    """Stack samples; volumes of different sizes are padded to the largest, and to what the network takes."""
    largest = [max(edges) for edges in zip(*(label.shape for _, label in samples), strict=True)]
    shape = input_shape(plan.network, largest)
    return Batch(
        image=torch.stack([pad(image, shape) for image, _ in samples]),
        target=torch.stack([regions_of(pad(label, shape), plan.task) for _, label in samples]).float(),
    )
