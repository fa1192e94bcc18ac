"""What the page of an experiment says of its best model, and of layers that stay at the sites."""

import pytest
from django.urls import reverse

from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def running():
    """Two models: by the mean the second is better, by ET the first."""
    experiment = scenes.make_running()
    for number in (1, 2):
        scenes.finish_round(scenes.open_round(experiment, number))
    for number, mean, et in ((1, 0.4, 0.6), (2, 0.5, 0.3)):
        scores = {"all": {"dice": {"mean": mean, "ET": et}}, "sites": {}}
        experiment.models.filter(round_number=number).update(dice=mean, scores=scores)
    return experiment


def page(client, experiment) -> str:
    client.force_login(experiment.owner)
    return client.get(reverse("monitoring:experiment", args=[experiment.key])).content.decode()


def test_the_best_model_is_by_the_mean_unless_a_region_was_chosen(client, running):
    assert "the best so far" not in page(client, running)  # it is the newest
    scenes.change(running, best_by="ET")
    assert "the best so far by the Dice of ET is that of round 1 with 0.600" in page(client, running)


def test_a_best_model_without_a_mean_is_no_trouble(client, running):
    running.models.filter(round_number=1).update(dice=None)
    scenes.change(running, best_by="ET")
    assert "the best so far by the Dice of ET is that of round 1 with 0.600" in page(client, running)


def test_the_models_say_so_where_each_site_keeps_layers_of_its_own(client, running):
    said = "Each site keeps normalisation layers of its own"
    assert said not in page(client, running)
    scenes.change(running, plan=running.plan | {"local_layers": "normalisation"})
    assert said in page(client, running)
