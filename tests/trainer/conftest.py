"""Tiny synthetic datasets in Decathlon layout: a bright ball in noise, 16³ voxels, one to three labels."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import nibabel
import numpy as np
import pytest

from trainer.contract import (
    Fetch,
    JobSpec,
    Kind,
    MetricRecord,
    Network,
    Put,
    Region,
    Subject,
    Task,
    TrainingPlan,
    run_name,
)
from trainer.job import Deliver, Site

BRAIN_LABELS = {0: "background", 1: "edema", 2: "non-enhancing tumor", 3: "enhancing tumour"}
BRAIN_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
BRAIN = Task(
    name="BRATS",
    channels=BRAIN_CHANNELS,
    labels=BRAIN_LABELS,
    regions=(Region("WT", (1, 2, 3)), Region("TC", (2, 3)), Region("ET", (3,))),
)
SMALL = Network(channels=(4, 8), strides=(2,))


@dataclass
class Recorder:
    """A report that keeps what it was told."""

    metrics: list[MetricRecord] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def metric(self, record: MetricRecord) -> None:
        self.metrics.append(record)

    def say(self, message: str, **facts: Any) -> None:
        self.said.append(message)

    def values(self, phase: str, name: str, region: str = "") -> list[float | None]:
        return [r.value for r in self.metrics if (r.phase, r.name, r.region) == (phase, name, region)]


def volumes(seed: int, *, shape=(16, 16, 16), channels=4) -> tuple[np.ndarray, np.ndarray]:
    """Return image int16 [x, y, z, channel] and label uint8 [x, y, z]: nested balls of labels 1, 2, 3."""
    generator = np.random.default_rng(seed)
    centre = np.array(shape) / 2 + generator.uniform(-1, 1, 3)
    radius = np.linalg.norm(np.indices(shape).T - centre, axis=-1).T
    label = np.select([radius < 2, radius < 3.5, radius < 5], [3, 2, 1], 0).astype(np.uint8)
    base = generator.normal(100, 5, (*shape, channels))
    image = base + label[..., None] * np.arange(20, 20 + 10 * channels, 10)
    return image.astype(np.int16), label


def write_dataset(
    folder: Path,
    *,
    train: int = 2,
    validation: int | None = 1,
    shape: tuple[int, ...] | list[tuple[int, ...]] = (16, 16, 16),
    channels: tuple[str, ...] = BRAIN_CHANNELS,
    labels: Mapping[int, str] = BRAIN_LABELS,
    affine: np.ndarray | None = None,
    seed: int = 0,
) -> Path:
    """Write a dataset; ``validation=None`` leaves that key out of dataset.json. ``shape``: one, or one per case."""
    folder.mkdir(parents=True)
    entries = []
    for number in range(train + (validation or 0)):
        edges = shape[number % len(shape)] if isinstance(shape, list) else shape
        image, label = volumes(seed * 100 + number, shape=edges, channels=len(channels))
        label[label > max(labels)] = max(labels)
        name = f"CASE_{number:03d}.nii.gz"
        save(folder / "imagesTr" / name, image if len(channels) > 1 else image[..., 0], affine)
        save(folder / "labelsTr" / name, label, affine)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    document = {
        "name": "BRATS",
        "modality": {str(i): name for i, name in enumerate(channels)},
        "labels": {str(number): name for number, name in labels.items()},
        "training": entries[:train],
        "test": [],
    }
    if validation is not None:
        document["validation"] = entries[train:]
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine), path)


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))


def make_spec(plan: TrainingPlan, *, round: int = 1, attempt: int = 1, kind: Kind = Kind.TRAIN, **changes) -> JobSpec:
    name = run_name(experiment="abcd", round=round, site="mainz", attempt=attempt)
    values: dict[str, Any] = {
        "kind": kind, "run": name, "experiment": "abcd", "round": round, "site": "mainz", "attempt": attempt,
        "dataset": "Brain", "plan": plan, "model": Fetch("", "", 0), "manifest": Put(), "log": Put(),
    }  # fmt: skip
    return JobSpec(**values | changes)


@pytest.fixture
def plan() -> TrainingPlan:
    return TrainingPlan(task=BRAIN, network=SMALL, rounds=2, local_epochs=2, batch_size=2)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(data_root=tmp_path / "data", work_dir=tmp_path / "work", threads=1)
    write_dataset(site.data_root / "Brain")
    return site


@pytest.fixture
def report() -> Recorder:
    return Recorder()


@pytest.fixture
def work(site: Site, tmp_path: Path, report: Recorder) -> Callable:
    """Run one attempt of the trainer's work on the site, from an initial model; return (outcome, run folder)."""
    from trainer.evaluate import evaluate
    from trainer.initial import init
    from trainer.train import train

    def run(
        plan: TrainingPlan,
        *,
        model: Path | None = None,
        optimizer: Path | None = None,
        subjects: Mapping[str, tuple[Path, ...]] | None = None,
        deliver: Deliver = lambda *_: None,
        **changes,
    ):
        subjects = subjects or {}
        asked = tuple(Subject(name, tuple(Fetch("", "", 0) for _ in paths)) for name, paths in subjects.items())
        spec = make_spec(plan, subjects=asked, **changes)
        run_dir = site.run_dir(spec.run)
        run_dir.mkdir(parents=True, exist_ok=True)
        if model is None:
            model = tmp_path / f"initial-{plan.digest()[:12]}.safetensors"
            if not model.exists():
                init(plan, model)
        if spec.kind is Kind.EVALUATE:
            return evaluate(spec, site=site, model=model, subjects=subjects, report=report), run_dir
        told = {"report": report, "deliver": deliver}
        return train(spec, site=site, run_dir=run_dir, model=model, optimizer=optimizer, **told), run_dir

    return run


def changed(plan: TrainingPlan, **changes: Any) -> TrainingPlan:
    """Return the plan with other values; ``optimizer``, ``network``, … may be given as a dict of changes."""
    for name, value in changes.items():
        if isinstance(value, dict):
            changes[name] = dataclasses.replace(getattr(plan, name), **value)
    return dataclasses.replace(plan, **changes)
