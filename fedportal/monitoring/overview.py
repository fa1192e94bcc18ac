"""An experiment as the page shows it: head, rounds × sites, models. Reads rows, changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db.models import Prefetch
from django.utils import timezone

from fedportal.experiments.models import (
    MEAN,
    Attempt,
    Experiment,
    GlobalModel,
    Metric,
    Participation,
    Round,
    RoundKind,
    SiteRun,
    best_of,
)
from fedportal.experiments.models import Kind as ExperimentKind
from fedportal.experiments.states import AT_SITE, SITE_RUN_OVER, ExperimentState, RoundState, SiteRunState
from fedportal.monitoring import forecast
from fedportal.monitoring.figures import SiteStyle, styles
from fedportal.monitoring.scores import Scored, with_scores
from trainer.contract import EXPLANATIONS, Exit, Phase

ROUNDS_SHOWN = 20
"""Rounds that the matrix shows at first and that each press of “Earlier rounds” adds."""


@dataclass(frozen=True)
class Cell:
    """One site's part in one round, or an empty place where the site had none."""

    style: SiteStyle
    run: SiteRun | None = None
    attempt: Attempt | None = None

    @property
    def state(self) -> SiteRunState | None:
        return self.run.status if self.run else None

    @property
    def is_at_site(self) -> bool:
        return self.run is not None and self.run.status in AT_SITE

    @property
    def seconds(self) -> float | None:
        """Seconds of the attempt from launch to end, or until now while it is at the site."""
        attempt = self.attempt
        end = attempt and (attempt.ended_at or (timezone.now() if self.is_at_site else None))
        if attempt is None or attempt.launched_at is None or end is None:
            return None
        return max(0.0, (end - attempt.launched_at).total_seconds())

    @property
    def percent(self) -> float | None:
        """Share in the aggregate, in percent."""
        return None if self.run is None or self.run.weight is None else self.run.weight * 100


@dataclass(frozen=True)
class RoundRow:
    """A line of the matrix."""

    round: Round
    cells: tuple[Cell, ...]

    @property
    def number(self) -> int:
        return self.round.number

    @property
    def seconds(self) -> float:
        return max(0.0, ((self.round.ended_at or timezone.now()) - self.round.started_at).total_seconds())


@dataclass
class Overview:
    """Everything about an experiment that the head, the matrix and the socket tell. ``rows``: newest first."""

    experiment: Experiment
    styles: list[SiteStyle]
    rows: list[RoundRow]
    models: list[GlobalModel] = field(default_factory=list)
    worst: tuple[str, float] | None = None

    @property
    def current(self) -> RoundRow | None:
        return self.rows[0] if self.rows else None

    @property
    def finished_rounds(self) -> int:
        """Training rounds that are done."""
        current = self.current
        if current is None:
            return 0
        done = current.round.status is RoundState.DONE
        return min(current.number if done else current.number - 1, self.experiment.rounds_planned)

    @property
    def model_word(self) -> str:
        """What a round's result is called: a baseline has one model, but none that is made of the sites' updates."""
        return "global model" if self.experiment.beside_id is None else "model"

    @property
    def where(self) -> str:
        """Where it stands: “Round 5 of 12”."""
        experiment, current = self.experiment, self.current
        if experiment.kind == ExperimentKind.CROSS_SITE:
            return "Every model at every site"
        if experiment.status is ExperimentState.COMPLETED or current is None:
            wanted = experiment.plan.get("rounds", 0)  # an early stop shortens rounds_planned, but not the plan
            if experiment.rounds_planned < wanted:
                return f"{self.finished_rounds} of {wanted} rounds, stopped early"
            return f"{self.finished_rounds} of {experiment.rounds_planned} rounds"
        if current.round.kind == RoundKind.EVALUATE:
            return "Final evaluation"
        return f"Round {current.number} of {experiment.rounds_planned}"

    @property
    def step(self) -> str:
        """What the current round does: “Training”; empty when nothing runs."""
        current = self.current
        return current.round.status.label if current and self.experiment.status is ExperimentState.RUNNING else ""

    @property
    def left(self) -> str:
        """The forecast in words; empty unless it runs."""
        experiment, current = self.experiment, self.current
        if experiment.status is not ExperimentState.RUNNING or current is None or experiment.reason:
            return ""  # while it waits, nobody can tell
        if any(cell.is_at_site and cell.run.reason for cell in current.cells):
            return ""  # so it is while one of its runs waits
        evaluating = current.round.kind == RoundKind.EVALUATE
        seconds = forecast.seconds_left(
            rounds=[row.seconds for row in reversed(self.rows) if _trained(row)],
            elapsed=current.seconds if not current.round.ended_at else 0.0,
            to_come=max(0, experiment.rounds_planned - current.number),
            evaluation=self._evaluation_seconds(),
            evaluating=evaluating,
        )
        return forecast.left_in_words(seconds)

    @property
    def notes(self) -> list[str]:
        """Whom the others wait for, who has gone silent."""
        if self.current is None or not self.experiment.is_active:
            return []
        now = timezone.now()
        return forecast.notes(
            forecast.SiteNow(
                name=cell.style.name,
                running=cell.seconds if cell.is_at_site else None,
                usual=self.usual(cell.style.slug),
                silent=_age(cell.attempt, now),
                reason=cell.run.reason if cell.run else "",
                **_trouble(cell, now),
            )
            for cell in self.current.cells
        )

    @property
    def best(self) -> GlobalModel | None:
        return best_of(self.models, self.experiment.best_by)

    @property
    def newest(self) -> GlobalModel | None:
        return self.models[-1] if self.models else None

    @property
    def measured(self) -> GlobalModel | None:
        """The newest global model that has a Dice."""
        return next((model for model in reversed(self.models) if model.dice is not None), None)

    @property
    def worth_a_look(self) -> list[Scored]:
        """The newest global model and the best, with their scores; one of them when they are the same."""
        return with_scores(self.experiment, [m for m in dict.fromkeys((self.newest, self.best)) if m is not None])

    @property
    def newest_word(self) -> str:
        return "final" if self.experiment.status is ExperimentState.COMPLETED else "newest"

    @property
    def newest_and_best(self) -> str:
        return f"{self.newest_word} and best"

    @property
    def summary(self) -> str:
        """The state of things in a sentence or two, for whoever does not look at the curves."""
        where = f"{self.experiment.status.label}, {self.where[0].lower()}{self.where[1:]}."
        model = self.measured
        if model is None:
            return (
                where
                if self.experiment.kind == ExperimentKind.CROSS_SITE
                else f"{where} No {self.model_word} has been measured yet."
            )
        name = f"{self.model_word} of round {model.round_number}" if model.round_number else "initial model"
        text = f"{where} The {name} has a mean Dice of {model.dice:.3f}"
        if self.best is not None and self.best != model:
            region = self.experiment.best_by
            by = "" if region == MEAN else f" by the Dice of {region}"
            text += (
                f"; the best so far{by} is that of round {self.best.round_number} with {self.best.dice_of(region):.3f}"
            )
        if self.worst is not None:
            text += f"; lowest at {self.worst[0]} with {self.worst[1]:.3f}"
        return text + "."

    def usual(self, slug: str) -> float | None:
        """Return the seconds that a site usually takes for a training round."""
        taken = [
            cell.seconds
            for row in reversed(self.rows)
            for cell in row.cells
            if cell.style.slug == slug and row.round.kind == RoundKind.TRAIN and cell.state is SiteRunState.ADMITTED
        ]
        return forecast.usual([seconds for seconds in taken if seconds is not None])

    def _evaluation_seconds(self) -> float:
        """What the final evaluation will take: the slowest site's loading and validating of an incoming model."""
        current = self.current
        cells = next((row.cells for row in self.rows if row is not current and _trained(row)), ())
        steps = ("pull", "load", "validate_incoming")
        return max((sum(cell.run.seconds.get(step, 0) for step in steps) for cell in cells if cell.run), default=0.0)


def _trained(row: RoundRow) -> bool:
    return row.round.kind == RoundKind.TRAIN and row.round.status is RoundState.DONE


def _age(attempt: Attempt | None, now: datetime) -> float | None:
    heard = attempt and (attempt.heard_at or attempt.launched_at)
    return (now - heard).total_seconds() if heard else None


def _trouble(cell: Cell, now: datetime) -> dict[str, float]:
    """Return what is to be said of a site that does not answer, while somebody waits for it."""
    if cell.run is None or cell.run.status in SITE_RUN_OVER:
        return {}
    site = cell.run.participation.site
    if site.unreached_since is None:
        return {}
    next_try = (site.next_try_at - now).total_seconds() if site.next_try_at else 0.0
    return {"unreached": (now - site.unreached_since).total_seconds(), "next_try": next_try}


def site_styles(experiment: Experiment) -> list[SiteStyle]:
    """Return the looks of the participants, in the order of their slugs."""
    parts = Participation.objects.filter(experiment=experiment).values_list("site__slug", "site__name")
    return styles(parts.order_by("site__slug"))


def round_rows(
    experiment: Experiment, looks: Sequence[SiteStyle], *, before: int | None = None, count: int = ROUNDS_SHOWN
) -> list[RoundRow]:
    """Return lines of the matrix, newest first: the ``count`` newest, or those before round ``before``."""
    runs = SiteRun.objects.select_related("participation__site").prefetch_related("attempts")
    rounds = Round.objects.filter(experiment=experiment).order_by("-number")
    if before is not None:
        rounds = rounds.filter(number__lt=before)
    return [_row(round_, looks) for round_ in rounds.prefetch_related(Prefetch("site_runs", queryset=runs))[:count]]


def _row(round_: Round, looks: Iterable[SiteStyle]) -> RoundRow:
    runs = {run.participation.site.slug: run for run in round_.site_runs.all()}
    cells = []
    for look in looks:
        run = runs.get(look.slug)
        attempts = list(run.attempts.all()) if run else []
        current = next((attempt for attempt in attempts if attempt.number == run.attempt), None) if run else None
        cells.append(Cell(look, run, current))
    return RoundRow(round_, tuple(cells))


def overview(experiment: Experiment, *, count: int = ROUNDS_SHOWN, looks: list[SiteStyle] | None = None) -> Overview:
    """Read what the page tells of an experiment; a fixed number of queries."""
    looks = site_styles(experiment) if looks is None else looks
    found = GlobalModel.objects.filter(experiment=experiment).order_by("round_number")
    models = list(found.defer("scores") if experiment.best_by == MEAN else found)
    view = Overview(experiment, looks, round_rows(experiment, looks, count=count), models)
    if view.measured is not None:
        view.worst = _worst_site(experiment, view.measured, looks)
    return view


def _worst_site(experiment: Experiment, model: GlobalModel, looks: Iterable[SiteStyle]) -> tuple[str, float] | None:
    found = Metric.objects.filter(  # by way of the site runs: an index leads there, however long the journal is
        site_run__round__experiment=experiment,
        site_run__round__number=model.round_number + 1,
        phase=Phase.INCOMING,
        name="dice",
        region="mean",
        value__isnull=False,
    )
    lowest = found.order_by("value").values_list("site", "value").first()
    if lowest is None:
        return None
    names = {look.slug: look.name for look in looks}
    return names.get(lowest[0], lowest[0]), lowest[1]


# --- why a site run ended as it did ---------------------------------------------------------------

REMEDIES = {
    Exit.UNEXPECTED: "Open the log. If another attempt fails in the same way, ask the operator of the portal.",
    Exit.BAD_JOB: "Ask the operators to bring portal and trainer to the same version.",
    Exit.BAD_SIGNATURE: "Try again; if it happens twice, ask the operator of the portal to look at the network path.",
    Exit.TRANSFER_FAILED: "Ask the site whether its proxy lets it reach the object store, then try again.",
    Exit.MODEL_MISMATCH: "Clone the experiment: a plan and its models belong together.",
    Exit.NO_DATASET: "Ask the site's steward for the folder's name, or take part with another dataset.",
    Exit.MISSING_FILE: "The site's steward adds the file or takes the case out of dataset.json.",
    Exit.UNREADABLE_IMAGE: "The site's steward exports the image again or takes the case out of dataset.json.",
    Exit.SHAPE_MISMATCH: "The site's steward checks that image and segmentation belong together.",
    Exit.WRONG_LABEL: "The site's steward corrects the segmentation, or lists the label in dataset.json.",
    Exit.NOT_FINITE: "The site's steward exports the image again.",
    Exit.EMPTY_MASK: "The site's steward checks that the segmentations were exported with the images.",
    Exit.WRONG_CHANNELS: "The site's steward completes the contrasts, or the site takes part with another dataset.",
    Exit.NO_CASES: "The site's steward lists cases in dataset.json, or the site is left out.",
    Exit.LABELS_DIFFER: "Choose sites with the same labels, or agree on one dataset.json.",
    Exit.DISK_FULL: "The site's administrator frees space; then try again.",
    Exit.OUT_OF_MEMORY: "Clone the experiment with a smaller patch or batch size.",
    Exit.DIVERGED: "Clone the experiment with a lower learning rate, for example a tenth.",
    Exit.CANCELLED: "",
}


@dataclass(frozen=True)
class Explanation:
    """What an exit code means, what the site said beyond that, and what to do about it; sentences."""

    meaning: str
    detail: str
    remedy: str


def explain(exit_code: int | None, message: str = "") -> Explanation | None:
    """Explain how an attempt ended; ``None`` while it has not, and for success."""
    if not exit_code:
        return None
    known = Exit(exit_code) if exit_code in list(Exit) else Exit.UNEXPECTED
    meaning = EXPLANATIONS[known]
    return Explanation(meaning, message.removeprefix(meaning).strip(), REMEDIES[known])
