"""A recipe that no site could train is refused at the field, with a remedy; the review says what a good one takes."""

import pytest
from django.test import Client
from rest_framework.test import APIClient

from fedportal.experiments.models import Experiment
from fedportal.experiments.readiness import checklist
from fedportal.experiments.size import demand, demand_of, plan_problems
from tests.factories import BRAIN_TASK, ada, make_experiment, make_plan
from trainer.contract import Network, TrainingPlan

pytestmark = pytest.mark.django_db
HUGE = {"network": {"channels": [2048] * 7, "strides": [2] * 6}}
WIDE = {"patch": [512, 512, 512]}


def recipe(**fields) -> dict:
    return TrainingPlan(task=BRAIN_TASK, **fields).to_json()


@pytest.fixture
def draft() -> Experiment:
    experiment = make_experiment(ada(), plan=recipe(rounds=2))
    experiment.refresh_from_db()
    return experiment


@pytest.fixture
def api(draft):
    client = APIClient()
    client.force_authenticate(draft.owner)
    return lambda plan: client.patch(f"/api/experiments/{draft.key}/", {"plan": plan}, format="json")


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (
            HUGE,
            "network.channels",
            "billion parameters and this portal takes 250 million: use fewer levels or channels.",
        ),
        (WIDE, "patch", "of memory at each site and this portal allows 80 GB: use a smaller patch, a smaller batch"),
        (WIDE | {"batch_size": 1, "network": {"residual_units": 2}}, "patch", "Training would need about"),
    ],
)
def test_the_api_refuses_nonsense_at_the_field(api, draft, changes, field, words):
    answer = api(changes)
    assert answer.status_code == 400
    errors = answer.json()["errors"]["plan"]
    for name in field.split("."):
        errors = errors[name]
    assert words in errors[0]
    assert Experiment.objects.get(pk=draft.pk).plan == draft.plan


def test_of_what_makes_it_too_large_together_the_changed_field_is_named(api):
    assert api({"patch": [224, 224, 224], "network": {"channels": [8, 16], "strides": [2]}}).status_code == 200
    answer = api({"batch_size": 64})
    assert list(answer.json()["errors"]["plan"]) == ["batch_size"]
    answer = api({"network": {"channels": [1024, 1024]}})
    assert list(answer.json()["errors"]["plan"]["network"]) == ["channels"]


def test_the_form_refuses_it_at_the_field_and_keeps_what_was_typed(draft):
    browser = Client()
    browser.force_login(draft.owner)
    page = f"/experiments/{draft.key}/edit/recipe/"
    form = browser.get(page).context["form"]
    typed = {name: form[name].value() for name in form.fields}
    typed = {name: value for name, value in typed.items() if value is not None and value is not False}
    typed |= {"network_channels": "2048 2048 2048 2048 2048 2048 2048", "network_strides": "2 2 2 2 2 2"}
    typed["regions"] = "WT: 1, 2, 3"
    answer = browser.post(page, typed)
    assert answer.status_code == 422
    assert list(answer.context["form"].errors) == ["network_channels"]
    assert "use fewer levels or channels." in answer.content.decode()
    assert "2048 2048 2048" in answer.content.decode()
    typed |= {"network_channels": "8 16 32 64", "network_strides": "1 2 2", "patch": "512 512 512"}
    assert list(browser.post(page, typed).context["form"].errors) == ["patch"]


def test_whole_volumes_are_judged_by_the_datasets(draft, settings):
    settings.FEDPORTAL_TRAINING_MEMORY = 10**9
    assert demand_of(draft).memory < 10**9
    dataset = draft.participations.first().dataset
    dataset.shape = [240, 240, 155]
    dataset.save()
    [problem] = plan_problems(draft.plan, [dataset]).items()
    assert problem[0] == "patch"
    assert "use patches, like 96 × 96 × 96, a smaller batch or a smaller network" in problem[1]
    assert not next(check for check in checklist(draft) if check.title == "The recipe can run").ok
    dataset.spacing = [1, 1, 1]
    assert plan_problems(make_plan(spacing=(4.0, 4.0, 4.0)).to_json(), [dataset]) == {}, "resampled, it is small"


def test_a_draft_without_sites_is_judged_as_far_as_it_is_known():
    document = recipe(network=Network(channels=(2048,) * 7, strides=(2,) * 6)) | {"task": {}}
    assert "network.channels" in plan_problems(document, [])
    small = recipe() | {"task": {}}
    assert set(plan_problems(small, [])) <= {"plan"} | {name for name in plan_problems(small, []) if "task" in name}
    assert demand(small, []).memory is None, "the volumes are not known yet"


@pytest.mark.parametrize(
    "broken", [{}, {"network": 3}, {"patch": [1]}, {"network": {"channels": []}}, {"rounds": "many"}]
)
def test_a_broken_plan_is_not_measured(broken):
    document = recipe() | broken if broken else {}
    assert plan_problems(document, []) != {}
    assert document == {} or demand(document, []) is None


def test_the_limits_are_the_operators(settings, draft):
    settings.FEDPORTAL_MOST_PARAMETERS = 1000
    assert "this portal takes 1 thousand" in plan_problems(draft.plan, [])["network.channels"]


def test_the_review_and_the_api_say_what_it_takes(draft):
    draft.plan = recipe(network=Network("residual_unet", (16, 32, 64, 128, 256), (2, 2, 2, 2), 2), patch=(128, 128, 64))
    draft.save()
    assert demand_of(draft).text.startswith("4.8 million parameters, 19 MB per update, about 1.3 GB of memory")
    browser = Client()
    browser.force_login(draft.owner)
    assert (
        "4.8 million parameters, 19 MB per update"
        in browser.get(f"/experiments/{draft.key}/edit/review/").content.decode()
    )
    size = browser.get(f"/api/experiments/{draft.key}/").json()["size"]
    assert (size["parameters"], size["update"]) == (4_810_074, 4 * 4_810_074)
    assert 10**9 < size["memory"] < 1.5 * 10**9
