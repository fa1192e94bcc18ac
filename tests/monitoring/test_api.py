import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from rest_framework.test import APIClient

from fedportal.experiments import journal
from fedportal.monitoring.views import LINES_SHOWN
from tests import factories
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def running():
    return scenes.make_running(factories.ada())


@pytest.fixture
def get(running):
    client = APIClient()
    client.force_authenticate(running.owner)

    def fetch(name, status=200, **query):
        answer = client.get(reverse(f"api-experiment-{name}", args=[running.key]), query)
        assert answer.status_code == status, answer.content
        return answer.json()

    return fetch


def test_metrics_are_read_to_the_end_piece_by_piece(running, get):
    opened = scenes.open_round(running, 1)
    scenes.train(opened, "mainz", range(1, 8))
    steps, after = [], 0
    while (answer := get("metrics", after=after, limit=3))["results"]:
        steps += [metric["step"] for metric in answer["results"]]
        after = answer["next"]
    assert steps == list(range(1, 8))
    scenes.train(opened, "mainz", range(8, 9))
    assert [m["step"] for m in get("metrics", after=after)["results"]] == [8]


def test_the_journal_is_read_in_order(running, get):
    for number in range(3):
        journal.record(running, "note", f"Event {number}", fact=number)
    answer = get("journal")
    assert [(event["text"], event["data"]) for event in answer["results"]] == [
        (f"Event {number}", {"fact": number}) for number in range(3)
    ]


@pytest.mark.parametrize(
    "query", [{"after": "x"}, {"after": "-1"}, {"limit": "0"}, {"limit": "5000"}, {"after": "1.5"}]
)
def test_a_cursor_that_is_none_is_refused_with_its_name(get, query):
    assert list(get("metrics", status=400, **query)["errors"]) == list(query)


def test_rounds_come_with_every_site_and_attempt(running, get):
    opened = scenes.open_round(running, 1)
    scenes.attempt_of(scenes.run_of(opened, "ulm"), 2)
    [first] = get("rounds")
    assert first["number"] == 1
    assert {run["site"]: len(run["attempts"]) for run in first["site_runs"]} == {"mainz": 1, "ulm": 2}


def test_models_come_with_checksum_and_files(running, get):
    scenes.make_model(running, 1, dice=0.5)
    [model] = get("models")
    assert (model["dice"], model["sha256"]) == (0.5, f"{1:064x}")
    assert list(model["files"]) == ["weights"]
    assert model["files"]["weights"].endswith(f"/api/experiments/{running.key}/models/1/weights/")


def test_a_log_is_followed_from_its_offset(running, get):
    opened = scenes.open_round(running, 1)
    attempt = scenes.run_of(opened, "mainz").attempts.get()
    journal.append_log(attempt, 0, "one\ntwo\nthr")
    first = get("logs", run=attempt.run)
    assert ([line["text"] for line in first["lines"]], first["is_over"]) == (["one", "two"], False)
    journal.append_log(attempt, 11, "ee\nfour")
    attempt.ended_at = timezone.now()
    attempt.save(update_fields=["ended_at"])
    second = get("logs", run=attempt.run, after=first["next"])
    assert ([line["text"] for line in second["lines"]], second["is_over"]) == (["three", "four"], True)
    assert get("logs", run=attempt.run, after=second["next"])["lines"] == []


def test_a_long_log_is_read_whole_though_its_page_shows_the_end(running, get):
    attempt = scenes.run_of(scenes.open_round(running, 1), "mainz").attempts.get()
    journal.append_log(attempt, 0, "".join(f"line {number}\n" for number in range(2000)))
    assert [line["text"] for line in get("logs", run=attempt.run)["lines"]] == [f"line {n}" for n in range(2000)]
    browser = Client()
    browser.force_login(running.owner)
    shown = browser.get(f"/experiments/{running.key}/sites/mainz/").context["lines"]
    assert (len(shown), shown[-1].text) == (LINES_SHOWN, "line 1999")


def test_a_log_of_another_experiment_is_not_found(running, get):
    other = scenes.make_running(sites=("bonn",))
    attempt = scenes.run_of(scenes.open_round(other, 1), "bonn").attempts.get()
    get("logs", status=404, run=attempt.run)
    get("logs", status=404)


def test_the_dashboard_shows_what_the_front_page_shows_and_nothing_of_strangers(running):
    scenes.make_model(running, 0, dice=0.25)
    scenes.open_round(running, 1)
    draft = factories.make_experiment(running.owner, sites=0)
    over = factories.make_experiment(running.owner, sites=0, state="completed", ended_at=timezone.now())
    other = scenes.make_running(factories.eve(), sites=("bonn",))
    journal.record(running, "note", "Mine")
    journal.record(other, "note", "Not mine")
    client = APIClient()
    assert client.get("/api/dashboard/").status_code == 401
    client.force_authenticate(running.owner)
    board = client.get("/api/dashboard/").json()
    [active] = board["active"]
    assert (active["key"], active["dice"], active["where"]) == (running.key, 0.25, "round 1 of 4")
    assert [one["key"] for one in board["recent"]] == [over.key]
    assert [one["key"] for one in board["drafts"]] == [draft.key]
    assert [event["text"] for event in board["events"]] == ["Mine"]
    assert {site["slug"]: site["health"] for site in board["sites"]}["mainz"] == "healthy"
    assert board["more_sites"] == 0
