"""Which global models a draft may start from, in the form, by the API and at the start; and what the best model is."""

from __future__ import annotations

import math

import pytest
from rest_framework.test import APIClient

from fedportal.experiments import services
from fedportal.experiments.forms import RecipeForm, RoundsForm, models_to_start_from
from fedportal.experiments.models import Experiment, GlobalModel, best_of, dice_of
from fedportal.experiments.plan import differences, merged
from fedportal.experiments.readiness import checklist, initial_model_problem
from fedportal.experiments.recipe import BY_NAME, value_of
from tests.experiments.test_forms import RIGHT
from tests.factories import ada, make_experiment, make_plan, make_user

pytestmark = pytest.mark.django_db


def publish(experiment: Experiment, *dice: float | None, region: str = "WT", values=None) -> list[GlobalModel]:
    return [
        GlobalModel.objects.create(
            experiment=experiment,
            round_number=number,
            key=f"fedportal/{experiment.key}/r{number:05d}/global.safetensors",
            sha256=f"{number:064d}",
            size=1000,
            dice=value,
            scores={"all": {"dice": {region: (values or dice)[number]}}},
        )
        for number, value in enumerate(dice)
    ]


@pytest.fixture
def owner():
    return ada()


@pytest.fixture
def draft(owner):
    return make_experiment(owner)


@pytest.fixture
def source(owner):
    experiment = make_experiment(owner, title="Before", sites=0)
    publish(experiment, 0.1, 0.8, 0.7, 0.75)
    return experiment


# --- what fits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"network": {"name": "segresnet"}}, "is of another network: Network is SegResNet there and U-Net here."),
        ({"network": {"norm": "batch"}}, "Normalisation is Batch there and Instance here."),
        ({"network": {"channels": [5, 9]}}, "is of another network: Channels per level is 5, 9 there"),
        ({"task": {"channels": ["CT"]}}, "was trained for another task"),
        ({"task": {"labels": {"0": "background", "1": "spleen"}}}, "was trained for another task"),
        ({"task": {"regions": [{"name": "one", "labels": [1]}]}}, "was trained for another task"),
        ({"network": {"dropout": 0.5}}, ""),  # no part of the weights
        ({"loss": "dice_ce", "optimizer": {"name": "sgd"}, "rounds": 99}, ""),
    ],
)
def test_a_model_fits_when_task_and_network_are_the_same(draft, source, change, says):
    model = source.newest_model
    source.plan = merged(source.plan, change)
    source.save()
    model.experiment = source
    problem = initial_model_problem(model, draft.plan)
    assert (says in problem) if says else problem == ""


def test_newest_and_best_model_of_what_one_sees_and_what_fits_are_offered(draft, source, owner):
    stranger = make_experiment(make_user("eve"), sites=0)
    other = make_experiment(owner, sites=0, plan=merged(make_plan().to_json(), {"network": {"norm": "batch"}}))
    for experiment in (stranger, other):
        publish(experiment, 0.1, 0.9)
    offered = models_to_start_from(draft)
    assert [(model.experiment, model.round_number) for model in offered] == [(source, 1), (source, 3)]
    assert "Before" in str(RecipeForm(experiment=draft)["initial_model"])
    assert "round 1, Dice 0.800" in str(RecipeForm(experiment=draft)["initial_model"])


def test_a_copy_may_start_from_any_round_of_its_original(draft, source, owner):
    copy = services.clone(experiment=source, by=owner)
    services.update_draft(experiment=copy, by=owner, plan=draft.plan)
    copy.refresh_from_db()
    assert [model.round_number for model in models_to_start_from(copy)] == [1, 2, 3]
    assert [model.round_number for model in models_to_start_from(draft)] == [1, 3]


# --- the form ---------------------------------------------------------------------------------------


def as_shown(draft, **typed):
    """What the browser sends of the recipe when only this was typed."""
    shown = {field.html_name: field.field.prepare_value(field.value()) for field in RecipeForm(experiment=draft)}
    sent = {name: "" if value is None else value for name, value in shown.items() if value is not False}
    return RecipeForm(sent | typed, experiment=draft)


def test_the_form_stores_shows_and_removes_the_choice(draft, source, owner):
    chosen = source.models.get(round_number=1)
    form = as_shown(draft, initial_model=str(chosen.pk))
    assert form.save(owner), form.errors
    draft.refresh_from_db()
    assert draft.initial_model == chosen
    assert f'<option value="{chosen.pk}" selected' in str(RecipeForm(experiment=draft)["initial_model"])
    assert all(check.ok for check in checklist(draft))
    setting = BY_NAME["initial_model"]
    shown = f"model of round 1 of “Before” ({source.key})"
    assert setting.show(value_of(draft, setting)) == shown
    assert ("Start from", "random weights", shown) in differences(source, draft)
    twin = services.clone(experiment=draft, by=owner)
    assert twin.initial_model == chosen
    assert as_shown(draft, initial_model="").save(owner)
    draft.refresh_from_db()
    assert draft.initial_model is None


def test_a_network_changed_beside_the_choice_is_refused_at_the_choice(draft, source):
    form = as_shown(draft, initial_model=str(source.newest_model.pk), network_norm="group")
    assert "is of another network" in form.errors["initial_model"][0]


def test_a_network_changed_after_the_choice_refuses_the_start(draft, source, owner):
    services.update_draft(experiment=draft, by=owner, fields={"initial_model": source.newest_model})
    draft.refresh_from_db()
    assert all(check.ok for check in checklist(draft))
    services.update_draft(experiment=draft, by=owner, plan={"network": {"norm": "group"}})
    draft.refresh_from_db()
    with pytest.raises(services.NotReady) as refused:
        services.start(experiment=draft, by=owner)
    assert "Normalisation is Instance there and Group here" in refused.value.message


# --- the API ----------------------------------------------------------------------------------------


@pytest.fixture
def api(owner):
    client = APIClient()
    client.force_authenticate(owner)
    return client


def test_the_api_takes_any_model_that_fits(api, draft, source):
    address = f"/api/experiments/{draft.key}/"
    chosen = {"experiment": source.key, "round": 2}
    answer = api.patch(address, {"initial_model": chosen}, format="json")
    assert (answer.status_code, answer.json()["initial_model"]) == (200, chosen)
    draft.refresh_from_db()
    assert draft.initial_model.round_number == 2
    assert api.patch(address, {"initial_model": None}, format="json").json()["initial_model"] is None
    body = {"initial_model": chosen, "best_by": "WT", "patience": 5}
    answer = api.patch(address, body, format="json").json()
    assert (answer["best_by"], answer["patience"]) == ("WT", 5)


@pytest.mark.parametrize(
    ("chosen", "plan", "says"),
    [
        ({"round": 9}, {}, "There is no model of round 9"),
        ({"experiment": "xxxxxxxx"}, {}, "There is no model of round 1 of an experiment xxxxxxxx"),
        ({}, {"network": {"norm": "batch"}}, "is of another network"),
        ({}, {"task": {"regions": [{"name": "one", "labels": [1]}]}}, "was trained for another task"),
    ],
)
def test_the_api_refuses_what_does_not_fit_with_the_reason(api, draft, source, chosen, plan, says):
    body = {"initial_model": {"experiment": source.key, "round": 1} | chosen, "plan": plan}
    answer = api.patch(f"/api/experiments/{draft.key}/", body, format="json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["initial_model"]
    assert says in str(answer.json()["errors"])


def test_a_model_that_one_may_not_see_is_not_there(api, draft):
    secret = make_experiment(make_user("eve"), sites=0)
    publish(secret, 0.5)
    body = {"initial_model": {"experiment": secret.key, "round": 0}}
    answer = api.patch(f"/api/experiments/{draft.key}/", body, format="json")
    assert answer.status_code == 400
    assert "There is no model of round 0" in str(answer.json()["errors"])


# --- the best model ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dice", "best"),
    [
        ((0.1, 0.8, 0.7), 1),
        ((0.1, 0.8, 0.8), 1),
        ((None, None, 0.2), 2),
        ((0.0, 0.0), 0),
        ((None, None), None),
        ((), None),
    ],
)
def test_the_best_model_is_the_earliest_of_the_highest_that_were_measured(draft, dice, best):
    publish(draft, *dice)
    assert draft.best_model == (None if best is None else draft.models.get(round_number=best))


def test_a_region_may_choose_the_best_model(draft):
    models = publish(draft, 0.9, 0.5, 0.1, region="ET", values=[0.2, None, 0.4])
    draft.best_by = "ET"
    assert draft.best_model == models[2]
    draft.best_by = "TC"
    assert draft.best_model is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.5", True])
def test_what_is_no_number_is_no_dice(value):
    assert dice_of("mean", value, {}) is None
    assert dice_of("WT", 0.5, {"all": {"dice": {"WT": value}}}) is None
    assert dice_of("WT", 0.5, {}) is None
    assert best_of([], "mean") is None


def test_a_region_that_is_no_longer_one_is_refused_at_the_start(draft, owner):
    services.update_draft(experiment=draft, by=owner, fields={"best_by": "ET"})
    regions = [{"name": "tumour", "labels": [1, 2, 3]}]
    services.update_draft(experiment=draft, by=owner, plan={"task": {"regions": regions}})
    draft.refresh_from_db()
    problems = [problem for check in checklist(draft) for problem in check.problems]
    assert problems == ["The best model is chosen by the Dice of ET, which is no region of the task: choose another."]
    assert list(RoundsForm(RIGHT["rounds"] | {"best_by": "ET"}, experiment=draft).errors) == ["best_by"]
    assert RoundsForm(RIGHT["rounds"] | {"best_by": "tumour"}, experiment=draft).is_valid()
