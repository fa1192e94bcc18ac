from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.template import Context, Template
from django.test import RequestFactory
from django.utils import timezone

from fedportal.experiments.states import MOVES
from fedportal.sites.models import Health
from fedportal.ui.icons import ICONS, OF_COLOUR
from fedportal.ui.templatetags.ui import ago, badge, bytes_, duration, here, icon, state_badge, theme


@pytest.mark.parametrize("state", [*MOVES, *Health])
def test_every_state_is_shown_with_an_icon_and_its_word(state):
    drawn = state_badge(state)
    assert f"badge--{state.colour}" in drawn
    assert state.label in drawn
    assert ICONS[OF_COLOUR[state.colour]] in drawn


def test_a_label_is_escaped():
    assert "<script>" not in badge("good", "<script>")
    assert "<script>" not in icon("check", "<script>")


def test_an_icon_without_a_label_is_hidden_from_screen_readers():
    assert 'aria-hidden="true"' in icon("play")
    assert 'role="img" aria-label="Passed"' in icon("check", "Passed")


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (timedelta(0), "just now"),
        (timedelta(seconds=40), "40 s ago"),
        (timedelta(minutes=4, seconds=10), "4 min ago"),
        (timedelta(hours=3, minutes=10), "3 h ago"),
        (timedelta(days=5), "5 days ago"),
        (timedelta(days=100), "3 months ago"),
        (timedelta(hours=-2), "in 2 h"),
    ],
)
def test_ago_says_how_long_in_words(passed, words):
    assert f">{words}</time>" in ago(timezone.now() - passed)


def test_ago_reads_moments_that_json_wrote():
    moment = timezone.now() - timedelta(minutes=4)
    assert "4 min ago" in ago(moment.isoformat())


def test_ago_of_nothing_is_never():
    assert ago(None) == "never"
    assert ago(None, "not planned") == "not planned"


@pytest.mark.parametrize(
    ("count", "words"),
    [(None, "–"), (0, "0 B"), (820, "820 B"), (1_234_567, "1.2 MB"), (76_000_000, "76 MB"), (5e15, "5000 TB")],
)
def test_sizes_are_written_as_people_do(count, words):
    assert bytes_(count) == words


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (None, "–"),
        (0, "0.0 s"),
        (0.012, "12 ms"),
        (0.42, "0.4 s"),
        (38.2, "38 s"),
        (192, "3 min 12 s"),
        (timedelta(hours=2, minutes=5), "2 h 05 min"),
        (timedelta(days=3, hours=4), "3 days 4 h"),
    ],
)
def test_durations_are_written_as_people_do(span, words):
    assert duration(span) == words


@pytest.mark.parametrize(
    ("path", "prefix", "mark"),
    [
        ("/sites/", "/sites/", 'aria-current="page"'),
        ("/sites/mainz/", "/sites/", 'aria-current="true"'),
        ("/sites/", "/", ""),
        ("/", "/", 'aria-current="page"'),
        ("/experiments/", "/sites/", ""),
    ],
)
def test_the_section_of_the_visitor_is_marked(path, prefix, mark):
    assert here(Context({"request": RequestFactory().get(path)}), prefix) == mark


@pytest.mark.parametrize(
    ("cookie", "shown"), [("dark", "dark"), ("light", "light"), ('"><script>', "auto"), ("", "auto")]
)
def test_only_known_themes_reach_the_page(cookie, shown):
    request = RequestFactory().get("/")
    request.COOKIES["theme"] = cookie
    assert theme(Context({"request": request})) == shown


def test_the_tags_need_no_load():
    state = SimpleNamespace(colour="busy", label="Training")
    page = Template("{% state_badge state %}{% icon 'play' %}{% bytes 1000 %}").render(Context({"state": state}))
    assert "Training" in page
    assert "1.0 kB" in page
