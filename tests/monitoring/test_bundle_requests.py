"""Asking for the bundle of a round's model, on the models page and over the API."""

import pytest
from django.test import Client
from rest_framework.test import APIClient

from fedportal.accounts.models import User
from fedportal.experiments.models import Artefact, BundleRequest, Experiment
from fedportal.experiments.states import ExperimentState
from tests import factories
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def ended():
    """A cancelled experiment of ada's that grace may see, with the models of rounds 0 to 2."""
    experiment = scenes.make_running(factories.ada())
    experiment.viewers.add(factories.make_user("grace"))
    for number in range(3):
        scenes.make_model(experiment, number, dice=0.5)
    Experiment.objects.filter(pk=experiment.pk).update(state=ExperimentState.CANCELLED)
    for make in (factories.otto, factories.audrey, factories.eve):
        make()
    return experiment


def press(experiment, number, who, **values):
    client = Client()
    if who:
        client.force_login(User.objects.get(username=who))
    return client.post(f"/experiments/{experiment.key}/make-bundle/{number}/", values)


def post(experiment, number, who):
    client = APIClient()
    if who:
        client.force_authenticate(User.objects.get(username=who))
    return client.post(f"/api/experiments/{experiment.key}/models/{number}/make-bundle/")


def models_page(experiment, who="ada"):
    client = Client()
    client.force_login(User.objects.get(username=who))
    return client.get(f"/experiments/{experiment.key}/models/").content.decode()


@pytest.mark.parametrize(
    ("who", "status"), [("ada", 202), ("grace", 202), ("otto", 202), ("audrey", 202), ("eve", 404), (None, 401)]
)
def test_whoever_may_download_may_ask(ended, who, status):
    assert post(ended, 1, who).status_code == status
    assert BundleRequest.objects.count() == (status == 202)
    BundleRequest.objects.all().delete()
    assert press(ended, 1, who).status_code == (404 if who == "eve" else 302)
    assert BundleRequest.objects.count() == (status == 202)


def test_the_page_offers_the_bundle_of_every_round_but_not_of_the_start(ended):
    shown = models_page(ended)
    assert shown.count("Make MONAI bundle") == 2
    assert "make-bundle/0/" not in shown
    assert "data-waiting" not in shown


def test_pressing_leads_back_to_the_same_page_which_waits(ended):
    answer = press(ended, 1, "ada", page="3")
    assert answer.url == f"/experiments/{ended.key}/models/?page=3#round-1"
    assert press(ended, 1, "ada", page="//evil.example").url == f"/experiments/{ended.key}/models/#round-1"
    shown = models_page(ended)
    assert shown.count("data-waiting") == 1
    assert "It waits for the orchestrator." in shown
    BundleRequest.objects.update(state=BundleRequest.State.MAKING)
    assert "being made…" in models_page(ended)


def test_a_failure_is_shown_with_a_way_to_try_again(ended):
    post(ended, 1, "ada")
    BundleRequest.objects.update(state=BundleRequest.State.FAILED, message="The disk of the portal's machine is full.")
    shown = models_page(ended)
    assert "The MONAI bundle could not be made: The disk of the portal&#x27;s machine is full." in shown
    assert "Try again" in shown
    assert post(ended, 1, "ada").json() == {"state": "asked", "message": "It waits for the orchestrator."}


def test_a_program_follows_its_request_to_the_file(ended):
    def bundle():
        client = APIClient()
        client.force_authenticate(ended.owner)
        return client.get(f"/api/experiments/{ended.key}/models/").json()[1]

    assert bundle()["bundle"] == {"state": "none", "message": ""}
    assert post(ended, 1, "ada").status_code == 202
    assert bundle()["bundle"]["state"] == "asked"
    BundleRequest.objects.all().delete()
    Artefact.objects.create(model=ended.models.get(round_number=1), kind="bundle", key="k", sha256="c" * 64, size=9)
    assert (bundle()["bundle"]["state"], "bundle" in bundle()["files"]) == ("ready", True)
    again = post(ended, 1, "ada")
    assert (again.status_code, again.json()["state"]) == (200, "ready")
    assert "make-bundle/1/" not in models_page(ended)


@pytest.mark.parametrize(("number", "status"), [(0, 409), (9, 404), (123456, 404)])
def test_there_is_no_bundle_of_the_start_or_of_a_round_that_was_not(ended, number, status):
    answer = post(ended, number, "ada")
    assert answer.status_code == status
    if status == 409:
        assert "was not trained yet" in answer.json()["detail"]
    assert not BundleRequest.objects.exists()


def test_asking_changes_no_state_and_makes_no_step_stale(ended):
    before = Experiment.objects.values_list("state", "version", "wakes").get(pk=ended.pk)
    post(ended, 1, "ada")
    assert Experiment.objects.values_list("state", "version", "wakes").get(pk=ended.pk) == before
