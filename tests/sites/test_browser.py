"""Registering, testing and understanding a site in a real browser: for axe in both themes and on a phone, without a
script and with one."""

import os
from datetime import timedelta

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone
from playwright.sync_api import expect

from fedportal.connectors import registry
from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.sites import services
from fedportal.sites.models import SignIn, Site
from tests.factories import make_dataset, make_site, otto
from tests.fixtures_browser import violations
from tests.orchestrator.fakes import MemoryStore
from tests.sites.conftest import checks_at_work
from tests.sites.probe import DEFINITION, KIND, certificate

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PICTURES = os.environ.get("FEDPORTAL_PICTURES", "")
"""A folder: every page that axe looks at is also kept there as a picture."""
GOOD = CheckStep("folder", True, "found", seconds=0.02)
BAD = CheckStep("trainer", False, "The trainer does not start.", "Install its requirements.", 1.0)


@pytest.fixture
def session(live_server, transactional_db, probe) -> str:
    """A signed-in operator's session, and sites to look at. All rows are written before the browser's loop starts."""
    site = make_site("mainz", name="Mainz", connector=KIND, secrets={"portal_token": "t", "password": "p"})
    site.config = {"base_url": "https://mainz.example", "ca_certificate": certificate(), "verify": True}
    site.save()
    make_dataset(site, validation_cases=3)
    for number in range(34):
        steps = (GOOD, BAD, CheckStep("data", None, "Not reached.")) if number in (9, 10, 33) else (GOOD,)
        services.record_check(site, CheckReport(steps))
    make_site("kiel", name="Kiel", healthy=False)
    Site.objects.filter(slug="kiel").update(check_due_at=timezone.now())
    config = {"base_url": "https://kaapana.koeln.example", "grant": "device", "generation": "0.7"}
    koeln = make_site("koeln", name="Köln", connector="kaapana", config=config)
    SignIn.objects.create(
        site=koeln, state="waiting", user_code="WDJB-MJHT", address="https://kaapana.koeln.example/device",
        expires_at=timezone.now() + timedelta(minutes=10),
    )  # fmt: skip
    client = Client()
    client.force_login(otto())
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def look(page, address: str, name: str = "") -> None:
    """What every page has to pass: nothing for axe, nothing sideways, no complaint in the console."""
    if address:
        page.goto(address)
    if PICTURES:
        theme, width = (
            page.locator("html").evaluate("e => getComputedStyle(e).colorScheme"),
            page.viewport_size["width"],
        )
        dark = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
        page.screenshot(
            path=f"{PICTURES}/{name or address.strip('/').replace('/', '-')}-{dark}-{width}.png", full_page=True
        )
        assert theme
    assert violations(page) == [], address
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"], address
    assert page.complaints == []


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(open_page, theme, width):
    page = open_page("/sites/", theme=theme, width=width)
    for address in ("/sites/register/", "/sites/mainz/connector/", "/sites/mainz/", "/sites/kiel/", "/sites/koeln/"):
        look(page, address)
    for kind in registry.KINDS:
        look(page, f"/sites/register/{kind}/")
    page.goto(f"/sites/register/{KIND}/")
    page.get_by_role("button", name="Register and check").click()
    page.locator("[role=alert]:focus").get_by_text("need your attention").wait_for()
    look(page, "", "refused")
    page.goto("/sites/mainz/edit/")
    page.get_by_text("More settings").click()
    look(page, "", "edit")
    page.goto("/sites/mainz/")
    page.get_by_text("Show as a table").click()
    look(page, "", "history")
    page.get_by_role("button", name="Show the site's key").click()
    look(page, "", "key")
    page.goto("/sites/mainz/")
    page.get_by_role("button", name="Show the portal's definition").click()
    look(page, "", "handout")


def test_a_secret_is_copied_without_https_too(open_page):
    page = open_page("/sites/mainz/")
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.add_init_script("addEventListener('copy', (event) => { window.copied = event.target.value; })")
    page.get_by_role("button", name="Show the site's key").click()
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("window.copied")
    assert page.evaluate("window.copied") == page.locator("#secret").inner_text()
    assert page.complaints == []


@pytest.mark.parametrize("scripts", [True, False])
def test_an_operator_registers_a_site_from_choosing_to_the_requested_check(open_page, tmp_path, scripts):
    file = tmp_path / "ca.pem"
    file.write_text(certificate("Bonn Root"))
    page = open_page("/sites/", java_script_enabled=scripts)
    page.get_by_role("link", name="Register a site").click()
    page.get_by_role("link", name="Probe").click()
    page.get_by_label("Name", exact=True).fill("Bonn")
    page.get_by_label("Short name").fill("bonn")
    page.get_by_label("Address").fill("http://bonn.example")
    page.get_by_label("Password").fill("pass-4711")
    page.get_by_label("Version").select_option("new")
    page.get_by_label("or choose a file").set_input_files(file)
    page.get_by_label("Definition").fill(DEFINITION)
    page.get_by_role("button", name="Register and check").click()
    assert page.get_by_text("Sites are reached by https:// only.", exact=True).is_visible()
    assert page.get_by_label("Password").input_value() == ""
    page.get_by_label("Address").fill("https://bonn.example")
    page.get_by_label("Password").fill("pass-4711")
    page.get_by_label("or choose a file").set_input_files(file)
    page.get_by_label("Definition").fill(DEFINITION)
    page.get_by_role("button", name="Register and check").click()
    assert page.get_by_role("heading", level=1).inner_text() == "Bonn"
    assert page.get_by_text("A check is requested").is_visible()
    assert page.get_by_text("Bonn Root, expires").is_visible()
    site = Site.objects.get(slug="bonn")
    assert (site.secrets["password"], site.config["port"]) == ("pass-4711", 443)


def test_a_check_shows_its_progress_and_its_steps_without_a_reload(open_page):
    page = open_page("/sites/kiel/")
    page.evaluate("window.isTheSamePage = true")
    status = page.locator("[data-part=check-status]")
    assert "A check is requested" in status.inner_text()
    now = timezone.now()
    Site.objects.filter(slug="kiel").update(check_due_at=now + timedelta(minutes=10), checking_since=now)
    page.get_by_text("The site is being checked").wait_for()
    services.tell_progress(Site.objects.get(slug="kiel"), [GOOD, CheckStep("trainer", None, "")])
    page.get_by_label("In progress").wait_for()
    assert page.locator(".steps__name").all_inner_texts() == ["Folder", "Trainer"]
    services.record_check(Site.objects.get(slug="kiel"), CheckReport((GOOD, BAD)))
    page.get_by_text("Install its requirements.").wait_for()
    assert page.get_by_text("Has a problem").is_visible()
    assert page.locator(".health__mark").count() == 1
    assert page.evaluate("window.isTheSamePage")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == [], "nothing is waited for any more"
    assert page.complaints == []


def test_a_check_that_begins_by_itself_is_seen_and_what_is_open_stays_open(open_page):
    page = open_page("/sites/mainz/")
    page.clock.install()
    page.reload()
    page.get_by_text("Show as a table").click()
    page.get_by_role("heading", level=1).click()
    services.record_check(Site.objects.get(slug="mainz"), CheckReport((GOOD,)))
    page.clock.fast_forward("00:15")
    page.locator("[data-part=health]").get_by_text("Ready").wait_for()
    assert page.get_by_role("region", name="Table of checks").is_visible()
    assert page.complaints == []


def test_the_steps_of_a_check_are_seen_by_a_reload_without_scripts(open_page):
    page = open_page("/sites/kiel/", java_script_enabled=False)
    page.get_by_role("button", name="Test connection").click()
    assert page.get_by_text("A check is requested").is_visible()
    services.record_check(Site.objects.get(slug="kiel"), CheckReport((GOOD, BAD)))
    page.reload()
    assert page.get_by_text("Install its requirements.").is_visible()


@pytest.fixture
def orchestrator(session, scripted_server, settings):
    """The orchestrator's checks, and a warm (scripted) trainer behind its socket."""
    settings.FEDPORTAL_TRAINER_SOCKET = str(scripted_server)
    with checks_at_work(MemoryStore()):
        yield


def test_a_site_is_registered_and_checked_by_the_orchestrator_before_the_operators_eyes(
    open_page, orchestrator, tmp_path
):
    (tmp_path / "data").mkdir()
    page = open_page("/sites/register/local/")
    page.get_by_label("Name", exact=True).fill("Ulm")
    page.get_by_label("Short name").fill("ulm")
    page.get_by_label("Data folder").fill(str(tmp_path / "data"))
    page.get_by_label("Work folder").fill(str(tmp_path / "work"))
    page.get_by_role("button", name="Register and check").click()
    page.get_by_text("The data folder can be read, 0 entries.").wait_for()
    expect(page.locator("[data-waiting]")).to_have_count(0)  # the steps are seen before the check has ended
    steps = page.locator(".steps > li")
    assert [step.split("\n")[0].split(" ")[0] for step in steps.all_inner_texts()] == [
        "Data",
        "Working",
        "Trainer",
        "Datasets",
    ]
    assert page.complaints == []
