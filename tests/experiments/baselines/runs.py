"""Runs and what stands beside them, brought to where the orchestrator brings them."""

from __future__ import annotations

from fedportal.experiments import families, lifecycle
from fedportal.experiments.models import Experiment, GlobalModel, Kind, Round, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState


def complete(run: Experiment, *, models: int | None = None) -> None:
    """End a run as the orchestrator does, with the models of its rounds."""
    run.refresh_from_db()
    rounds = run.rounds_planned if models is None else models
    for number in range(rounds + 1 if run.kind != Kind.CROSS_SITE else 0):
        defaults = {"key": f"{run.key}/{number}", "sha256": f"{number:064d}", "size": 1, "dice": 0.1 * number}
        GlobalModel.objects.get_or_create(experiment=run, round_number=number, defaults=defaults)
    tell_held_out(run)
    lifecycle.move_experiment(run, ExperimentState.COMPLETED)
    families.tell_ended(run)


def tell_held_out(run: Experiment) -> None:
    number = Round.objects.filter(experiment=run).count() + 1
    made = Round.objects.create(experiment=run, number=number, state=RoundState.DONE)
    for part in run.participations.all():
        case = f"{part.site.pk:016x}"
        SiteRun.objects.create(round=made, participation=part, state="admitted", held_out=[case])


def of_kind(main: Experiment, kind: Kind) -> list[Experiment]:
    return list(main.companions.filter(kind=kind).order_by("pk"))
