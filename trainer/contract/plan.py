"""The immutable training recipe, as dataclasses and as JSON."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from trainer.contract.checks import ContractError, is_number
from trainer.contract.signing import canonical_json

NETWORKS = ("unet", "residual_unet", "segresnet", "dynunet", "attention_unet", "swin_unetr")
LOSSES = ("dice", "dice_ce", "dice_focal", "generalised_dice")
OPTIMIZERS = ("adam", "adamw", "sgd")
TREATMENTS = ("reset", "keep", "aggregate")
SCHEDULES = ("constant", "cosine", "polynomial", "step")
AUGMENTATIONS = ("none", "light", "standard", "strong")
PRECISIONS = ("float32", "mixed")
LOCAL_LAYERS = ("none", "normalisation")


@dataclass(frozen=True)
class Region:
    """One output channel: the union of label numbers it covers. WT = labels (1, 2, 3) in Task01."""

    name: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What is segmented: input channels, labels as in ``dataset.json``, regions (one output channel each)."""

    name: str
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Network:
    name: str = "unet"
    channels: tuple[int, ...] = (8, 16, 32, 64)
    strides: tuple[int, ...] = (1, 2, 2)
    residual_units: int = 0
    norm: str = "instance"
    dropout: float = 0.0


@dataclass(frozen=True)
class Optimizer:
    """Local optimizer. ``treatment`` says what becomes of its state between rounds: *reset* (fresh each
    round), *keep* (stays on the site's disk), *aggregate* (moments averaged and sent back)."""

    name: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    amsgrad: bool = False
    treatment: str = "reset"

    @property
    def entries(self) -> tuple[str, ...]:
        """What it remembers of each parameter, as the file of its state names it. ``step`` is one count of the whole."""
        if self.name == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg", "exp_avg_sq", "step", *(("max_exp_avg_sq",) if self.amsgrad else ()))


@dataclass(frozen=True)
class Schedule:
    """Learning rate over the whole federation: a function of (round - 1 + progress) / rounds."""

    name: str = "constant"
    warmup_rounds: int = 0
    final_factor: float = 0.01
    power: float = 0.9
    step_rounds: int = 10
    step_factor: float = 0.5


@dataclass(frozen=True)
class Validation:
    """``hd95_every``: rounds between Hausdorff-95 measurements (mm), 0 = never; the last round always if > 0."""

    local: bool = True
    hd95_every: int = 0
    overlap: float = 0.25


@dataclass(frozen=True)
class TrainingPlan:
    """The immutable training recipe of an experiment.

    ``patch``: edge lengths in voxels of what the network sees, ``None`` = the whole (padded) volume.
    ``spacing``: mm per voxel to resample to, ``None`` = as stored.
    ``threads``: CPU threads of the trainer, 0 = the site decides. ``seed`` makes a run repeatable.
    ``proximal_mu``: μ of the term μ/2·‖w − w_global‖² that FedProx adds to the loss, 0 = none.
    ``local_layers``: layers of which each site keeps its own from round to round (FedBN: *normalisation*).
    """

    task: Task
    network: Network = field(default_factory=Network)
    loss: str = "dice"
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    validation: Validation = field(default_factory=Validation)
    rounds: int = 12
    local_epochs: int = 3
    batch_size: int = 2
    patch: tuple[int, int, int] | None = None
    patches_per_case: int = 1
    spacing: tuple[float, float, float] | None = None
    augmentation: str = "light"
    precision: str = "float32"
    threads: int = 0
    seed: int = 0
    proximal_mu: float = 0.0
    local_layers: str = "none"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :func:`plan_from_json` reads it back to an equal plan."""
        document = asdict(self)
        document["task"]["labels"] = {str(number): name for number, name in self.task.labels.items()}
        return document

    def steps_per_epoch(self, cases: int) -> int:
        """Optimizer steps of one epoch over so many training cases."""
        return math.ceil(cases * (self.patches_per_case if self.patch is not None else 1) / self.batch_size)

    def digest(self) -> str:
        """SHA-256 over the canonical JSON: what a steward approves."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()


def plan_from_json(document: Mapping[str, Any]) -> TrainingPlan:
    """Read a plan. Raises :class:`ContractError` naming the field that is missing, unknown or out of range."""
    try:
        values = dict(document)
        task = dict(values.pop("task"))
        plan = TrainingPlan(
            task=Task(
                name=str(task["name"]),
                channels=tuple(str(c) for c in task["channels"]),
                labels={int(number): str(name) for number, name in task["labels"].items()},
                regions=tuple(
                    Region(name=str(r["name"]), labels=tuple(int(x) for x in r["labels"])) for r in task["regions"]
                ),
            ),
            network=_part(Network, values.pop("network", {}), "network", tuples=("channels", "strides")),
            optimizer=_part(Optimizer, values.pop("optimizer", {}), "optimizer"),
            schedule=_part(Schedule, values.pop("schedule", {}), "schedule"),
            validation=_part(Validation, values.pop("validation", {}), "validation"),
            patch=_triple(values.pop("patch", None), int),
            spacing=_triple(values.pop("spacing", None), float),
            **values,
        )
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ContractError(f"plan: {error}") from error
    problems = plan_problems(plan)
    if problems:
        raise ContractError("plan: " + "; ".join(f"{name}: {text}" for name, text in problems.items()), problems)
    return plan


def has_norm_entries(network: Network) -> bool:
    """Whether a network's normalisation layers have parameters or buffers: MONAI's instance normalisation has none,
    except where a network asks for it (DynUNet) or always has others (batch in the Attention U-Net, layer in SwinUNETR)."""
    return network.norm != "instance" or network.name in ("dynunet", "attention_unet", "swin_unetr")


def plan_problems(plan: TrainingPlan) -> dict[str, str]:
    """Return what is wrong with a plan, keyed by dotted field name; empty when it can run."""
    found: dict[str, str] = {}

    def need(ok: bool, name: str, text: str) -> None:
        if not ok:
            found.setdefault(name, text)

    def number(value: object, low: float, high: float) -> bool:
        return is_number(value) and low <= value <= high  # type: ignore[operator]

    def whole(value: object, low: int, high: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    known = set(plan.task.labels)
    need(bool(plan.task.channels), "task.channels", "name at least one input channel")
    need(bool(plan.task.regions), "task.regions", "name at least one region to segment")
    need(
        len({r.name for r in plan.task.regions}) == len(plan.task.regions),
        "task.regions",
        "each region needs its own name",
    )
    for region in plan.task.regions:
        need(
            bool(region.labels) and set(region.labels) <= known - {0},
            "task.regions",
            f"region {region.name} names a label that the task does not have",
        )
    n = plan.network
    need(n.name in NETWORKS, "network.name", f"choose one of {', '.join(NETWORKS)}")
    need(
        2 <= len(n.channels) <= 7 and all(whole(c, 1, 2048) for c in n.channels),
        "network.channels",
        "2 to 7 levels of 1 to 2048 channels",
    )
    need(n.name != "dynunet" or len(n.channels) >= 3, "network.channels", "DynUNet needs at least 3 levels")
    need(
        n.name != "attention_unet" or all(whole(c, 2, 2048) for c in n.channels),
        "network.channels",
        "Attention U-Net needs 2 channels or more",
    )
    need(
        len(n.strides) == len(n.channels) - 1 and all(s in (1, 2) for s in n.strides),
        "network.strides",
        "one stride of 1 or 2 between each two levels",
    )
    need(whole(n.residual_units, 0, 4), "network.residual_units", "0 to 4")
    need(n.norm in ("instance", "batch", "group"), "network.norm", "instance, batch or group")
    need(number(n.dropout, 0, 0.9), "network.dropout", "0 to 0.9")
    need(plan.loss in LOSSES, "loss", f"choose one of {', '.join(LOSSES)}")
    o = plan.optimizer
    need(o.name in OPTIMIZERS, "optimizer.name", f"choose one of {', '.join(OPTIMIZERS)}")
    need(number(o.learning_rate, 1e-8, 10), "optimizer.learning_rate", "between 1e-8 and 10")
    need(number(o.weight_decay, 0, 1), "optimizer.weight_decay", "between 0 and 1")
    need(number(o.momentum, 0, 0.9999), "optimizer.momentum", "between 0 and 0.9999")
    need(
        isinstance(o.amsgrad, bool) and not (o.amsgrad and o.name == "sgd"),
        "optimizer.amsgrad",
        "only Adam and AdamW have AMSGrad",
    )
    need(o.treatment in TREATMENTS, "optimizer.treatment", f"choose one of {', '.join(TREATMENTS)}")
    s = plan.schedule
    need(s.name in SCHEDULES, "schedule.name", f"choose one of {', '.join(SCHEDULES)}")
    need(
        whole(s.warmup_rounds, 0, plan.rounds if isinstance(plan.rounds, int) else 0),
        "schedule.warmup_rounds",
        "not more than the rounds",
    )
    need(number(s.final_factor, 0, 1), "schedule.final_factor", "between 0 and 1")
    need(number(s.power, 0.1, 10), "schedule.power", "between 0.1 and 10")
    need(whole(s.step_rounds, 1, 10_000), "schedule.step_rounds", "1 to 10000")
    need(number(s.step_factor, 0.001, 1), "schedule.step_factor", "between 0.001 and 1")
    v = plan.validation
    need(isinstance(v.local, bool), "validation.local", "true or false")
    need(whole(v.hd95_every, 0, 10_000), "validation.hd95_every", "0 (never) to 10000 rounds")
    need(number(v.overlap, 0, 0.9), "validation.overlap", "between 0 and 0.9")
    need(whole(plan.rounds, 1, 10_000), "rounds", "1 to 10000")
    need(whole(plan.local_epochs, 1, 1000), "local_epochs", "1 to 1000")
    need(whole(plan.batch_size, 1, 64), "batch_size", "1 to 64")
    need(whole(plan.patches_per_case, 1, 32), "patches_per_case", "1 to 32")
    if plan.patch is not None:
        need(all(whole(edge, 8, 512) for edge in plan.patch), "patch", "three edges of 8 to 512 voxels")
    if plan.spacing is not None:
        need(all(number(mm, 0.1, 20) for mm in plan.spacing), "spacing", "three spacings of 0.1 to 20 mm")
    need(plan.augmentation in AUGMENTATIONS, "augmentation", f"choose one of {', '.join(AUGMENTATIONS)}")
    need(plan.precision in PRECISIONS, "precision", f"choose one of {', '.join(PRECISIONS)}")
    need(whole(plan.threads, 0, 256), "threads", "0 to 256")
    need(whole(plan.seed, 0, 2**31 - 1), "seed", "0 to 2147483647")
    need(number(plan.proximal_mu, 0, 10), "proximal_mu", "between 0 and 10")
    need(plan.local_layers in LOCAL_LAYERS, "local_layers", f"choose one of {', '.join(LOCAL_LAYERS)}")
    need(
        plan.local_layers == "none" or has_norm_entries(n),
        "local_layers",
        "the normalisation layers of this network have nothing to keep",
    )
    return found


def _part(cls: type[Any], values: Mapping[str, Any], name: str, tuples: tuple[str, ...] = ()) -> Any:
    known = {f.name for f in fields(cls)}
    unknown = set(values) - known
    if unknown:
        raise ContractError(f"plan: {name} has unknown fields {', '.join(sorted(unknown))}")
    return cls(**{key: tuple(value) if key in tuples else value for key, value in values.items()})


def _triple(values: Any, kind: type) -> Any:
    if values is None:
        return None
    if len(values) != 3:
        raise ContractError("plan: patch and spacing need three values")
    return tuple(kind(value) for value in values)
