"""What has arrived: one look for all sites, never an outdated one, and less often where there are many."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from fedportal.connectors.base import RunState, RunStatus
from fedportal.experiments.states import SiteRunState as S
from fedportal.orchestrator.errands import Errand, Errands
from fedportal.orchestrator.outcomes import Wait
from fedportal.orchestrator.sitework import PEEK, Answer
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps.arrivals import CROWD, FEW, SOON, Arrivals
from fedportal.orchestrator.steps.watching import says_something_new, watch
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.snapshots import KEY, RUN, attempt, elsewhere, model, moves, site_run, snapshot


def at_work(federation: Federation) -> Snapshot:
    """Runs at three sites, of which none has delivered. What they would deliver is known to the federation."""
    runs = tuple(site_run(slug, S.RUNNING) for slug in "abc")
    for run in runs:
        federation[run.site.slug].states[run.attempt.run] = RunStatus(RunState.RUNNING)
    return elsewhere(snapshot(incoming=model(federation), site_runs=runs))


@pytest.fixture
def asked(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the object store is asked for."""
    found: list[str] = []
    for name in ("list", "get_bytes", "exists"):
        real = getattr(federation.store, name)
        monkeypatch.setattr(
            federation.store, name, lambda key, *, real=real, name=name, **_: (found.append(name), real(key))[1]
        )
    return found


def test_the_store_is_asked_once_for_all_sites(federation: Federation, asked: list[str]) -> None:
    watch(at_work(federation), federation.tools)
    assert asked == ["list"]


def test_an_answer_from_before_a_wake_up_does_not_count_for_now(federation: Federation) -> None:
    s = at_work(federation)
    federation.errands.hanging.add(("list",))
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.until <= START + timedelta(seconds=SOON), "an answer that is under way may be outdated"
    federation.errands.hanging.clear()
    federation.errands._away.clear()
    empty = federation.errands._done["list", KEY] = Errand(value=frozenset())  # it came at last
    empty.done.set()
    _deliver(federation, s)
    federation.clock.tick(1)
    assert moves(watch(replace(s, now=federation.clock.now), federation.tools).changes) == {RUN["a"]: S.ADMITTED}


def _deliver(federation: Federation, s: Snapshot) -> None:
    from fedportal.orchestrator import sitework

    run = s.site_runs[0]
    sitework.publish(s, run.attempt, "Task01_BrainTumour", federation.tools)
    federation["a"].states.clear()
    sitework.launch(s, run.attempt, [], federation.tools)
    federation["a"].deliver(run.attempt.run)


def test_a_crowd_is_looked_at_less_often_and_a_look_that_is_not_due_is_made_up_for(
    federation: Federation, asked: list[str]
) -> None:
    runs = [replace(site_run("a", S.RUNNING), id=number) for number in range(100)]
    s = elsewhere(snapshot(incoming=model(federation), site_runs=tuple(runs)))
    pause = CROWD * (100 - FEW)
    first = Arrivals(s, federation.tools)
    first.look(s.site_runs)
    assert (asked.count("list"), first.again_in) == (1, None)
    second = Arrivals(s, federation.tools)
    second.look(s.site_runs)
    assert asked.count("list") == 1
    assert second.again_in is not None
    assert 0.5 * pause < second.again_in < 1.5 * pause
    federation.clock.tick(second.again_in + 0.001)  # the clock counts in microseconds
    Arrivals(s, federation.tools).look(s.site_runs)
    assert asked.count("list") == 2
    few = Arrivals(replace(s, site_runs=s.site_runs[:FEW]), federation.tools)
    assert few.pause == 0


def test_only_an_answer_that_says_something_new_wakes() -> None:
    running = attempt("a", state="running")
    assert not says_something_new(running, Answer(RunStatus(RunState.RUNNING, message="Still.")))
    assert says_something_new(running, Answer(RunStatus(RunState.WAITING)))
    assert says_something_new(running, Answer(RunStatus(RunState.RUNNING), has_delivered=True))
    errands = Errands()

    def fails() -> None:
        raise ValueError

    for call, is_news, wakes in (
        (lambda: 0, bool, False),
        (lambda: 1, bool, True),
        (fails, bool, True),
        (fails, False, False),
        (lambda: 0, True, True),
    ):
        errands.start("key", call, is_news=is_news)
        errands.wait(["key"], 5)
        assert errands.wait_for_news(0.0) is wakes
        assert errands.take("key") is not None


def test_a_run_of_this_machine_that_stands_still_after_its_manifest_has_delivered(federation: Federation) -> None:
    s = replace(at_work(federation), site_runs=tuple(site_run(slug, S.RUNNING) for slug in "abc"))
    _deliver(federation, s)
    federation["a"].states[s.site_runs[0].attempt.run] = RunStatus(RunState.RUNNING)
    assert moves(watch(s, federation.tools).changes) == {}, "one that works is not asked about at once"
    federation.clock.tick(2 * PEEK)
    assert moves(watch(replace(s, now=federation.clock.now), federation.tools).changes) == {RUN["a"]: S.ADMITTED}
