"""Every setting of an experiment in one table: label, help, unit, range, default.

The composer's fields, the API's schema and the review are made from :data:`SETTINGS`, so a new setting is a new line
here. Names are dotted paths into the plan (``optimizer.learning_rate``) or fields of the experiment (``min_sites``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from fedportal.aggregation.strategies import STRATEGIES, WEIGHTING, Option, Strategy
from fedportal.experiments.models import MEAN, Baseline, Experiment, Straggler, Weighting
from trainer.contract import TrainingPlan


class Kind(StrEnum):
    """What a setting's value is. *Some* are any of its choices; a *triple* is three values or ``None``; a *region* the
    name of one of the task's, or *mean*; a *model* a global model of another experiment, or ``None``."""

    CHOICE = "choice"
    SOME = "some"
    WHOLE = "whole"
    NUMBER = "number"
    YES_NO = "yes_no"
    WHOLES = "wholes"
    WHOLE_TRIPLE = "whole_triple"
    NUMBER_TRIPLE = "number_triple"
    REGION = "region"
    MODEL = "model"


@dataclass(frozen=True)
class Setting:
    """One setting. ``low`` and ``high`` are inclusive and hold for each element of a list; ``optional``: may be empty.

    ``empty`` and ``zero``: what these values mean in words. ``needs``: the setting has an effect only while another one
    has one of some values (momentum: only with SGD).
    """

    name: str
    label: str
    help: str
    kind: Kind
    group: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[tuple[str, str], ...] = ()
    advanced: bool = False
    optional: bool = False
    empty: str = "—"
    zero: str = ""
    needs: tuple[str, tuple[str, ...]] = ("", ())
    of_plan: bool = True
    option: Option | None = None
    """For an option of a strategy: what the strategy says of it. Its value lies in the experiment's ``strategy_options``."""

    @property
    def field(self) -> str:
        """The name of the form field: the dots become underscores."""
        return self.name.replace(".", "_")

    @property
    def default(self) -> Any:
        if self.option is not None:
            return self.option.default
        if self.kind is Kind.MODEL:
            return None
        if not self.of_plan:
            return Experiment._meta.get_field(self.name).get_default()
        return _DEFAULTS[self.name]

    @property
    def range_text(self) -> str:
        """Return range and default in words: “Range 0 to 0.9. Default 0.”"""
        limits = "" if self.low is None else f"Range {number_text(self.low)} to {number_text(self.high)}."
        default = "" if self.kind is Kind.YES_NO else f"Default: {self.show(self.default).split(':')[0]}."
        return f"{limits} {default}".strip()

    def show(self, value: Any) -> str:
        """Return the value as people read it, with its unit."""
        if value is None or value in ("", []):
            return self.empty
        if self.kind is Kind.CHOICE:
            return str(dict(self.choices).get(value, value))
        if self.kind is Kind.SOME:
            return ", ".join(str(label) for choice, label in self.choices if choice in value)
        if self.kind is Kind.REGION:
            return "mean Dice over regions" if value == MEAN else f"Dice of {value}"
        if self.kind is Kind.MODEL:
            return f"model of round {value.round_number} of “{value.experiment.title}” ({value.experiment.key})"
        if self.kind is Kind.YES_NO:
            return "Yes" if value else "No"
        if self.kind is Kind.WHOLES:
            text = ", ".join(map(number_text, value))
        elif self.kind in (Kind.WHOLE_TRIPLE, Kind.NUMBER_TRIPLE):
            text = " × ".join(map(number_text, value))
        elif not value and self.zero:
            return self.zero
        else:
            text = number_text(value)
        unit = self.unit.removesuffix("s") if value == 1 else self.unit
        return f"{text} {unit}".rstrip()


def number_text(value: float) -> str:
    """Write a number without an exponent: 12, 0.001, 0.00001."""
    return str(int(value)) if value == int(value) else f"{Decimal(repr(value)):f}"


@dataclass(frozen=True)
class Group:
    """Settings that belong together on a page. ``section``: the part of the composer they stand in."""

    name: str
    title: str
    text: str
    section: str


GROUPS = (
    Group("network", "Network", "What learns. A smaller network trains faster and needs fewer cases.", "recipe"),
    Group("training", "Training at a site", "How each site learns from its own cases in a round.", "recipe"),
    Group("optimizer", "Optimizer", "How the weights are changed after each batch.", "recipe"),
    Group("schedule", "Learning-rate schedule", "How the learning rate changes over all rounds.", "recipe"),
    Group("volumes", "Volumes", "How images are prepared and cut before the network sees them.", "recipe"),
    Group("validation", "Validation", "What is measured on the cases that are held out at each site.", "recipe"),
    Group("rounds", "Rounds", "A round: every site trains on its own, then the portal makes one model.", "rounds"),
    Group("aggregation", "Aggregation", "How the sites' updates become one global model.", "rounds"),
    Group(
        "stopping",
        "Best model and early stop",
        "Which global model counts as the best, and when more rounds are no use.",
        "rounds",
    ),
    Group("patience", "Waiting for sites", "What happens when a site is slow or fails.", "rounds"),
    Group(
        "baselines",
        "Compare with",
        "What else is trained for the same number of gradient steps, and measured on the same cases.",
        "comparison",
    ),
    Group("repeats", "Repeats", "One run can be lucky. Several show how much of a difference is chance.", "comparison"),
)

NETWORK_CHOICES = (
    ("unet", "U-Net"),
    ("residual_unet", "Residual U-Net"),
    ("segresnet", "SegResNet"),
    ("dynunet", "DynUNet (nnU-Net style)"),
    ("attention_unet", "Attention U-Net"),
    ("swin_unetr", "Swin UNETR (transformer)"),
)
LOSS_CHOICES = (
    ("dice", "Dice"),
    ("dice_ce", "Dice + cross-entropy"),
    ("dice_focal", "Dice + focal"),
    ("generalised_dice", "Generalised Dice"),
)
OPTIMIZER_CHOICES = (("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD with momentum"))
TREATMENT_CHOICES = (
    ("reset", "Start fresh every round"),
    ("keep", "Keep it at the site"),
    ("aggregate", "Average it like the weights"),
)
SCHEDULE_CHOICES = (
    ("constant", "Constant"),
    ("cosine", "Cosine"),
    ("polynomial", "Polynomial"),
    ("step", "Steps"),
)
AUGMENTATION_CHOICES = (
    ("none", "None"),
    ("light", "Light: flips, brightness and contrast by 10 %"),
    ("standard", "Standard: also rotation, zoom and noise"),
    ("strong", "Strong: wider, also gamma, blur and low resolution"),
)
PRECISION_CHOICES = (("float32", "Full (float32)"), ("mixed", "Mixed (faster on a GPU)"))
NORM_CHOICES = (("instance", "Instance"), ("batch", "Batch"), ("group", "Group"))

BASELINE_TEXTS = {
    Baseline.POOLED: "One model is trained on the cases of all sites in one place: what does it cost that the data stay apart?",
    Baseline.LOCAL_ONLY: "Each site trains on its own cases alone: what does a hospital get from taking part?",
    Baseline.ENSEMBLE: "The local-only models predict together: is one common model better? Needs “Local only”.",
    Baseline.CYCLIC: "One model goes from site to site and trains at each in turn: is averaging better than passing on?",
}
"""The question that each baseline answers."""

_K = Kind
SETTINGS: tuple[Setting, ...] = (
    Setting("network.name", "Network", "The U-Net is a good first choice.", _K.CHOICE, "network", choices=NETWORK_CHOICES),
    Setting(
        "network.channels", "Channels per level", "Feature channels from the finest level to the deepest, 2 to 7 levels.",
        _K.WHOLES, "network", low=1, high=2048,
    ),
    Setting(
        "network.strides", "Strides between levels",
        "One number between each two levels: 2 halves the resolution, 1 keeps it. For small volumes start with 1.",
        _K.WHOLES, "network", low=1, high=2,
    ),
    Setting(
        "network.residual_units", "Residual units per level", "0 means plain convolutions.", _K.WHOLE, "network",
        low=0, high=4, advanced=True,
    ),
    Setting(
        "network.norm", "Normalisation", "Instance suits small batches; batch shares statistics between sites.",
        _K.CHOICE, "network", choices=NORM_CHOICES, advanced=True,
    ),
    Setting(
        "network.dropout", "Dropout", "Share of features left out at random while training.", _K.NUMBER, "network",
        low=0, high=0.9, advanced=True,
    ),
    Setting(
        "initial_model", "Start from",
        "A global model of the same task and network, instead of random weights: the newest or the best of an experiment, "
        "of the one that this is a copy of any. Save a changed network first.",
        _K.MODEL, "network", optional=True, empty="random weights", advanced=True, of_plan=False,
    ),
    Setting("loss", "Loss", "What training makes small. Dice copes with small structures.", _K.CHOICE, "training", choices=LOSS_CHOICES),
    Setting("batch_size", "Batch size", "Volumes or patches per step. Halve it when memory runs out.", _K.WHOLE, "training", low=1, high=64),
    Setting(
        "augmentation", "Augmentation", "Random changes to training images, so that the model does not learn them by heart.",
        _K.CHOICE, "training", choices=AUGMENTATION_CHOICES,
    ),
    Setting("precision", "Arithmetic", "Mixed saves memory and time on a GPU; without one it changes nothing.", _K.CHOICE, "training", choices=PRECISION_CHOICES),
    Setting("seed", "Random seed", "The same seed and data give the same model again.", _K.WHOLE, "training", low=0, high=2**31 - 1, advanced=True),
    Setting(
        "threads", "Threads", "Processor threads for each training; 0 lets the site decide.", _K.WHOLE, "training",
        unit="threads", low=0, high=256, advanced=True, zero="the site decides",
    ),
    Setting("optimizer.name", "Optimizer", "Adam needs the least tuning.", _K.CHOICE, "optimizer", choices=OPTIMIZER_CHOICES),
    Setting("optimizer.learning_rate", "Learning rate", "Size of the steps. 0.001 suits Adam.", _K.NUMBER, "optimizer", low=1e-8, high=10),
    Setting(
        "optimizer.treatment", "Optimizer's memory between rounds",
        "Adam remembers past gradients. Fresh is the simplest; averaging makes each update three times as large.",
        _K.CHOICE, "optimizer", choices=TREATMENT_CHOICES,
    ),
    Setting("optimizer.weight_decay", "Weight decay", "Pulls weights towards zero; 0 switches it off.", _K.NUMBER, "optimizer", low=0, high=1, advanced=True),
    Setting("optimizer.momentum", "Momentum", "For SGD only.", _K.NUMBER, "optimizer", low=0, high=0.9999, needs=("optimizer.name", ("sgd",)), advanced=True),
    Setting("optimizer.amsgrad", "AMSGrad", "A variant of Adam and AdamW that never lets its memory shrink.", _K.YES_NO, "optimizer", needs=("optimizer.name", ("adam", "adamw",)), advanced=True),
    Setting("schedule.name", "Schedule", "Constant is right for few rounds; cosine ends gently.", _K.CHOICE, "schedule", choices=SCHEDULE_CHOICES),
    Setting("schedule.warmup_rounds", "Warm-up", "Rounds in which the rate grows from nothing; not more than all rounds.", _K.WHOLE, "schedule", unit="rounds", low=0, high=10_000, zero="none", advanced=True),
    Setting("schedule.final_factor", "Final share", "For cosine: share of the learning rate that is left in the last round.", _K.NUMBER, "schedule", low=0, high=1, needs=("schedule.name", ("cosine",)), advanced=True),
    Setting("schedule.power", "Power", "For polynomial: 1 falls in a straight line, higher falls sooner.", _K.NUMBER, "schedule", low=0.1, high=10, needs=("schedule.name", ("polynomial",)), advanced=True),
    Setting("schedule.step_rounds", "Rounds per step", "For steps: how long the rate stays the same.", _K.WHOLE, "schedule", unit="rounds", low=1, high=10_000, needs=("schedule.name", ("step",)), advanced=True),
    Setting("schedule.step_factor", "Factor per step", "For steps: what the rate is multiplied with.", _K.NUMBER, "schedule", low=0.001, high=1, needs=("schedule.name", ("step",)), advanced=True),
    Setting(
        "patch", "Patch", "Edges of the piece the network sees, in voxels: 128 × 128 × 64. Empty: the whole volume.",
        _K.WHOLE_TRIPLE, "volumes", unit="voxels", low=8, high=512, optional=True, empty="whole volume",
    ),
    Setting(
        "spacing", "Voxel spacing", "All images are resampled to it: 1.5 × 1.5 × 2. Empty: as stored.",
        _K.NUMBER_TRIPLE, "volumes", unit="mm", low=0.1, high=20, optional=True, empty="as stored",
    ),
    Setting("patches_per_case", "Patches per case", "How many patches an epoch takes from each case; unused with whole volumes.", _K.WHOLE, "volumes", low=1, high=32, advanced=True),
    Setting("validation.local", "Also measure each site's own model", "After training and before it is merged: shows what a site learned by itself.", _K.YES_NO, "validation"),
    Setting(
        "validation.hd95_every", "Surface distance (HD95) every", "Rounds between measurements, and at the end; 0 never measures it.",
        _K.WHOLE, "validation", unit="rounds", low=0, high=10_000, zero="never",
    ),
    Setting("validation.overlap", "Overlap of patches", "When a volume is larger than the patch: the share by which neighbours overlap.", _K.NUMBER, "validation", low=0, high=0.9, advanced=True),
    Setting("rounds", "Rounds", "How often the sites train and the portal makes a new global model.", _K.WHOLE, "rounds", unit="rounds", low=1, high=10_000),
    Setting("local_epochs", "Local epochs", "How often a site goes through its cases in one round.", _K.WHOLE, "rounds", unit="epochs", low=1, high=1000),
    Setting("strategy", "Strategy", "How updates are combined.", _K.CHOICE, "aggregation", choices=tuple((s.name, s.title) for s in STRATEGIES.values()), of_plan=False),
    Setting(
        "weighting", "Weight of a site", "By cases: a site with twice the cases counts twice.", _K.CHOICE, "aggregation",
        choices=tuple(Weighting.choices), of_plan=False, needs=("strategy", tuple(s.name for s in STRATEGIES.values() if s.weighted)),
    ),
    Setting(
        "max_relative_norm", "Largest change accepted",
        "Refuse an update that changes the model by more than this multiple of the model's own size. Empty: no limit.",
        _K.NUMBER, "aggregation", unit="× the model's norm", low=0.001, high=1000, optional=True, empty="no limit", advanced=True, of_plan=False,
    ),
    Setting(
        "best_by", "Best model by", "Measured on the held-out cases of all sites.", _K.REGION, "stopping", of_plan=False,
    ),
    Setting(
        "patience", "Stop early after", "Rounds without a better model. The model of the last round is still measured. 0: run all rounds.",
        _K.WHOLE, "stopping", unit="rounds", low=0, high=10_000, zero="never", of_plan=False,
    ),
    Setting("min_sites", "Quorum", "A round counts when at least so many sites delivered an update.", _K.WHOLE, "patience", unit="sites", low=1, high=1000, of_plan=False),
    Setting(
        "deadline_minutes", "Deadline of a round", "How long a round waits for its sites: a week (10 080 minutes) at most, for the store's addresses work no longer.",
        _K.NUMBER, "patience", unit="minutes", low=0.05, high=10_080, of_plan=False,
    ),
    Setting("stragglers", "When a site is late", "Waiting is fair to every site; going on is faster.", _K.CHOICE, "patience", choices=tuple(Straggler.choices), of_plan=False),
    Setting(
        "grace_minutes", "Extra time for late sites", "With “go on without it”: how long the others still wait once the quorum is there.",
        _K.NUMBER, "patience", unit="minutes", low=0, high=10_080, needs=("stragglers", ("drop",)), advanced=True, of_plan=False,
    ),
    Setting("max_attempts", "Attempts per site and round", "How often a failing site is started again in a round.", _K.WHOLE, "patience", low=1, high=99, advanced=True, of_plan=False),
    Setting(
        "baselines", "Baselines", "Each is run like the experiment itself, after it, with its recipe and seed.",
        _K.SOME, "baselines", choices=tuple(Baseline.choices), empty="none", of_plan=False,
    ),
    Setting(
        "compare_every", "Cross-site evaluation every",
        "Every site measures every model on its own held-out cases, also without a baseline. 0: the last and the best model only, beside baselines.",
        _K.WHOLE, "baselines", unit="rounds", low=0, high=10_000, zero="the last and the best model only", of_plan=False,
    ),
    Setting(
        "repeats", "Number of seeds", "The experiment and its baselines are run so many times, each time with the next random seed.",
        _K.WHOLE, "repeats", unit="seeds", low=1, high=20, of_plan=False,
    ),
)  # fmt: skip


def _of_option(strategy: Strategy, option: Option) -> Setting:
    return Setting(
        name=f"{strategy.name}.{option.name}",
        label=f"{strategy.title}: {option.title[:1].lower()}{option.title[1:]}",
        help=option.help,
        kind=Kind.NUMBER,
        group="aggregation",
        low=option.least,
        high=option.most,
        needs=("strategy", (strategy.name,)),
        of_plan=False,
        option=option,
    )


STRATEGY_SETTINGS = tuple(
    _of_option(strategy, option)
    for strategy in STRATEGIES.values()
    for option in strategy.options
    if option is not WEIGHTING
)
"""The options of all strategies, named ``<strategy>.<option>``; those of the chosen one have an effect."""

ALL_SETTINGS = SETTINGS + STRATEGY_SETTINGS
BY_NAME = {setting.name: setting for setting in ALL_SETTINGS}


def of_section(section: str) -> list[tuple[Group, list[Setting]]]:
    """Return the groups of a section of the composer with their settings, in order."""
    return [
        (group, [setting for setting in ALL_SETTINGS if setting.group == group.name])
        for group in GROUPS
        if group.section == section
    ]


def has_effect(experiment: Experiment, setting: Setting) -> bool:
    """Whether a setting means anything with the other ones as they are."""
    name, values = setting.needs
    return not name or value_of(experiment, BY_NAME[name]) in values


def flatten(document: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the values of dotted names in nested JSON; names that are not there are left out."""
    found = {}
    for name in names:
        value: Any = document
        for part in name.split("."):
            value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
        if value is not _MISSING:
            found[name] = value
    return found


def value_of(experiment: Experiment, setting: Setting) -> Any:
    """Return a setting's value in an experiment; an incomplete plan has the default, and so have the options of
    strategies that were not chosen."""
    if setting.option is not None:
        options = experiment.strategy_options if has_effect(experiment, setting) else {}
        return options.get(setting.option.name, setting.default)
    if not setting.of_plan:
        return getattr(experiment, setting.name)
    value = flatten(experiment.plan, [setting.name]).get(setting.name, setting.default)
    return list(value) if isinstance(value, tuple) else value


_MISSING = object()


def _defaults(cls: type, prefix: str = "") -> dict[str, Any]:
    """Return dotted name → default of a dataclass of the contract and of its parts."""
    found: dict[str, Any] = {}
    for item in fields(cls):
        if item.name == "task":
            continue
        value = item.default_factory() if callable(item.default_factory) else item.default
        if is_dataclass(value):
            found |= _defaults(type(value), f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = value
    return found


_DEFAULTS = _defaults(TrainingPlan)
