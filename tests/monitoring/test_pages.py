"""Who sees what, what the pages say, and what they cost."""

from datetime import timedelta
from html import unescape

import pytest
from django.contrib.staticfiles.finders import find
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from fedportal.experiments import journal
from fedportal.experiments.models import Attempt, Experiment, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.monitoring import rows
from fedportal.monitoring.overview import overview
from fedportal.sites.models import Site
from tests import factories
from tests.monitoring import scenes

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada():
    return factories.ada()


@pytest.fixture
def running(ada):
    """Three rounds done, the fourth under way."""
    experiment = scenes.make_running(ada, rounds=4)
    scenes.make_model(experiment, 0)
    for number in range(1, 4):
        scenes.finish_round(scenes.open_round(experiment, number, ago=100 - 20 * number), dice=0.2 * number)
    scenes.open_round(experiment, 4, ago=3)
    return experiment


def page(client, user, name, *args, **query):
    client.force_login(user)
    return client.get(reverse(f"monitoring:{name}", args=args), query)


# --- who sees what --------------------------------------------------------------------------------

OF_EXPERIMENT = [
    ("experiment", ()), ("models", ()), ("site", ("mainz",)), ("metrics-csv", ()), ("metrics-json", ()),
    ("journal-csv", ()), ("journal-json", ()), ("figure-json", ("dice",)),
]  # fmt: skip
OF_API = ["metrics", "journal", "rounds", "models"]


def addresses(key):
    pages = [reverse(f"monitoring:{name}", args=[key, *rest]) for name, rest in OF_EXPERIMENT]
    older = [
        reverse("monitoring:rounds", args=[key]) + "?before=9",
        reverse("monitoring:feed", args=[key]) + "?before=9",
    ]
    api = [reverse(f"api-experiment-{name}", args=[key]) for name in OF_API]
    return [*pages, *older, *api, reverse("api-experiment-logs", args=[key]) + f"?run=fp-{key}-r1-mainz-a1"]


@pytest.mark.parametrize(
    ("who", "status"), [("ada", 200), ("otto", 200), ("audrey", 200), ("eve", 404), ("stella", 404)]
)
def test_only_who_may_see_an_experiment_sees_any_part_of_it(client, running, ada, who, status):
    client.force_login(ada if who == "ada" else getattr(factories, who)())
    assert {client.get(address).status_code for address in addresses(running.key)} == {status}


def test_viewers_and_the_stewards_of_its_sites_see_it(client, running):
    bob, stella = factories.make_user("bob"), factories.stella()
    running.viewers.add(bob)
    running.participations.first().site.stewards.add(stella)
    for user in (bob, stella):
        assert page(client, user, "experiment", running.key).status_code == 200


def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(client, running):
    for address in addresses(running.key):
        answer = client.get(address)
        if address.startswith("/api/"):
            assert answer.status_code == 401
        else:
            assert answer.status_code == 302
            assert answer.headers["Location"].startswith(reverse("accounts:login"))


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
def test_nothing_here_can_be_written(client, running, ada, method):
    client.force_login(ada)
    assert {getattr(client, method)(address).status_code for address in addresses(running.key)} == {405}


def test_controls_are_for_those_who_may_control(client, running, ada):
    pause = reverse("experiments:pause", args=[running.key])
    clone = reverse("experiments:clone", args=[running.key])
    own = page(client, ada, "experiment", running.key).content.decode()
    assert pause in own
    assert clone in own
    foreign = page(client, factories.audrey(), "experiment", running.key).content.decode()
    assert pause not in foreign
    assert clone not in foreign


# --- addresses ------------------------------------------------------------------------------------


def test_a_draft_is_still_being_composed(client, ada):
    draft = factories.make_experiment(ada)
    answer = page(client, ada, "experiment", draft.key)
    assert answer.status_code == 302
    assert answer.headers["Location"] == reverse("experiments:edit", args=[draft.key])


def test_words_are_no_keys_of_experiments(client, ada):
    client.force_login(ada)
    assert client.get("/experiments/new/").resolver_match.view_name == "experiments:create"


@pytest.mark.parametrize(
    "address",
    ["rounds/", "rounds/?before=x", "rounds/?before=-1", "feed/", "feed/?before=1e3", "sites/nowhere/", "sites/mainz/?round=99",
     "sites/mainz/?round=x", "sites/mainz/?attempt=x", "export/weight.plotly.json", "models/1/pickle/", "models/99/weights/"],
)  # fmt: skip
def test_addresses_that_mean_nothing_are_not_found(client, running, ada, address):
    client.force_login(ada)
    assert client.get(f"/experiments/{running.key}/{address}").status_code == 404


# --- what the experiment page says ----------------------------------------------------------------


def test_the_page_brings_the_first_figure_and_its_cursor(client, running, ada):
    opened = running.rounds.get(number=4)
    scenes.train(opened, "mainz", range(1, 6))
    journal.record(running, "note", "Round 4 began.", round_number=4)
    answer = page(client, ada, "experiment", running.key)
    data = answer.context["data"]
    assert data["cursor"] == str(rows.newest_cursor(running))
    training = [s for s in data["series"] if s["phase"] == "train"]
    assert [[p[2] for p in s["points"]] for s in training] == [[1, 2, 3, 4, 5]]
    assert 'id="experiment-data"' in answer.content.decode()
    assert "Round 4 began." in answer.content.decode()


def test_a_field_and_the_head_say_what_a_run_waits_for(client, running, ada):
    run = scenes.run_of(running.rounds.get(number=4), "mainz")
    run.state, run.reason = SiteRunState.DISPATCHED, "It waits for the steward's confirmation."
    run.save()
    shown = unescape(page(client, ada, "experiment", running.key).content.decode())
    assert "Hospital mainz: It waits for the steward's confirmation." in shown
    assert overview(running).left == ""
    assert '<span class="run__reason">It waits for the steward\'s confirmation.</span>' in shown


def test_the_head_says_where_it_stands_and_how_long_it_takes(running):
    view = overview(running)
    assert view.where == "Round 4 of 4"
    assert view.finished_rounds == 3
    assert view.left == "About 10 s left"
    assert view.best.round_number == 2
    assert view.summary.startswith("Running, round 4 of 4. The global model of round 2 has a mean Dice of 0.600")


def test_the_final_evaluation_is_no_round_of_its_own(running):
    scenes.finish_round(running.rounds.get(number=4))
    scenes.open_round(running, 5, kind="evaluate")
    view = overview(running)
    assert (view.where, view.finished_rounds) == ("Final evaluation", 4)


def test_an_early_stop_is_told_with_the_rounds_that_were_planned(running):
    scenes.finish_round(running.rounds.get(number=4))
    scenes.change(running, state=ExperimentState.COMPLETED)
    assert overview(running).where == "4 of 4 rounds"
    scenes.change(running, plan={**running.plan, "rounds": 9})
    assert overview(running).where == "4 of 9 rounds, stopped early"


def test_a_late_and_a_silent_site_are_named(running):
    began = timezone.now() - timedelta(seconds=50)
    Attempt.objects.filter(site_run__round__number=4).update(launched_at=began, heard_at=timezone.now())
    Attempt.objects.filter(site_run__round__number=4, run__contains="ulm").update(
        heard_at=timezone.now() - timedelta(minutes=4)
    )
    notes = overview(running).notes
    assert notes[0].startswith("Waiting for Hospital mainz: usually 10 s, now 5")
    assert notes[1] == "Hospital ulm was last heard from 4 min ago."


def test_the_worst_site_is_named_beside_the_mean(running):
    third = running.rounds.get(number=3)
    journal.ingest(scenes.run_of(third, "mainz"), 1, [scenes.dice(0.7)])
    journal.ingest(scenes.run_of(third, "ulm"), 1, [scenes.dice(0.5)])
    assert overview(running).worst == ("Hospital ulm", 0.5)


def test_a_failed_experiment_says_why_and_offers_the_way_on(client, running, ada):
    scenes.change(running, state=ExperimentState.FAILED, reason="Ulm did not answer.", ended_at=timezone.now())
    text = page(client, ada, "experiment", running.key).content.decode()
    assert "Ulm did not answer." in text
    assert "Take up again" in text


def test_a_title_with_markup_is_only_text(client, running, ada):
    scenes.change(running, title="<script>alert(1)</script>", question='"><img src=x onerror=alert(1)>')
    journal.record(running, "note", "<b>bold</b></script><script>alert(2)</script>")
    text = page(client, ada, "experiment", running.key).content.decode()
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;b&gt;bold" in text


def test_a_page_before_the_first_round_says_what_comes(client, ada):
    text = page(client, ada, "experiment", scenes.make_running(ada).key).content.decode()
    assert "No round yet" in text
    assert "Waiting for the first measurement" in text


def test_a_draft_without_a_name_can_be_opened_from_the_dashboard(client, ada):
    factories.make_experiment(ada, sites=0, title="")
    assert ">Unnamed draft</a>" in page(client, ada, "dashboard").content.decode()


def test_a_page_that_ended_before_the_first_round_promises_none(client, ada):
    experiment = scenes.make_running(ada)
    scenes.change(experiment, state=ExperimentState.CANCELLED, ended_at=timezone.now())
    text = page(client, ada, "experiment", experiment.key).content.decode()
    assert "It ended before its first round began." in text
    assert "It ended before its first round was done." in text
    assert "It ended before its first round was done." in page(client, ada, "models", experiment.key).content.decode()


def test_the_matrix_has_a_line_per_round_and_leads_to_the_reason(client, running, ada):
    text = page(client, ada, "experiment", running.key).content.decode()
    for number in range(1, 5):
        assert f'id="round-{number}"' in text
        assert reverse("monitoring:site", args=[running.key, "ulm"]) + f"?round={number}" in text


def test_earlier_rounds_and_older_events_come_on_demand(client, running, ada):
    text = page(client, ada, "rounds", running.key, before=3).content.decode()
    assert 'id="round-2"' in text
    assert 'id="round-3"' not in text
    first = journal.record(running, "note", "Of Mainz", site="mainz")
    second = journal.record(running, "note", "Of Ulm", site="ulm")
    text = page(client, ada, "feed", running.key, before=second.pk + 1, site="mainz").content.decode()
    assert f'id="event-{first.pk}"' in text
    assert "Of Ulm" not in text


# --- a site's part --------------------------------------------------------------------------------


def failed_run(running, exit_code=24, message=""):
    run = scenes.run_of(running.rounds.get(number=4), "ulm")
    SiteRun.objects.filter(pk=run.pk).update(state=SiteRunState.FAILED, reason="It failed.")
    run.attempts.update(state="failed", exit_code=exit_code, message=message, ended_at=timezone.now())
    return run


def test_a_failure_is_explained_with_what_helps(client, running, ada):
    message = "A segmentation contains a label number that dataset.json does not list. Case 12 has label 7."
    failed_run(running, message=message)
    text = page(client, ada, "site", running.key, "ulm", part="panel").content.decode()
    assert text.count("does not list") == 1, "meaning and message say it once"
    assert "Case 12 has label 7." in text
    assert "corrects the segmentation" in text
    assert "<html" not in text


def test_a_retry_is_offered_for_the_failed_run_of_the_live_round_to_those_who_may(client, running, ada):
    retry = reverse("experiments:retry", args=[running.key, "ulm"])
    assert retry not in page(client, ada, "site", running.key, "ulm").content.decode()
    failed_run(running)
    assert retry in page(client, ada, "site", running.key, "ulm").content.decode()
    assert retry not in page(client, factories.audrey(), "site", running.key, "ulm").content.decode()
    assert retry not in page(client, ada, "site", running.key, "ulm", round=2).content.decode()


def test_every_attempt_can_be_looked_at_with_its_log(client, running, ada):
    run = scenes.run_of(running.rounds.get(number=4), "mainz")
    journal.append_log(run.attempts.get(), 0, '{"at": 1767225600, "level": "info", "message": "first attempt"}\n')
    second = scenes.attempt_of(run, 2)
    SiteRun.objects.filter(pk=run.pk).update(attempt=2)
    journal.append_log(second, 0, "plain words\n<i>markup</i>\n")
    newest = page(client, ada, "site", running.key, "mainz").content.decode()
    assert "plain words" in newest
    assert "&lt;i&gt;markup" in newest
    assert "First attempt" in page(client, ada, "site", running.key, "mainz", round=4, attempt=1).content.decode()


# --- the dashboard --------------------------------------------------------------------------------


def test_a_newcomer_is_led_to_the_reference_experiment(client):
    factories.make_site("mainz")
    text = page(client, factories.eve(), "dashboard").content.decode()
    assert "Start the reference experiment" in text
    assert reverse("experiments:create") in text


def test_who_cannot_compose_is_not_asked_to(client):
    assert reverse("experiments:create") not in page(client, factories.stella(), "dashboard").content.decode()


def test_the_dashboard_shows_what_runs_and_what_has_trouble(client, running, ada):
    factories.make_site("bonn", healthy=False)
    journal.record(running, "note", "Something happened.")
    board = page(client, ada, "dashboard").context["board"]
    assert [card.where for card in board.active] == ["round 4 of 4"]
    assert board.active[0].dice == pytest.approx(0.6)
    assert board.sites[0].slug == "bonn", "what has a problem comes first"
    assert [event.text for event in board.events] == ["Something happened."]


def test_the_dashboard_shows_nothing_of_foreign_experiments(client, running):
    journal.record(running, "note", "A secret of Ada's")
    text = page(client, factories.eve(), "dashboard").content.decode()
    assert running.title not in text
    assert "A secret" not in text


def test_the_part_that_renews_itself_is_the_same_part(client, running, ada):
    whole = page(client, ada, "dashboard").content.decode()
    part = page(client, ada, "dashboard", part="live").content.decode()
    assert part.strip().startswith('<div id="board"')
    assert running.title in part
    assert 'id="board"' in whole


# --- what the pages cost --------------------------------------------------------------------------


def queries(client, user, name, *args):
    page(client, user, name, *args)  # the session and content types are read
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert page(client, user, name, *args).status_code == 200
    return len([q for q in captured if "SAVEPOINT" not in q["sql"]])


def test_the_queries_of_a_page_do_not_grow_with_what_was_measured(client, ada):
    small = scenes.make_running(ada)
    scenes.make_model(small, 0)
    scenes.finish_round(scenes.open_round(small, 1))
    large = scenes.make_running(ada, sites=("bonn", "kiel", "jena", "essen"), rounds=30)
    scenes.make_model(large, 0)
    for number in range(1, 25):
        opened = scenes.open_round(large, number)
        for slug in ("bonn", "kiel", "jena", "essen"):
            scenes.train(opened, slug, range(1, 11))
        scenes.finish_round(opened)
        journal.record(large, "note", "…", round_number=number)
    for name, rest, most in (("experiment", (), 29), ("models", (), 10), ("dashboard", None, 14)):
        costs = {queries(client, ada, name, *([] if rest is None else [one.key, *rest])) for one in (small, large)}
        assert len(costs) == 1, name
        assert costs.pop() <= most, name


def test_the_scripts_and_styles_of_the_pages_exist():
    for path in ("plotly/plotly.min.js", "js/live.js", "js/dashboard.js", "js/site.js", "css/monitoring.css"):
        assert find(path), path


def test_the_round_states_are_all_shown_in_words(client, running, ada):
    for state in RoundState:
        running.rounds.filter(number=4).update(state=state)
        assert state.label in page(client, ada, "rounds", running.key, before=5).content.decode()
    assert Experiment.objects.count() == 1


def test_a_site_that_does_not_answer_is_named_as_long_as_it_is_waited_for(client, ada, running):
    since, next_try = timezone.now() - timedelta(minutes=9), timezone.now() + timedelta(minutes=40.4)
    Site.objects.filter(slug="mainz").update(unreached_since=since, next_try_at=next_try)
    name = Site.objects.get(slug="mainz").name
    text = page(client, ada, "experiment", running.key).content.decode()
    assert f"{name} has not answered for 9 min; it is tried again in 40 min." in text
    SiteRun.objects.filter(participation__site__slug="mainz").update(state=SiteRunState.ADMITTED)
    assert "has not answered" not in page(client, ada, "experiment", running.key).content.decode()
