"""How well a prediction covers each region: Dice, and the 95th percentile of the Hausdorff distance in mm."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from monai.metrics import compute_dice, compute_hausdorff_distance
from torch import Tensor

from trainer.contract import MetricRecord, Phase, Task

THRESHOLD = 0.5
"""Probability from which a voxel belongs to a region."""


Measured = Mapping[str, Sequence[float]]
"""What was measured of one case: *dice* and, where asked for, *hd95*, with a value per region (NaN where undefined)."""


def measure(probabilities: Tensor, truth: Tensor, *, spacing: Sequence[float] | None) -> Measured:
    """Measure probabilities float32 [region, x, y, z] of one case against booleans of the same shape.

    ``spacing``: mm per voxel along each axis; ``None``: the Hausdorff distance is not asked for."""
    predicted = probabilities >= THRESHOLD
    found = {"dice": dice(predicted, truth)}
    if spacing is not None:
        found["hd95"] = hd95(predicted, truth, spacing=spacing)
    return found


def dice(predicted: Tensor, truth: Tensor) -> list[float]:
    """Return Dice per region for boolean tensors [region, x, y, z].

    A region that is empty in both counts 1: that it is absent was predicted rightly.
    """
    return compute_dice(predicted[None].float(), truth[None].float(), ignore_empty=False)[0].tolist()


def hd95(predicted: Tensor, truth: Tensor, *, spacing: Sequence[float]) -> list[float]:
    """Return the 95th percentile Hausdorff distance in mm per region; NaN where either is empty (no surface).

    ``spacing``: mm per voxel along each axis.
    """
    present = [bool(p.any() and t.any()) for p, t in zip(predicted, truth, strict=True)]
    found = [math.nan] * len(present)
    chosen = [i for i, there in enumerate(present) if there]
    if chosen:
        distances = compute_hausdorff_distance(
            predicted[None, chosen].float(),
            truth[None, chosen].float(),
            include_background=True,
            percentile=95,
            spacing=list(spacing),
        )[0].tolist()
        for i, distance in zip(chosen, distances, strict=True):
            found[i] = distance
    return found


def records(
    name: str, per_case: Sequence[Sequence[float]], *, task: Task, phase: Phase, step: int, progress: float
) -> list[MetricRecord]:
    """Return a record per region and one for their mean, from one list of region values per case.

    A region's value is the mean over the cases where it is defined (``cases`` says how many), ``None`` where there
    is none. ``mean`` is the mean over the regions that have a value.
    """
    now = time.time()
    columns = torch.tensor(per_case, dtype=torch.float64).reshape(-1, len(task.regions)).T.tolist()
    made = []
    for region, column in zip(task.regions, columns, strict=True):
        defined = [value for value in column if math.isfinite(value)]
        mean = sum(defined) / len(defined) if defined else None
        made.append(MetricRecord(phase, name, mean, region.name, step, progress, len(defined), now))
    means = [record.value for record in made if record.value is not None]
    overall = sum(means) / len(means) if means else None
    made.append(MetricRecord(phase, name, overall, "mean", step, progress, max(r.cases for r in made), now))
    return made
