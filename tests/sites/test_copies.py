"""A dataset that holds the cases of others, and sites that are no hospitals."""

from __future__ import annotations

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from rest_framework.test import APIClient

from fedportal.experiments import services as services_of_experiments
from fedportal.experiments.forms import SitesForm
from fedportal.sites import services
from fedportal.sites.models import Dataset
from tests.factories import make_dataset, make_site, otto

pytestmark = pytest.mark.django_db
PAGE, API = "/sites/archive/datasets/Task01_BrainTumour/", "/api/sites/archive/datasets/Task01_BrainTumour/"
REFUSED = {
    "itself": "cannot be a copy of itself",
    "neighbour": "is at the same site",
    "spleen": "different channels or labels",
    "large": "more cases than this dataset",
}


@pytest.fixture
def archive() -> Dataset:
    """A dataset of 12 cases, beside one that it may be a copy of and some that it may not."""
    archive = make_site("archive")
    dataset = make_dataset(archive)
    make_dataset(make_site("mainz"), train_cases=6, validation_cases=2)
    make_dataset(archive, "neighbour")
    make_dataset(make_site("ulm"), "spleen", channels=["CT"])
    make_dataset(make_site("essen"), "large", train_cases=60)
    make_dataset(make_site("pool-1", is_pool=True), "pooled")
    return dataset


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(otto())
    return client


def named(name: str) -> Dataset:
    return Dataset.objects.get(name="Task01_BrainTumour" if name == "itself" else name, site__slug=at(name))


def at(name: str) -> str:
    return {"spleen": "ulm", "large": "essen", "fit": "mainz", "pooled": "pool-1"}.get(name, "archive")


@pytest.fixture
def fit(archive) -> Dataset:
    return Dataset.objects.get(site__slug="mainz")


def test_an_operator_says_on_the_page_that_a_dataset_is_a_copy(operator, archive, fit):
    page = operator.get(PAGE).content.decode()
    assert [f'value="{dataset.pk}"' in page for dataset in (fit, archive, named("spleen"))] == [True, False, False]
    assert operator.post(PAGE, {"copy_of": [fit.pk]}).url == "/sites/archive/"
    assert list(archive.copy_of.all()) == [fit]
    assert (
        "Holds every case of Task01_BrainTumour at Hospital mainz" in operator.get("/sites/archive/").content.decode()
    )
    assert "holds every case of" in LogEntry.objects.get().change_message
    operator.post(PAGE, {})
    assert not archive.copy_of.exists()


@pytest.mark.parametrize(("other", "why"), REFUSED.items())
def test_what_cannot_be_a_copy_is_refused_with_the_reason_on_page_in_admin_and_api(operator, archive, other, why):
    for address in (PAGE, f"/admin/sites/dataset/{archive.pk}/change/"):
        answer = operator.post(address, {"copy_of": [named(other).pk]})
        assert (answer.status_code, why in answer.content.decode()) == (200, True)
    client = APIClient()
    client.force_authenticate(answer.wsgi_request.user)
    name = "Task01_BrainTumour" if other == "itself" else other
    answer = client.patch(API, {"copy_of": [{"site": at(other), "dataset": name}]}, format="json")
    assert (answer.status_code, why in str(answer.json()["errors"]["copy_of"])) == (400, True)
    with pytest.raises(services.NoCopy, match=why):
        services.set_copies(archive, [named(other)], by=answer.wsgi_request.user)
    assert not archive.copy_of.exists()


def test_the_admin_says_it_too(operator, archive, fit):
    answer = operator.post(f"/admin/sites/dataset/{archive.pk}/change/", {"copy_of": [fit.pk]})
    assert answer.status_code == 302
    assert list(archive.copy_of.all()) == [fit]
    assert operator.get("/admin/sites/dataset/").status_code == 200


def test_the_api_writes_and_reads_copies(archive, fit):
    client = APIClient()
    client.force_authenticate(otto())
    sent = {"copy_of": [{"site": "mainz", "dataset": "Task01_BrainTumour"}]}
    answer = client.patch(API, sent, format="json")
    assert (answer.status_code, answer.json()["copy_of"]) == (200, sent["copy_of"])
    rows = client.get("/api/sites/archive/datasets/").json()
    assert [row["copy_of"] for row in rows] == [sent["copy_of"], []]
    client.patch(API, {"copy_of": []}, format="json")
    assert not archive.copy_of.exists()


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"copy_of": "mainz"},
        {"copy_of": [{"site": "mainz"}]},
        {"copy_of": [{"site": "nowhere", "dataset": "x"}]},
        {"copy_of": [{"site": "pool-1", "dataset": "pooled"}]},
        {"copy_of": [], "train_cases": 3},
    ],
)
def test_the_api_refuses_what_names_no_dataset(archive, sent):
    client = APIClient()
    client.force_authenticate(otto())
    answer = client.patch(API, sent, format="json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["train_cases" if "train_cases" in sent else "copy_of"]


def test_a_pool_takes_part_in_no_experiment(archive):
    draft = services_of_experiments.create_draft(owner=otto())
    assert draft.participations.exists()
    assert "pool-1" not in draft.participations.values_list("site__slug", flat=True)
    form = SitesForm({"datasets": [named("pooled").pk]}, experiment=draft)
    assert "pool-1" not in [card.site.slug for card in form.cards()]
    assert "no longer offered" in form.errors["datasets"][0]
    client = APIClient()
    client.force_authenticate(draft.owner)
    sent = {"participants": [{"site": "pool-1", "dataset": "pooled"}]}
    answer = client.patch(f"/api/experiments/{draft.key}/", sent, format="json")
    assert (answer.status_code, "There is no dataset pooled" in str(answer.json()["errors"])) == (400, True)


def test_a_pool_is_no_hospital_but_operators_find_it_in_the_admin(operator, archive):
    for page in ("/sites/", "/", "/api/sites/"):
        shown = operator.get(page).content.decode()
        assert ("Hospital mainz" in shown, "Hospital pool-1" in shown) == (True, False)
    assert "Hospital pool-1" in operator.get("/admin/sites/site/").content.decode()
    page = operator.get("/sites/pool-1/").content.decode()
    assert "This is not a hospital" in page
    assert "/sites/pool-1/edit/" not in page
