"""Nonsense in every field of every form and of every operation of the API: refused by the field's name, and no page breaks.

The fields are found, not listed: one that is added tomorrow has to refuse something tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.forms import BaseForm, BooleanField
from django.http import HttpResponse
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from rest_framework.test import APIClient

from fedportal.accounts.models import User
from fedportal.connectors import registry
from fedportal.sites.models import Dataset, Site
from tests.factories import ada, make_experiment, make_site, otto
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db

TYPED = ["", "\x00", "x" * 10_000, "-1", "9" * 400, "NaN", "<script>", "../../etc", "a\r\nX-Header: b", "\u202e"]
"""What people and their programs can put into any field of a form."""
SENT = [
    None,
    True,
    -1,
    10**400,
    2**63,
    "",
    "\x00",
    "\ud800",
    "x" * 10_000,
    [],
    {},
    [None],
    [{}],
    ["x"],
    {"a": {}},
    {"": 1},
]
"""What a program can put into any place of a JSON document."""
BODIES = [b"", b"[]", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"9" * 5000]


@pytest.fixture
def place(settings) -> dict[str, str]:
    """A draft, a running experiment, a site, and an operator who may do everything: nobody gets further into the code."""
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10**7
    otto()
    owner = ada()
    draft = make_experiment(owner)
    running = scenes.make_running(owner)
    scenes.make_model(running, 0)
    scenes.finish_round(scenes.open_round(running, 1))
    scenes.open_round(running, 2)
    make_site("linden")
    dataset = Dataset.objects.filter(site__slug="mainz").get()
    return {
        "draft": draft.key,
        "running": running.key,
        "site": str(Site.objects.get(slug="linden").pk),
        "user": str(owner.pk),
        "dataset": str(dataset.pk),
        "name": dataset.name,
        "experiment": str(draft.pk),
    }


# --- forms ------------------------------------------------------------------------------------------

FORMS = (
    "/accounts/login/",
    "/accounts/profile/",
    "/accounts/password/",
    "/accounts/tokens/create/",
    "/experiments/{draft}/edit/question/",
    "/experiments/{draft}/edit/sites/",
    "/experiments/{draft}/edit/recipe/",
    "/experiments/{draft}/edit/rounds/",
    "/experiments/{draft}/edit/comparison/",
    *(f"/sites/register/{kind}/" for kind in registry.KINDS),
    "/sites/linden/edit/",
    "/sites/mainz/datasets/{name}/",
    "/admin/accounts/user/add/",
    "/admin/accounts/user/{user}/change/",
    "/admin/accounts/user/{user}/password/",
    *(f"/admin/sites/site/add/?connector={kind}" for kind in registry.KINDS),
    "/admin/sites/dataset/{dataset}/change/",
    "/admin/experiments/experiment/{experiment}/change/",
)
ANY_TEXT = {
    "usable_password": "one of two, and anything else is the first",
}
OF_ONE_STRATEGY = ("fedprox_", "fedavgm_", "fedadam_", "fedyogi_", "fedadagrad_", "median_", "trimmed_mean_")
"""Judged only where the strategy is chosen: tests/experiments has a refused case for each."""


@pytest.mark.parametrize("address", FORMS)
def test_every_field_of_a_form_refuses_nonsense(place, address):
    browser = Client()
    if "login" not in address:
        browser.force_login(User.objects.get(username="otto"))
    url = address.format(**place)
    fields = {form.add_prefix(name): field for form in _forms(browser.get(url)) for name, field in form.fields.items()}
    if url == "/accounts/tokens/create/":
        fields = {form.add_prefix(name): f for form in _forms(browser.post(url)) for name, f in form.fields.items()}
        fields = {name: field for name, field in fields.items() if name == "days"}
    elif url == "/accounts/profile/":
        fields.pop("days")
    assert fields
    refused: set[str] = set()
    for text in TYPED:
        answer = browser.post(url, dict.fromkeys(fields, text))
        assert answer.status_code < 500, (url, text[:40])
        refused |= {form.add_prefix(name) for form in _forms(answer) for name in form.errors}
    judged = {
        name
        for name, field in fields.items()
        if not (
            isinstance(field, BooleanField) or field.disabled or name in ANY_TEXT or name.startswith(OF_ONE_STRATEGY)
        )
    }
    assert judged <= refused, f"never refused: {judged - refused}"


def _forms(answer: HttpResponse) -> list[BaseForm]:
    """Return the forms that a page was made of, the admin's, too."""
    found: list[BaseForm] = []
    for context in answer.context or ():
        for names in getattr(context, "dicts", [context]):
            for value in names.values():
                form = value if isinstance(value, BaseForm) else getattr(value, "form", None)
                if isinstance(form, BaseForm) and form not in found:
                    found.append(form)
    return found


# --- API --------------------------------------------------------------------------------------------


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    schema = SchemaGenerator().get_schema(request=None, public=True)
    for address, methods in schema["paths"].items():
        for method, operation in methods.items():
            if method in ("post", "patch", "put"):
                body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
                yield method, address, {"schema": body, "of": schema["components"]["schemas"]}


def writable(schema: dict[str, Any], of: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the way to every field that a body may have."""
    schema = _resolved(schema, of)
    for name, part in schema.get("properties", {}).items():
        if not part.get("readOnly"):
            yield (*path, name)
            yield from writable(part, of, (*path, name))


def _resolved(schema: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema or "allOf" in schema:
        schema = of[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema["allOf"][0]
    return schema


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value


def test_every_field_of_the_api_refuses_nonsense(place):
    program = APIClient()
    program.force_authenticate(User.objects.get(username="otto"))
    seen = 0
    for method, address, of in operations():
        url = address.format(
            key=place["running"] if "/sites/" in address else place["draft"],
            slug="mainz" if "datasets" in address else "linden",
            site="mainz",
            name=place["name"],
            number=1,
            username="ada",
            run="fp-k3x9mq2a-r1-mainz-a1",
        )
        send = getattr(program, method)
        for body in BODIES:
            answer = send(url, body, content_type="application/json")
            assert answer.status_code < 500, (method, url, body[:20])
        if "{run}" in address:
            continue  # a stranger's body is not looked at; tests/experiments/test_metrics_api.py has its refused cases
        fields = list(writable(of["schema"], of["of"]))
        for value in SENT:
            body = {path[0]: value for path in fields}
            answer = send(url, json.dumps(body), content_type="application/json")
            assert answer.status_code < 500, (method, url, repr(value)[:40])
        for path in fields:
            seen += 1
            assert _refuses(program, method, url, path), f"{method} {address} takes anything for {'.'.join(path)}"
    assert seen > 100


def _refuses(program: APIClient, method: str, url: str, path: tuple[str, ...]) -> bool:
    refused = False
    for value in ("\ud83d", 10**400, {"x": [None]}):
        answer = getattr(program, method)(url, json.dumps(nested(path, value)), content_type="application/json")
        assert answer.status_code < 500, (method, url, path, repr(value)[:40])
        refused = refused or (answer.status_code == 400 and path[0] in answer.data.get("errors", {}))
    return refused
