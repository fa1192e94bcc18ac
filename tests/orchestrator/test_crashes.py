"""A crash at any moment, and anybody's act at any moment, never lose or repeat a training, nor change the model.

Exhaustive over sites in memory: every settled step of an experiment is cut once right before and once right after.
The same with real processes: ``tests/kill``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedportal.experiments import lifecycle, services
from fedportal.experiments.lifecycle import MoveRefused
from fedportal.experiments.models import Attempt, Experiment, Round
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator import engine as engine_module
from tests.orchestrator.fakes import Federation
from tests.orchestrator.rows import Unkept, fresh, journal, make_engine, make_running, models, run_to_end, undone

pytestmark = pytest.mark.django_db
E = ExperimentState
STEPS = {1: 11, 2: 15}
"""Settled steps of an undisturbed experiment of so many rounds; a test below counts them."""


class Crash(BaseException):
    """The process dies here."""


class Mortal(Unkept):
    """An engine that dies without giving its claim back."""

    def _release(self, claim) -> None:
        if sys.exc_info()[0] is not Crash:
            super()._release(claim)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None], bool], None]:
    """Arrange that something happens at the n-th settle from now: before it is written, or right after."""
    real = engine_module.settle
    plan: dict[int, tuple[Callable[[], None], bool]] = {}
    count = [0]

    def settle(*arguments, **options) -> None:
        count[0] += 1
        act, before = plan.pop(count[0], (None, True))
        if act and before:
            act()
        real(*arguments, **options)
        if act and not before:
            act()

    monkeypatch.setattr(engine_module, "settle", settle)

    def arrange(at: int, act: Callable[[], None], before: bool) -> None:
        count[0] = 0
        plan.clear()
        plan[at] = (act, before)

    arrange.count = count
    return arrange


def undisturbed(folder: Path, *, rounds: int = 1) -> tuple[list[str], list[str]]:
    federation = Federation(folder, auto=True)
    with undone():
        experiment = run_to_end(make_engine(federation), federation, make_running(federation, rounds=rounds))
        assert experiment.status is E.COMPLETED, experiment.reason
        return models(experiment), [text for text in journal(experiment) if "aggregated" in text]


@pytest.mark.parametrize("rounds", STEPS)
def test_the_number_of_steps_is_known(cut, tmp_path: Path, rounds: int):
    undisturbed(tmp_path, rounds=rounds)
    assert cut.count[0] == STEPS[rounds]


def test_a_crash_at_any_step_is_cured_by_doing_the_step_again(cut, tmp_path: Path):
    expected = undisturbed(tmp_path / "calm", rounds=2)
    for at in range(1, STEPS[2] + 1):
        for before in (True, False):
            federation = Federation(tmp_path / f"{at}-{before}", auto=True)
            with undone():
                experiment = make_running(federation)
                cut(at, lambda: (_ for _ in ()).throw(Crash), before)
                mortal = Mortal(federation.tools, worker="vm-1", clock=federation.clock)
                with pytest.raises(Crash):
                    run_to_end(mortal, federation, experiment)
                restarted = make_engine(federation, "vm-1")
                restarted.free_own_leases()
                experiment = run_to_end(restarted, federation, experiment)
                where = f"step {at}, {'before' if before else 'after'} it was settled"
                assert experiment.status is E.COMPLETED, f"{where}: {experiment.reason}"
                assert models(experiment) == expected[0], where
                assert [text for text in journal(experiment) if "aggregated" in text] == expected[1], where
                runs = [run for site in federation.sites.values() for run in site.launched]
                assert len(runs) == len(set(runs)) == 9, f"{where}: a training was repeated"
                assert Attempt.objects.filter(ended_at=None).count() == 0, where


def pause_and_resume(experiment: Experiment, federation: Federation) -> None:
    now = fresh(experiment)
    services.pause(experiment=now, by=experiment.owner)
    services.resume(experiment=now, by=experiment.owner)


def wake(experiment: Experiment, federation: Federation) -> None:
    experiment.wake()


def pause(experiment: Experiment, federation: Federation) -> None:
    services.pause(experiment=fresh(experiment), by=experiment.owner)


def cancel(experiment: Experiment, federation: Federation) -> None:
    services.cancel(experiment=fresh(experiment), by=experiment.owner)


def take_over(experiment: Experiment, federation: Federation) -> None:
    """The worker freezes for so long that another one takes over, and goes on a step."""
    federation.clock.tick(20)
    make_engine(federation, "other").advance(experiment.pk)


@pytest.mark.parametrize("act", [wake, pause_and_resume, take_over])
def test_acts_at_any_moment_change_neither_models_nor_trainings(cut, tmp_path: Path, act):
    expected = undisturbed(tmp_path / "calm")[0]
    for at in range(1, STEPS[1] + 1):
        for before in (True, False):
            federation = Federation(tmp_path / f"{at}-{before}", auto=True)
            with undone():
                experiment = make_running(federation, rounds=1)
                cut(at, lambda e=experiment, f=federation: _unless_over(act, e, f), before)
                experiment = run_to_end(make_engine(federation), federation, experiment)
                assert (experiment.status, models(experiment)) == (E.COMPLETED, expected), f"step {at}, {before=}"
                assert all(len(site.launched) == 2 for site in federation.sites.values()), f"step {at}, {before=}"


def test_a_pause_at_any_moment_holds_until_it_is_resumed(cut, tmp_path: Path):
    expected = undisturbed(tmp_path / "calm")[0]
    for at in range(1, STEPS[1]):
        federation = Federation(tmp_path / str(at), auto=True)
        with undone():
            experiment = make_running(federation, rounds=1)
            cut(at, lambda e=experiment, f=federation: pause(e, f), before := bool(at % 2))
            engine = make_engine(federation)
            experiment = run_to_end(engine, federation, experiment)
            assert experiment.status is E.PAUSED, f"step {at}, {before=}"
            version = experiment.version
            federation.clock.tick(1000)
            assert not engine.advance(experiment.pk)
            assert fresh(experiment).version == version
            services.resume(experiment=fresh(experiment), by=experiment.owner)
            assert models(run_to_end(engine, federation, experiment)) == expected, f"step {at}, {before=}"


def test_a_cancel_at_any_moment_leaves_nothing_running(cut, tmp_path: Path):
    for at in range(1, STEPS[1]):
        for before in (True, False):
            federation = Federation(tmp_path / f"{at}-{before}")
            with undone():
                experiment = make_running(federation, rounds=1)
                _deliver_by_themselves(federation, at)
                cut(at, lambda e=experiment, f=federation: cancel(e, f), before)
                experiment = run_to_end(make_engine(federation), federation, experiment)
                where = f"step {at}, {before=}"
                assert experiment.status is E.CANCELLED, where
                for site in federation.sites.values():
                    alive = [run for run, status in site.states.items() if not status.state.is_over]
                    assert alive == [], where
                assert not any("/a1/" in key for key in federation.store.objects), where


def _deliver_by_themselves(federation: Federation, at: int) -> None:
    """Sites deliver at once, except that from some step on the last one keeps computing."""
    for site in federation.sites.values():
        site.auto = True
    federation["c"].auto = at > 6


def _unless_over(act, experiment: Experiment, federation: Federation) -> None:
    try:
        act(experiment, federation)
    except MoveRefused:
        assert fresh(experiment).status in (E.COMPLETED, E.CANCELLED)


def test_a_move_through_several_states_is_refused_where_one_of_them_is():
    row = Round(experiment=Experiment(key="abcd"), number=1, state=RoundState.TRAINING.value)
    with pytest.raises(MoveRefused):
        lifecycle.move(row, RoundState.COLLECTING, RoundState.TRAINING, RoundState.AGGREGATING)
    assert row.status is RoundState.TRAINING
