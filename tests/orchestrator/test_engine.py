"""The engine on the database: whole experiments over sites in memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedportal.experiments import services
from fedportal.experiments.models import Artefact, Attempt, Experiment, GlobalModel, Metric, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.sites.models import SiteCheck
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.rows import fresh, journal, make_engine, make_running, models, run_to_end, undone
from trainer.contract import Exit

pytestmark = pytest.mark.django_db
E = ExperimentState


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
