"""The pages in a real browser: nothing for axe to find in both themes and on a phone, and a theme that does not flash."""

import pytest
from django.conf import settings
from django.test import Client

from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.sites import services
from tests.factories import make_dataset, make_site, otto
from tests.fixtures_browser import violations

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PAGES = [
    "/ui/?title=",
    "/sites/",
    "/sites/mainz/",
    "/sites/kiel/",
    "/sites/register/",
    "/sites/register/local/",
    "/sites/mainz/edit/",
    "/accounts/profile/",
    "/accounts/password/",
    "/nowhere/",
]
INK_OF_API = "getComputedStyle(document.querySelector('.opblock-summary-path')).color"
WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture
def session(live_server, transactional_db) -> str:
    """A signed-in operator's session, and sites to look at. All rows are written before the browser's loop starts."""
    site = make_site("mainz", name="Mainz")
    make_dataset(site)
    failed = CheckStep("trainer", False, "does not start", "Install its requirements.", 1.0)
    services.record_check(site, CheckReport((CheckStep("folder", True, "found"), failed, CheckStep("data", None, ""))))
    make_site("kiel", name="Kiel", healthy=False)
    client = Client()
    client.force_login(otto())
    return client.cookies[settings.SESSION_COOKIE_NAME].value


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_and_nothing_scrolls_sideways(open_page, theme, width):
    page = open_page("/accounts/login/", theme=theme, width=WIDTHS[width], signed_in=False)
    assert violations(page) == []
    page = open_page(PAGES[0], theme=theme, width=WIDTHS[width])
    for address in PAGES:
        page.goto(address)
        assert violations(page) == [], address
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width], address
    assert [words for words in page.complaints if "404" not in words] == []


def test_the_theme_changes_at_once_and_the_next_page_is_painted_in_it(open_page):
    page = open_page("/sites/")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".theme-switch").get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert page.locator("html").get_attribute("data-theme") == "dark"
    answer = page.goto("/sites/mainz/")
    assert '<html lang="en" data-theme="dark">' in answer.text()
    assert page.complaints == []


def test_the_admin_takes_the_theme_before_its_first_frame(open_page):
    page = open_page("/sites/")
    page.locator(".theme-switch").get_by_role("button", name="Dark").click()
    page.goto("/admin/")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(14, 20, 23)"
    assert page.complaints == []


def test_the_page_of_the_api_takes_the_theme(open_page):
    page = open_page("/sites/", theme="dark")
    page.goto("/api/docs/")
    page.locator(".opblock-summary-path").first.wait_for()
    dark = page.evaluate(INK_OF_API)
    page.locator(".theme-switch").get_by_role("button", name="Light").click()
    assert page.evaluate(INK_OF_API) != dark
    assert page.complaints == []


def test_the_theme_can_be_changed_without_scripts(open_page):
    page = open_page("/sites/", java_script_enabled=False)
    page.locator(".theme-switch").get_by_role("button", name="Dark").click()
    assert page.url.endswith("/sites/")
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_the_sections_open_on_a_phone_without_scripts(open_page):
    page = open_page("/accounts/profile/", width=390, java_script_enabled=False)
    link = page.get_by_role("link", name="Sites")
    assert not link.is_visible()
    page.locator(".menu--sections > summary").click()
    link.click()
    assert page.url.endswith("/sites/")


def test_scripts_read_resolved_colours_for_charts(open_page):
    read = "getComputedStyle(document.documentElement).getPropertyValue('--site-1').trim()"
    assert open_page("/sites/").evaluate(read) == "rgb(0, 114, 178)"
    assert open_page("/sites/", theme="dark").evaluate(read) == "rgb(86, 180, 233)"


def test_the_keyboard_reaches_the_content_first(open_page):
    page = open_page("/sites/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip-link"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Register a site"


def test_an_act_that_asks_first_needs_two_clicks_and_no_script(open_page):
    page = open_page("/sites/mainz/", java_script_enabled=False)
    page.locator("summary", has_text="Retire").click()
    page.get_by_role("button", name="Retire the site").click()
    assert page.get_by_text("Mainz is retired. Its history is kept.").is_visible()


def test_an_open_menu_closes_with_escape_and_with_a_click_elsewhere(open_page):
    page = open_page("/sites/mainz/")
    panel = page.locator(".menu--user .menu__panel")
    summary = page.locator(".menu--user > summary")
    summary.click()
    assert panel.is_visible()
    page.keyboard.press("Escape")
    assert not panel.is_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    summary.click()
    page.get_by_role("heading", level=1).click()
    assert not panel.is_visible()
