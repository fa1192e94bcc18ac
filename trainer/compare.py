"""Measure the subjects of an evaluation case by case: single models, and ensembles whose probabilities are averaged.

One network, one case and one sum of probabilities are in memory, however many models there are. A model that is a
subject of its own and part of an ensemble, too, sees each case once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import metrics, weights
from trainer.cache import PreparedCase
from trainer.contract import CaseScore, JobSpec, Task
from trainer.data import regions_of
from trainer.inference import predict
from trainer.job import Report
from trainer.machine import Machine

Models = tuple[Path, ...]


def compare(
    subjects: Mapping[str, Models],
    cases: Mapping[str, PreparedCase],
    spec: JobSpec,
    *,
    network: nn.Module,
    machine: Machine,
    report: Report,
) -> list[CaseScore]:
    """Return the scores of every subject (name → files of its models) in every case (pseudonym → case).

    Each model is measured as it lies in its file, normalisation layers and all: what this site keeps of its own fits no
    other's model. ``network``: takes the models one after the other. Raises :class:`Fault` MODEL_MISMATCH.
    """
    scores: list[CaseScore] = []
    models = _Models(network.eval(), spec, machine)
    largest_first = sorted(dict.fromkeys(subjects.values()), key=len, reverse=True)
    for number, (pseudonym, case) in enumerate(cases.items(), start=1):
        found: dict[Models, metrics.Measured] = {}
        with torch.inference_mode():
            truth = regions_of(case.label, spec.plan.task).to(machine.device)
            image = case.image.float()
            for wanted in largest_first:
                if wanted in found:
                    continue
                summed: Tensor | float = 0.0
                for path in wanted:
                    mine = models.probabilities(path, image)
                    if (path,) in largest_first:
                        found[path,] = metrics.measure(mine, truth, spacing=case.spacing)
                    summed = summed + mine
                if wanted not in found:
                    found[wanted] = metrics.measure(summed / len(wanted), truth, spacing=case.spacing)
        for name, wanted in subjects.items():
            scores += scores_of(name, pseudonym, found[wanted], spec.plan.task)
        report.say(f"Case {number} of {len(cases)} is measured with {len(subjects)} models to compare with.")
    return scores


def scores_of(subject: str, pseudonym: str, measured: metrics.Measured, task: Task) -> list[CaseScore]:
    """Return what leaves the site of one case that was measured with one subject."""
    return [CaseScore(subject, pseudonym, name, _by_region(values, task)) for name, values in measured.items()]


def _by_region(values: Sequence[float], task: Task) -> dict[str, float | None]:
    return {
        region.name: value if math.isfinite(value) else None for region, value in zip(task.regions, values, strict=True)
    }


class _Models:
    """The models of an evaluation, of which one at a time is in the network."""

    def __init__(self, network: nn.Module, spec: JobSpec, machine: Machine) -> None:
        self._network, self._spec, self._machine = network, spec, machine
        self._inside: Path | None = None

    def probabilities(self, path: Path, image: Tensor) -> Tensor:
        """Return float32 [region, x, y, z] of a model for an image float32 [channel, x, y, z]."""
        if path != self._inside:
            weights.load_model(path, self._network)
            self._inside = path
        return predict(self._network, image, self._spec.plan, machine=self._machine).sigmoid()
