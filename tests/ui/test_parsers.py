"""What a program sends as JSON and is none is its own mistake, never a bug of the portal."""

import pytest
from django.test import Client
from rest_framework.test import APIClient

from tests.factories import ada


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("body", "words"),
    [("[" * 100_000, "nested too deeply"), ('{"title": NaN}', "JSON parse error"), ("{", "JSON parse error")],
    ids=["deep", "nan", "cut"],
)
def test_a_body_that_is_no_usable_json_is_refused(body, words):
    program = APIClient()
    program.force_authenticate(ada())
    answer = program.post("/api/experiments/", data=body, content_type="application/json")
    assert answer.status_code == 400
    assert words in answer.data["detail"]


@pytest.mark.django_db
def test_a_body_that_is_too_large_is_refused_in_words(settings):
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    program = APIClient()
    program.force_authenticate(ada())
    answer = program.post("/api/experiments/", data='{"title": "' + "a" * 2000 + '"}', content_type="application/json")
    assert answer.status_code == 413
    assert "more than the portal accepts" in answer.data["detail"]


@pytest.mark.django_db
def test_a_form_that_is_too_large_is_refused_on_a_page(settings):
    client = Client(enforce_csrf_checks=True)  # as a browser's form: its token is the first to be read
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1000
    client.force_login(ada())
    client.get("/accounts/profile/")
    body = "first_name=" + "a" * 2000
    answer = client.post("/accounts/profile/", body, content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 413
    assert "more than the portal accepts" in answer.content.decode()
