"""Errors become words in one place: messages and pages for people, problem documents for programs."""

import logging
import re

import pytest
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.test import Client, override_settings
from django.urls import include, path
from rest_framework import exceptions
from rest_framework.decorators import api_view
from rest_framework.test import APIClient

from fedportal.connectors.errors import ObjectMissing, StoreUnreachable
from fedportal.experiments.lifecycle import MoveRefused, StaleClaim
from fedportal.ui.errors import DomainError
from tests.factories import ada

pytestmark = pytest.mark.django_db

RAISED: dict[str, Exception] = {
    "refused": DomainError("The experiment is over."),
    "default": DomainError(),
    "store": StoreUnreachable("connection refused by 10.0.0.7"),
    "missing": ObjectMissing("no such object"),
    "validation": exceptions.ValidationError({"rounds": ["At least one."]}),
    "denied": PermissionDenied("Only operators."),
    "nothing": Http404("secret detail"),
    "throttled": exceptions.Throttled(wait=7),
    "bug": ZeroDivisionError("secret-token-4711"),
}


def page(request, name):
    if request.GET.get("fine"):
        messages.info(request, "fine")
        return HttpResponse("fine")
    raise RAISED[name]


@api_view(["GET", "POST"])
def api(request, name):
    raise RAISED[name]


urlpatterns = [
    path("page/<str:name>/", page),
    path("api/<str:name>/", api),
    path("", include("fedportal.urls")),
]
handler403 = "fedportal.ui.views.forbidden"
handler404 = "fedportal.ui.views.not_found"
handler500 = "fedportal.ui.views.server_error"


@pytest.fixture(autouse=True)
def _raising_urls():
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.fixture
def browser() -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(ada())
    return client


@pytest.fixture
def program() -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.force_authenticate(ada())
    return client


def test_a_refused_act_sends_back_to_where_the_button_was_and_says_why(browser):
    answer = browser.post("/page/refused/", headers={"referer": "http://testserver/sites/"})
    assert (answer.status_code, answer.url) == (302, "http://testserver/sites/")
    assert "The experiment is over." in browser.get("/sites/").content.decode()


@pytest.mark.parametrize("referer", ["https://evil.example/", "", "javascript:alert(1)"])
def test_a_refused_act_never_sends_to_another_site(browser, referer):
    assert browser.post("/page/refused/", headers={"referer": referer}).url == "/"


def test_a_page_that_cannot_be_shown_says_why_and_loops_nowhere(browser):
    answer = browser.get("/page/refused/")
    assert answer.status_code == 409
    assert "The experiment is over." in answer.content.decode()


def test_the_docstring_is_the_default_message(browser):
    assert "This is not possible at the moment." in browser.get("/page/default/").content.decode()


@pytest.mark.parametrize("error", [MoveRefused, StaleClaim])
def test_the_errors_of_the_lifecycle_are_domain_errors(error):
    assert issubclass(error, DomainError)


def test_a_store_that_does_not_answer_is_told_without_its_address(browser):
    answer = browser.get("/page/store/")
    assert answer.status_code == 503
    assert "10.0.0.7" not in answer.content.decode()


def test_a_bug_shows_a_reference_that_is_in_the_log_and_nothing_else(browser, caplog):
    with caplog.at_level(logging.ERROR):
        answer = browser.get("/page/bug/")
    shown = answer.content.decode()
    reference = re.search(r"<code>([0-9a-f]{6})</code>", shown)[1]
    assert answer.status_code == 500
    assert f"reference {reference}: GET /page/bug/ failed" in caplog.text
    assert "secret-token-4711" not in shown


def test_forbidden_pages_carry_the_reason_and_missing_ones_no_detail(browser):
    assert "Only operators." in browser.get("/page/denied/").content.decode()
    missing = browser.get("/page/nothing/")
    assert missing.status_code == 404
    assert "secret detail" not in missing.content.decode()


@pytest.mark.parametrize(
    ("name", "status", "detail"),
    [
        ("refused", 409, "The experiment is over."),
        ("store", 503, "The object store is not answering. Try again in a minute."),
        ("missing", 404, "The object store cannot provide this: no such object"),
        ("validation", 400, "Some of the input is invalid."),
        ("denied", 403, "Only operators."),
        ("nothing", 404, "Not found."),
        ("throttled", 429, "Request was throttled. Expected available in 7 seconds."),
    ],
)
def test_every_error_of_the_api_is_a_problem_document(program, name, status, detail):
    answer = program.get(f"/api/{name}/")
    assert answer.status_code == status
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.data["status"] == status
    assert answer.data["detail"] == detail


def test_refused_input_names_the_field(program):
    assert program.post("/api/validation/").data["errors"] == {"rounds": ["At least one."]}


def test_a_throttled_program_learns_when_to_come_back(program):
    assert program.get("/api/throttled/")["Retry-After"] == "7"


def test_an_unknown_caller_of_the_api_learns_how_to_sign_in():
    answer = APIClient().get("/api/refused/")
    assert answer.status_code == 401
    assert answer["WWW-Authenticate"].startswith("Token")
    assert answer["Content-Type"] == "application/problem+json"


def test_a_bug_in_the_api_gives_a_reference_and_logs_the_traceback(program, caplog):
    with caplog.at_level(logging.ERROR):
        answer = program.get("/api/bug/")
    assert answer.status_code == 500
    assert f"reference {answer.data['reference']}: GET /api/bug/ failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert b"secret-token-4711" not in answer.content
