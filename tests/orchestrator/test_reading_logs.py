"""Logs of sites that are called are not read while the site is busy with a start, its own or that of the next round."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Changes
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps import logs
from fedportal.orchestrator.steps.logs import LAST_WORDS, start_log, take_logs
from fedportal.orchestrator.steps.opening import dispatch, publish
from tests.orchestrator.fakes import Federation
from tests.orchestrator.snapshots import elsewhere, model, site_run, snapshot


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each reading waited; none does here."""
    pauses: list[float] = []
    monkeypatch.setattr(logs.time, "sleep", pauses.append)
    return pauses


def at_work(federation: Federation, **fields: object) -> Snapshot:
    return snapshot(site_runs=(site_run("a", SiteRunState.RUNNING),), incoming=model(federation), **fields)


@pytest.mark.parametrize(
    ("is_called", "is_evaluation", "pause"), [(True, False, LAST_WORDS), (True, True, 0.0), (False, False, 0.0)]
)
def test_the_last_words_are_read_when_the_next_round_has_begun(
    federation: Federation, slept: list[float], is_called: bool, is_evaluation: bool, pause: float
) -> None:
    s = at_work(federation, is_evaluation=is_evaluation)
    attempt = (elsewhere(s) if is_called else s).site_runs[0].attempt
    federation["a"].log = "one\n"
    start_log(s, attempt, 0, federation.tools, has_ended=True)
    federation.errands.wait(federation.errands.keys("logs", s.key), 30)
    assert slept == [pause]
    following, changes = replace(s, newest=replace(s.round, id=6, number=2)), Changes()
    take_logs(following, federation.tools, changes)
    assert [log.text for log in changes.logs] == ["one\n"]
    federation.errands.wait(federation.errands.keys("logs", s.key), 30)
    assert slept == [pause, pause], "and once more, until nothing comes"


def test_a_log_that_was_delivered_is_not_asked_of_the_site(federation: Federation, slept: list[float]) -> None:
    s = elsewhere(at_work(federation))
    attempt = s.site_runs[0].attempt
    federation.store.put_bytes(f"{s.prefix(attempt)}/log.txt", b"all of it\n")
    federation["a"].trouble = AssertionError("it was asked")
    start_log(s, attempt, 0, federation.tools, has_ended=True)
    changes = Changes()
    take_logs(replace(s, newest=replace(s.round, id=6, number=2)), federation.tools, changes)
    assert [(log.offset, log.text, log.next_offset) for log in changes.logs] == [(0, "all of it\n", 10)]
    assert federation.errands.keys("logs", s.key) == []
    assert slept == []


def test_after_the_last_line_of_a_log_nothing_more_is_asked_for(federation: Federation, slept: list[float]) -> None:
    s = elsewhere(at_work(federation))
    federation["a"].log = 'read before\n{"message": "run ends"}\n'
    start_log(s, s.site_runs[0].attempt, 12, federation.tools, has_ended=True)
    changes = Changes()
    take_logs(replace(s, newest=replace(s.round, id=6, number=2)), federation.tools, changes)
    assert [log.text for log in changes.logs] == ['{"message": "run ends"}\n']
    assert federation.errands.keys("logs", s.key) == []
    assert slept == [LAST_WORDS]


def test_a_site_that_is_called_is_not_asked_for_a_log_right_after_the_start(federation: Federation) -> None:
    waiting = snapshot(RoundState.PUBLISHING, site_runs=(site_run("a", upload={}),), incoming=model(federation))
    (change,) = publish(waiting, federation.tools).changes.attempts
    ready = replace(waiting, site_runs=(site_run("a", upload=change.fields["upload"]),))
    run = ready.site_runs[0].attempt.run
    for s, is_due in ((ready, True), (elsewhere(ready), False)):
        federation.tools.pace.forget(("logs", run))
        dispatch(s, federation.tools)
        assert federation.tools.pace.is_due(("logs", run)) is is_due
