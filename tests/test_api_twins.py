"""Whatever a person can do on a page, a program can do over the API: every page and every form has its twin."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.contrib import admin
from django.test import RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, resolve, reverse
from drf_spectacular.drainage import GENERATOR_STATS, reset_generator_stats
from drf_spectacular.generators import SchemaGenerator

from tests.factories import otto

pytestmark = pytest.mark.django_db

BROWSER_ONLY = {
    "accounts:login": "a program has a token, which a person makes on the profile page",
    "accounts:logout": "a program has a token and deletes it",
    "ui:theme": "the choice belongs to the browser",
}
EXPERIMENT, SITE = "/api/experiments/{key}/", "/api/sites/{slug}/"
ACTS = {
    "experiments:create": ("post", "/api/experiments/"),
    "experiments:edit": ("patch", EXPERIMENT),
    "experiments:delete": ("delete", EXPERIMENT),
    "experiments:make-bundle": ("post", EXPERIMENT + "models/{number}/make-bundle/"),
    "experiments:baselines": ("post", EXPERIMENT + "baselines/"),
    "experiments:retry": ("post", EXPERIMENT + "sites/{site}/retry/"),
    **{
        f"experiments:{act}": ("post", f"{EXPERIMENT}{act}/")
        for act in ("start", "pause", "resume", "cancel", "clone", "share", "unshare")
    },
    "sites:copies": ("patch", SITE + "datasets/{name}/"),
    "sites:create-with": ("post", "/api/sites/"),
    "sites:edit": ("patch", SITE),
    **{
        f"sites:{act}": ("post", f"{SITE}{act}/")
        for act in ("key", "handout", "sign-in", "reissue", "check", "retire", "reinstate")
    },
    "accounts:profile": ("patch", "/api/me/"),
    "accounts:password": ("post", "/api/me/password/"),
    "accounts:token_create": ("post", "/api/me/tokens/"),
    "accounts:token_delete": ("delete", "/api/me/tokens/{key}/"),
}
"""Page that takes a form → operation of the API that does the same."""

PAGES_ONLY = {
    "accounts:login": BROWSER_ONLY["accounts:login"],
    "accounts:password": "nothing to read",
    "ui:gallery": "how the pages look",
    "ui:healthz": "is one itself: a program asks it",
    "monitoring:figure-json": "a drawing of the metrics",
    "sites:key": "only leads back to the site: a key is shown in answer to a form",
    "sites:handout": "only leads back to the site",
    "accounts:token_create": "only leads back to the profile",
}
READS = {
    "monitoring:dashboard": "/api/dashboard/",
    "monitoring:experiment": EXPERIMENT,
    "monitoring:rounds": EXPERIMENT + "rounds/",
    "monitoring:feed": EXPERIMENT + "journal/",
    "monitoring:site": EXPERIMENT + "logs/",
    "monitoring:models": EXPERIMENT + "models/",
    "monitoring:download": EXPERIMENT + "models/{number}/{kind}/",
    "monitoring:compare": EXPERIMENT + "comparison/",
    "monitoring:compare-table": EXPERIMENT + "comparison/",
    "monitoring:compare-cases": EXPERIMENT + "comparison/cases/",
    **{f"monitoring:metrics-{form}": EXPERIMENT + "metrics/" for form in ("csv", "json")},
    **{f"monitoring:journal-{form}": EXPERIMENT + "journal/" for form in ("csv", "json")},
    "experiments:list": "/api/experiments/",
    "experiments:create": "/api/plan-schema/",
    "experiments:edit": EXPERIMENT + "readiness/",
    "sites:list": "/api/sites/",
    "sites:create": "/api/connectors/",
    "sites:create-with": "/api/connectors/",
    "sites:connector": "/api/connectors/",
    "sites:copies": SITE + "datasets/",
    "sites:detail": SITE + "checks/",
    "sites:edit": SITE,
    "accounts:profile": "/api/me/",
}
ADMIN = {
    ("user", "add"): ("post", "/api/users/"),
    ("user", "change"): ("patch", "/api/users/{username}/"),
    ("authtoken", "delete"): ("delete", "/api/users/{username}/tokens/{key}/"),
    ("site", "add"): ACTS["sites:create-with"],
    ("site", "change"): ACTS["sites:edit"],
    ("dataset", "change"): ACTS["sites:copies"],
    ("site", "check_now"): ACTS["sites:check"],
    ("experiment", "change"): ("post", EXPERIMENT + "hand-over/"),
}
OWN_ROOMS = ("monitoring", "experiments", "sites", "accounts", "ui")
SAMPLES = {
    "key": "k3x9mq2a",
    "number": 1,
    "kind": "weights",
    "token_key": "abc",
    "section": "question",
    "chart": "dice",
}


@pytest.fixture(scope="module")
def operations() -> set[tuple[str, str]]:
    reset_generator_stats()
    schema = SchemaGenerator().get_schema(request=None, public=True)
    complaints = [*GENERATOR_STATS._warn_cache, *GENERATOR_STATS._error_cache]
    assert complaints == [], "two parts of one name hide each other"
    return {(method, path) for path, methods in schema["paths"].items() for method in methods}


def pages() -> dict[str, str]:
    """Return name → an address of every page of the portal (not of the API, the admin, or a site's door)."""
    addresses = {name: reverse(name, kwargs=kwargs) for name, kwargs in _routes(get_resolver(), "", {})}
    assert {name: resolve(address).view_name for name, address in addresses.items()} == {n: n for n in addresses}
    return addresses


def _routes(resolver: URLResolver, room: str, outer: dict) -> Iterator[tuple[str, dict]]:
    for found in resolver.url_patterns:
        kwargs = outer | {name: SAMPLES.get(name, "local") for name in found.pattern.converters}
        if isinstance(found, URLPattern):
            if room in OWN_ROOMS:
                yield f"{room}:{found.name}", kwargs
        else:
            yield from _routes(found, found.namespace or room, kwargs)


def answering(client, method: str) -> set[str]:
    """Return the pages that answer a method at all: whatever they say of a thing that is not there."""
    operator, found = otto(), set()
    for name, address in pages().items():
        client.force_login(operator)  # one of them signs out
        if getattr(client, method)(address).status_code != 405:
            found.add(name)
    return found


def test_every_form_of_a_page_has_a_twin_in_the_api(client, operations):
    forms = answering(client, "post")
    assert len(forms) > 20
    assert forms == ACTS.keys() | BROWSER_ONLY.keys()
    assert set(ACTS.values()) <= operations


def test_everything_that_a_page_shows_can_be_read_over_the_api(client, operations):
    assert answering(client, "get") == READS.keys() | PAGES_ONLY.keys()
    assert {("get", address) for address in READS.values()} <= operations


def test_whatever_operators_do_in_the_admin_has_a_twin(operations):
    request = RequestFactory().get("/admin/")
    request.user = otto()
    offered = set()
    for model, pages_of in admin.site._registry.items():
        name = model._meta.model_name
        for act in ("add", "change", "delete"):
            if getattr(pages_of, f"has_{act}_permission")(request):
                offered.add((name, act))
        offered |= {(name, act) for act in pages_of.get_actions(request) if act != "delete_selected"}
    assert offered == ADMIN.keys()
    assert set(ADMIN.values()) <= operations
