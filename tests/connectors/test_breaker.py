"""The breaker of a site: who may call a site that is not reached, when, and how all others hear of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedportal.connectors.base import CheckReport, CheckStep, LogChunk, RunState, RunStatus
from fedportal.connectors.breaker import FIRST, JITTER, LONGEST, OPENS_AFTER, SOON, TRY_LIMIT, Breaker, Guarded, State
from fedportal.connectors.errors import SiteNotReady, SiteRefused, SiteResting, SiteUnreachable
from trainer.contract import LaunchTicket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock, lambda low, high: (low + high) / 2)


def fail(breaker: Breaker, times: int = OPENS_AFTER) -> None:
    for _ in range(times):
        breaker.missed("It is dead.", was_try=breaker.enter())


def test_it_opens_after_some_failures_in_a_row_and_names_the_reason(breaker: Breaker) -> None:
    fail(breaker, OPENS_AFTER - 1)
    breaker.reached()
    fail(breaker, OPENS_AFTER - 1)
    assert breaker.state is State.CLOSED
    fail(breaker, 1)
    with pytest.raises(SiteResting, match="It is dead") as caught:
        breaker.enter()
    assert caught.value.seconds == FIRST


def test_one_call_tries_and_its_success_lets_all_pass(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += FIRST
    assert breaker.enter()
    with pytest.raises(SiteResting) as caught:
        breaker.enter()
    assert caught.value.seconds == SOON, "how the try goes is known soon"
    breaker.reached()
    assert not breaker.enter()
    assert breaker.state is State.CLOSED


def test_a_try_that_never_comes_back_is_given_up(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += FIRST
    assert breaker.enter()
    clock.now += TRY_LIMIT
    assert breaker.enter()


def test_a_call_that_says_nothing_about_the_site_leaves_the_try_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now += FIRST
    breaker.left(was_try=breaker.enter())
    assert breaker.state is State.OPEN
    assert breaker.enter()


def test_late_failures_of_calls_from_before_do_not_lengthen_the_pause(breaker: Breaker, clock: Clock) -> None:
    begun = [breaker.enter() for _ in range(20)]
    for was_try in begun:
        breaker.missed("It is dead.", was_try=was_try)
    clock.now += FIRST
    assert breaker.enter(), "after the first pause, not after one of twenty doublings"


@given(st.lists(st.tuples(st.sampled_from(["answer", "silence", "bug"]), st.floats(0, 200)), max_size=60))
def test_whatever_happens_a_dead_site_gets_one_call_for_each_pause(happens: list[tuple[str, float]]) -> None:
    clock, draws, named = Clock(), [], []

    def draw(low: float, high: float) -> float:
        draws.append((low, high))
        return low if len(draws) % 2 else high

    breaker = Breaker(clock, draw)
    silent_in_a_row, last_try, pauses = 0, 0.0, 0
    for outcome, later in happens:
        clock.now += later
        was_open = breaker.state is not State.CLOSED
        try:
            was_try = breaker.enter()
        except SiteResting as resting:
            named.append(resting.seconds)
            assert was_open
            continue
        assert was_try is was_open
        if was_try and pauses:
            assert clock.now - last_try >= FIRST * (1 - JITTER) * 0.999
        with pytest.raises(SiteResting) if was_try else nullcontext():
            breaker.enter()
        match outcome:
            case "answer":
                breaker.reached()
                silent_in_a_row = pauses = 0
            case "silence":
                breaker.missed("-", was_try=was_try)
                silent_in_a_row += 1
                if silent_in_a_row >= OPENS_AFTER:
                    last_try, pauses = clock.now, pauses + 1
            case _:
                breaker.left(was_try=was_try)
                pauses = 0  # the next may try at once
        assert (breaker.state is State.OPEN) == (silent_in_a_row >= OPENS_AFTER)
    assert all((low, high) == (1 - JITTER, 1 + JITTER) for low, high in draws)
    assert all(SOON <= seconds <= LONGEST * (1 + JITTER) for seconds in named)


def test_pauses_double_up_to_the_longest(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    waited = []
    for _ in range(6):
        seconds = next(_until_free(breaker, clock))
        waited.append(seconds)
        breaker.missed("It is dead.", was_try=True)
    assert waited == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, LONGEST, LONGEST]


def _until_free(breaker: Breaker, clock: Clock) -> Iterator[float]:
    begun = clock.now
    while True:
        try:
            assert breaker.enter()
        except SiteResting as resting:
            clock.now += resting.seconds
        else:
            yield clock.now - begun


# --- what is told -----------------------------------------------------------------------------------


def test_news_tell_since_when_a_site_is_silent_and_when_it_is_tried_next(breaker: Breaker, clock: Clock) -> None:
    breaker.reached()
    assert (first := breaker.news()) is not None
    assert (first.reached, first.silent) == (0.0, None)
    assert breaker.news() is None, "nothing new"
    for _ in range(OPENS_AFTER):
        clock.now += 2
        fail(breaker, 1)
    assert (found := breaker.news()) is not None
    assert (found.reached, found.silent, found.next_try, found.reason) == (6.0, 4.0, FIRST, "It is dead.")
    clock.now += FIRST
    breaker.enter()
    breaker.reached()
    assert (again := breaker.news()) is not None
    assert again.silent is None


def test_a_site_that_goes_on_being_reached_is_no_news_each_time(breaker: Breaker, clock: Clock) -> None:
    told = 0
    for _ in range(300):
        clock.now += 1
        breaker.reached()
        told += breaker.news() is not None
    assert told == 10


# --- the guarded connector --------------------------------------------------------------------------


class Site:
    """A connector whose calls do what ``error`` says."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.calls: list[str] = []
        self.is_well = True

    def _do(self, name: str) -> None:
        self.calls.append(name)
        if self.error is not None:
            raise self.error

    def check(self) -> CheckReport:
        self.calls.append("check")
        return CheckReport((CheckStep("x", self.is_well, "-"),))

    def launch(self, ticket: LaunchTicket) -> bool:
        self._do("launch")
        return True

    def poll(self, run: str) -> RunStatus:
        self._do("poll")
        return RunStatus(RunState.RUNNING)

    def cancel(self, run: str) -> None:
        self._do("cancel")

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        self._do("logs")
        return LogChunk("", offset)

    def start_device_login(self) -> str:
        return "a login"


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def guarded(site: Site, breaker: Breaker) -> Guarded:
    return Guarded(site, breaker)


def test_a_dead_site_is_not_called_and_the_error_says_when_it_will_be(
    site: Site, guarded: Guarded, clock: Clock
) -> None:
    site.error = SiteUnreachable("It is dead.", remedy="Wake it.")
    for _ in range(OPENS_AFTER):
        with pytest.raises(SiteUnreachable):
            guarded.poll("run")
    assert len(site.calls) == OPENS_AFTER
    for call in (lambda: guarded.poll("other"), lambda: guarded.cancel("run"), lambda: guarded.logs("run")):
        with pytest.raises(SiteResting, match="It is dead"):
            call()
    assert len(site.calls) == OPENS_AFTER
    clock.now += FIRST
    with pytest.raises(SiteResting) as caught:
        guarded.logs("run")  # a log is nothing to try a site with
    with pytest.raises(SiteResting) as caught:
        guarded.launch(LaunchTicket("run", "-"))
    assert caught.value.seconds == 2 * FIRST
    assert site.calls[OPENS_AFTER:] == ["launch"]
    clock.now += 2 * FIRST
    site.error = None
    assert guarded.poll("run").state is RunState.RUNNING
    assert guarded.logs("run") == LogChunk("", 0)


@pytest.mark.parametrize("error", [SiteRefused("No."), SiteNotReady("Its DAG is paused.")])
def test_a_site_that_says_no_is_reached(site: Site, guarded: Guarded, breaker: Breaker, error: Exception) -> None:
    site.error = error
    for _ in range(5):
        with pytest.raises(type(error)):
            guarded.poll("run")
    assert breaker.state is State.CLOSED


def test_logs_that_cannot_be_read_do_not_stand_for_the_site(site: Site, guarded: Guarded, breaker: Breaker) -> None:
    site.error = SiteUnreachable("500")
    for _ in range(5):
        with pytest.raises(SiteUnreachable):
            guarded.logs("run")
    assert breaker.state is State.CLOSED


def test_a_check_is_always_made_and_a_good_one_closes_the_breaker(
    site: Site, guarded: Guarded, breaker: Breaker
) -> None:
    fail(breaker)
    site.is_well = False
    guarded.check()
    assert breaker.state is State.OPEN
    site.is_well = True
    guarded.check()
    assert breaker.state is State.CLOSED


def test_what_else_a_connector_can_do_is_passed_through(guarded: Guarded) -> None:
    assert guarded.start_device_login() == "a login"
    with pytest.raises(AttributeError):
        _ = guarded.fly
