"""Two people, one draft, the same moment: one of them wins and the other is told."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from django.db import connection

from fedportal.experiments import lifecycle, services
from fedportal.experiments.lifecycle import MoveRefused, StaleClaim
from fedportal.experiments.models import Experiment, Round
from fedportal.experiments.states import ExperimentState
from tests.factories import ada, make_experiment

pytestmark = pytest.mark.django_db(transaction=True)


def at_once(*acts: Callable[[], None]) -> list[str]:
    """Do the acts in threads that begin together; return what each came to."""
    barrier, outcomes = threading.Barrier(len(acts)), [""] * len(acts)

    def run(place: int, act: Callable[[], None]) -> None:
        barrier.wait()
        try:
            act()
            outcomes[place] = "done"
        except (MoveRefused, services.NotADraft, services.Deleted) as error:
            outcomes[place] = type(error).__name__
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def in_another_hand(experiment: Experiment, service, **more) -> Callable[[], None]:
    hand = Experiment.objects.get(pk=experiment.pk)
    return lambda: service(experiment=hand, **more)


def test_of_four_starts_at_once_one_starts_the_experiment():
    experiment = make_experiment(ada())
    acts = [in_another_hand(experiment, services.start, by=experiment.owner) for _ in range(4)]
    assert sorted(at_once(*acts)) == ["MoveRefused"] * 3 + ["done"]
    assert Round.objects.count() == 1
    assert experiment.events.filter(kind="started").count() == 1


def test_a_start_and_a_deletion_at_once_leave_either_a_run_or_nothing():
    for _ in range(5):
        experiment = make_experiment()
        outcomes = at_once(
            in_another_hand(experiment, services.start, by=experiment.owner),
            in_another_hand(experiment, services.delete_draft),
        )
        left = Experiment.objects.filter(pk=experiment.pk).first()
        if left is None:
            assert outcomes == ["Deleted", "done"]
        else:
            assert outcomes == ["done", "NotADraft"]
            assert (left.status, left.rounds.count()) == (ExperimentState.RUNNING, 1)


def test_two_changes_at_once_are_both_kept():
    experiment = make_experiment(ada())
    by = experiment.owner
    outcomes = at_once(
        in_another_hand(experiment, services.update_draft, by=by, plan={"rounds": 9}),
        in_another_hand(experiment, services.update_draft, by=by, plan={"optimizer": {"learning_rate": 0.5}}),
        in_another_hand(experiment, services.update_draft, by=by, fields={"title": "New"}),
    )
    experiment.refresh_from_db()
    assert outcomes == ["done"] * 3
    assert (experiment.plan["rounds"], experiment.plan["optimizer"]["learning_rate"]) == (9, 0.5)
    assert (experiment.title, experiment.rounds_planned) == ("New", 9)


def test_a_change_and_a_start_at_once_never_change_what_runs():
    experiment = make_experiment(ada())
    by = experiment.owner
    outcomes = at_once(
        in_another_hand(experiment, services.start, by=by),
        in_another_hand(experiment, services.update_draft, by=by, plan={"rounds": 9}),
    )
    experiment.refresh_from_db()
    assert outcomes[0] == "done"
    assert experiment.rounds_planned == (9 if outcomes[1] == "done" else 2)
    assert experiment.events.get(kind="started").text.startswith(
        f"Ada started the experiment: {experiment.rounds_planned} "
    )


def test_a_click_wins_against_the_step_that_was_under_way():
    experiment = make_experiment(ada())
    services.start(experiment=experiment, by=experiment.owner)
    engines = Experiment.objects.get(pk=experiment.pk)
    services.pause(experiment=experiment, by=experiment.owner)
    with pytest.raises(StaleClaim):
        lifecycle.fence(engines, stumbles=1)
    assert Experiment.objects.get(pk=experiment.pk).stumbles == 0
