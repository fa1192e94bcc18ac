"""What crosses the wire between portal and trainer, and the names both sides compute.

Standard library only: this module is the one door between the rooms of the portal and the trainer.
``docs/contract.md`` explains it in prose; a change here that an older peer cannot read raises
:data:`CONTRACT_VERSION`.

The round trip of one attempt::

    portal   spec.json      signed job: plan, inputs (presigned GET), outputs (presigned PUT)
    launch   LaunchTicket   run name, address of the spec, key of the attempt, on the control path
    trainer  metrics        small records while it works (idempotent by attempt, phase, name, region, step)
    trainer  update         safetensors, then log, then *last of all* manifest.json: its existence is the commit
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Any

CONTRACT_VERSION = 1
ROOT = "fedportal"
MAX_RUN_NAME = 40
MAX_JSON_BYTES = 32 * 1024 * 1024
"""No spec or manifest is larger; a reader refuses more before it parses."""


class ContractError(ValueError):
    """A document does not follow the contract."""


# --- names: computed, never remembered ------------------------------------------------------------

_EXPERIMENT = re.compile(r"[a-z0-9]{4,10}\Z")
_SITE = re.compile(r"[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?\Z")


def run_name(*, experiment: str, round: int, site: str, attempt: int) -> str:
    """Return ``fp-<experiment>-r<round>-<site>-a<attempt>``: lower-case DNS label, at most 40 characters."""
    if not _EXPERIMENT.match(experiment):
        raise ContractError(f"experiment key {experiment!r}: 4 to 10 lower-case letters or digits")
    if not _SITE.match(site):
        raise ContractError(f"site slug {site!r}: at most 15 lower-case letters, digits, hyphens")
    if not (0 <= round <= 99_999 and 1 <= attempt <= 99):
        raise ContractError(f"round {round} or attempt {attempt} out of range")
    name = f"fp-{experiment}-r{round}-{site}-a{attempt}"
    if len(name) > MAX_RUN_NAME:
        raise ContractError(f"run name {name!r} is longer than {MAX_RUN_NAME} characters")
    return name


def round_prefix(experiment: str, round: int) -> str:
    return f"{ROOT}/{experiment}/r{round:05d}"


def global_model_key(experiment: str, round: int) -> str:
    """Key of the global model that round ``round`` publishes; round 0 is the initial model."""
    return f"{round_prefix(experiment, round)}/global.safetensors"


def server_state_key(experiment: str, round: int) -> str:
    """Key of what the aggregation keeps between rounds (server moments, averaged optimizer state)."""
    return f"{round_prefix(experiment, round)}/server-state.safetensors"


def attempt_prefix(*, experiment: str, round: int, site: str, attempt: int) -> str:
    """Prefix of all objects of one attempt. Another attempt never shares a key with it."""
    return f"{round_prefix(experiment, round)}/{site}/a{attempt}"


SPEC_NAME = "spec.json"
UPDATE_NAME = "update.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
LOG_NAME = "log.txt"
MANIFEST_NAME = "manifest.json"


# --- the plan -------------------------------------------------------------------------------------

NETWORKS = ("unet", "residual_unet", "segresnet", "dynunet", "attention_unet", "swin_unetr")
LOSSES = ("dice", "dice_ce", "dice_focal", "generalised_dice")
OPTIMIZERS = ("adam", "adamw", "sgd")
TREATMENTS = ("reset", "keep", "aggregate")
SCHEDULES = ("constant", "cosine", "polynomial", "step")
AUGMENTATIONS = ("none", "light", "standard", "strong")
PRECISIONS = ("float32", "mixed")


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

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; :func:`plan_from_json` reads it back to an equal plan."""
        document = asdict(self)
        document["task"]["labels"] = {str(number): name for number, name in self.task.labels.items()}
        return document

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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"plan: {error}") from error
    problems = plan_problems(plan)
    if problems:
        raise ContractError("plan: " + "; ".join(f"{name}: {text}" for name, text in problems.items()))
    return plan


def plan_problems(plan: TrainingPlan) -> dict[str, str]:
    """Return what is wrong with a plan, keyed by dotted field name; empty when it can run."""
    found: dict[str, str] = {}

    def need(ok: bool, name: str, text: str) -> None:
        if not ok:
            found.setdefault(name, text)

    def number(value: object, low: float, high: float) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and low <= value <= high
        )

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
    return found


# --- the job --------------------------------------------------------------------------------------


class Kind(StrEnum):
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True)
class Fetch:
    """An object to read: presigned GET, with the size in bytes and SHA-256 that it must have."""

    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Put:
    """An object to write once. One presigned PUT, or one URL per part of ``part_size`` bytes (the last
    part may be shorter; unused part URLs stay unused). With parts, the ETags go into the manifest and
    the portal completes the upload."""

    url: str = ""
    part_urls: tuple[str, ...] = ()
    part_size: int = 0
    upload_id: str = ""


@dataclass(frozen=True)
class JobSpec:
    """All that one attempt needs. Signed with the key of the attempt (see :func:`signed`)."""

    kind: Kind
    run: str
    experiment: str
    round: int
    site: str
    attempt: int
    dataset: str
    plan: TrainingPlan
    model: Fetch
    manifest: Put
    log: Put
    update: Put | None = None
    optimizer_in: Fetch | None = None
    optimizer_out: Put | None = None
    metrics_url: str = ""
    expires_at: float = 0.0
    contract: int = CONTRACT_VERSION

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["kind"] = self.kind.value
        document["plan"] = self.plan.to_json()
        return document


def spec_from_json(document: Mapping[str, Any]) -> JobSpec:
    """Read a job spec. Raises :class:`ContractError` when it is not of this contract."""
    values = dict(document)
    if values.get("contract") != CONTRACT_VERSION:
        raise ContractError(
            f"job of contract {values.get('contract')!r}, this trainer speaks {CONTRACT_VERSION}: update one of them"
        )
    try:
        puts = {name: _put(values.pop(name, None)) for name in ("manifest", "log", "update", "optimizer_out")}
        fetches = {name: _fetch(values.pop(name, None)) for name in ("model", "optimizer_in")}
        spec = JobSpec(
            kind=Kind(values.pop("kind")), plan=plan_from_json(values.pop("plan")), **puts, **fetches, **values
        )
        if spec.run != run_name(experiment=spec.experiment, round=spec.round, site=spec.site, attempt=spec.attempt):
            raise ContractError("job: its run name does not match its experiment, round, site and attempt")
        if spec.model is None or spec.manifest is None or spec.log is None:
            raise ContractError("job: model, manifest and log are needed")
        if spec.kind is Kind.TRAIN and spec.update is None:
            raise ContractError("job: a training needs a place for its update")
        return spec
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"job: {error}") from error


@dataclass(frozen=True)
class LaunchTicket:
    """What travels on the control path: where the spec lies, and the key that it is signed with (hex).

    The same key authenticates the attempt's metric records (``Authorization: Bearer <token>``, see
    :func:`metrics_token`) and signs its manifest.
    """

    run: str
    spec_url: str
    key: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


# --- what comes back ------------------------------------------------------------------------------


class Phase(StrEnum):
    """When a number was measured: while training, on the incoming global model (before training), on
    the local model (after training), or as the portal's mean over sites (``global``)."""

    TRAIN = "train"
    INCOMING = "incoming"
    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True)
class MetricRecord:
    """One number. ``name``: loss, dice, hd95 (mm), learning_rate, seconds. ``region``: a region of the task,
    ``mean`` over regions, or empty. ``step``: optimizer steps done in this round (0 before the first).
    ``progress``: share of this round's training done, 0 to 1. ``value`` is ``None`` where undefined (an empty mask
    has no Hausdorff distance); ``cases`` is how many cases it is the mean of. ``at``: seconds since the epoch."""

    phase: Phase
    name: str
    value: float | None
    region: str = ""
    step: int = 0
    progress: float = 0.0
    cases: int = 0
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["phase"] = self.phase.value
        return document


def metric_from_json(document: Mapping[str, Any]) -> MetricRecord:
    """Read one record; refuses what a page could not draw (unknown phase, NaN, long names)."""
    try:
        record = MetricRecord(**{**document, "phase": Phase(document["phase"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"metric: {error}") from error
    ok = (
        record.phase is not Phase.GLOBAL
        and isinstance(record.name, str)
        and re.fullmatch(r"[a-z0-9_]{1,32}", record.name)
        and isinstance(record.region, str)
        and len(record.region) <= 40
        and _is_int(record.step)
        and 0 <= record.step <= 10**9
        and _is_int(record.cases)
        and 0 <= record.cases <= 10**7
        and _is_number(record.progress)
        and 0 <= record.progress <= 1
        and _is_number(record.at)
        and record.at >= 0
        and (record.value is None or _is_number(record.value))
    )
    if not ok:
        raise ContractError(f"metric: not a drawable record: {str(dict(document))[:200]}")
    return record


@dataclass(frozen=True)
class Stored:
    """An object that was written: size in bytes, SHA-256 hex, and the parts' ETags where it came in parts."""

    sha256: str
    size: int
    etags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """Written last by an attempt; its existence is the commit. ``seconds`` has the duration of each step:
    pull, load, validate_incoming, train, validate_local, push (wall clock)."""

    run: str
    experiment: str
    round: int
    site: str
    attempt: int
    kind: Kind
    exit_code: int
    message: str
    train_cases: int = 0
    validation_cases: int = 0
    steps: int = 0
    update: Stored | None = None
    optimizer: Stored | None = None
    metrics: tuple[MetricRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    contract: int = CONTRACT_VERSION

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["kind"] = self.kind.value
        document["metrics"] = [record.to_json() for record in self.metrics]
        return document


def manifest_from_json(document: Mapping[str, Any]) -> Manifest:
    """Read a manifest. Raises :class:`ContractError` for anything that is not one."""
    values = dict(document)
    if values.get("contract") != CONTRACT_VERSION:
        raise ContractError(f"manifest of contract {values.get('contract')!r}, this portal speaks {CONTRACT_VERSION}")
    try:
        manifest = Manifest(
            kind=Kind(values.pop("kind")),
            update=_stored(values.pop("update", None)),
            optimizer=_stored(values.pop("optimizer", None)),
            metrics=tuple(metric_from_json(record) for record in values.pop("metrics", ())),
            **values,
        )
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"manifest: {error}") from error
    counts = (
        manifest.train_cases,
        manifest.validation_cases,
        manifest.steps,
        manifest.round,
        manifest.attempt,
        manifest.exit_code,
    )
    texts = (manifest.run, manifest.experiment, manifest.site, manifest.message)
    if not all(_is_int(count) and count >= 0 for count in counts) or not all(isinstance(text, str) for text in texts):
        raise ContractError("manifest: a count or a name is not of its type")
    if not all(isinstance(name, str) and _is_number(value) for name, value in dict(manifest.seconds).items()):
        raise ContractError("manifest: seconds are not numbers")
    return manifest


class Exit(IntEnum):
    """Exit codes of the trainer. ``docs/contract.md`` has a section for each; :data:`EXPLANATIONS` the sentence."""

    OK = 0
    UNEXPECTED = 1
    BAD_JOB = 10
    BAD_SIGNATURE = 11
    TRANSFER_FAILED = 12
    MODEL_MISMATCH = 13
    NO_DATASET = 20
    MISSING_FILE = 21
    UNREADABLE_IMAGE = 22
    SHAPE_MISMATCH = 23
    WRONG_LABEL = 24
    NOT_FINITE = 25
    EMPTY_MASK = 26
    WRONG_CHANNELS = 27
    NO_CASES = 28
    LABELS_DIFFER = 29
    DISK_FULL = 30
    OUT_OF_MEMORY = 31
    DIVERGED = 32
    CANCELLED = 40


EXPLANATIONS: Mapping[Exit, str] = {
    Exit.OK: "Finished.",
    Exit.UNEXPECTED: "The trainer stopped for a reason it does not know. The log has the details.",
    Exit.BAD_JOB: "The site's trainer does not understand the job. Portal and trainer are probably of different versions.",
    Exit.BAD_SIGNATURE: "The job was changed on its way to the site, so it was not run.",
    Exit.TRANSFER_FAILED: "The site could not fetch the model or deliver its result. Check its connection to the object store.",
    Exit.MODEL_MISMATCH: "The global model does not fit the network of the plan.",
    Exit.NO_DATASET: "The dataset is not at the site: there is no folder with a dataset.json of that name.",
    Exit.MISSING_FILE: "An image or a segmentation that dataset.json lists is missing.",
    Exit.UNREADABLE_IMAGE: "An image or a segmentation is damaged and cannot be read.",
    Exit.SHAPE_MISMATCH: "An image and its segmentation do not have the same size.",
    Exit.WRONG_LABEL: "A segmentation contains a label number that dataset.json does not list.",
    Exit.NOT_FINITE: "An image contains values that are not numbers (NaN or infinity).",
    Exit.EMPTY_MASK: "None of the training cases has anything segmented, so there is nothing to learn.",
    Exit.WRONG_CHANNELS: "An image does not have the channels (contrasts) that the task expects.",
    Exit.NO_CASES: "The dataset lists no case to train on or no case to validate with.",
    Exit.LABELS_DIFFER: "The site's labels have other names or numbers than the experiment's task.",
    Exit.DISK_FULL: "The site's disk is full.",
    Exit.OUT_OF_MEMORY: "The training did not fit into memory. A smaller patch or batch size helps.",
    Exit.DIVERGED: "The loss became infinite or not a number. A lower learning rate helps.",
    Exit.CANCELLED: "The run was cancelled.",
}

PERMANENT = frozenset(
    {Exit.BAD_JOB, Exit.MODEL_MISMATCH, Exit.NO_DATASET, Exit.MISSING_FILE, Exit.UNREADABLE_IMAGE, Exit.SHAPE_MISMATCH,
     Exit.WRONG_LABEL, Exit.NOT_FINITE, Exit.EMPTY_MASK, Exit.WRONG_CHANNELS, Exit.NO_CASES, Exit.LABELS_DIFFER, Exit.DIVERGED}
)  # fmt: skip
"""Exit codes for which another attempt with the same job and data would fail in the same way."""


# --- canonical JSON, signatures, keys -------------------------------------------------------------


def canonical_json(document: Any) -> bytes:
    """Encode so that equal documents have equal bytes. Raises ``ValueError`` for NaN and infinity."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def attempt_key(secret: bytes, run: str) -> str:
    """Derive the key of an attempt (hex) from the portal's secret: nothing to store, nothing to lose."""
    return hmac.new(secret, f"attempt:{run}".encode(), hashlib.sha256).hexdigest()


def metrics_token(key: str) -> str:
    """Token with which an attempt posts its metric records; derived, so that it is not the signing key."""
    return hmac.new(bytes.fromhex(key), b"metrics", hashlib.sha256).hexdigest()


def signed(document: Mapping[str, Any], key: str) -> bytes:
    """Return ``{"document": …, "hmac": …}`` as JSON bytes, authenticated under ``key`` (hex)."""
    body = dict(document)
    return canonical_json({"document": body, "hmac": _mac(body, key)})


def verified(data: bytes, key: str) -> dict[str, Any]:
    """Return the document of :func:`signed` bytes. Raises :class:`ContractError` when it was not signed with ``key``."""
    if len(data) > MAX_JSON_BYTES:
        raise ContractError(f"document of {len(data)} bytes is too large")
    try:
        envelope = json.loads(data)
        document, mac = envelope["document"], envelope["hmac"]
        genuine = isinstance(document, dict) and isinstance(mac, str) and hmac.compare_digest(_mac(document, key), mac)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError("document is not signed JSON") from error
    if not genuine:
        raise ContractError("document has a wrong signature")
    return document


def sha256_of(chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def _mac(document: Mapping[str, Any], key: str) -> str:
    return hmac.new(bytes.fromhex(key), canonical_json(document), hashlib.sha256).hexdigest()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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


def _put(values: Mapping[str, Any] | None) -> Put | None:
    return None if values is None else Put(**{**values, "part_urls": tuple(values.get("part_urls", ()))})


def _fetch(values: Mapping[str, Any] | None) -> Fetch | None:
    return None if values is None else Fetch(**values)


def _stored(values: Mapping[str, Any] | None) -> Stored | None:
    if values is None:
        return None
    stored = Stored(**{**values, "etags": tuple(values.get("etags", ()))})
    if not (_is_int(stored.size) and stored.size > 0 and re.fullmatch(r"[0-9a-f]{64}", str(stored.sha256))):
        raise ContractError("manifest: size or SHA-256 of an object is not valid")
    return stored
