"""What is run: settings (how the hospitals differ) and the experiments of each. To try something else, change this table;
with other data (``patients``, ``size``, cases) in a new state folder, since experiments are told apart by their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ALL_BASELINES = ("cyclic", "ensemble", "local_only", "pooled")


@dataclass(frozen=True)
class Hospital:
    slug: str
    name: str
    patients: str


@dataclass(frozen=True)
class Entry:
    """One experiment of a setting. ``title`` is its name in tables; ``options``: the strategy's, defaults left out."""

    name: str
    title: str
    treatment: str
    strategy: str = "fedavg"
    options: Mapping[str, Any] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """Hospitals that differ in one way, and what is tried there. The first entry has the baselines.

    ``variant``: how the generated hospitals differ (``python -m trainer phantoms``). ``train``, ``validation``: cases of each
    hospital. ``plan`` is laid over the laptop preset.
    """

    name: str
    title: str
    text: str
    variant: str
    train: int
    validation: int
    hospitals: tuple[Hospital, ...]
    plan: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def is_iid(self) -> bool:
        return self.variant == "iid"


@dataclass(frozen=True)
class Study:
    """All of it. ``size``: voxels per edge of an image. ``patients``: the seed they are generated from; settings are tried out
    on those of other seeds. ``repeats``: seeds of the training."""

    size: int
    patients: int
    repeats: int
    settings: tuple[Setting, ...]


_ALIKE = tuple(
    Hospital(slug, name, "all kinds of tumour")
    for slug, name in (
        ("altberg", "Altberg University Hospital"),
        ("linden", "Linden Hospital"),
        ("seeblick", "Seeblick Clinic"),
    )
)
_UNLIKE = (
    Hospital("birkenau", "Birkenau Hospital", "tumours that never enhance"),
    Hospital("nordhaven", "Nordhaven Clinic", "small tumours only"),
    Hospital("rosenfeld", "Rosenfeld Hospital", "large, enhancing tumours only"),
)
_IID_TEXT = "The hospitals see the same kinds of patients with the same scanner; they differ by chance alone."
_SHIFTED_TEXT = (
    "Each hospital has seen one kind of tumour only, so none can learn the task alone. The scanner is the same everywhere, "
    "so that one thing differs."
)

# Both settings have an epoch a round, so that models meet before they part. Alike hospitals have few cases, so that joining is worth something,
# one image a step and many rounds, so that the federated model is trained to its end. A tumour without enhancement costs a third of its
# case when one voxel is taken for enhancing, hence more held-out cases than a hospital trains on.
FULL = Study(
    size=32,
    patients=2,
    repeats=3,
    settings=(
        Setting(
            name="iid",
            title="Hospitals alike (IID)",
            text=_IID_TEXT,
            variant="iid",
            train=6,
            validation=16,
            hospitals=_ALIKE,
            plan={
                "rounds": 120,
                "local_epochs": 1,
                "batch_size": 1,
                "optimizer": {"learning_rate": 3e-3},
                "schedule": {"name": "cosine"},
            },
            entries=(Entry("fedavg-aggregate", "FedAvg, aggregate", "aggregate", baselines=ALL_BASELINES),),
        ),
        Setting(
            name="shifted",
            title="Unlike hospitals",
            text=_SHIFTED_TEXT,
            variant="missing-subtypes",
            train=8,
            validation=12,
            hospitals=_UNLIKE,
            plan={
                "rounds": 30,
                "local_epochs": 1,
                "optimizer": {"learning_rate": 2e-3},
                "schedule": {"name": "constant"},
            },
            entries=(
                Entry("fedavg-reset", "FedAvg, reset", "reset", baselines=ALL_BASELINES),
                Entry("fedavg-keep", "FedAvg, keep", "keep"),
                Entry("fedavg-aggregate", "FedAvg, aggregate", "aggregate"),
                Entry("fedavgm-reset", "FedAvgM (momentum 0.67), reset", "reset", "fedavgm", {"momentum": 0.67}),
                Entry("fedadam-reset", "FedAdam (β₁ 0.5), reset", "reset", "fedadam", {"beta1": 0.5}),
                Entry(
                    "fedprox-aggregate", "FedProx (μ 0.01), aggregate", "aggregate", "fedprox", {"proximal_mu": 0.01}
                ),
            ),
        ),
    ),
)

_TINY: Mapping[str, Any] = {
    "rounds": 2,
    "local_epochs": 1,
    "network": {"channels": [4, 8], "strides": [2]},
    "optimizer": {"learning_rate": 1e-2},
}
QUICK = Study(
    size=16,
    patients=1,
    repeats=1,
    settings=(
        Setting(
            name="shifted",
            title="Unlike hospitals",
            text=_SHIFTED_TEXT,
            variant="missing-subtypes",
            train=2,
            validation=2,
            hospitals=_UNLIKE,
            plan=_TINY,
            entries=(
                Entry("fedavg-reset", "FedAvg, reset", "reset", baselines=("local_only", "pooled")),
                Entry("fedavgm-keep", "FedAvgM (momentum 0.5), keep", "keep", "fedavgm", {"momentum": 0.5}),
            ),
        ),
        Setting(
            name="iid",
            title="Hospitals alike (IID)",
            text=_IID_TEXT,
            variant="iid",
            train=2,
            validation=2,
            hospitals=_ALIKE,
            plan=_TINY,
            entries=(Entry("fedavg-keep", "FedAvg, keep", "keep", baselines=ALL_BASELINES),),
        ),
    ),
)
"""The whole way in seconds, for tests: its numbers mean nothing."""
