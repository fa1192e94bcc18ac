"""The compare page in a real browser: the way there, other choices, the exports, and its news."""

import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from fedportal.experiments.models import Experiment, Kind
from fedportal.experiments.states import ExperimentState
from tests import factories
from tests.fixtures_browser import violations
from tests.monitoring import families

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WAIT = {"timeout": 60_000}
DRAWN = '[data-figure="curves"] .js-plotly-plot .main-svg'


@pytest.fixture
def head(live_server, transactional_db):
    head = families.make_family(factories.ada(), title="Three hospitals")
    families.make_family(head.owner, sites=("kiel", "bonn"), title="Two others", kinds=())
    return head


@pytest.fixture
def session(head) -> str:
    client = Client()
    client.force_login(head.owner)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


@pytest.fixture
def address(head) -> str:
    return f"/experiments/{head.key}/compare/"


def open_drawn(open_page, address, **options):
    page = open_page(address, **options)
    page.locator(DRAWN).first.wait_for(**WAIT)
    return page


def test_three_clicks_from_the_dashboard_lead_to_the_comparison_with_intervals(open_page, head):
    page = open_page("/")
    page.get_by_role("link", name="Three hospitals", exact=True).first.click(**WAIT)
    page.get_by_role("link", name="Compare").first.click(**WAIT)
    page.get_by_text("of pooled.").wait_for(**WAIT)
    words = page.locator(".verdict").inner_text()
    assert "Federated reached" in words
    assert "95 % interval" in words
    assert "above the best local-only model" in words
    # this test's server speaks no websockets, which the experiment's page asks for
    assert [words for words in page.complaints if "WebSocket" not in words] == []


def test_axe_finds_nothing_and_nothing_scrolls_sideways(open_page, address):
    for theme, width in (("light", 1280), ("dark", 390)):
        page = open_drawn(open_page, address, theme=theme, width=width)
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.complaints == []


def test_another_choice_takes_its_place_without_a_reload(open_page, address):
    page = open_drawn(open_page, address)
    page.evaluate("window.here = true")
    page.get_by_role("button", name="Pooled").click()
    page.get_by_role("link", name="Surface distance (HD95)").click()
    page.get_by_text("Surface distance (HD95), mean over the regions, in mm").wait_for(**WAIT)
    page.get_by_role("link", name="ET", exact=True).click()
    page.get_by_text("Surface distance (HD95), ET, in mm").wait_for(**WAIT)
    assert page.url.endswith("?measure=hd95&region=ET")
    assert page.evaluate("window.here")
    assert page.evaluate("document.activeElement.textContent") == "ET"
    page.go_back()
    page.get_by_text("Surface distance (HD95), mean over the regions, in mm").wait_for(**WAIT)
    page.go_back()
    page.get_by_text("of pooled.").wait_for(**WAIT)
    assert page.evaluate("window.here")
    assert page.get_by_role("button", name="Pooled").get_attribute("aria-pressed") == "false"
    assert page.complaints == []


def test_the_curves_follow_the_toggles_stand_in_a_table_and_take_another_experiment(open_page, address):
    page = open_drawn(open_page, address)
    names = "() => document.querySelector('[data-figure=curves] .js-plotly-plot').data.map((line) => line.name)"
    assert page.evaluate(names) == ["Federated", "Pooled", "Local only", "Cyclic", "Ensemble"]
    page.get_by_role("button", name="Cyclic").click()
    assert page.evaluate(names) == ["Federated", "Pooled", "Local only", "Ensemble"]
    page.get_by_label("Measured where").select_option("ulm")
    assert page.evaluate(names) == ["Federated", "Local only", "Ensemble"]  # the pool has no sites
    page.get_by_label("Gradient steps", exact=True).check()
    page.get_by_role("button", name="Show as table").click()
    table = page.locator("#curves-table")
    assert "Gradient steps of all sites together" in table.inner_text()
    assert table.locator("tbody th").last.inner_text() == "216"
    page.get_by_role("button", name="Add").click()
    page.get_by_role("button", name="Two others").wait_for(**WAIT)
    assert page.get_by_role("columnheader", name="Two others").is_visible()
    page.get_by_role("link", name="Take Two others out").click()
    page.get_by_role("button", name="Two others").wait_for(state="detached", **WAIT)
    assert page.complaints == []


def test_every_figure_is_saved_as_png_and_svg_and_the_numbers_as_csv(open_page, address, tmp_path):
    page = open_drawn(open_page, address)

    def saved(link) -> Path:
        with page.expect_download(**WAIT) as waiting:
            link.click()
        path = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path

    titles = {
        "contrasts": "The federated model against the others",
        "gains": "What each site gains from joining",
        "matrix": "Every model at every site",
        "curves": "On the way, mean over the sites",
    }
    for name, title in titles.items():
        figure = page.locator(f'[data-figure="{name}"]')
        png = saved(figure.get_by_role("button", name="PNG")).read_bytes()
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert (width, height >= 300) == (2000, True)
        svg = saved(figure.get_by_role("button", name="SVG"))
        words = "".join(ElementTree.parse(svg).getroot().itertext())  # noqa: S314  our own file
        assert "Three hospitals: Dice, mean over the regions" in words
        assert title in words
        assert svg.name.endswith(f"-{name}.svg")
    cells = page.locator(".heat td").all_inner_texts()
    matrix = ElementTree.parse(next(tmp_path.glob("*-matrix.svg"))).getroot()  # noqa: S314
    assert {cell.split()[0] for cell in cells} <= set(matrix.itertext())
    table = saved(page.get_by_role("link", name="all means, gains and intervals (CSV)")).read_text()
    assert table.startswith("measure,region,round,model,against,site,value,low,high")
    cases = saved(page.get_by_role("link", name="every case by its pseudonym (CSV)")).read_text()
    assert len(cases.splitlines()) == 1 + 3 * 8 * 3 * 2 * (1 + 8)  # sites, cases, regions, measures, models
    assert page.complaints == []


def test_the_page_renews_itself_when_a_member_ends(open_page, address, head):
    pooled = Experiment.objects.filter(kind=Kind.POOLED)
    pooled.get().rounds.filter(number__gt=5).delete()
    pooled.update(state=ExperimentState.RUNNING)
    page = open_drawn(open_page, address)
    page.get_by_text("The pooled baseline is in round 5 of 6.").wait_for(**WAIT)
    page.evaluate("window.here = true")
    pooled.update(state=ExperimentState.COMPLETED)
    page.get_by_text("The pooled baseline is in round 5 of 6.").wait_for(state="detached", **WAIT)
    page.locator(DRAWN).first.wait_for(**WAIT)
    assert page.evaluate("window.here")
    assert page.complaints == []


def test_the_numbers_are_there_without_scripts(open_page, address):
    page = open_page(address, java_script_enabled=False)
    page.get_by_role("link", name="WT", exact=True).click()
    assert page.get_by_text("Dice, WT").first.is_visible()
    assert page.locator(".heat tbody tr").count() == 8
    page.get_by_label("Lay another experiment beside it").select_option(index=0)
    page.get_by_role("button", name="Add").click()
    assert "region=WT&with=" in page.url
    assert page.get_by_role("columnheader", name="Two others").is_visible()
