"""The pages of a family in a real browser: nothing for axe to find, and baselines that are added by keyboard."""

import xml.etree.ElementTree as ElementTree

import pytest
from django.conf import settings
from django.test import Client

from fedportal.experiments import services
from fedportal.experiments.models import Experiment, Kind
from tests import factories
from tests.fixtures_browser import violations
from tests.monitoring import families

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def head(live_server, transactional_db):
    return families.make_family(factories.ada(), title="Three hospitals", repeats=2)


@pytest.fixture
def session(head) -> str:
    client = Client()
    client.force_login(head.owner)
    return client.cookies[settings.SESSION_COOKIE_NAME].value


def test_axe_finds_nothing_and_nothing_scrolls_sideways(open_page, head):
    members = [head, *(head.companions.filter(kind=kind).first() for kind in (Kind.LOCAL_ONLY, Kind.CROSS_SITE))]
    factories.make_experiment(head.owner, sites=0, title="D" * 120)
    addresses = ["/", "/experiments/", *(f"/experiments/{member.key}/" for member in members)]
    for theme, width in (("light", 1280), ("dark", 390)):
        page = open_page("/", theme=theme, width=width)
        for address in addresses:
            page.goto(address)
            for summary in page.get_by_text("Add baselines").all():
                summary.click()
            assert violations(page) == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_chart_is_saved_with_its_title_its_axis_and_a_legend_on_the_surface_of_the_theme(open_page, head):
    page = open_page(f"/experiments/{head.key}/", theme="dark")
    dice = page.locator('[data-chart="dice"]')
    dice.locator(".main-svg").first.wait_for()
    with page.expect_download() as waiting:
        dice.get_by_role("button", name="Save Dice as an image").click()
    assert waiting.value.suggested_filename == f"fedportal-{head.key}-dice.svg"
    drawn = ElementTree.parse(waiting.value.path()).getroot()  # noqa: S314  our own file
    words = set(drawn.itertext())
    assert {"Three hospitals: Dice", "Dice (0 none, 1 perfect overlap)", "Rounds", "Graz", "Mainz", "Ulm"} <= words
    assert page.locator('[data-chart="loss"] [data-act="image"]').is_hidden(), "there is nothing to save"
    assert drawn[0].attrib["style"].startswith("fill: rgb(22, 29, 33)")


def test_baselines_are_added_by_keyboard(open_page, head):
    draft = factories.make_experiment(head.owner)
    services.start(experiment=draft, by=head.owner)
    page = open_page(f"/experiments/{draft.key}/")
    page.get_by_text("Add baselines").focus()
    page.keyboard.press("Enter")
    page.get_by_role("checkbox", name="Local only", exact=True).focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Add", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_text("4 runs are added.").wait_for(timeout=60_000)
    assert page.get_by_role("link", name="Cross-site evaluation").is_visible()
    assert Experiment.objects.get(pk=draft.pk).companions.count() == 4
