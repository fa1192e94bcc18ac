"""Three hospitals with real Airflow servers (2.11, 3, 2.11), from their registration to the model, all from the browser.

The servers are those of ``make demo ARGS=--airflow``, which is tested on the way.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.airflow import faults
from tests.airflow.federation import HOSPITALS, Federation
from tests.e2e.conftest import Stack
from tests.e2e.pages import (
    compose,
    download_model,
    expect_ready,
    points,
    register,
    site_key,
    wait_for_lines,
    wait_until_over,
)
from tests.e2e.portal_client import Client

pytestmark = [pytest.mark.browser, pytest.mark.slow]

REGISTERED = {"bonn": "Bonn Hospital", "kiel": "Kiel Clinic", "ulm": "Ulm University Hospital"}
CANCEL_WITHIN = 15.0
PATIENCE = 120_000
"""Milliseconds for what a browser waits for while five servers share the machine."""
LOTS = {"local_epochs": 1000, "network": {"channels": [8, 16, 32, 64], "strides": [1, 2, 2]}}
"""More than a minute of work on any machine."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    demo = Stack(tmp_path_factory.mktemp("airflow"), arguments=("--airflow", "--rounds", "2"))
    try:
        demo.start()
        yield demo
    finally:
        demo.stop()


@pytest.fixture(scope="module")
def researcher(stack: Stack) -> Client:
    return Client(stack, "researcher")


@pytest.fixture(scope="module")
def federation(stack: Stack) -> Iterator[Federation]:
    federation = Federation(stack, Client(stack, "operator"), tuple(REGISTERED))
    yield federation
    federation.close()


@pytest.fixture
def registered(federation: Federation, open_page: Callable[..., Page]) -> Federation:
    """The federation, registered by an operator in the browser, once."""
    slugs = {site["slug"] for site in federation.operator.get("/sites/")["results"]}
    if not slugs.issuperset(REGISTERED):
        register_all(open_page("operator"), federation)
    return federation


def register_all(page: Page, federation: Federation) -> None:
    """Retire the demo's own registrations and register each hospital anew; install its key there; test the connection."""
    page.set_default_timeout(PATIENCE)
    for slug in HOSPITALS:
        page.goto(f"/sites/{slug}/")
        page.get_by_text("Retire", exact=True).click()
        page.get_by_role("button", name="Retire the site").click()
        expect(page.get_by_text("is retired")).to_be_visible(timeout=PATIENCE)
    for site in federation.sites:
        login = {"Address": site.door.url, "User": site.server.user, "Password": site.server.password}
        register(page, "Airflow", name=REGISTERED[site.slug], slug=site.slug, fields=login)
    for site in federation.sites:
        # the first check comes before the site has its key, and says so
        page.goto(f"/sites/{site.slug}/")
        remedy = page.locator(".step--bad", has_text="Key").locator(".steps__remedy")
        expect(remedy).to_contain_text("run the installation at the site again", timeout=PATIENCE)
        federation.install(site, site_key(page, site.slug))
        page.get_by_role("button", name="Test connection").click()
    for site in federation.sites:
        told = expect_ready(page, site.slug)
        assert {"Login", "DAGs", "Trainer", "Key", "Datasets"} <= set(told)
        assert f"Airflow {site.version}." in told["Version"]


def test_the_demo_completes_the_reference_experiment_on_airflow_2_and_3(stack, researcher, federation):
    (experiment,) = researcher.get("/experiments/")["results"]
    assert researcher.wait(experiment["key"], timeout=240)["state"] == "completed"
    assert researcher.get(f"/experiments/{experiment['key']}/models/")[-1]["dice"] > 0
    assert sorted(site.version for site in federation.sites) == [2, 2, 3]
    for site in federation.sites:
        assert len(site.runs(experiment["key"])) == 2, "two rounds, a run each"


def test_an_operator_registers_three_airflows_and_a_researcher_trains_on_them(open_page, registered, researcher):
    page = open_page("researcher")
    page.set_default_timeout(PATIENCE)
    key = compose(page, "Three Airflows", rounds=2, epochs=None, sites=tuple(REGISTERED.values()))
    page.get_by_role("button", name="Start the experiment").click()
    page.wait_for_url(f"**/experiments/{key}/", wait_until="commit", timeout=PATIENCE)
    page.evaluate("window.neverReloaded = true")
    wait_for_lines(page, "loss", 3, timeout=120)
    wait_until_over(page)
    assert page.evaluate("window.neverReloaded"), "all points came by themselves"
    assert {line for line, *_ in points(page, "dice")} >= set(REGISTERED.values())

    digest = hashlib.sha256(download_model(page)).hexdigest()
    assert digest == researcher.get(f"/experiments/{key}/models/")[-1]["sha256"]
    for site in registered.sites:
        assert set(registered.begins(key, site.slug).values()) == {1}
        assert len(site.runs(key)) == 2


def test_cancel_ends_the_training_at_every_hospital_within_seconds(open_page, registered, researcher):
    key = researcher.start(list(REGISTERED), title="Cancel", plan=LOTS)
    processes = {site: registered.process(key, site.slug, timeout=120) for site in registered.sites}
    page = open_page("researcher")
    page.set_default_timeout(PATIENCE)
    page.goto(f"/experiments/{key}/")
    page.locator("#controls").get_by_text("Cancel", exact=True).click()
    assert all(registered.is_alive(process) for process in processes.values())
    page.get_by_role("button", name="Cancel the experiment").click(no_wait_after=True)
    clicked = time.monotonic()
    took: dict[str, float] = {}
    while len(took) < len(processes) and time.monotonic() < clicked + 3 * CANCEL_WITHIN:
        for site, process in processes.items():
            if site.slug not in took and not registered.is_alive(process):
                took[site.slug] = round(time.monotonic() - clicked, 2)
        time.sleep(0.02)
    print(json.dumps({f"{site.slug} (Airflow {site.version})": took.get(site.slug) for site in processes}))  # noqa: T201
    assert set(took) == set(REGISTERED)
    assert max(took.values()) <= CANCEL_WITHIN, took
    expect(page.locator("#head[data-state=cancelled]")).to_be_visible(timeout=PATIENCE)


def test_faults_of_three_airflows_cost_time_only(registered, researcher):
    """The quick ones, one at each; all of them at both generations: ``python -m tests.airflow.faults``."""
    undisturbed = faults.suffer(registered, researcher, {})
    assert undisturbed.verdict == "", undisturbed
    told = faults.suffer(registered, researcher, dict(zip(registered.sites, faults.QUICK, strict=True)))
    assert told.verdict == "", told
    assert told.model == undisturbed.model
