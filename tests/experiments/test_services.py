"""What people do with experiments, and what the states refuse."""

from __future__ import annotations

import pytest
from django.utils import timezone

from fedportal.accounts.models import Role
from fedportal.experiments import lifecycle, services
from fedportal.experiments.lifecycle import MoveRefused, StaleClaim
from fedportal.experiments.models import Attempt, Experiment, Round, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.sites.models import Dataset
from tests.factories import ada, eve, make_dataset, make_experiment, make_site, make_user

pytestmark = pytest.mark.django_db

E, R, S = ExperimentState, RoundState, SiteRunState


def journal_of(experiment: Experiment) -> list[str]:
    return [event.text for event in experiment.events.all()]


def force(row, state, **fields) -> None:
    """Put a row into a state as if the orchestrator had brought it there."""
    type(row).objects.filter(pk=row.pk).update(state=state.value, **fields)
    row.refresh_from_db()


@pytest.fixture
def running() -> Experiment:
    experiment = make_experiment(ada())
    services.start(experiment=experiment, by=experiment.owner)
    return experiment


def with_site_runs(experiment: Experiment, *states: SiteRunState, round_state: RoundState) -> Round:
    current = experiment.current_round
    force(current, round_state)
    for part, state in zip(experiment.participations.all(), states, strict=True):
        run = SiteRun.objects.create(round=current, participation=part, attempt=1, state=state.value, reason="why")
        Attempt.objects.create(site_run=run, number=1, run=run.run_name)
    return current


# --- drafts -----------------------------------------------------------------------------------------


def test_a_draft_of_the_reference_experiment_has_every_site_that_is_ready():
    ready = [make_dataset(make_site()) for _ in range(3)]
    make_dataset(make_site(healthy=False))
    make_dataset(make_site(), problems=["An image is missing."])
    make_dataset(make_site(), is_available=False)
    make_dataset(make_site(), "Task09_Spleen", channels=["CT"], labels={"0": "background", "1": "spleen"})
    experiment = services.create_draft(owner=ada())
    assert experiment.status is E.DRAFT
    assert [part.dataset for part in experiment.participations.all()] == ready
    assert [region["name"] for region in experiment.plan["task"]["regions"]] == ["WT", "TC", "ET"]
    assert experiment.rounds_planned == experiment.plan["rounds"] == 12
    assert journal_of(experiment) == ["Ada created the experiment."]


def test_a_site_with_two_fitting_datasets_takes_part_with_one():
    site = make_site()
    first = make_dataset(site)
    make_dataset(site, "Task01_Second")
    experiment = services.create_draft(owner=ada())
    assert [part.dataset for part in experiment.participations.all()] == [first]
    assert experiment.min_sites == 1


def test_a_blank_draft_has_no_site():
    make_dataset(make_site())
    assert services.create_draft(owner=ada(), preset="blank").participations.count() == 0


def test_a_draft_can_be_made_to_measure_in_one_call():
    dataset = make_dataset(make_site())
    experiment = services.create_draft(
        owner=ada(), title="Mine", participants=[dataset], plan={"rounds": 3}, fields={"weighting": "uniform"}
    )
    assert (experiment.title, experiment.rounds_planned, experiment.weighting) == ("Mine", 3, "uniform")


def test_a_draft_keeps_what_is_changed_and_what_is_not():
    experiment = make_experiment(ada())
    services.update_draft(
        experiment=experiment,
        by=experiment.owner,
        fields={"title": "Better", "min_sites": 3},
        plan={"rounds": 7, "optimizer": {"learning_rate": 0.01}},
    )
    experiment.refresh_from_db()
    assert (experiment.title, experiment.min_sites, experiment.rounds_planned) == ("Better", 3, 7)
    assert experiment.plan["optimizer"]["learning_rate"] == 0.01
    assert experiment.plan["optimizer"]["name"] == "adam"
    assert experiment.participations.count() == 3


def test_saving_often_is_one_line_of_the_journal():
    experiment = make_experiment(ada())
    for title in ("One", "Two", "Three"):
        services.update_draft(experiment=experiment, by=experiment.owner, fields={"title": title})
    assert journal_of(experiment) == ["Ada changed the draft."]


def test_the_sites_of_a_draft_are_replaced_as_a_whole():
    experiment = make_experiment(ada())
    kept = experiment.participations.first()
    other = make_dataset(kept.site, "Task01_Other")
    services.update_draft(experiment=experiment, by=experiment.owner, participants=[other])
    assert [(part.pk, part.dataset) for part in experiment.participations.all()] == [(kept.pk, other)]


def test_a_state_is_not_a_field_to_edit():
    experiment = make_experiment(ada())
    with pytest.raises(ValueError, match="state"):
        services.update_draft(experiment=experiment, by=experiment.owner, fields={"state": "completed"})


def test_a_started_experiment_is_not_changed(running):
    with pytest.raises(services.NotADraft):
        services.update_draft(experiment=running, by=running.owner, plan={"rounds": 99})
    running.refresh_from_db()
    assert running.rounds_planned == 2


def test_a_clone_has_the_plan_but_not_the_history(running):
    retired = running.participations.first().site
    retired.retired_at = timezone.now()
    retired.save()
    force(running, E.COMPLETED, rounds_planned=1)  # an early stop
    twin = services.clone(experiment=running, by=eve())
    assert (twin.status, twin.owner.username, twin.cloned_from) == (E.DRAFT, "eve", running)
    assert twin.title == f"{running.title} (copy)"
    assert (twin.plan, twin.rounds_planned) == (running.plan, 2)
    assert twin.key != running.key
    assert twin.rounds.count() == 0
    assert retired not in [part.site for part in twin.participations.all()]
    assert journal_of(twin) == [f"Eve created the experiment as a copy of “{running.title}”."]


def test_a_draft_is_deleted_with_all_that_belongs_to_it():
    experiment = services.create_draft(owner=ada(), participants=[make_dataset(make_site())])
    services.delete_draft(experiment=experiment)
    assert not Experiment.objects.exists()
    assert Dataset.objects.count() == 1


def test_a_started_experiment_is_not_deleted(running):
    with pytest.raises(services.NotADraft):
        services.delete_draft(experiment=running)
    assert Experiment.objects.filter(pk=running.pk).exists()


def test_whoever_it_is_shared_with_may_see_it():
    experiment, friend = make_experiment(ada()), eve()
    assert not Experiment.objects.visible_to(friend).exists()
    for _ in range(2):
        services.share(experiment=experiment, user=friend, by=experiment.owner)
    assert Experiment.objects.visible_to(friend).get() == experiment
    assert not experiment.can_be_controlled_by(friend)
    assert journal_of(experiment) == ["Ada shared the experiment with Eve."]


# --- running ----------------------------------------------------------------------------------------


def test_an_owner_who_is_no_researcher_any_more_controls_nothing():
    draft = make_experiment(ada())
    assert draft.can_be_controlled_by(draft.owner)
    draft.owner.role = Role.AUDITOR
    assert not draft.can_be_controlled_by(draft.owner)


def test_a_start_makes_round_one_and_wakes_the_orchestrator():
    experiment = make_experiment(ada())
    services.start(experiment=experiment, by=experiment.owner)
    experiment.refresh_from_db()
    assert experiment.status is E.RUNNING
    assert experiment.started_at is not None
    assert [(r.number, r.status) for r in experiment.rounds.all()] == [(1, R.PENDING)]
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


def test_a_start_that_is_refused_changes_nothing():
    experiment = make_experiment(ada(), sites=1)
    with pytest.raises(services.NotReady, match="The quorum is 2, but 1 sites take part"):
        services.start(experiment=experiment, by=experiment.owner)
    experiment.refresh_from_db()
    assert (experiment.status, experiment.version, experiment.rounds.count()) == (E.DRAFT, 0, 0)


def test_an_act_in_an_old_hand_sees_the_newest_state():
    experiment = make_experiment(ada())
    old_hand = Experiment.objects.get(pk=experiment.pk)
    services.start(experiment=experiment, by=experiment.owner)
    services.pause(experiment=old_hand, by=experiment.owner)
    assert old_hand.status is E.PAUSED


def test_an_act_makes_the_step_under_way_stale(running):
    before = Experiment.objects.get(pk=running.pk).version
    services.pause(experiment=running, by=running.owner)
    assert Experiment.objects.get(pk=running.pk).version > before


def test_an_experiment_is_paused_and_resumed(running):
    services.pause(experiment=running, by=running.owner)
    assert (running.status, running.reason) == (E.PAUSED, "Paused by Ada.")
    services.resume(experiment=running, by=running.owner)
    assert (running.status, running.reason) == (E.RUNNING, "")
    assert [text.split(".")[0] for text in journal_of(running)[1:]] == [
        "Ada paused the experiment",
        "Ada resumed the experiment",
    ]


@pytest.mark.parametrize("state", [E.RUNNING, E.PAUSED])
def test_cancelling_is_left_to_the_orchestrator(running, state):
    force(running, state)
    services.cancel(experiment=running, by=running.owner)
    running.refresh_from_db()
    assert (running.status, running.wakes) == (E.CANCELLING, 2)


ACTS = {"start": services.start, "pause": services.pause, "resume": services.resume, "cancel": services.cancel}
ALLOWED = {
    "start": {E.DRAFT},
    "pause": {E.RUNNING},
    "resume": {E.PAUSED, E.FAILED},
    "cancel": {E.RUNNING, E.PAUSED},
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("state", list(E))
def test_an_act_is_possible_in_its_states_only(act, state):
    experiment = make_experiment(ada())
    force(experiment, state)
    if state in ALLOWED[act]:
        ACTS[act](experiment=experiment, by=experiment.owner)
        assert Experiment.objects.get(pk=experiment.pk).status is not state
    else:
        with pytest.raises(MoveRefused):
            ACTS[act](experiment=experiment, by=experiment.owner)
        assert Experiment.objects.get(pk=experiment.pk).status is state
        assert journal_of(experiment) == []


@pytest.mark.parametrize("end", [E.COMPLETED, E.FAILED])
def test_an_experiment_that_is_over_knows_since_when(running, end):
    lifecycle.move_experiment(running, end)
    running.refresh_from_db()
    assert running.ended_at is not None


def test_a_move_of_a_site_run_that_somebody_else_has_moved_is_refused(running):
    current = with_site_runs(running, S.FAILED, S.FAILED, S.FAILED, round_state=R.TRAINING)
    run = current.site_runs.first()
    in_an_old_hand = SiteRun.objects.get(pk=run.pk)
    force(run, S.RUNNING)
    with pytest.raises(StaleClaim):
        lifecycle.move(in_an_old_hand, S.PENDING)
    run.refresh_from_db()
    assert run.status is S.RUNNING


def test_a_failed_experiment_takes_up_its_failed_round(running):
    current = with_site_runs(running, S.ADMITTED, S.TIMED_OUT, S.REJECTED, round_state=R.FAILED)
    past = timezone.now() - timezone.timedelta(hours=1)
    Round.objects.filter(pk=current.pk).update(started_at=past, deadline_at=past, quorum_at=past, ended_at=past)
    force(running, E.FAILED, ended_at=past)
    services.resume(experiment=running, by=running.owner)
    current.refresh_from_db()
    running.refresh_from_db()
    assert (running.status, running.ended_at) == (E.RUNNING, None)
    assert (current.status, current.deadline_at, current.quorum_at, current.ended_at) == (R.PENDING, None, None, None)
    assert current.started_at > past
    assert [run.status for run in current.site_runs.all()] == [S.ADMITTED, S.PENDING, S.PENDING]
    assert [run.attempt for run in current.site_runs.all()] == [1, 1, 1]
    assert journal_of(running)[-1] == "Ada resumed the experiment: round 1 begins anew."


@pytest.mark.parametrize("state", [S.FAILED, S.TIMED_OUT, S.REJECTED, S.SKIPPED])
def test_a_site_that_did_not_deliver_may_try_again(running, state):
    current = with_site_runs(running, S.RUNNING, state, S.ADMITTED, round_state=R.TRAINING)
    run = current.site_runs.all()[1]
    SiteRun.objects.filter(pk=run.pk).update(not_before=timezone.now() + timezone.timedelta(hours=1))
    services.retry_site(experiment=running, site=run.participation.site, by=running.owner)
    run.refresh_from_db()
    running.refresh_from_db()
    assert (run.status, run.reason, run.not_before) == (S.PENDING, "", None)
    assert running.wakes == 2
    event = running.events.last()
    assert event.text == f"Ada asked {run.participation.site} to try round 1 again."
    assert (event.round_number, event.site) == (1, run.participation.site.slug)


@pytest.mark.parametrize("state", [S.PENDING, S.DISPATCHED, S.RUNNING, S.UPLOADED, S.ADMITTED, S.CANCELLED])
def test_a_site_that_has_not_failed_is_not_started_again(running, state):
    current = with_site_runs(running, state, S.RUNNING, S.RUNNING, round_state=R.TRAINING)
    run = current.site_runs.first()
    with pytest.raises(services.CannotRetry, match="nothing to try again"):
        services.retry_site(experiment=running, site=run.participation.site, by=running.owner)
    run.refresh_from_db()
    assert run.status is state


@pytest.mark.parametrize("round_state", [R.COLLECTING, R.AGGREGATING, R.DONE, R.FAILED, R.CANCELLED])
def test_a_round_that_no_longer_waits_takes_no_retry(running, round_state):
    current = with_site_runs(running, S.FAILED, S.ADMITTED, S.ADMITTED, round_state=round_state)
    with pytest.raises(services.CannotRetry, match="no longer waits"):
        services.retry_site(experiment=running, site=current.site_runs.first().participation.site, by=running.owner)


def test_a_site_of_another_experiment_is_not_started_again(running):
    with_site_runs(running, S.FAILED, S.ADMITTED, S.ADMITTED, round_state=R.TRAINING)
    with pytest.raises(services.CannotRetry, match="takes no part"):
        services.retry_site(experiment=running, site=make_site(), by=running.owner)


def test_a_failed_experiment_is_resumed_and_not_retried(running):
    current = with_site_runs(running, S.FAILED, S.ADMITTED, S.ADMITTED, round_state=R.FAILED)
    force(running, E.FAILED)
    with pytest.raises(services.CannotRetry, match="resume it first"):
        services.retry_site(experiment=running, site=current.site_runs.first().participation.site, by=running.owner)


def test_an_act_on_a_deleted_experiment_says_so():
    experiment = make_experiment(ada())
    Experiment.objects.get(pk=experiment.pk).delete()
    with pytest.raises(services.Deleted):
        services.start(experiment=experiment, by=make_user())
