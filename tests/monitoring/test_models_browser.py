"""The models page in a real browser: a bundle is asked for and appears without a reload."""

import os

import pytest
from django.conf import settings
from django.test import Client
from playwright.sync_api import expect

from fedportal.experiments.models import Artefact, BundleRequest, Experiment
from fedportal.experiments.states import ExperimentState
from tests import factories
from tests.fixtures_browser import violations
from tests.monitoring import scenes

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PICTURES = os.environ.get("FEDPORTAL_PICTURES", "")
FAILED = "It needs more memory than the portal allows. Choose a smaller network, or ask an operator."


@pytest.fixture
def session(live_server, transactional_db) -> str:
    """All rows are written before the browser's loop starts. Round 1 has a bundle, 2 is asked for, 3 has failed."""
    experiment = scenes.make_running(factories.ada(), rounds=4)
    experiment.viewers.add(factories.make_user("grace", first_name="Grace", last_name="Hopper"))
    experiment.viewers.add(factories.make_user("g" * 150))  # one word, as wide as several phones
    made = [scenes.make_model(experiment, number, dice=0.1 * number) for number in range(5)]
    Artefact.objects.create(model=made[1], kind="bundle", key="k", sha256="c" * 64, size=9)
    Artefact.objects.create(model=made[1], kind="recipe", key="r", sha256="c" * 64, size=9)
    BundleRequest.objects.create(model=made[2], asked_by=experiment.owner)
    BundleRequest.objects.create(model=made[3], state=BundleRequest.State.FAILED, message=FAILED)
    Experiment.objects.filter(pk=experiment.pk).update(state=ExperimentState.COMPLETED)
    client = Client()
    client.force_login(experiment.owner)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def look(page, name):
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_the_pages_of_models_and_people_have_no_barrier(open_page, theme, width):
    key = Experiment.objects.get().key
    page = open_page(f"/experiments/{key}/models/", theme=theme, width=width)
    expect(page.locator("#round-3")).to_contain_text(FAILED)
    look(page, f"models-{theme}-{width}")
    assert page.complaints == []
    page.goto(f"/experiments/{key}/")
    expect(page.locator("#people")).to_contain_text("Grace Hopper")
    look(page, f"people-{theme}-{width}")


def test_a_bundle_is_asked_for_and_appears_without_a_reload(open_page):
    key = Experiment.objects.get().key
    page = open_page(f"/experiments/{key}/models/")
    row = page.locator("#round-4")
    row.get_by_role("button", name="Make MONAI bundle of round 4").click()
    expect(row).to_contain_text("asked for. It waits for the orchestrator.")
    page.evaluate("window.neverReloaded = true")
    request = BundleRequest.objects.filter(model__round_number=4)
    request.update(state=BundleRequest.State.MAKING)
    expect(row).to_contain_text("being made…")
    model = request.get().model
    request.delete()
    Artefact.objects.create(model=model, kind="bundle", key="k", sha256="c" * 64, size=9)
    expect(row.get_by_role("link", name="MONAI bundle")).to_be_visible()
    BundleRequest.objects.filter(model__round_number=2).update(state=BundleRequest.State.FAILED, message=FAILED)
    expect(page.locator("#round-2").get_by_role("button", name="Try again of round 2")).to_be_visible()
    expect(page.locator("[data-waiting]")).to_have_count(0)
    assert page.evaluate("window.neverReloaded")
    assert page.complaints == []
