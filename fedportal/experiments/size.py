"""What a recipe takes: parameters, the size of an update, memory for training; and what is too much for this portal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from fedportal.experiments.models import Experiment
from fedportal.experiments.plan import problems_of, task_json
from fedportal.sites.models import Dataset
from fedportal.ui.templatetags.ui import bytes_
from trainer.contract import (
    ContractError,
    Region,
    Task,
    TrainingPlan,
    parameters_of,
    plan_from_json,
    training_memory,
    update_bytes,
)

ANY_TASK = Task(name="", channels=("image",), labels={1: "region"}, regions=(Region("region", (1,)),))
"""Stands in until sites are chosen: channels and regions hardly change the size of a network."""


@dataclass(frozen=True)
class Demand:
    """What a plan takes. ``update`` and ``memory`` are bytes, both about; ``memory`` is ``None`` where it depends on volumes
    of an unknown size."""

    parameters: int
    update: int
    memory: int | None

    @property
    def text(self) -> str:
        """Return ``about 4.8 million parameters, 19 MB per update, about 1.2 GB of memory for training at each site``."""
        said = f"{_count(self.parameters)} parameters, {bytes_(self.update)} per update"
        if self.memory is not None:
            said += f", about {bytes_(self.memory)} of memory for training at each site"
        return said


def demand_of(experiment: Experiment) -> Demand | None:
    """Return what an experiment's plan takes; ``None`` while the plan is incomplete."""
    return demand(experiment.plan, datasets_of(experiment))


def demand(document: Mapping[str, Any], datasets: Iterable[Dataset]) -> Demand | None:
    """Return what a plan's JSON takes with these datasets; ``None`` of one that cannot run anyhow."""
    task = document.get("task") or {}
    try:
        plan = plan_from_json({**document, "task": task if task.get("channels") else task_json(ANY_TASK)})
    except ContractError:
        return None
    shape = plan.patch or _largest_volume(plan, datasets)
    memory = training_memory(plan, shape) if shape else None
    return Demand(parameters_of(plan.task, plan.network), update_bytes(plan), memory)


def plan_problems(
    document: Mapping[str, Any], datasets: Iterable[Dataset], changed: Collection[str] = ()
) -> dict[str, str]:
    """Return what keeps a plan from running here: dotted field name → sentence; empty when it can run.

    Of several fields that together make it too large, one that was ``changed`` is named.
    """
    found = problems_of(document)
    needed = demand(document, datasets)
    if needed is None:
        return found
    if needed.parameters > settings.FEDPORTAL_MOST_PARAMETERS:
        text = (
            f"The network has {_count(needed.parameters)} parameters and this portal takes "
            f"{_count(settings.FEDPORTAL_MOST_PARAMETERS)}: use fewer levels or channels"
        )
        found.setdefault(_named(("network.channels", "network.residual_units", "network.name"), changed), text)
    elif needed.memory is not None and needed.memory > settings.FEDPORTAL_TRAINING_MEMORY:
        with_patches = document.get("patch") is not None
        smaller = "a smaller patch" if with_patches else "patches, like 96 × 96 × 96"
        text = (
            f"Training would need about {bytes_(needed.memory)} of memory at each site and this portal allows "
            f"{bytes_(settings.FEDPORTAL_TRAINING_MEMORY)}: use {smaller}, a smaller batch or a smaller network"
        )
        names = ("patch", "batch_size", "network.channels", "network.strides", "network.name", "spacing")
        found.setdefault(_named(names, changed), text)
    return found


def _named(names: tuple[str, ...], changed: Collection[str]) -> str:
    return next((name for name in names if name in changed), names[0])


def datasets_of(experiment: Experiment) -> list[Dataset]:
    """Return the datasets of its participants."""
    return [part.dataset for part in experiment.participations.select_related("dataset")]


def _largest_volume(plan: TrainingPlan, datasets: Iterable[Dataset]) -> tuple[int, ...] | None:
    """Return the largest of the datasets' median volumes in voxels, resampled as the plan says."""
    shapes = []
    for dataset in datasets:
        if len(dataset.shape) != 3:
            continue
        edges = [float(edge) for edge in dataset.shape]
        if plan.spacing and len(dataset.spacing) == 3:
            edges = [edge * old / new for edge, old, new in zip(edges, dataset.spacing, plan.spacing, strict=True)]
        shapes.append(tuple(max(1, math.ceil(edge)) for edge in edges))
    return max(shapes, key=math.prod, default=None)


def _count(number: int) -> str:
    """Write a large number as people do: 123 thousand, 4.8 million, 1.2 billion."""
    for size, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            value = number / size
            return f"{value:.1f} {word}" if value < 10 and number % size else f"{value:.0f} {word}"
    return str(number)
