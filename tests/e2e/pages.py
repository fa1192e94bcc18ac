"""The portal's pages as people use them, for several tests in a browser."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

POINTS = """name => {
  const plot = document.getElementById(name);
  return (plot.data || []).flatMap(t => Array.from(t.x, (x, i) => [t.name, x, t.y[i]])).filter(([n, x, y]) => x !== null && y !== null);
}"""
DEMO_SITES = ("Altberg University Hospital", "Linden Hospital", "Seeblick Clinic")


# --- sites ------------------------------------------------------------------------------------------


def register(page: Page, connector: str, *, name: str, slug: str, fields: Mapping[str, str | Path]) -> None:
    """Register a site by a connector, whose card begins with this text. ``fields``: by their labels; a path is uploaded, and
    of choices the one with that text is taken."""
    page.goto("/sites/")
    page.get_by_role("link", name="Register a site").first.click()
    page.get_by_role("link", name=re.compile(f"^{connector}")).click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Short name").fill(slug)
    for label, value in fields.items():
        field = page.get_by_label(re.compile(rf"^{label}( optional)?$"))
        if isinstance(value, Path):
            page.locator(".field", has=field).locator("input[type=file]").set_input_files(value)
        elif field.evaluate("field => field.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
    page.get_by_role("button", name="Register and check").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(name)


def site_key(page: Page, slug: str) -> str:
    """Return the key that the portal shows on request for the people of a site."""
    return _shown(page, slug, "Show the site's key").split("=")[1].strip()


def definition(page: Page, slug: str) -> dict[str, Any]:
    """Return the definition that is pasted at a polling site."""
    return json.loads(_shown(page, slug, "Show the portal's definition"))


def _shown(page: Page, slug: str, button: str) -> str:
    page.goto(f"/sites/{slug}/")
    page.get_by_role("button", name=button).click()
    done = page.get_by_role("link", name="Done")
    done.wait_for()  # it stands behind the secret: on a slow machine a page comes in pieces
    text = page.locator("#secret").inner_text()
    done.click()
    return text


def expect_ready(page: Page, slug: str, *, timeout: float = 300) -> dict[str, str]:
    """Wait until a site's page calls it ready; return what each step of its last check says. None of them has failed."""
    end = time.monotonic() + timeout
    page.goto(f"/sites/{slug}/")
    while "Ready" not in (health := page.locator("[data-part=health]").inner_text()):
        assert time.monotonic() < end, f"{health}: {page.locator('[data-part=check]').inner_text()}"
        page.wait_for_timeout(1000)
        page.goto(f"/sites/{slug}/")
    page.goto(f"/sites/{slug}/")  # a page that is open renews its parts one after the other
    steps = page.locator("[data-part=check] .steps > li")
    assert page.locator("[data-part=check] .step--good").count() == steps.count(), steps.all_inner_texts()
    names = page.locator("[data-part=check] .steps__name").all_inner_texts()
    return dict(zip(names, steps.all_inner_texts(), strict=True))


# --- experiments ------------------------------------------------------------------------------------


def compose(
    page: Page,
    title: str,
    *,
    rounds: int,
    epochs: int | None = 1,
    sites: tuple[str, ...] = DEMO_SITES,
    without: Collection[str] = (),
) -> str:
    """Go through the composer from the reference preset to the review; return the experiment's key.

    ``epochs``: local epochs, as the preset has them where ``None``. ``sites``: the three that must be offered, and take
    part. ``without``: those that would take part, too, and shall not.
    """
    page.goto("/experiments/new/")
    page.get_by_role("button", name=re.compile("preset: Brain tumour, laptop size")).click()
    page.get_by_label("Name", exact=True).fill(title)
    page.get_by_role("button", name="Continue").click()
    for site in sites:  # a draft begins with those of the last experiment
        page.get_by_role("region", name=site).get_by_role("checkbox").check()
    for site in without:
        page.get_by_role("region", name=site).get_by_role("checkbox").uncheck()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Learning rate", exact=True)).to_have_value("0.001")
    page.get_by_role("button", name="Continue").click()
    page.get_by_role("spinbutton", name="Rounds", exact=True).fill(str(rounds))
    if epochs is not None:
        page.get_by_label("Local epochs").fill(str(epochs))
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Pooled", exact=True)).not_to_be_checked()
    page.get_by_role("button", name="Continue").click()
    expect(page.locator("main")).to_contain_text(f"at 3 sites with 24 training cases for {rounds} rounds")
    return page.url.split("/experiments/")[1].split("/")[0]


def points(page: Page, chart: str) -> list:
    """Return what a chart shows: [line, x, y] of every point."""
    return page.evaluate(POINTS, f"plot-{chart}")


def wait_for_lines(page: Page, chart: str, count: int, *, timeout: float) -> None:
    """Wait until so many lines of a chart have a point."""
    drawn = "([name, n]) => (document.getElementById(name).data || []).filter(t => t.x.length).length >= n"
    page.wait_for_function(drawn, arg=[f"plot-{chart}", count], timeout=timeout * 1000)


def wait_until_over(page: Page, timeout: float = 300) -> None:
    expect(page.locator("#head[data-state=completed]")).to_be_visible(timeout=timeout * 1000)


def download_model(page: Page) -> bytes:
    """Download the newest model from an experiment's page, which shows the digest of just these bytes."""
    with page.expect_download() as downloading:
        page.locator("#models-list a", has_text=".safetensors").first.click()
    data = downloading.value.path().read_bytes()
    assert hashlib.sha256(data).hexdigest() in page.locator("#models-list").inner_html()
    return data
