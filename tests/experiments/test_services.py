"""What people do with experiments, and what the states refuse."""

from __future__ import annotations

import pytest

from fedportal.experiments import services
from fedportal.experiments.lifecycle import MoveRefused
from fedportal.experiments.models import Attempt, Experiment, Round, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from tests.factories import ada, make_experiment

pytestmark = pytest.mark.django_db


def journal_of(experiment: Experiment) -> list[str]:
    return [event.text for event in experiment.events.all()]


def force(row, state) -> None:
    """Put a row into a state as if the orchestrator had brought it there."""
    type(row).objects.filter(pk=row.pk).update(state=state.value)
    row.refresh_from_db()


def started(**fields) -> Experiment:
    experiment = make_experiment(ada(), **fields)
    services.start(experiment=experiment, by=experiment.owner)
    return experiment


def with_site_runs(experiment: Experiment, state: SiteRunState, *, round_state: RoundState) -> Round:
    current = experiment.current_round
    force(current, round_state)
    for part in experiment.participations.all():
        run = SiteRun.objects.create(round=current, participation=part, attempt=1, state=state.value)
        Attempt.objects.create(site_run=run, number=1, run=run.run_name)
    return current


def test_a_start_makes_round_one_and_wakes_the_orchestrator():
    experiment = make_experiment(ada())
    services.start(experiment=experiment, by=experiment.owner)
    experiment.refresh_from_db()
    assert experiment.status is ExperimentState.RUNNING
    assert experiment.started_at is not None
    assert [(r.number, r.status) for r in experiment.rounds.all()] == [(1, RoundState.PENDING)]
    assert experiment.wakes == 1
    assert journal_of(experiment) == ["Ada started the experiment: 2 rounds at 3 sites."]


def test_a_second_start_is_refused_and_makes_no_second_round():
    experiment = make_experiment(ada())
    other_hand = Experiment.objects.get(pk=experiment.pk)
    services.start(experiment=experiment, by=experiment.owner)
    with pytest.raises(MoveRefused):
        services.start(experiment=other_hand, by=experiment.owner)
    assert experiment.rounds.count() == 1
    assert len(journal_of(experiment)) == 1


def test_an_act_in_an_old_hand_sees_the_newest_state():
    experiment = make_experiment(ada())
    old_hand = Experiment.objects.get(pk=experiment.pk)
    services.start(experiment=experiment, by=experiment.owner)
    services.pause(experiment=old_hand, by=experiment.owner)
    assert old_hand.status is ExperimentState.PAUSED
