"""Errands beside the steps, and the pace of questions."""

from __future__ import annotations

import threading

import pytest

from fedportal.orchestrator.errands import LARGE_AT_ONCE, Errands, Pace
from tests.orchestrator.fakes import Clock


def test_a_result_waits_until_it_is_taken_and_is_taken_once():
    errands = Errands()
    assert errands.start("a", lambda: 42)
    errands.wait(["a"], 5)
    assert not errands.start("a", lambda: 43), "the first result was not taken yet"
    assert errands.take("a").value == 42
    assert errands.take("a") is None


def test_an_error_is_handed_to_whoever_takes_it():
    errands = Errands()
    errands.start("a", lambda: 1 // 0)
    errands.wait(["a"], 5)
    assert isinstance(errands.take("a").error, ZeroDivisionError)


def test_one_hanging_errand_delays_no_other():
    errands = Errands()
    gate = threading.Event()
    errands.start(("poll", "dead"), gate.wait)
    errands.start(("poll", "alive"), lambda: "here")
    errands.wait([("poll", "alive")], 5)
    assert errands.take(("poll", "alive")).value == "here"
    errands.wait([("poll", "dead")], 0.01)
    assert errands.take(("poll", "dead")) is None
    assert errands.is_under_way(("poll", "dead"))
    assert errands.keys("poll") == [("poll", "dead")]
    gate.set()


def test_a_key_is_under_way_once():
    errands = Errands()
    gate = threading.Event()
    assert errands.start("a", gate.wait)
    assert not errands.start("a", gate.wait)
    gate.set()


def test_only_a_few_large_errands_run_at_once():
    errands = Errands()
    gate, running, most = threading.Event(), [0], [0]
    lock = threading.Lock()
    full = threading.Event()

    def work() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == LARGE_AT_ONCE:
                full.set()
        gate.wait()
        with lock:
            running[0] -= 1

    keys = [("large", n) for n in range(LARGE_AT_ONCE + 3)]
    for key in keys:
        errands.start(key, work, is_large=True)
    assert full.wait(5)
    gate.set()
    errands.wait(keys, 5)
    assert most[0] == LARGE_AT_ONCE


def test_each_finished_errand_is_news_once():
    errands = Errands()
    assert not errands.wait_for_news(0)
    errands.start("a", lambda: 1)
    assert errands.wait_for_news(5)
    assert not errands.wait_for_news(0), "nobody took it, and still it wakes nobody again"
    assert errands.take("a").value == 1


def test_experiments_have_errands_of_their_own():
    errands = Errands()
    errands.of("one").start("a", lambda: 1)
    errands.of("one").wait(["a"], 5)
    assert errands.of("two").take("a") is None
    assert errands.of("one").take("a").value == 1
    kept = errands.of("one")
    errands.drop("one")
    assert errands.of("one") is not kept


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_site_is_asked_less_often_the_longer_it_works(clock: Clock):
    pace = Pace(clock.monotonic)
    pauses = []
    for _ in range(12):
        pace.heard("a", first=2, longest=15)
        pauses.append(pace.remaining("a"))
        clock.tick(100)
    assert 1.6 <= pauses[0] <= 2.4
    assert 12 <= pauses[-1] <= 18


def test_a_silent_site_is_asked_ever_more_rarely_and_soon_again_when_it_answers(clock: Clock):
    pace = Pace(clock.monotonic)
    pauses = []
    for n in range(10):
        assert pace.missed("a") == n + 1
        pauses.append(pace.remaining("a"))
    assert 1.6 <= pauses[0] <= 2.4
    assert 48 <= pauses[-1] <= 72
    pace.heard("a", first=2, longest=15)
    assert pace.remaining("a") <= 2.4


def test_a_site_may_be_silent_for_days(clock: Clock):
    pace = Pace(clock.monotonic)
    for _ in range(3000):
        pace.missed("a")
    assert 48 <= pace.remaining("a") <= 72


def test_what_was_never_asked_is_due(clock: Clock):
    pace = Pace(clock.monotonic)
    assert pace.is_due("a")
    pace.missed("a")
    assert not pace.is_due("a")
    pace.forget("a")
    assert pace.is_due("a")


def test_sites_are_not_asked_in_step(clock: Clock):
    pace = Pace(clock.monotonic)
    for n in range(20):
        pace.heard(n, first=10, longest=10)
    assert len({round(pace.remaining(n), 3) for n in range(20)}) > 10
