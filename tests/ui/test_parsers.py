"""What a program sends as JSON and is none is its own mistake, never a bug of the portal."""

import pytest
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
