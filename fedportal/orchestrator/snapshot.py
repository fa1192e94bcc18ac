"""What a step sees: an experiment as it was when it was claimed, in plain frozen values without a database behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from fedportal.experiments.models.scores import MEAN, dice_of
from fedportal.experiments.states import AT_SITE, SITE_RUN_OVER, ExperimentState, RoundState, SiteRunState
from trainer.contract import TrainingPlan, attempt_prefix, run_name

if TYPE_CHECKING:
    from fedportal.sites.models import Site

_T = TypeVar("_T")
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def _there(value: _T | None, what: str) -> _T:
    if value is None:
        raise LookupError(f"there is no {what} yet")
    return value


@dataclass(frozen=True)
class SiteView:
    """A site, with what its connector is built from."""

    id: int
    slug: str
    name: str
    connector: str = "local"
    config: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False)


def site_view(site: Site) -> SiteView:
    return SiteView(
        id=site.pk, slug=site.slug, name=site.name, connector=site.connector, config=site.config, secrets=site.secrets
    )


@dataclass(frozen=True)
class Participant:
    """A site's part in the experiment. ``problem``: why it cannot take part now, in a sentence; empty: it can."""

    id: int
    site: SiteView
    dataset: str
    problem: str = ""
    is_checked: bool = True
    """Whether a recent check says so; else the site is asked before it is counted on."""
    cases: int = 0
    """Training cases that its dataset had at the last check; 0: not known."""


@dataclass(frozen=True)
class AttemptView:
    id: int
    number: int
    run: str
    round_number: int
    site: SiteView
    upload: Mapping[str, Any] = field(default_factory=dict)
    """Empty until its job lies in the store; then what is needed to complete its uploads."""
    state: str = "waiting"
    launched_at: datetime | None = None
    heard_at: datetime | None = None
    ended_at: datetime | None = None
    log_offset: int = 0

    @property
    def is_fresh(self) -> bool:
        """Whether nothing of it exists at the site yet, as far as the rows know."""
        return self.launched_at is None and self.ended_at is None


@dataclass(frozen=True)
class SiteRunView:
    """A site's part in the round at hand. ``current``: its current attempt; ``None``: there is none yet."""

    id: int
    participant: Participant
    state: SiteRunState
    number: int
    current: AttemptView | None = None
    tries: int = 0
    """Attempts since the round began, or began anew."""
    reason: str = ""
    not_before: datetime | None = None
    train_cases: int = 0
    update_sha256: str = ""
    update_size: int = 0
    weight: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def site(self) -> SiteView:
        return self.participant.site

    @property
    def attempt(self) -> AttemptView:
        """The current attempt. Raises ``LookupError`` when there is none."""
        return _there(self.current, "attempt")

    @property
    def is_over(self) -> bool:
        return self.state in SITE_RUN_OVER

    @property
    def is_at_site(self) -> bool:
        return self.state in AT_SITE or self.state is SiteRunState.UPLOADED


@dataclass(frozen=True)
class RoundView:
    """A round. Its deadline and the time of its quorum are later by the time in which the experiment was ``paused``."""

    id: int
    number: int
    is_evaluation: bool
    state: RoundState
    started_at: datetime
    dispatched_at: datetime | None = None
    deadline_at: datetime | None = None
    quorum_at: datetime | None = None
    paused: timedelta = timedelta()
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        if not self.is_evaluation:
            return f"Round {self.number}"
        return "Final evaluation" if self.number > 1 else "Cross-site evaluation"


@dataclass(frozen=True)
class ModelView:
    """A global model in the object store."""

    id: int
    round_number: int
    key: str
    sha256: str
    size: int
    dice: float | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    server_state_key: str = ""
    server_state_sha256: str = ""
    server_state_size: int = 0

    def dice_of(self, region: str) -> float | None:
        return dice_of(region, self.dice, self.scores)


@dataclass(frozen=True)
class StartView:
    """The global model of another experiment that the first round starts from; ``title``: how people know it."""

    key: str
    sha256: str
    size: int
    title: str


@dataclass(frozen=True)
class SubjectView:
    """A model that an evaluation measures beside the incoming one, or several whose probabilities are averaged."""

    name: str
    models: tuple[ModelView, ...]


@dataclass(frozen=True)
class BesideView:
    """The federated run that an experiment stands beside. ``held_out``: pseudonyms of the cases that it was tested on.
    ``silent``: names of the sites that told none."""

    held_out: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """A number of a site's validation of the incoming global model."""

    site: str
    name: str
    region: str
    value: float | None
    cases: int


@dataclass(frozen=True)
class ContributionView:
    """A site's share in the global model of a round."""

    round_number: int
    site: str
    train_cases: int
    weight: float | None
    update_sha256: str


@dataclass(frozen=True)
class ArtefactView:
    model: int
    kind: str


@dataclass(frozen=True)
class Snapshot:
    """``newest``: the round at hand. ``incoming``: the global model that it starts from. ``strays``: attempts that may
    still run although nobody waits for them."""

    now: datetime
    id: int
    key: str
    title: str
    state: ExperimentState
    plan: TrainingPlan
    rounds_planned: int
    strategy: str
    strategy_options: Mapping[str, Any]
    weighting: str
    min_sites: int
    deadline: timedelta
    stragglers: str
    grace: timedelta
    max_attempts: int
    max_relative_norm: float | None
    participants: tuple[Participant, ...]
    newest: RoundView | None = None
    site_runs: tuple[SiteRunView, ...] = ()
    strays: tuple[AttemptView, ...] = ()
    incoming: ModelView | None = None
    measurements: tuple[Measurement, ...] = ()
    stopping_since: datetime | None = None
    sites_read_at: datetime = LONG_AGO
    reason: str = ""
    question: str = ""
    kind: str = "federated"
    family: str = ""
    """Key of the first experiment of its family: cases have the same pseudonyms in all of it."""
    waits_for: str = ""
    """Title of the experiment that has to end before this one begins; empty: its turn has come."""
    beside: BesideView | None = None
    """Given when its turn has come; ``None``: it stands beside nothing."""
    subjects: tuple[SubjectView, ...] = ()
    tested: tuple[str, ...] = ()
    """Pseudonyms of the cases that sites held out while a federated run was trained. Given in its evaluation, and in that of
    all its models."""
    best_by: str = MEAN
    patience: int = 0
    start: StartView | None = None
    """Given while the first round has no model yet, and once the last round is over; ``None``: fresh weights."""
    models: tuple[ModelView, ...] = ()
    """All of them, once the last round is over, and while a round is aggregated that could be the last."""
    contributions: tuple[ContributionView, ...] = ()
    """All of them, once the last round is over; so are the artefacts."""
    artefacts: tuple[ArtefactView, ...] = ()

    @property
    def round(self) -> RoundView:
        """The round at hand. Raises ``LookupError`` when there is none yet."""
        return _there(self.newest, "round")

    @property
    def model(self) -> ModelView:
        """The incoming model. Raises ``LookupError`` when it was not published yet."""
        return _there(self.incoming, "model")

    @property
    def candidates(self) -> tuple[Participant, ...]:
        """The sites that the round at hand is for: all, or in cyclic weight transfer one after the other."""
        if self.kind != "cyclic":
            return self.participants
        return (self.participants[(self.round.number - 1) % len(self.participants)],)

    @property
    def held_out(self) -> tuple[str, ...]:
        """Pseudonyms that a job is told: a training leaves these cases out, an evaluation looks for them among those that
        were trained on."""
        if self.round.is_evaluation:
            return self.tested if self.kind == "federated" else ()
        return () if self.beside is None else self.beside.held_out

    def run_name(self, site: SiteView, attempt: int) -> str:
        return run_name(experiment=self.key, round=self.round.number, site=site.slug, attempt=attempt)

    def prefix(self, attempt: AttemptView) -> str:
        """Prefix of an attempt's objects in the store."""
        return attempt_prefix(
            experiment=self.key, round=attempt.round_number, site=attempt.site.slug, attempt=attempt.number
        )

    @property
    def admitted(self) -> tuple[SiteRunView, ...]:
        """The site runs that count, sorted by site."""
        found = [run for run in self.site_runs if run.state is SiteRunState.ADMITTED]
        return tuple(sorted(found, key=lambda run: run.site.slug))
