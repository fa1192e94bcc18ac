"""A bug in a step: the experiment waits longer each time, and fails with its reason in the end."""

from __future__ import annotations

import pytest

from fedportal.experiments import services
from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator import engine as engine_module
from fedportal.orchestrator.engine import MOST_STUMBLES, Engine
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.rows import fresh, journal, make_engine, make_running, run_to_end

pytestmark = pytest.mark.django_db
E = ExperimentState


def stumbling(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    left = [times]
    real = engine_module.step_for

    def step_for(s):
        if left[0] > 0:
            left[0] -= 1
            raise ZeroDivisionError("a bug")
        return real(s)

    monkeypatch.setattr(engine_module, "step_for", step_for)


def drive_on(engine: Engine, federation: Federation, experiment: Experiment, times: int) -> None:
    for _ in range(times):
        engine.drive(experiment.pk)
        federation.clock.tick(61)


def test_a_bug_makes_the_experiment_wait_longer_each_time(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    stumbling(monkeypatch, 3)
    engine = make_engine(auto)
    pauses = []
    for _ in range(3):
        engine.drive(experiment.pk)
        pauses.append((fresh(experiment).due_at - auto.clock()).total_seconds())
        auto.clock.tick(61)
    assert pauses == [2, 4, 8]
    assert journal(experiment)[-1] == "The portal stumbled (ZeroDivisionError: a bug) and tries again."
    assert run_to_end(engine, auto, experiment).status is E.COMPLETED
    assert fresh(experiment).stumbles == 0


def test_a_cancelled_experiment_stumbles_on_for_days(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    services.cancel(experiment=experiment, by=experiment.owner)
    Experiment.objects.update(stumbles=3000)
    stumbling(monkeypatch, 1)
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    assert (fresh(experiment).due_at - auto.clock()).total_seconds() == 60
    auto.clock.tick(61)
    assert run_to_end(engine, auto, experiment).status is E.CANCELLED


def test_a_bug_that_stays_fails_the_experiment_with_its_reason(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    stumbling(monkeypatch, 100)
    drive_on(make_engine(auto), auto, experiment, MOST_STUMBLES + 3)
    failed = fresh(experiment)
    assert failed.status is E.FAILED
    assert failed.reason == "The portal stumbled 5 times in a row. The last reason was ZeroDivisionError: a bug"
    assert failed.rounds.get().status is RoundState.FAILED


def test_a_failed_experiment_can_be_taken_up_again_after_a_bug(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    stumbling(monkeypatch, MOST_STUMBLES)
    engine = make_engine(auto)
    drive_on(engine, auto, experiment, MOST_STUMBLES)
    services.resume(experiment=fresh(experiment), by=experiment.owner)
    Experiment.objects.update(due_at=START)
    experiment.rounds.update(started_at=auto.clock())
    assert run_to_end(engine, auto, experiment).status is E.COMPLETED


def test_a_broken_plan_fails_the_experiment_and_stops_nothing_else(auto: Federation):
    broken = make_running(auto)
    Experiment.objects.update(plan={"rounds": 2})
    drive_on(make_engine(auto), auto, broken, MOST_STUMBLES)
    assert fresh(broken).status is E.FAILED
    assert "plan" in fresh(broken).reason


def test_a_bug_while_cancelling_never_makes_the_cancel_a_failure(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    services.cancel(experiment=experiment, by=experiment.owner)
    stumbling(monkeypatch, MOST_STUMBLES + 2)
    engine = make_engine(auto)
    drive_on(engine, auto, experiment, MOST_STUMBLES + 2)
    assert fresh(experiment).status is E.CANCELLING
    assert run_to_end(engine, auto, experiment).status is E.CANCELLED
