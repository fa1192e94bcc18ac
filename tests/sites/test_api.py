import pytest
from rest_framework.test import APIClient

from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.sites import services
from fedportal.sites.models import Site
from tests.factories import ada, make_dataset, make_site, otto, stella
from tests.sites.test_forms import GOOD

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator() -> APIClient:
    client = APIClient()
    client.force_authenticate(otto())
    return client


@pytest.fixture
def researcher() -> APIClient:
    client = APIClient()
    client.force_authenticate(ada())
    return client


def test_sites_are_listed_with_their_health_and_without_their_folders(researcher):
    make_site("mainz", name="Mainz", secrets={"password": "top-secret-4711"})
    answer = researcher.get("/api/sites/")
    (site,) = answer.data["results"]
    assert (site["slug"], site["health"], site["check_is_pending"]) == ("mainz", "healthy", False)
    assert b"/nowhere/" not in answer.content
    assert b"4711" not in answer.content


def test_the_list_asks_the_database_as_often_for_many_sites_as_for_few(researcher, django_assert_num_queries):
    for _ in range(4):
        make_site()
    with django_assert_num_queries(4):  # count, sites, newest checks, stewards
        researcher.get("/api/sites/")


def test_an_operator_registers_a_site(operator):
    answer = operator.post("/api/sites/", {**GOOD, "threads": 3}, format="json")
    assert answer.status_code == 201
    assert answer.data["check_is_pending"] is True
    assert Site.objects.get().config == {"data_root": "/srv/mainz/data", "work_dir": "/srv/mainz/work", "threads": 3}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slug", "Mainz!"),
        ("slug", None),
        ("slug", ["a"]),
        ("name", ""),
        ("contact", "nobody"),
        ("connector", "telepathy"),
        ("data_root", "data"),
        ("data_root", "/srv/../etc"),
        ("work_dir", "/srv/mainz/data/work"),
        ("work_dir", {"path": "/"}),
        ("threads", 0),
        ("threads", "many"),
    ],
)
def test_refused_input_names_the_field_and_stores_nothing(operator, field, value):
    answer = operator.post("/api/sites/", {**GOOD, field: value}, format="json")
    assert answer.status_code == 400
    assert list(answer.data["errors"]) == [field]
    assert not Site.objects.exists()


@pytest.mark.parametrize("body", ["", "{", "[]", '"mainz"', "null"])
def test_a_body_that_is_no_site_is_refused(operator, body):
    answer = operator.generic("POST", "/api/sites/", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"


def test_an_operator_changes_only_what_is_named(operator):
    site = make_site("mainz", name="Mainz", city="Mainz", secrets={"password": "top-secret-4711"})
    site.stewards.add(stella())
    answer = operator.patch("/api/sites/mainz/", {"threads": 4}, format="json")
    assert answer.status_code == 200
    assert answer.data["config"] == {
        "data_root": "/nowhere/mainz/data",
        "work_dir": "/nowhere/mainz/work",
        "threads": 4,
    }
    site = Site.objects.get()
    assert (site.name, site.city, site.stewards.count()) == ("Mainz", "Mainz", 1)
    assert site.secrets == {"password": "top-secret-4711"}
    assert site.check_is_pending


def test_stewards_are_named_by_their_user_name(operator):
    make_site("mainz")
    stella()
    assert operator.patch("/api/sites/mainz/", {"stewards": ["stella"]}, format="json").data["stewards"] == ["stella"]
    assert operator.patch("/api/sites/mainz/", {"stewards": []}, format="json").data["stewards"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("slug", "bonn"), ("stewards", ["nobody"]), ("stewards", ["otto"]), ("data_root", "data"), ("threads", "x")],
)
def test_a_refused_change_names_the_field_and_stores_nothing(operator, field, value):
    make_site("mainz")
    answer = operator.patch("/api/sites/mainz/", {field: value, "city": "Changed"}, format="json")
    assert answer.status_code == 400
    assert list(answer.data["errors"]) == [field]
    assert Site.objects.get().city == ""


def test_folders_are_for_operators(operator, researcher):
    make_site("mainz")
    assert "config" not in researcher.get("/api/sites/mainz/").data
    assert operator.get("/api/sites/mainz/").data["config"]["threads"] == 1


def test_a_site_is_retired_and_taken_back(operator):
    make_site("mainz")
    assert operator.post("/api/sites/mainz/retire/").data["retired_at"] is not None
    assert operator.post("/api/sites/mainz/retire/").status_code == 409
    assert operator.post("/api/sites/mainz/reinstate/").data["check_is_pending"] is True


def test_datasets_are_told_with_cases_labels_and_spacing(researcher):
    make_dataset(make_site("mainz"))
    (dataset,) = researcher.get("/api/sites/mainz/datasets/").data
    assert (dataset["train_cases"], dataset["labels"]["3"]) == (8, "enhancing tumour")
    assert dataset["spacing"] == [4.8, 4.8, 4.8]


def test_checks_are_told_newest_first_step_by_step(researcher):
    site = make_site("mainz")
    services.record_check(site, CheckReport((CheckStep("trainer", False, "does not start", "Install it."),)))
    answer = researcher.get("/api/sites/mainz/checks/").data
    assert [check["ok"] for check in answer["results"]] == [False, True]
    assert answer["results"][0]["steps"][0]["remedy"] == "Install it."


def test_a_check_is_asked_for(operator):
    make_site("mainz")
    answer = operator.post("/api/sites/mainz/check/")
    assert answer.status_code == 202
    assert Site.objects.get().check_is_pending


def test_a_retired_site_is_not_checked(operator):
    services.retire(make_site("mainz"))
    answer = operator.post("/api/sites/mainz/check/")
    assert answer.status_code == 409
    assert answer.data["detail"].startswith("This site is retired")


def test_a_site_that_does_not_exist_is_not_found(researcher):
    assert researcher.get("/api/sites/nowhere/").status_code == 404
