"""Experiments in the database, at the sites of a federation in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction

from fedportal.experiments import services
from fedportal.experiments.models import Experiment, Participation
from fedportal.experiments.states import ExperimentState
from fedportal.orchestrator.engine import Engine
from tests.factories import make_dataset, make_plan, make_site, make_user
from tests.orchestrator.fakes import START, Federation


def make_running(federation: Federation, *, rounds: int = 2, **fields: Any) -> Experiment:
    """A started experiment with a healthy site for each of the federation's."""
    fields.setdefault("key", "k3x9mq2a")
    experiment = Experiment.objects.create(
        owner=make_user(),
        title="Brains",
        plan=make_plan(rounds=rounds).to_json(),
        rounds_planned=rounds,
        due_at=START,
        **fields,
    )
    for slug in federation.sites:
        site = make_site(slug)
        Participation.objects.create(experiment=experiment, site=site, dataset=make_dataset(site))
    services.start(experiment=experiment, by=experiment.owner)
    Experiment.objects.filter(pk=experiment.pk).update(due_at=START)
    experiment.rounds.update(started_at=START)
    return fresh(experiment)


class Unkept(Engine):
    """An engine whose leases are renewed by the test, not by a thread beside it."""

    def _keep_alive(self) -> None:
        pass


def make_engine(federation: Federation, worker: str = "worker") -> Engine:
    return Unkept(federation.tools, worker=worker, clock=federation.clock)


def fresh(experiment: Experiment) -> Experiment:
    return Experiment.objects.get(pk=experiment.pk)


def run_to_end(engine: Engine, federation: Federation, experiment: Experiment, *, looks: int = 100) -> Experiment:
    """Drive until the experiment is over, letting a second pass where nothing was due."""
    for _ in range(looks):
        engine.drive(experiment.pk)
        experiment = fresh(experiment)
        if not experiment.is_active or experiment.status is ExperimentState.PAUSED:
            return experiment
        federation.clock.tick(1)
    raise AssertionError(f"still {experiment.state}: {journal(experiment)[-5:]}")


def journal(experiment: Experiment) -> list[str]:
    return list(experiment.events.order_by("pk").values_list("text", flat=True))


def models(experiment: Experiment) -> list[str]:
    return list(experiment.models.order_by("round_number").values_list("sha256", flat=True))


@contextmanager
def undone() -> Iterator[None]:
    """Take back all rows that are written inside: for tests that run the same experiment several times."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)
