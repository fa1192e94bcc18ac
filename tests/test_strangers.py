"""Every address of an experiment, found and not listed: a stranger learns nothing there, and nobody gets in unsigned."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLResolver, get_resolver

from tests.factories import ada, eve, make_site, otto
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db
PLACES = {"slug": "mainz", "site": "mainz", "number": "0", "kind": "weights", "section": "question", "chart": "dice"}
OPEN = {
    "accounts/login/",
    "ui/theme/",
    "ui/healthz/",
    "admin/login/",  # leads to the portal's own
    "admin/logout/",  # Django's, and its words
    "admin/jsi18n/",
}
"""What answers people who are not signed in."""
BY_TOKEN = re.compile(r"kaapana-(backend|remote)/remote/|api/runs/")
"""Doors of sites: they look at a token of their own (tests/relay, tests/experiments/test_metrics_api.py)."""


def routes(resolver: URLResolver | None = None, before: str = "") -> Iterator[str]:
    """Yield every route with its places in braces: ``experiments/{key}/start/``."""
    for found in (resolver or get_resolver()).url_patterns:
        route = before + str(found.pattern).replace("^", "").replace("$", "")
        if isinstance(found, URLResolver):
            yield from routes(found, route)
        else:
            named = re.sub(r"\(\?P<(\w+)>(?:[^()]|\([^)]*\))*\)", r"{\1}", route)
            yield re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", named)


def test_a_stranger_finds_no_experiment_at_any_of_its_addresses():
    experiment = scenes.make_running(ada())
    scenes.make_model(experiment, 0)
    scenes.finish_round(scenes.open_round(experiment, 1))
    stranger, before = Client(), experiment.version
    stranger.force_login(eve())
    addresses = [route.format(**PLACES, key=experiment.key) for route in routes() if "experiments/{key}/" in route]
    assert len(addresses) > 40
    for address in addresses:
        for method in ("get", "post", "patch", "put", "delete"):
            answer = getattr(stranger, method)(f"/{address}", {}, content_type="application/json")
            assert answer.status_code in (403, 404, 405), (method, address, answer.status_code)
            assert experiment.title not in answer.content.decode()
            if method == "get":
                assert answer.status_code in (404, 405), address  # 405: it only takes posts
    experiment.refresh_from_db()
    assert (experiment.version, experiment.viewers.count()) == (before, 0)


def test_nobody_gets_in_without_signing_in():
    make_site("mainz")
    otto()
    nobody = Client()
    seen = 0
    for route in sorted(set(routes())):
        if route in OPEN or BY_TOKEN.match(route) or "{url}" in route:
            continue
        places = dict.fromkeys(re.findall(r"{(\w+)}", route), "1") | PLACES | {"key": "k3x9mq2a", "username": "otto"}
        for method in ("get", "post"):
            answer = getattr(nobody, method)("/" + route.format(**places))
            seen += 1
            assert answer.status_code in (302, 401, 403, 405), (method, route, answer.status_code)
            if answer.status_code == 302:
                assert "/login/?next=" in answer.url, (method, route, answer.url)
    assert seen > 200
