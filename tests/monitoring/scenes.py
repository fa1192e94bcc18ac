"""Experiments with a history, for the tests of what is shown: rounds, site runs, attempts, metrics, models."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import F
from django.utils import timezone

from fedportal.accounts.models import User
from fedportal.experiments import journal
from fedportal.experiments.models import (
    Attempt,
    Experiment,
    GlobalModel,
    Metric,
    Participation,
    Round,
    RoundKind,
    SiteRun,
)
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from tests import factories
from trainer.contract import MetricRecord, Phase, global_model_key

ROUND_SECONDS = 10.0


def make_running(
    owner: User | None = None, *, sites: tuple[str, ...] = ("mainz", "ulm"), rounds: int = 4
) -> Experiment:
    """A started experiment whose sites have these slugs, without a round."""
    experiment = factories.make_experiment(owner, sites=0, rounds=rounds)
    for slug in sites:
        site = factories.make_site(slug)
        Participation.objects.create(experiment=experiment, site=site, dataset=factories.make_dataset(site))
    change(experiment, state=ExperimentState.RUNNING, started_at=timezone.now() - timedelta(minutes=5))
    return experiment


def change(experiment: Experiment, **fields: Any) -> None:
    """Write fields as a step of the orchestrator does: with a new version."""
    Experiment.objects.filter(pk=experiment.pk).update(version=F("version") + 1, **fields)
    experiment.refresh_from_db()


def open_round(experiment: Experiment, number: int, *, kind: str = RoundKind.TRAIN, ago: float = 0) -> Round:
    """A round in which every site has launched its first attempt, ``ago`` seconds ago."""
    began = timezone.now() - timedelta(seconds=ago)
    opened = Round.objects.create(
        experiment=experiment, number=number, kind=kind, state=RoundState.TRAINING, started_at=began
    )
    for part in experiment.participations.select_related("site"):
        run = SiteRun.objects.create(round=opened, participation=part, state=SiteRunState.RUNNING, attempt=1)
        attempt_of(run, 1, launched_at=began, heard_at=began)
    return opened


def attempt_of(run: SiteRun, number: int, **fields: Any) -> Attempt:
    fields.setdefault("state", "running")
    fields.setdefault("launched_at", timezone.now())
    return Attempt.objects.create(site_run=run, number=number, run=run.name_of(number), **fields)


def finish_round(opened: Round, *, seconds: float = ROUND_SECONDS, dice: float = 0.5) -> GlobalModel:
    """Every site has delivered and the global model is published; the incoming model got its Dice."""
    end = opened.started_at + timedelta(seconds=seconds)
    runs = list(opened.site_runs.all())
    for run in runs:
        run.attempts.update(state="succeeded", exit_code=0, ended_at=end)
    opened.site_runs.update(state=SiteRunState.ADMITTED, train_cases=8, validation_cases=4, weight=1 / len(runs))
    Round.objects.filter(pk=opened.pk).update(state=RoundState.DONE, ended_at=end)
    experiment = opened.experiment
    GlobalModel.objects.filter(experiment=experiment, round_number=opened.number - 1).update(dice=dice)
    measure_globally(experiment, opened.number, dice)
    return make_model(experiment, opened.number)


def make_model(experiment: Experiment, number: int, **fields: Any) -> GlobalModel:
    key = global_model_key(experiment.key, number)
    return GlobalModel.objects.create(
        experiment=experiment, round_number=number, key=key, sha256=f"{number:064x}", size=1_250_000, **fields
    )


def measure_globally(experiment: Experiment, number: int, dice: float) -> None:
    Metric.objects.bulk_create(
        Metric(experiment=experiment, round_number=number, phase=Phase.GLOBAL, name="dice", region=region, value=dice)
        for region in ("mean", "WT", "TC", "ET")
    )


def loss(step: int, value: float = 0.5, *, of: int = 10) -> MetricRecord:
    """A training loss after ``step`` of ``of`` steps."""
    return MetricRecord(Phase.TRAIN, "loss", value, "", step, step / of, 2)


def dice(value: float, *, phase: Phase = Phase.INCOMING, region: str = "mean") -> MetricRecord:
    return MetricRecord(
        phase, "dice", value, region, 0 if phase is Phase.INCOMING else 10, float(phase is Phase.LOCAL), 4
    )


def run_of(opened: Round, slug: str) -> SiteRun:
    return opened.site_runs.select_related("round__experiment", "participation__site").get(
        participation__site__slug=slug
    )


def train(opened: Round, slug: str, steps: range, *, attempt: int = 1, value: float = 0.5) -> None:
    """Let a site measure its training loss at some steps."""
    journal.ingest(run_of(opened, slug), attempt, [loss(step, value) for step in steps])
