"""Who drives an experiment, and when: claims, leases, wake-ups, and what a worker that was overtaken may write."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest

from fedportal.experiments import services
from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.orchestrator import engine as engine_module
from fedportal.orchestrator.engine import LEASE
from fedportal.orchestrator.outcomes import Advance, Changes, Wait
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.rows import fresh, journal, make_engine, make_running

pytestmark = pytest.mark.django_db
E = ExperimentState


def steps_are(monkeypatch: pytest.MonkeyPatch, step) -> None:
    monkeypatch.setattr(engine_module, "step_for", lambda _s: step)


def test_what_is_claimed_is_claimed_by_one(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    other = make_engine(auto, "other")
    seen = []

    def step(s, _tools):
        seen.append(other.advance(s.id))
        return Wait(s.now + timedelta(hours=1))

    steps_are(monkeypatch, step)
    assert make_engine(auto).advance(experiment.pk)
    assert seen == [False]


def test_nothing_is_done_before_it_is_due(auto: Federation):
    experiment = make_running(auto)
    Experiment.objects.update(due_at=START + timedelta(hours=1), wakes=0, wakes_seen=0)
    engine = make_engine(auto)
    assert not engine.advance(experiment.pk)
    auto.clock.tick(3600)
    assert engine.advance(experiment.pk)


@pytest.mark.parametrize("state", set(E) - {E.RUNNING, E.CANCELLING})
def test_only_running_and_cancelling_experiments_are_driven(auto: Federation, state: ExperimentState):
    experiment = make_running(auto)
    Experiment.objects.update(state=state.value)
    assert not make_engine(auto).advance(experiment.pk)


def test_a_wake_up_during_a_step_is_not_lost(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    engine = make_engine(auto)
    seen = []

    def step(s, _tools):
        seen.append(s.now)
        if len(seen) == 1:
            experiment.wake()
        return Wait(s.now + timedelta(hours=1))

    steps_are(monkeypatch, step)
    engine.drive(experiment.pk)
    assert engine.advance(experiment.pk), "it was woken while the step was under way"
    assert not engine.advance(experiment.pk), "and that was all"


def test_a_step_that_was_overtaken_writes_nothing(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)

    def step(s, _tools):
        services.pause(experiment=fresh(experiment), by=experiment.owner)
        changes = Changes(round_through=(RoundState.PUBLISHING,))
        changes.say("x", "This must not be written.")
        return Advance(changes)

    steps_are(monkeypatch, step)
    make_engine(auto).drive(experiment.pk)
    paused = fresh(experiment)
    assert paused.status is E.PAUSED
    assert paused.rounds.get().status is RoundState.PENDING
    assert "This must not be written." not in journal(experiment)
    assert paused.claimed_by == "", "the claim is given back at once"


def test_a_dead_worker_is_followed_by_another_when_its_lease_is_over(auto: Federation):
    experiment = make_running(auto)
    dead = make_engine(auto, "dead")
    dead._claim(experiment.pk)
    alive = make_engine(auto, "alive")
    assert not alive.advance(experiment.pk)
    auto.clock.tick(LEASE.total_seconds() + 1)
    assert alive.advance(experiment.pk)


def test_a_frozen_worker_that_thaws_can_write_nothing(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    frozen, alive = make_engine(auto, "frozen"), make_engine(auto, "alive")
    thawed = engine_module.step_for

    def step(s, tools):
        monkeypatch.setattr(engine_module, "step_for", thawed)
        auto.clock.tick(LEASE.total_seconds() + 1)
        assert alive.advance(experiment.pk), "somebody else goes on meanwhile"
        return Advance(Changes(experiment_to=E.COMPLETED))

    steps_are(monkeypatch, step)
    frozen.drive(experiment.pk)
    assert fresh(experiment).status is E.RUNNING
    assert fresh(experiment).rounds.get().status is RoundState.PUBLISHING


def test_a_long_step_keeps_its_lease(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    engine, other = make_engine(auto), make_engine(auto, "other")

    def step(s, _tools):
        for _ in range(5):
            auto.clock.tick(LEASE.total_seconds() - 1)
            engine.renew_leases()
        assert not other.advance(s.id)
        return Wait(s.now + timedelta(hours=9))

    steps_are(monkeypatch, step)
    assert engine.advance(experiment.pk)


def test_a_step_learns_from_the_renewal_that_it_was_overtaken(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment = make_running(auto)
    engine = make_engine(auto)

    def step(s, _tools):
        Experiment.objects.update(claimed_by="somebody else")
        engine.renew_leases()
        return Advance(Changes(round_through=(RoundState.PUBLISHING,)))

    steps_are(monkeypatch, step)
    engine.drive(experiment.pk)
    assert fresh(experiment).claimed_by == "somebody else"
    assert fresh(experiment).rounds.get().status is RoundState.PENDING


def test_a_look_that_found_nothing_writes_nothing_but_when_to_look_again(auto: Federation):
    experiment = make_running(auto)
    for site in auto.sites.values():
        site.auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    auto.clock.tick(5)
    engine.drive(experiment.pk)
    auto.clock.tick(0.3)
    experiment.wake()
    engine.drive(experiment.pk)
    auto.clock.tick(0.01)
    before = fresh(experiment)
    Experiment.objects.update(due_at=auto.clock())
    assert engine.advance(experiment.pk)
    after = fresh(experiment)
    assert after.version == before.version + 1, "the claim, and no settled step"
    assert after.due_at > auto.clock()


def test_lingering_stays_with_an_experiment_until_the_sites_have_news(auto: Federation):
    experiment = make_running(auto)
    for site in auto.sites.values():
        site.auto = False
    engine = make_engine(auto)
    waits = []

    def lingers() -> bool:
        waits.append(1)
        if len(waits) == 3:
            for site in auto.sites.values():
                site.deliver()
                site.auto = True
        return time.monotonic() < end

    end = time.monotonic() + 20
    engine.drive(experiment.pk, lingers=lingers)
    assert fresh(experiment).status is E.COMPLETED
    assert time.monotonic() < end


def test_lingering_notices_a_pause_and_gives_the_experiment_back(auto: Federation):
    experiment = make_running(auto)
    auto["a"].auto = False
    engine = make_engine(auto)
    waits = []

    def lingers() -> bool:
        waits.append(1)
        if len(waits) == 3:
            services.pause(experiment=fresh(experiment), by=experiment.owner)
        return time.monotonic() < end

    end = time.monotonic() + 20
    engine.drive(experiment.pk, lingers=lingers)
    paused = fresh(experiment)
    assert (paused.status, paused.claimed_by) == (E.PAUSED, "")
    assert time.monotonic() < end


def test_a_clock_that_is_set_back_makes_no_wait_longer(auto: Federation, monkeypatch: pytest.MonkeyPatch):
    experiment, steps, set_back = make_running(auto), [], []
    engine = make_engine(auto)
    engine.clock = lambda: START - timedelta(hours=len(set_back))

    def step(s, _tools):
        steps.append(s.now)
        return Wait(s.now + timedelta(seconds=0.05))

    def lingers() -> bool:
        if not set_back:
            set_back.append(1)
        return len(steps) < 2 and time.monotonic() < end

    steps_are(monkeypatch, step)
    end = time.monotonic() + 20
    engine.drive(experiment.pk, lingers=lingers)
    assert len(steps) == 2


def test_a_restarted_worker_frees_the_claims_of_its_dead_self_only(auto: Federation):
    experiment = make_running(auto)
    make_engine(auto, "vm-1")._claim(experiment.pk)
    assert make_engine(auto, "vm-11").free_own_leases() == 0
    restarted = make_engine(auto, "vm-1")
    assert restarted.free_own_leases() == 1
    assert restarted.advance(experiment.pk)
