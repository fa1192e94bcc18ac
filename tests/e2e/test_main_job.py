"""The main job as a researcher does it, in a real browser on the real stack."""

import json
import re
import urllib.request

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.e2e.pages import compose, download_model, points, wait_until_over
from tests.trainer_process.bench import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_researcher_composes_starts_watches_reloads_and_downloads(open_page, stack):
    page = open_page("researcher")
    key = compose(page, "Browser test", rounds=3, epochs=3)
    page.get_by_role("button", name="Start the experiment").click()
    page.wait_for_url(f"**/experiments/{key}/")

    # points arrive without a reload
    page.evaluate("window.neverReloaded = true")
    page.wait_for_function(
        "() => (document.getElementById('plot-loss').data || []).some(t => t.x.length >= 3)", timeout=90_000
    )
    first = points(page, "loss")
    page.wait_for_function(
        "n => (document.getElementById('plot-loss').data || []).reduce((s, t) => s + t.x.length, 0) > n",
        arg=len(first),
        timeout=60_000,
    )
    assert page.evaluate("window.neverReloaded")

    # a reload in the middle loses none and doubles none
    before = points(page, "loss")
    page.reload()
    page.wait_for_function("() => (document.getElementById('plot-loss').data || []).length > 0")
    after = points(page, "loss")
    seen = {(line, x): y for line, x, y in after}
    assert len(seen) == len(after), "a point was drawn twice"
    assert all(seen.get((line, x)) == pytest.approx(y) for line, x, y in before), "a point was lost"

    wait_until_over(page)
    shown = {chart: points(page, chart) for chart in ("loss", "dice")}
    page.reload()
    page.wait_for_function("() => (document.getElementById('plot-dice').data || []).length > 0")
    for chart, live in shown.items():
        fresh = points(page, chart)
        assert sorted(map(repr, fresh)) == sorted(map(repr, live)), f"{chart}: live page and fresh page differ"

    # the curves are those of the journal: 3 sites × (3 epochs × 4 steps) × 3 rounds, the model of every round at each site
    site_lines = {line for line, _x, _y in shown["dice"] if not line.startswith("Global model")}
    assert len(site_lines) == 3
    assert len([p for p in shown["loss"] if not p[0].startswith("Global model")]) == 3 * 12 * 3
    assert len([p for p in shown["dice"] if p[0].startswith("Global model")]) == 4
    assert shown["dice"][-1][2] is not None

    # download, and check what was downloaded against what the page says
    expect(page.locator("#models-list")).to_contain_text("Round 3")
    data = download_model(page)

    # the address resumes: a Range is answered with the rest of the same bytes
    address = page.locator("#models-list a", has_text=".safetensors").first.get_attribute("href")
    answer = page.request.get(address, max_redirects=0)
    assert answer.status == 302
    request = urllib.request.Request(answer.headers["location"], headers={"Range": "bytes=1000-"})
    with urllib.request.urlopen(request) as partial:
        assert partial.status == 206
        assert partial.read() == data[1000:]


def test_pause_resume_and_cancel_do_what_they_say(open_page):
    page = open_page("researcher")
    key = compose(page, "Pause and cancel", rounds=50)
    page.get_by_role("button", name="Start the experiment").click()
    page.wait_for_url(f"**/experiments/{key}/")
    page.locator("#round-1").wait_for(timeout=60_000)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#head[data-state=paused]")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#head[data-state=running]")).to_be_visible()
    page.locator("#controls").get_by_text("Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the experiment").click()
    expect(page.locator("#head[data-state=cancelled]")).to_be_visible(timeout=30_000)
    expect(page.locator("#feed")).to_contain_text("cancelled")


def test_a_refused_value_names_the_field_and_keeps_what_was_typed(open_page):
    page = open_page("researcher")
    page.goto("/experiments/new/")
    page.get_by_role("button", name=re.compile("preset: Brain tumour, laptop size")).click()
    page.get_by_role("button", name=re.compile("^Recipe")).click()
    page.get_by_label("Learning rate", exact=True).fill("1000")
    page.get_by_label("Batch size").fill("3")
    page.get_by_role("button", name="Continue").click()
    field = page.get_by_label("Learning rate", exact=True)
    expect(field).to_have_value("1000")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(page.get_by_label("Batch size")).to_have_value("3")
    described = field.get_attribute("aria-describedby")
    text = " ".join(page.locator(f"#{id}").inner_text() for id in described.split())
    assert "10" in text


def test_a_stranger_sees_no_page_of_the_experiment(open_page, stack):
    page = open_page(None)
    page.goto("/experiments/")
    expect(page).to_have_url(re.compile("/accounts/login/"))
    expect(page.get_by_label("Password")).to_be_visible()


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_no_page_has_a_barrier_that_axe_can_find(open_page, stack, theme, width):
    page = open_page("operator", width=width, theme=theme)
    keys = json.loads(page.request.get("/api/experiments/").text())["results"]
    key = next(e["key"] for e in keys if e["title"] == "Reference experiment")
    page.goto("/experiments/new/")
    page.get_by_role("button", name=re.compile("preset: Brain tumour, laptop size")).click()
    draft = page.url.split("/experiments/")[1].split("/")[0]
    addresses = [
        "/",
        "/experiments/",
        "/experiments/new/",
        *(
            f"/experiments/{draft}/edit/{section}/"
            for section in ("question", "sites", "recipe", "rounds", "comparison", "review")
        ),
        f"/experiments/{key}/",
        f"/experiments/{key}/models/",
        "/sites/",
        "/sites/linden/",
        "/accounts/profile/",
        "/ui/",
    ]
    found = []
    for address in addresses:
        answer = page.goto(address)
        assert answer.status == 200, address
        page.wait_for_timeout(300)
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth + 1"):
            found.append(f"{address}: wider than the window of {width} px")
        violations = Axe().run(page).response["violations"]
        found += [f"{address}: {v['id']}: {v['nodes'][0]['html'][:160]}" for v in violations]
    assert found == []


def test_the_demo_goes_on_after_a_power_cut(tmp_path_factory, stack):
    demo = type(stack)(tmp_path_factory.mktemp("power-cut"), arguments=("--rounds", "3", "--exit"))
    demo.start()
    wait_for(lambda: any(demo.folder.glob("**/runs/*-r2-*/pid")), seconds=300)
    demo.kill()
    demo.start()
    output, errors = demo.process.communicate(timeout=900)
    assert demo.process.returncode == 0, errors
    summary = json.loads(output)
    assert summary["state"] == "completed"
    assert summary["rounds"] == 3
