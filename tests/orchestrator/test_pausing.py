"""Pause and cancel on the database: what is left alone, what is ended, and whose time it costs."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fedportal.connectors.errors import SiteUnreachable
from fedportal.experiments import services
from fedportal.experiments.models import Experiment, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator.engine import Engine
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.rows import fresh, make_engine, make_running, run_to_end

pytestmark = pytest.mark.django_db
E = ExperimentState


def at_work(auto: Federation, **fields) -> tuple[Experiment, Engine]:
    """An experiment whose sites have been started and deliver nothing by themselves."""
    for site in auto.sites.values():
        site.auto = False
    experiment, engine = make_running(auto, **fields), make_engine(auto)
    engine.drive(experiment.pk)
    return experiment, engine


def pause_for_five_hours(auto: Federation, experiment: Experiment) -> None:
    services.pause(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="paused").update(at=auto.clock())
    auto.clock.tick(60 * 300)
    services.resume(experiment=fresh(experiment), by=experiment.owner)
    experiment.events.filter(kind="resumed").update(at=auto.clock())


def test_a_paused_experiment_is_left_alone_and_picked_up_without_training_again(auto: Federation):
    experiment, engine = at_work(auto)
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
    experiment, engine = at_work(auto, deadline_minutes=60)
    auto.clock.tick(60 * 50)
    pause_for_five_hours(auto, experiment)
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
    experiment, engine = at_work(auto, deadline_minutes=60)
    pause_for_five_hours(auto, experiment)
    auto.clock.tick(60 * 60)
    engine.drive(experiment.pk)
    assert fresh(experiment).status is E.FAILED


def test_cancelling_reaches_every_running_site(auto: Federation):
    experiment, engine = at_work(auto)
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
