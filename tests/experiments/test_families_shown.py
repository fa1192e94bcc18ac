"""Families in the API and in the lists: one line for an experiment with its repeats and baselines."""

from __future__ import annotations

from html import unescape

import pytest
from django.test import Client
from rest_framework.test import APIClient

from fedportal.experiments import services
from fedportal.experiments.models import Experiment, Kind
from fedportal.sites.models import Dataset
from tests.factories import ada, eve, make_dataset, make_experiment, make_site, make_user, otto

pytestmark = pytest.mark.django_db
LIST = "/api/experiments/"


@pytest.fixture
def owner():
    return ada()


@pytest.fixture
def main(owner) -> Experiment:
    """A run that has started, and nothing beside it."""
    experiment = make_experiment(owner, title="Brains")
    services.start(experiment=experiment, by=owner)
    return experiment


@pytest.fixture
def family(owner) -> Experiment:
    """Two seeds, each with a pooled and three local-only baselines, the ensemble and the evaluation."""
    draft = make_experiment(owner, title="Brains")
    chosen = {"baselines": ["pooled", "local_only", "ensemble"], "repeats": 2}
    services.update_draft(experiment=draft, by=owner, fields=chosen)
    services.start(experiment=draft, by=owner)
    return draft


@pytest.fixture
def api(owner) -> APIClient:
    client = APIClient()
    client.force_authenticate(owner)
    return client


@pytest.fixture
def browser(owner) -> Client:
    client = Client()
    client.force_login(owner)
    return client


def text_of(answer) -> str:
    return unescape(answer.content.decode())


def said(answer) -> str:
    return " ".join(str(message) for message in answer.context["messages"])


def baselines_of(experiment: Experiment) -> str:
    return f"{LIST}{experiment.key}/baselines/"


def test_all_of_a_family_tell_with_whom_it_is_shared(api, family):
    services.share(experiment=family, user=eve(), by=family.owner)
    for member in (family, family.companions.get(kind=Kind.POOLED)):
        assert api.get(f"{LIST}{member.key}/").json()["viewers"] == ["eve"]


# --- baselines that are added later -----------------------------------------------------------------


def test_baselines_are_added_over_the_api_and_not_twice(api, main):
    for _ in range(2):
        answer = api.post(baselines_of(main), {"baselines": ["pooled", "local_only"]}, format="json")
        assert answer.status_code == 200
        kinds = [row["kind"] for row in answer.json()["family"]]
        assert kinds == ["federated", "local_only", "local_only", "local_only", "pooled", "cross_site"]
    assert answer.json()["baselines"] == ["local_only", "pooled"]
    assert {(row["head"], row["beside"]) for row in answer.json()["family"][1:]} == {(main.key, main.key)}
    answer = api.post(baselines_of(main), {"baselines": ["ensemble"]}, format="json")
    assert (answer.status_code, answer.json()["baselines"]) == (200, ["ensemble", "local_only", "pooled"])


def test_the_evaluation_alone_is_added_with_no_baseline(api, main):
    body = api.post(baselines_of(main), {"baselines": []}, format="json").json()
    assert [row["kind"] for row in body["family"]] == ["federated", "cross_site"]


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({}, "required"),
        ({"baselines": "pooled"}, "list"),
        ({"baselines": ["voting"]}, "voting"),
        ({"baselines": ["ensemble"]}, "tick “Local only”, too"),
        ({"baselines": ["pooled"]}, "may not leave the hospital"),
    ],
)
def test_what_cannot_be_added_is_refused_at_its_field(api, main, sent, says):
    main.participations.first().site.__class__.objects.update(connector="airflow")
    answer = api.post(baselines_of(main), sent, format="json")
    assert (answer.status_code, says in str(answer.json()["errors"]["baselines"])) == (400, True)
    assert not main.companions.exists()


def test_a_field_too_many_is_refused(api, main):
    answer = api.post(baselines_of(main), {"baselines": [], "repeats": 3}, format="json")
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["repeats"])


def test_a_draft_has_its_baselines_in_its_form_and_a_baseline_has_none(api, owner, family):
    answer = api.post(baselines_of(make_experiment(owner)), {"baselines": ["cyclic"]}, format="json")
    assert (answer.status_code, "in its form" in answer.json()["detail"]) == (409, True)
    pooled = family.companions.get(kind=Kind.POOLED)
    answer = api.post(baselines_of(pooled), {"baselines": ["cyclic"]}, format="json")
    assert (answer.status_code, "Only a federated run" in str(answer.json()["errors"])) == (400, True)
    answer = api.post(baselines_of(pooled), {"baselines": []}, format="json")
    assert (answer.status_code, "Only a federated run" in answer.json()["detail"]) == (409, True)
    assert not pooled.companions.exists()


def test_baselines_are_added_by_the_form_of_the_page(browser, main):
    page = text_of(browser.get(f"/experiments/{main.key}/"))
    assert f'action="/experiments/{main.key}/baselines/"' in page
    assert "Nothing stands beside this run." in page
    answer = browser.post(f"/experiments/{main.key}/baselines/", {"baselines": ["local_only", "ensemble"]}, follow=True)
    assert "4 runs are added." in said(answer)
    page = text_of(answer)
    assert 'value="ensemble"' not in page  # what is there is not offered again
    assert 'value="cyclic"' in page
    for name in ("Local only: Hospital", "Cross-site evaluation"):
        assert name in page


@pytest.mark.parametrize(
    ("sent", "says"), [(["ensemble"], "tick “Local only”, too"), (["voting"], "not one of the available choices")]
)
def test_the_form_of_the_page_says_why_not(browser, main, sent, says):
    answer = browser.post(f"/experiments/{main.key}/baselines/", {"baselines": sent}, follow=True)
    assert says in said(answer)
    assert not main.companions.exists()


# --- lists ------------------------------------------------------------------------------------------


def test_an_experiment_stands_once_in_every_list(api, browser, family, owner):
    other = make_experiment(owner, title="Spleens")
    assert [row["key"] for row in api.get(LIST).json()["results"]] == [other.key, family.key]
    for address in ("/experiments/", "/experiments/new/"):
        page = text_of(browser.get(address))
        assert [name in page for name in ("Brains", "Brains · pooled", "Brains · seed 1")] == [True, False, False]
    assert "2 seeds · 3 baselines · 11 runs to go" in text_of(browser.get("/experiments/"))
    for query in ("?search=brains", "?state=running", "?mine=1"):
        rows = [row["key"] for row in api.get(LIST + query).json()["results"]]
        assert (family.key in rows, len(rows)) == (True, 2 if "mine" in query else 1)


def test_the_list_of_the_api_has_a_family_and_a_kind_on_request(api, family):
    rows = api.get(f"{LIST}?head={family.key}").json()["results"]
    assert len(rows) == 12
    assert {row["key"] for row in rows if row["head"] is None} == {family.key}
    assert {(row["kind"], row["seed"]) for row in rows if row["beside"] is None} == {("federated", 0), ("federated", 1)}
    pooled = api.get(f"{LIST}?kind=pooled").json()["results"]
    assert [(row["kind"], row["head"]) for row in pooled] == [("pooled", family.key)] * 2
    assert len(api.get(f"{LIST}?kind=local_only&head={family.key}").json()["results"]) == 6
    assert api.get(f"{LIST}?kind=nonsense").json()["results"] == []


def test_the_list_tells_what_is_to_go(api, family):
    [row] = api.get(LIST).json()["results"]
    assert (row["repeats"], row["runs_left"], row["baselines"]) == (2, 11, ["ensemble", "local_only", "pooled"])
    family.members.update(state="completed")
    assert api.get(LIST).json()["results"][0]["runs_left"] == 0


def test_a_run_of_a_family_that_is_hidden_stands_in_the_list_by_itself(family):
    """A steward sees the pooled baseline that is trained at the own site, and nothing else of the family."""
    archive = make_site("archive")
    archive.stewards.add(steward := make_user("zoe", "steward"))
    pooled = family.companions.get(kind=Kind.POOLED)
    pooled.participations.update(site=archive, dataset=make_dataset(archive))
    client = APIClient()
    client.force_authenticate(steward)
    assert [row["key"] for row in client.get(LIST).json()["results"]] == [pooled.key]
    body = client.get(f"{LIST}{pooled.key}/").json()
    assert [row["key"] for row in body["family"]] == [pooled.key]


def test_a_stranger_sees_nothing_of_a_family(family):
    client = APIClient()
    client.force_authenticate(eve())
    assert client.get(f"{LIST}?head={family.key}").json()["results"] == []
    assert client.get(f"{LIST}{family.companions.first().key}/").status_code == 404


def test_the_page_of_a_site_lists_an_experiment_once_and_that_of_its_pool_too(browser, family):
    pool = family.companions.get(kind=Kind.POOLED).participations.get().site
    for site in (family.participations.first().site, pool):
        assert list(browser.get(f"/sites/{site.slug}/").context["experiments"]) == [family]


def test_the_detail_says_what_an_experiment_is(api, family):
    body = api.get(f"{LIST}{family.companions.get(kind=Kind.POOLED).key}/").json()
    assert (body["kind"], body["head"], body["beside"]) == ("pooled", family.key, family.key)
    assert len(body["family"]) == 12
    assert body["family"][0]["key"] == family.key


def test_the_lists_cost_the_same_with_a_family(browser, api, owner, family, django_assert_max_num_queries):
    Dataset.objects.update(train_cases=9)
    for ask in (lambda: browser.get("/experiments/"), lambda: api.get(f"{LIST}?head={family.key}")):
        with django_assert_max_num_queries(6):
            ask()


def test_the_front_page_shows_an_experiment_as_under_way_while_its_baselines_run(browser, family):
    family.members.filter(kind=Kind.FEDERATED).update(state="completed")
    Experiment.objects.filter(pk=family.pk).update(state="completed", ended_at=family.created_at)
    board = browser.get("/").context["board"]
    assert ([card.experiment for card in board.active], board.recent) == ([family], [])
    assert {event.experiment for event in board.events} == {family}
    family.members.update(state="completed")
    board = browser.get("/").context["board"]
    assert (board.active, [card.experiment for card in board.recent]) == ([], [family])


def test_the_admin_shows_kinds_and_families(family):
    client = Client()
    client.force_login(otto())
    page = text_of(client.get("/admin/experiments/experiment/?kind__exact=pooled"))
    assert page.count("Brains · pooled") == 1
    page = text_of(client.get(f"/admin/experiments/experiment/{family.companions.first().pk}/change/"))
    assert "Family" in page


# --- copies -----------------------------------------------------------------------------------------


def test_a_copy_is_compared_with_the_same(api, family):
    twin = api.post(f"{LIST}{family.key}/clone/").json()
    assert (twin["baselines"], twin["repeats"], twin["compare_every"]) == (["ensemble", "local_only", "pooled"], 2, 0)
    assert (twin["kind"], twin["head"], len(twin["family"])) == ("federated", None, 1)
