"""A researcher without a mouse composes and starts an experiment."""

import re

import pytest
from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.slow]

FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  const label = e.labels?.[0]?.innerText || e.getAttribute("aria-label") || e.innerText || "";
  return {tag: e.tagName, label, seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2};
}"""


def reach(page: Page, label: str, tag: str) -> None:
    """Press Tab until the control has the focus; it must be seen to have it."""
    for _ in range(100):
        now = page.evaluate(FOCUSED)
        if now["tag"] == tag and label in now["label"]:
            assert now["seen"], f"{label} does not show that it has the focus"
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {label} on {page.url}")


def press(page: Page, label: str, tag: str, leads_to: str) -> None:
    reach(page, label, tag)
    page.keyboard.press("Enter")
    page.wait_for_url(leads_to)


def write(page: Page, label: str, text: str) -> None:
    reach(page, label, "INPUT")
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


def test_the_keyboard_alone_composes_and_starts_an_experiment(open_page, stack):
    page = open_page(None)
    page.goto("/accounts/login/")
    write(page, "User name", "researcher")
    write(page, "Password", stack.passwords["researcher"])
    page.keyboard.press("Enter")
    page.wait_for_url(lambda address: "/login/" not in address)
    press(page, "New experiment", "A", "**/experiments/new/")
    press(page, "preset: Brain tumour, laptop size", "BUTTON", "**/edit/**")
    write(page, "Name", "Keyboard only")
    for section in ("sites", "recipe", "rounds"):
        press(page, "Continue", "BUTTON", f"**/edit/{section}/")
    write(page, "Rounds", "1")
    write(page, "Local epochs", "1")
    press(page, "Continue", "BUTTON", "**/edit/comparison/")
    press(page, "Continue", "BUTTON", "**/edit/review/")
    reach(page, "Start the experiment", "BUTTON")
    page.keyboard.press("Enter")
    page.locator("#head[data-state=completed]").wait_for(timeout=120_000)
    reach(page, "log and reason", "A")


def test_two_browsers_start_the_same_draft_once(open_page):
    one, other = open_page("researcher"), open_page("researcher")
    one.goto("/experiments/new/")
    one.get_by_role("button", name="preset: Brain tumour, laptop size").click()
    one.get_by_role("button", name=re.compile("^Rounds and aggregation")).click()
    one.get_by_role("spinbutton", name="Rounds", exact=True).fill("50")
    for section in ("comparison", "review"):
        one.get_by_role("button", name="Continue").click()
        one.wait_for_url(f"**/edit/{section}/")
    other.goto(one.url)
    for page in (one, other):
        page.get_by_role("button", name="Start the experiment").click()
        page.wait_for_load_state()
    assert "cannot become" in other.locator("body").inner_text()
    key = one.url.rstrip("/").rsplit("/", 1)[1]
    one.goto(f"/experiments/{key}/")
    one.wait_for_function("() => document.getElementById('feed').innerText.includes('started the experiment')")
    assert one.locator("#feed").inner_text().count("started the experiment") == 1
    one.locator("#controls").get_by_text("Cancel", exact=True).click()
    one.get_by_role("button", name="Cancel the experiment").click()
    one.locator("#head[data-state=cancelled]").wait_for(timeout=30_000)
