"""Bundles on request: whatever state the experiment is in, whatever dies meanwhile."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from fedportal.experiments.bundles import NothingToBundle, ask_for_bundle, bundle_of
from fedportal.experiments.models import Artefact, BundleRequest, Experiment, GlobalModel
from fedportal.experiments.states import ExperimentState
from fedportal.orchestrator.bundles import BundleMaker
from tests.orchestrator.fakes import Federation, model_bytes
from tests.orchestrator.rows import journal, make_engine, make_running, run_to_end
from trainer.contract import Exit, global_model_key

pytestmark = pytest.mark.django_db
OVER = [ExperimentState.COMPLETED, ExperimentState.CANCELLED, ExperimentState.FAILED]


def publish(federation: Federation, state: ExperimentState, *, dice: float | None = 0.5) -> GlobalModel:
    """The model of round 2 of an experiment in some state, its weights in the store."""
    experiment = make_running(federation, rounds=3)
    key = global_model_key(experiment.key, 2)
    sha256 = federation.store.put_bytes(key, data := model_bytes(2.0))
    Experiment.objects.filter(pk=experiment.pk).update(state=state)
    experiment.refresh_from_db()
    return GlobalModel.objects.create(
        experiment=experiment, round_number=2, key=key, sha256=sha256, size=len(data), dice=dice
    )


def maker(federation: Federation, worker: str = "here-1") -> BundleMaker:
    return BundleMaker(federation.tools, worker=worker)


def take_up(one: BundleMaker) -> bool:
    """Do in this thread what the loop does in another: claim the oldest request and make its bundle."""
    for request in BundleRequest.objects.due(timezone.now()).select_related("model__experiment"):
        if one._claim(request):
            one.make(request)
            return True
    return False


def ask(model: GlobalModel):
    return ask_for_bundle(model=model, by=model.experiment.owner)


def state_of(model: GlobalModel) -> tuple[str, str]:
    bundle = bundle_of(GlobalModel.objects.select_related("experiment").get(pk=model.pk))
    return bundle.state, bundle.message


@pytest.mark.parametrize("state", [*OVER, ExperimentState.RUNNING, ExperimentState.PAUSED])
def test_a_bundle_is_made_in_whatever_state_the_experiment_is(federation: Federation, state):
    model = publish(federation, state)
    assert ask(model).state == "asked"
    assert take_up(maker(federation))
    made = Artefact.objects.get(model=model, kind="bundle")
    assert federation.store.objects[made.key] == b"a bundle"
    assert state_of(model) == ("ready", "")
    assert not BundleRequest.objects.exists()
    assert not list(federation.tools.spool.glob("bundles/*")), "nothing is left on the disk"
    assert journal(model.experiment)[-2:] == [
        f"{model.experiment.owner} asked for the MONAI bundle of the model of round 2.",
        "The MONAI bundle of the model of round 2 is ready.",
    ]
    assert Experiment.objects.get(pk=model.experiment_id).status is state


def test_a_cancelled_experiment_gets_the_recipe_along(federation: Federation):
    model = publish(federation, ExperimentState.CANCELLED)
    ask(model)
    take_up(maker(federation))
    recipe = Artefact.objects.get(model=model, kind="recipe")
    document = json.loads(federation.store.objects[recipe.key])
    assert (document["round"], document["weights"]["sha256"]) == (2, model.sha256)


def test_an_experiment_that_runs_waits_for_the_scores(federation: Federation):
    model = publish(federation, ExperimentState.RUNNING, dice=None)
    ask(model)
    assert state_of(model) == ("asked", "It is made as soon as the sites have measured the model.")
    assert not take_up(maker(federation))
    GlobalModel.objects.filter(pk=model.pk).update(dice=0.7)
    assert take_up(maker(federation))
    Experiment.objects.filter(pk=model.experiment_id).update(state=ExperimentState.CANCELLED)
    assert state_of(model)[0] == "ready"


def test_one_that_was_asked_for_early_does_not_stand_in_the_way_of_the_end(federation: Federation):
    for site in federation.sites.values():
        site.auto = True
    experiment, engine = make_running(federation, rounds=2), make_engine(federation)
    while not experiment.models.exclude(dice=None).filter(round_number=1).exists():
        engine.drive(experiment.pk, steps=1)
        federation.clock.tick(1)
    ask(experiment.models.get(round_number=1))
    take_up(maker(federation))
    assert run_to_end(engine, federation, experiment).status is ExperimentState.COMPLETED
    made = Artefact.objects.filter(kind="bundle").values_list("model__round_number", flat=True)
    assert sorted(made) == [1, 2]


def test_asking_again_changes_nothing(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    for _ in range(3):
        assert ask(model).state == "asked"
    take_up(maker(federation))
    assert ask(model).state == "ready"
    assert not BundleRequest.objects.exists()
    assert sum("asked for" in line for line in journal(model.experiment)) == 1
    assert len([argv for argv in federation.commands if argv[0] == "bundle"]) == 1


def test_the_initial_model_gets_none(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    GlobalModel.objects.filter(pk=model.pk).update(round_number=0)
    model.refresh_from_db()
    with pytest.raises(NothingToBundle):
        ask(model)
    assert not BundleRequest.objects.exists()


# --- trouble --------------------------------------------------------------------------------------


def test_a_failure_is_told_in_a_sentence_and_can_be_tried_again(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    federation.command_fails["bundle"] = "The recipe has no training plan."
    ask(model)
    take_up(maker(federation))
    assert state_of(model) == ("failed", "The recipe has no training plan.")
    assert not take_up(maker(federation)), "it is not tried again by itself"
    del federation.command_fails["bundle"]
    assert ask(model).state == "asked"
    assert take_up(maker(federation))
    assert state_of(model) == ("ready", "")


def unexpected(argv, timeout):
    return int(Exit.UNEXPECTED), "Traceback …\nFileNotFoundError: '/var/lib/fedportal/spool/x'"


def killed(argv, timeout):
    return -9, "Killed"


def no_memory(argv, timeout):
    return int(Exit.OUT_OF_MEMORY), "The work did not fit into memory."


def full(argv, timeout):
    raise OSError(28, "No space left on device", "/var/lib/fedportal/spool/bundles/x/bundle.zip")


def a_bug(argv, timeout):
    raise ZeroDivisionError("at /srv/fedportal/files.py")


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (unexpected, "The trainer stopped unexpectedly."),
        (no_memory, "It needs more memory than the portal allows."),
        (full, "No space left on device"),
        (a_bug, "The portal stumbled over it."),
        (killed, "The trainer stopped unexpectedly."),
    ],
)
def test_no_failure_names_a_path_of_the_machine(federation: Federation, trainer, words):
    model = publish(federation, ExperimentState.COMPLETED)
    federation.tools.trainer = trainer
    ask(model)
    take_up(maker(federation))
    state, message = state_of(model)
    assert (state, words in message) == ("failed", True), message
    told = message + journal(model.experiment)[-1]
    assert words in journal(model.experiment)[-1]
    assert "/var" not in told
    assert "/srv" not in told
    assert "Error" not in told


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_weights_that_are_not_there_are_said_to_be_gone(federation: Federation, harm):
    model = publish(federation, ExperimentState.COMPLETED)
    federation.store.objects[model.key] = b"x"
    if harm == "gone":
        del federation.store.objects[model.key]
    ask(model)
    take_up(maker(federation))
    assert state_of(model)[1].startswith("The model's weights are gone from the object store, or damaged.")


def test_a_silent_store_is_waited_for(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    ask(model)
    federation.store.is_down = True
    take_up(maker(federation))
    assert state_of(model) == ("asked", "The object store does not answer. Trying again.")
    assert not take_up(maker(federation)), "not at once"
    federation.store.is_down = False
    BundleRequest.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert take_up(maker(federation))
    assert state_of(model)[0] == "ready"


# --- several, and dead ones -----------------------------------------------------------------------


def test_one_that_died_over_it_is_followed_by_its_successor_at_once(federation: Federation):
    model = publish(federation, ExperimentState.CANCELLED)
    ask(model)
    dead = maker(federation)
    assert dead._claim(BundleRequest.objects.select_related("model__experiment").get())
    (federation.tools.spool / "bundles" / f"{model.experiment.key}-r2").mkdir(parents=True)
    assert state_of(model)[0] == "making"
    assert not take_up(BundleMaker(federation.tools, worker="there-1")), "its lease has not run out"
    assert take_up(maker(federation)), "of the same name: the one before is dead"
    assert state_of(model)[0] == "ready"


def test_one_that_died_elsewhere_is_followed_when_its_lease_has_run_out(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    ask(model)
    maker(federation)._claim(BundleRequest.objects.select_related("model__experiment").get())
    BundleRequest.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert take_up(BundleMaker(federation.tools, worker="there-1"))
    assert state_of(model)[0] == "ready"


def test_one_that_was_overtaken_writes_nothing(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    ask(model)
    slow = maker(federation)
    request = BundleRequest.objects.select_related("model__experiment").get()
    slow._claim(request)
    BundleRequest.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    take_up(BundleMaker(federation.tools, worker="there-1"))
    slow.make(request)
    assert sum("is ready" in line for line in journal(model.experiment)) == 1
    assert Artefact.objects.filter(kind="bundle").count() == 1


def test_of_two_that_read_the_same_request_one_gets_it(federation: Federation):
    ask(publish(federation, ExperimentState.COMPLETED))
    request = BundleRequest.objects.get()
    assert maker(federation)._claim(request)
    assert not BundleMaker(federation.tools, worker="there-1")._claim(request)


@pytest.mark.django_db(transaction=True)
def test_the_loop_makes_one_at_a_time_and_keeps_its_lease(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    ask(model)
    entered, go_on = threading.Event(), threading.Event()
    real = federation.tools.trainer

    def slow(argv, timeout):
        entered.set()
        assert go_on.wait(60)
        return real(argv, timeout)

    federation.tools.trainer = slow
    one = maker(federation)
    thread = one.look()
    assert thread is not None
    assert entered.wait(60)
    BundleRequest.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert one.look() is None
    assert BundleRequest.objects.get().lease_until > timezone.now()
    go_on.set()
    thread.join(60)
    assert state_of(model)[0] == "ready"
    assert one.look() is None


@pytest.mark.django_db(transaction=True)
def test_ten_people_who_ask_at_the_same_time_make_one_request(federation: Federation):
    model = publish(federation, ExperimentState.COMPLETED)
    together, states = threading.Barrier(10), []

    def press() -> None:
        try:
            together.wait(60)
            states.append(ask(model).state)
        finally:
            connection.close()

    people = [threading.Thread(target=press) for _ in range(10)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert states == ["asked"] * 10
    assert BundleRequest.objects.count() == 1
    assert sum("asked for" in line for line in journal(model.experiment)) == 1
