"""The engine on the database: claims, leases, wake-ups, stumbles, and whole experiments over sites in memory."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest

from fedportal.connectors.errors import SiteUnreachable
from fedportal.experiments import services
from fedportal.experiments.models import Artefact, Attempt, Experiment, GlobalModel, Metric, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator import engine as engine_module
from fedportal.orchestrator.engine import LEASE, MOST_STUMBLES, Engine
from fedportal.orchestrator.outcomes import Advance, Changes, Wait
from fedportal.sites.models import SiteCheck
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.rows import fresh, journal, make_engine, make_running, models, run_to_end, undone
from trainer.contract import Exit

pytestmark = pytest.mark.django_db
E = ExperimentState


@pytest.fixture
def auto(tmp_path: Path) -> Federation:
    """Sites that deliver as soon as they are started."""
    return Federation(tmp_path, auto=True)


def steps_are(monkeypatch: pytest.MonkeyPatch, step) -> None:
    monkeypatch.setattr(engine_module, "step_for", lambda _s: step)


# --- whole experiments ----------------------------------------------------------------------------


def test_an_experiment_runs_to_its_end(auto: Federation):
    experiment = run_to_end(make_engine(auto), auto, make_running(auto))
    assert (experiment.status, experiment.reason) == (E.COMPLETED, "")
    assert [(r.number, r.kind, r.status) for r in experiment.rounds.order_by("number")] == [
        (1, "train", RoundState.DONE),
        (2, "train", RoundState.DONE),
        (3, "evaluate", RoundState.DONE),
    ]
    assert [m.dice for m in experiment.models.order_by("round_number")] == [0.5, 0.5, 0.5]
    assert set(SiteRun.objects.values_list("state", flat=True)) == {SiteRunState.ADMITTED.value}
    assert Attempt.objects.filter(ended_at=None).count() == 0
    assert Artefact.objects.count() == 5
    assert "Round 2 aggregated from 3 of 3 sites." in journal(experiment)
    assert (experiment.claimed_by, experiment.lease_until) == ("", None)


def test_the_rounds_timings_say_where_the_time_went(auto: Federation):
    experiment = run_to_end(make_engine(auto), auto, make_running(auto))
    timings = experiment.rounds.get(number=1).timings
    assert timings["slowest_site"] == 1.25
    assert timings["overhead"] == pytest.approx(timings["total"] - 1.25)
    assert {"open", "publish", "dispatch", "collect", "aggregate", "wait"} <= set(timings)


def test_the_global_numbers_become_metrics_of_the_round_that_measured_them(auto: Federation):
    experiment = run_to_end(make_engine(auto), auto, make_running(auto))
    rows = Metric.objects.filter(experiment=experiment, phase="global", region="mean").order_by("round_number")
    assert [(row.round_number, row.name, row.value, row.cases) for row in rows] == [
        (1, "dice", 0.5, 12),
        (2, "dice", 0.5, 12),
        (3, "dice", 0.5, 12),
    ]


def test_two_runs_of_the_same_plan_give_the_same_models(tmp_path: Path):
    found = []
    for name in ("one", "two"):
        federation = Federation(tmp_path / name, auto=True)
        with undone():
            found.append(models(run_to_end(make_engine(federation), federation, make_running(federation))))
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_one_site_that_fails_for_good_leaves_the_others_their_quorum(auto: Federation):
    experiment = make_running(auto)
    auto["b"].auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    auto["b"].deliver(exit_code=int(Exit.NO_DATASET), message="No dataset.", update=b"")
    auto["b"].auto = True
    experiment = run_to_end(engine, auto, experiment)
    assert experiment.status is E.COMPLETED
    first = experiment.rounds.get(number=1)
    assert first.site_runs.get(participation__site__slug="b").status is SiteRunState.FAILED
    assert "Round 1 aggregated from 2 of 3 sites." in journal(experiment)


def test_a_site_that_dies_is_started_again_and_the_model_is_the_same(tmp_path: Path):
    calm = Federation(tmp_path / "calm", auto=True)
    with undone():
        expected = models(run_to_end(make_engine(calm), calm, make_running(calm)))
    stormy = Federation(tmp_path / "stormy", auto=True)
    stormy["b"].auto = False
    experiment = make_running(stormy)
    engine = make_engine(stormy)
    engine.drive(experiment.pk)
    stormy["b"].die()
    stormy["b"].auto = True
    experiment = run_to_end(engine, stormy, experiment)
    assert models(experiment) == expected
    assert [run for run in stormy["b"].launched if "-r1-" in run] == ["fp-k3x9mq2a-r1-b-a1", "fp-k3x9mq2a-r1-b-a2"]


def test_too_few_sites_fail_the_experiment_and_resuming_takes_only_the_missing_ones_again(auto: Federation):
    experiment = make_running(auto, max_attempts=1)
    for slug in "bc":
        auto[slug].auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    for slug in "bc":
        auto[slug].deliver(exit_code=int(Exit.DISK_FULL), message="The disk is full.", update=b"")
        auto[slug].auto = True
    experiment = run_to_end(engine, auto, experiment)
    assert experiment.status is E.FAILED
    assert experiment.reason.startswith(
        "Round 1 has updates from 1 site, 2 sites needed. Hospital b: The disk is full."
    )
    services.resume(experiment=experiment, by=experiment.owner)
    Experiment.objects.update(due_at=START)
    experiment.rounds.update(started_at=auto.clock())
    experiment = run_to_end(engine, auto, experiment)
    assert experiment.status is E.COMPLETED
    assert [run for run in auto["a"].launched if "-r1-" in run] == ["fp-k3x9mq2a-r1-a-a1"]
    assert "fp-k3x9mq2a-r1-b-a2" in auto["b"].launched


def test_a_person_can_have_a_failed_site_tried_again_in_the_same_round(auto: Federation):
    experiment = make_running(auto)
    auto["a"].auto = auto["b"].auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    auto["b"].deliver(exit_code=int(Exit.NO_DATASET), message="No dataset.", update=b"")
    engine.drive(experiment.pk)
    auto.clock.tick(5)
    engine.drive(experiment.pk)
    site = experiment.participations.get(site__slug="b").site
    auto["b"].auto = True
    services.retry_site(experiment=fresh(experiment), site=site, by=experiment.owner)
    engine.drive(experiment.pk)
    auto["a"].deliver()
    auto["a"].auto = True
    experiment = run_to_end(engine, auto, experiment)
    assert "Round 1 aggregated from 3 of 3 sites." in journal(experiment)
    assert "fp-k3x9mq2a-r1-b-a2" in auto["b"].launched


def test_a_failing_site_is_skipped_and_comes_back_when_it_is_well(auto: Federation):
    experiment = make_running(auto)
    site = experiment.participations.get(site__slug="c").site
    SiteCheck.objects.create(site=site, ok=False, steps=[{"name": "d", "ok": False, "message": "Down."}])
    engine = make_engine(auto)
    engine.advance(experiment.pk)
    SiteCheck.objects.create(site=site, ok=True, steps=[{"name": "d", "ok": True, "message": ""}])
    experiment = run_to_end(engine, auto, experiment)
    states = {r.number: r.site_runs.get(participation__site=site).status for r in experiment.rounds.all()}
    assert states == {1: SiteRunState.SKIPPED, 2: SiteRunState.ADMITTED, 3: SiteRunState.ADMITTED}


def test_a_store_that_is_away_for_a_day_fails_nothing(auto: Federation):
    experiment = make_running(auto, deadline_minutes=10_000)
    engine = make_engine(auto)
    auto.store.is_down = True
    for _ in range(40):
        engine.drive(experiment.pk)
        auto.clock.tick(3600)
    waiting = fresh(experiment)
    assert (waiting.status, waiting.reason) == (E.RUNNING, "The object store does not answer. Trying again.")
    assert journal(experiment).count(waiting.reason) == 1
    auto.store.is_down = False
    assert run_to_end(engine, auto, experiment).status is E.COMPLETED


def test_the_objects_of_ended_rounds_are_removed_and_the_models_stay(auto: Federation):
    experiment = run_to_end(make_engine(auto), auto, make_running(auto))
    kept = set(GlobalModel.objects.values_list("key", flat=True)) | set(Artefact.objects.values_list("key", flat=True))
    assert set(auto.store.objects) == kept
    assert experiment.status is E.COMPLETED


# --- pause and cancel -----------------------------------------------------------------------------


def test_a_paused_experiment_is_left_alone_and_picked_up_without_training_again(auto: Federation):
    experiment = make_running(auto)
    for site in auto.sites.values():
        site.auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    services.pause(experiment=fresh(experiment), by=experiment.owner)
    for site in auto.sites.values():
        site.deliver()
        site.auto = True
    auto.clock.tick(3600 * 5)
    assert not engine.advance(experiment.pk)
    services.resume(experiment=fresh(experiment), by=experiment.owner)
    experiment = run_to_end(engine, auto, experiment)
    assert experiment.status is E.COMPLETED
    assert all(site.launched[0].endswith("-r1-" + slug + "-a1") for slug, site in auto.sites.items())
    assert all(len(site.launched) == 3 for site in auto.sites.values())


def test_the_time_of_a_pause_makes_nobody_late(auto: Federation):
    experiment = make_running(auto, deadline_minutes=60)
    for site in auto.sites.values():
        site.auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    auto.clock.tick(60 * 50)
    services.pause(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="paused").update(at=auto.clock())
    auto.clock.tick(60 * 300)
    services.resume(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="resumed").update(at=auto.clock())
    engine.drive(experiment.pk)
    assert fresh(experiment).rounds.get().status is RoundState.TRAINING
    auto.clock.tick(60 * 9)
    for site in auto.sites.values():
        site.deliver()
        site.auto = True
    experiment = run_to_end(engine, auto, experiment)
    assert experiment.status is E.COMPLETED
    assert experiment.rounds.get(number=1).timings["total"] < 60 * 60


def test_a_pause_does_not_put_the_deadline_off_for_ever(auto: Federation):
    experiment = make_running(auto, deadline_minutes=60)
    for site in auto.sites.values():
        site.auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    services.pause(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="paused").update(at=auto.clock())
    auto.clock.tick(60 * 300)
    services.resume(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="resumed").update(at=auto.clock())
    auto.clock.tick(60 * 60)
    engine.drive(experiment.pk)
    assert fresh(experiment).status is E.FAILED


def test_cancelling_reaches_every_running_site(auto: Federation):
    experiment = make_running(auto)
    for site in auto.sites.values():
        site.auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    services.cancel(experiment=fresh(experiment), by=experiment.owner)
    experiment = run_to_end(engine, auto, experiment)
    assert experiment.status is E.CANCELLED
    assert [site.cancelled for site in auto.sites.values()] == [[site.run] for site in auto.sites.values()]
    assert set(SiteRun.objects.values_list("state", flat=True)) == {SiteRunState.CANCELLED.value}
    assert experiment.rounds.get().status is RoundState.CANCELLED


def test_an_unreachable_site_delays_the_cancel_until_the_limit(auto: Federation):
    experiment = make_running(auto)
    auto["b"].auto = False
    engine = make_engine(auto)
    engine.drive(experiment.pk)
    auto["b"].trouble = SiteUnreachable("No route.")
    services.cancel(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="cancelling").update(at=auto.clock())
    engine.drive(experiment.pk)
    assert fresh(experiment).reason == "Waiting for Hospital b to confirm that the run has ended."
    experiment = run_to_end(engine, auto, experiment, looks=1000)
    assert experiment.status is E.CANCELLED
    assert "Hospital b did not confirm within 15 minutes" in experiment.reason
    assert auto.clock() - START >= timedelta(minutes=15)


# --- claims ---------------------------------------------------------------------------------------


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


# --- stumbles -------------------------------------------------------------------------------------


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
