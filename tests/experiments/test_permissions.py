"""Who may do what: role × address × method, on the pages and in the API."""

from __future__ import annotations

import pytest
from django.test import Client
from rest_framework.test import APIClient

from fedportal.accounts.models import User
from fedportal.experiments import services
from fedportal.experiments.models import Experiment, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from tests.factories import ada, audrey, eve, make_experiment, make_user, otto, stella

pytestmark = pytest.mark.django_db

OK, MADE, GONE, MOVED = 200, 201, 204, 302
NO, HIDDEN, LOGIN = 403, 404, "login"

PEOPLE = ("ada", "otto", "grace", "stella", "audrey", "eve", None)
"""ada owns it, otto operates, grace was given a look, stella answers for a site, audrey audits, eve is a stranger."""

#                                            ada    otto   grace  stella audrey eve     nobody
PAGES = {
    ("get", "/experiments/"):                (OK,    OK,    OK,    OK,    OK,    OK,     LOGIN),
    ("get", "/experiments/new/"):            (OK,    OK,    OK,    NO,    NO,    OK,     LOGIN),
    ("post", "/experiments/new/"):           (MOVED, MOVED, MOVED, NO,    NO,    MOVED,  LOGIN),
    ("get", "{e}edit/"):                     (OK,    OK,    MOVED, MOVED, MOVED, HIDDEN, LOGIN),
    ("get", "{e}edit/review/"):              (OK,    OK,    OK,    OK,    OK,    HIDDEN, LOGIN),
    ("get", "{e}edit/nothing/"):             (HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN, LOGIN),
    ("post", "{e}edit/question/"):           (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("get", "{e}start/"):                    (405,   405,   405,   405,   405,   405,    LOGIN),
    ("post", "{e}start/"):                   (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{e}delete/"):                  (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{r}baselines/"):               (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{e}share/"):                   (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{e}unshare/"):                 (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{e}clone/"):                   (MOVED, MOVED, MOVED, NO,    NO,    HIDDEN, LOGIN),
    ("post", "{r}pause/"):                   (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{r}cancel/"):                  (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{r}retry/{site}/"):            (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
    ("post", "{p}resume/"):                  (MOVED, MOVED, NO,    NO,    NO,    HIDDEN, LOGIN),
}  # fmt: skip
API = {
    ("get", "/api/experiments/"):            (OK,    OK,    OK,    OK,    OK,    OK,     401),
    ("post", "/api/experiments/"):           (MADE,  MADE,  MADE,  NO,    NO,    MADE,   401),
    ("get", "/api/plan-schema/"):            (OK,    OK,    OK,    OK,    OK,    OK,     401),
    ("get", "/api{e}"):                      (OK,    OK,    OK,    OK,    OK,    HIDDEN, 401),
    ("get", "/api{e}readiness/"):            (OK,    OK,    OK,    OK,    OK,    HIDDEN, 401),
    ("patch", "/api{e}"):                    (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("delete", "/api{e}"):                   (GONE,  GONE,  NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{e}start/"):               (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{e}clone/"):               (MADE,  MADE,  MADE,  NO,    NO,    HIDDEN, 401),
    ("post", "/api{r}baselines/"):           (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{e}share/"):               (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{e}unshare/"):             (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{e}hand-over/"):           (NO,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{r}pause/"):               (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{r}cancel/"):              (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{r}sites/{site}/retry/"):  (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
    ("post", "/api{p}resume/"):              (OK,    OK,    NO,    NO,    NO,    HIDDEN, 401),
}  # fmt: skip
BODY = {"preset": "laptop", "name": "New", "username": "ada", "title": "New"}
API_BODIES = {
    "share/": {"username": "ada"},
    "hand-over/": {"username": "ada"},
    "experiments/": {"preset": "laptop"},
    "baselines/": {"baselines": []},
}


def cases(table):
    for (method, template), expected in table.items():
        for person, status in zip(PEOPLE, expected, strict=True):
            yield pytest.param(method, template, person, status, id=f"{person}-{method}-{template}")


@pytest.fixture
def world() -> dict[str, str]:
    """Three experiments of ada's: a draft (e), one that runs and has a failed site (r), one that is paused (p)."""
    people = {
        "ada": ada(),
        "otto": otto(),
        "grace": make_user("grace"),
        "stella": stella(),
        "audrey": audrey(),
        "eve": eve(),
    }
    places = {}
    for letter in "erp":
        experiment = make_experiment(people["ada"])
        experiment.viewers.add(people["grace"])
        part = experiment.participations.first()
        part.site.stewards.add(people["stella"])
        if letter != "e":
            services.start(experiment=experiment, by=people["ada"])
            experiment.rounds.update(state=RoundState.TRAINING)
            SiteRun.objects.create(
                round=experiment.current_round, participation=part, attempt=1, state=SiteRunState.FAILED
            )
        if letter == "r":
            places["site"] = part.site.slug
        if letter == "p":
            services.pause(experiment=experiment, by=people["ada"])
        places[letter] = f"/experiments/{experiment.key}/"
    return places


@pytest.mark.parametrize(("method", "template", "person", "expected"), list(cases(PAGES)))
def test_pages(world, method, template, person, expected):
    client = Client()
    if person:
        client.force_login(the_person(person))
    before = states()
    answer = getattr(client, method)(template.format(**world), BODY if method == "post" else None)
    if expected == LOGIN:
        assert answer.status_code == 302
        assert answer.url.startswith("/accounts/login/")
    else:
        assert answer.status_code == expected
    if expected in (NO, HIDDEN, LOGIN, 405):
        assert states() == before


@pytest.mark.parametrize(("method", "template", "person", "expected"), list(cases(API)))
def test_api(world, method, template, person, expected):
    client = APIClient()
    if person:
        client.force_authenticate(the_person(person))
    before = states()
    body = next((body for end, body in API_BODIES.items() if template.endswith(end)), {})
    answer = getattr(client, method)(template.format(**world), body, format="json")
    assert answer.status_code == expected
    if expected in (NO, HIDDEN, 401):
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert states() == before


def the_person(name: str):
    return User.objects.get(username=name)


def states() -> list[tuple]:
    rows = list(Experiment.objects.order_by("pk").values_list("key", "state", "version", "title"))
    return rows + list(SiteRun.objects.order_by("pk").values_list("state"))


def test_a_steward_sees_what_uses_the_stewards_sites_and_nothing_else(world):
    elsewhere = make_experiment(make_user())
    seen = Experiment.objects.visible_to(the_person("stella"))
    assert seen.count() == 3
    assert elsewhere not in seen
    assert {experiment.status for experiment in seen} == {
        ExperimentState.DRAFT,
        ExperimentState.RUNNING,
        ExperimentState.PAUSED,
    }
