import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from rest_framework.test import APIClient

from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.sites import services
from fedportal.sites.models import Site
from tests.factories import ada, make_dataset, make_site, make_user, otto, stella
from tests.sites.probe import KIND, TYPED, certificate
from trainer.contract import site_key

pytestmark = pytest.mark.django_db
CONFIG = {"data_root": "/srv/mainz/data", "work_dir": "/srv/mainz/work", "threads": 3}
GOOD = {"slug": "mainz", "name": "Mainz", "contact": "it@mainz.example", "connector": "local", "config": CONFIG}
PROBED = {
    "slug": "mainz",
    "name": "Mainz",
    "connector": KIND,
    "config": {
        "base_url": TYPED["base_url"],
        "version": "new",
        "verify": False,
        "definition": {"instance_name": "mainz-kaapana", "port": 443, "token": "tok-4711"},
    },
    "secrets": {"password": "pass-4711"},
}


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
    answer = operator.post("/api/sites/", GOOD, format="json")
    assert answer.status_code == 201
    assert answer.data["check_is_pending"] is True
    assert Site.objects.get().config == CONFIG


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slug", "Mainz!"),
        ("slug", None),
        ("slug", ["a"]),
        ("name", ""),
        ("contact", "nobody"),
        ("connector", "telepathy"),
        ("connector", "carrier"),
        ("config", "data"),
        ("config", None),
        ("secrets", ["a"]),
        ("stewards", "otto"),
        ("colour", "red"),
        ("retired_at", None),
    ],
)
def test_refused_input_names_the_field_and_stores_nothing(operator, field, value):
    answer = operator.post("/api/sites/", {**GOOD, field: value}, format="json")
    assert answer.status_code == 400
    assert list(answer.data["errors"]) == [field]
    assert not Site.objects.exists()


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        ("config", "data_root", None),
        ("config", "data_root", "data"),
        ("config", "data_root", "/srv/../etc"),
        ("config", "work_dir", "/srv/mainz/data/work"),
        ("config", "work_dir", {"path": "/"}),
        ("config", "threads", 0),
        ("config", "threads", "many"),
        ("config", "socket", "/run/other.sock"),
        ("secrets", "password", "x"),
    ],
)
def test_a_refused_setting_names_its_field(operator, place, field, value):
    body = {**GOOD, place: {**GOOD.get(place, {}), field: value}}
    answer = operator.post("/api/sites/", body, format="json")
    assert answer.status_code == 400
    assert list(answer.data["errors"][place]) == [field]
    assert not Site.objects.exists()


def test_settings_and_secrets_of_any_connector_are_taken(operator, probe):
    body = {**PROBED, "config": {**PROBED["config"], "ca_certificate": certificate()}}
    answer = operator.post("/api/sites/", body, format="json")
    assert answer.status_code == 201, answer.data
    config = answer.data["config"]
    assert (config["project"], config["timeout"], config["verify"], config["port"]) == ("admin", 30, False, 443)
    assert answer.data["stored_secrets"] == ["password", "portal_token", "token"]
    assert b"4711" not in answer.content
    assert Site.objects.get().secrets["token"] == "tok-4711"


@pytest.mark.parametrize(
    ("place", "field", "value"),
    [
        ("config", "base_url", "https://169.254.169.254"),
        ("config", "base_url", "http://mainz.example"),
        ("config", "ca_certificate", "none"),
        ("config", "definition", "{"),
        ("config", "definition", {"instance_name": "portal", "port": 443, "token": "t"}),
        ("config", "password", "in the wrong place"),
        ("config", "instance_name", "past its definition"),
        ("secrets", "password", ""),
        ("secrets", "password", ["x"]),
        ("secrets", "portal_token", "mine"),
    ],
)
def test_a_refused_setting_of_any_connector_names_its_field(operator, probe, place, field, value):
    answer = operator.post("/api/sites/", {**PROBED, place: {**PROBED[place], field: value}}, format="json")
    assert answer.status_code == 400
    assert list(answer.data["errors"][place]) == [field]
    assert not Site.objects.exists()


def test_a_change_keeps_the_secrets_that_it_does_not_name(operator, probe):
    operator.post("/api/sites/", {**PROBED, "secrets": {"password": "pass-4711", "otp_seed": "seed"}}, format="json")
    before = Site.objects.get().secrets
    assert operator.patch("/api/sites/mainz/", {"config": {"timeout": 9}}, format="json").status_code == 200
    assert Site.objects.get().secrets == before
    answer = operator.patch("/api/sites/mainz/", {"secrets": {"otp_seed": "", "password": "new"}}, format="json")
    assert answer.status_code == 200, answer.data
    site = Site.objects.get()
    assert (site.secrets["password"], "otp_seed" in site.secrets, site.config["timeout"]) == ("new", False, 9)
    assert site.config["verify"] is False


def test_a_site_gets_another_connector(operator, probe):
    make_site("mainz", name="Mainz")
    assert operator.patch("/api/sites/mainz/", {"connector": KIND}, format="json").status_code == 400
    answer = operator.patch("/api/sites/mainz/", {**PROBED, "slug": "mainz"}, format="json")
    assert answer.status_code == 200, answer.data
    assert "data_root" not in answer.data["config"]


def test_the_connectors_say_what_they_ask_for(operator, probe):
    told = {connector["kind"]: connector for connector in operator.get("/api/connectors/").data}
    assert told["local"]["summary"].startswith("The trainer runs beside the portal")
    fields = {field["name"]: field for field in told[KIND]["fields"]}
    assert fields["version"]["choices"] == ["old", "new"]
    assert (fields["timeout"]["least"], fields["timeout"]["most"], fields["timeout"]["advanced"]) == (1, 300, True)
    assert fields["definition"]["parts"] == ["instance_name", "port", "token", "ssl_check"]


def test_who_reads_the_key_of_a_site_is_recorded(operator, probe, caplog):
    make_site("mainz", connector=KIND)
    caplog.set_level("INFO")
    answer = operator.post("/api/sites/mainz/key/")
    expected = site_key(settings.FEDPORTAL_ATTEMPT_SECRET, "mainz").hex()
    assert answer.data == {"site_key": expected}
    assert answer["Cache-Control"] == "no-store"
    entry = LogEntry.objects.get()
    assert (entry.user.username, entry.object_repr, entry.change_message) == (
        "otto",
        "Hospital mainz",
        "Viewed the site's key",
    )
    assert "site mainz: Viewed the site's key (by otto)" in caplog.text
    assert expected not in caplog.text + entry.change_message


def test_a_site_on_this_machine_keeps_no_key_and_gets_nothing_handed_out(operator):
    make_site("mainz")
    for act in ("key", "handout", "reissue"):
        assert operator.post(f"/api/sites/mainz/{act}/").status_code == 409
    assert not LogEntry.objects.exists()


def test_the_handout_holds_what_was_issued_last(operator, probe):
    operator.post("/api/sites/", PROBED, format="json")
    first = operator.post("/api/sites/mainz/handout/").data["token"]
    assert operator.post("/api/sites/mainz/reissue/").status_code == 204
    second = operator.post("/api/sites/mainz/handout/").data["token"]
    assert first != second == Site.objects.get().secrets["portal_token"]
    assert LogEntry.objects.count() == 4  # who registered the site, too


@pytest.mark.parametrize("body", ["", "{", "[]", '"mainz"', "null"])
def test_a_body_that_is_no_site_is_refused(operator, body):
    answer = operator.generic("POST", "/api/sites/", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"


def test_an_operator_changes_only_what_is_named(operator):
    site = make_site("mainz", name="Mainz", city="Mainz", secrets={"password": "top-secret-4711"})
    site.stewards.add(stella())
    answer = operator.patch("/api/sites/mainz/", {"config": {"threads": 4}}, format="json")
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
    [("slug", "bonn"), ("stewards", ["nobody"]), ("stewards", ["otto"]), ("config", {"data_root": "data"})],
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
    assert (dataset["validation_cases"], dataset["fewer_than"]) == (None, 5)


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
    services.retire(make_site("mainz"), by=make_user())
    answer = operator.post("/api/sites/mainz/check/")
    assert answer.status_code == 409
    assert answer.data["detail"].startswith("This site is retired")


def test_a_site_that_does_not_exist_is_not_found(researcher):
    assert researcher.get("/api/sites/nowhere/").status_code == 404
