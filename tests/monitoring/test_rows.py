import pytest
from django.utils import timezone

from fedportal.experiments import journal
from fedportal.experiments.models import Event, Metric
from fedportal.monitoring import rows
from fedportal.monitoring.figures import collect
from fedportal.monitoring.rows import Cursor, Follower, as_rows, drawn, follow_metrics, missed, newest_cursor, page_rows
from tests.monitoring import scenes
from trainer.contract import MetricRecord, Phase

pytestmark = pytest.mark.django_db


@pytest.fixture
def running():
    return scenes.make_running()


@pytest.mark.parametrize("text", ["", "1", "1.", "a.b", "-1.2", "1.2.3", "٣.1", "9" * 19 + ".1", "1.2\n"])
def test_what_is_no_cursor_is_the_beginning(text):
    assert Cursor.parse(text) == Cursor(0, 0)


def test_a_cursor_is_read_as_it_is_written():
    assert Cursor.parse(str(Cursor(12, 345))) == Cursor(12, 345)


@pytest.mark.parametrize(("vendor", "back"), [("sqlite", 0), ("postgresql", rows.OVERLAP)])
def test_only_where_ids_are_not_in_order_one_steps_back(vendor, back, monkeypatch):
    monkeypatch.setattr(rows.connection, "vendor", vendor)
    assert Cursor(5000, 6000).stepped_back() == Cursor(5000 - back, 6000 - back)


def test_stepping_back_never_eats_up_a_whole_piece():
    assert rows.OVERLAP < rows.BATCH, "else a line that breaks after every piece would never get on"


def test_what_was_missed_comes_once_in_order_and_in_pieces(running, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 7)
    monkeypatch.setattr(rows, "OVERLAP", 0)
    first = scenes.open_round(running, 1)
    scenes.train(first, "mainz", range(1, 6))
    cursor = newest_cursor(running)
    for number in range(9):
        journal.record(running, "note", f"Event {number}")
    scenes.train(first, "mainz", range(6, 26))
    pieces = list(missed(running.pk, cursor))
    assert len(pieces) == 3
    assert [e.text for events, _, _ in pieces for e in events] == [f"Event {number}" for number in range(9)]
    assert [m.step for _, metrics, _ in pieces for m in metrics] == list(range(6, 26))
    assert pieces[-1][2] == newest_cursor(running)
    assert list(missed(running.pk, pieces[-1][2])) == []


def test_going_on_from_any_cursor_on_the_way_loses_and_repeats_nothing(running, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 4)
    monkeypatch.setattr(rows, "OVERLAP", 0)
    first = scenes.open_round(running, 1)
    scenes.train(first, "mainz", range(1, 20))
    steps, cursor = [], Cursor()
    while pieces := list(missed(running.pk, cursor))[:1]:  # the line breaks after each piece
        _, metrics, cursor = pieces[0]
        steps += [m.step for m in metrics]
    assert steps == list(range(1, 20))


def test_only_what_is_drawn_is_read(running):
    run = scenes.run_of(scenes.open_round(running, 1), "mainz")
    journal.ingest(run, 1, [MetricRecord(Phase.TRAIN, "learning_rate", 0.001, "", 1, 0.1), scenes.loss(1)])
    assert [m.name for m in as_rows(drawn(running.pk))] == ["loss"]


def test_a_follower_sees_each_row_once(running):
    first = scenes.open_round(running, 1)
    scenes.train(first, "mainz", range(1, 4))
    follower = follow_metrics(running.pk)
    assert follower.next() == []
    scenes.train(first, "mainz", range(4, 6))
    scenes.train(first, "ulm", range(1, 3))
    assert [(m.site, m.step) for m in follower.next()] == [("mainz", 4), ("mainz", 5), ("ulm", 1), ("ulm", 2)]
    assert follower.next() == []


def test_a_follower_never_sees_another_experiment(running):
    other = scenes.make_running(sites=("bonn",))
    follower = follow_metrics(running.pk)
    scenes.train(scenes.open_round(other, 1), "bonn", range(1, 4))
    assert follower.next() == []


def event(experiment, pk, text):
    return Event.objects.create(pk=pk, experiment=experiment, kind="note", text=text)


def test_a_row_that_becomes_visible_late_is_found_where_ids_are_not_in_order(running):
    event(running, 100, "before")
    follower = Follower(Event.objects.filter(experiment=running), list, in_order=False)
    event(running, 110, "fast transaction")
    assert [e.text for e in follower.next()] == ["fast transaction"]
    event(running, 105, "slow transaction")
    event(running, 111, "next")
    assert [e.text for e in follower.next()] == ["slow transaction", "next"]
    assert follower.next() == []


def test_a_late_row_is_found_until_the_time_for_it_is_over(running, monkeypatch):
    moment = [1000.0]
    monkeypatch.setattr(rows.time, "monotonic", lambda: moment[0])
    event(running, 100, "before")
    follower = Follower(Event.objects.filter(experiment=running), list, in_order=False)
    event(running, 110, "fast")
    follower.next()
    moment[0] += rows.LATE_SECONDS - 1
    event(running, 109, "late")
    assert [e.text for e in follower.next()] == ["late"]
    moment[0] += 2 * rows.LATE_SECONDS
    follower.next()
    assert len(follower._seen) == 0, "what is behind is forgotten"


def test_a_page_with_few_points_has_them_all(running):
    first = scenes.open_round(running, 1)
    scenes.train(first, "mainz", range(1, 11))
    found, is_thinned = page_rows(running)
    assert len(found) == 10
    assert not is_thinned


def test_a_page_with_many_points_gets_means_of_equal_parts_for_every_site(running, monkeypatch):
    monkeypatch.setattr(rows, "POINTS_IN_PAGE", 20)
    first = scenes.open_round(running, 1)
    for slug in ("mainz", "ulm"):
        journal.ingest(scenes.run_of(first, slug), 1, [scenes.loss(s, float(s), of=100) for s in range(1, 101)])
    found, is_thinned = page_rows(running)
    assert is_thinned
    assert {(m.site, m.step) for m in found} == {(slug, s) for slug in ("mainz", "ulm") for s in range(10, 101, 10)}
    assert {m.value for m in found if m.step == 100} == {95.5}


def test_a_page_with_many_rounds_keeps_every_nth_measurement(running, monkeypatch):
    monkeypatch.setattr(rows, "POINTS_IN_PAGE", 20)
    Metric.objects.bulk_create(
        Metric(
            experiment=running, round_number=n, phase="global", name="dice", region="mean", value=0.5, at=timezone.now()
        )
        for n in range(1, 41)
    )
    found, is_thinned = page_rows(running)
    assert is_thinned
    assert sorted(m.round for m in found) == list(range(2, 41, 2))


def test_page_and_socket_together_give_every_point_once_whatever_comes_in_between(running):
    first = scenes.open_round(running, 1)
    scenes.train(first, "mainz", range(1, 4))
    cursor = newest_cursor(running)
    scenes.train(first, "mainz", range(4, 6))  # between taking the cursor and reading the rows
    in_page = page_rows(running)[0]
    scenes.train(first, "mainz", range(6, 8))
    later = [m for _, metrics, _ in missed(running.pk, cursor) for m in metrics]
    points = collect({m.id: m for m in (*in_page, *later)}.values(), start=running.started_at)[0]["points"]
    assert [p[2] for p in points] == list(range(1, 8))
