"""Runs that their site does not know: asked for again for a while, and only then given up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedportal.connectors.base import RunState, RunStatus
from fedportal.experiments.states import SiteRunState as S
from fedportal.orchestrator.outcomes import Advance
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps.watching import LOST_FOR
from tests.orchestrator.fakes import Federation
from tests.orchestrator.snapshots import RUN, at_work, elsewhere, looked, moves, texts

DELETED = RunStatus(RunState.LOST, message="It was deleted there")
ASKS = "Hospital A: It was deleted there. The portal asks once more."
LIMIT = LOST_FOR.total_seconds()


@pytest.fixture
def lost(federation: Federation) -> Snapshot:
    """Hospital A has just said for the first time that it does not know its run."""
    s = elsewhere(at_work(federation, "a", "b"))
    s, _ = looked(s, federation, 60)
    federation["a"].states[federation["a"].run] = DELETED
    s, outcome = looked(s, federation, 60)
    assert texts(outcome.changes) == ASKS
    assert moves(outcome.changes) == {}
    return s


def test_a_run_that_is_found_again_goes_on(federation: Federation, lost: Snapshot):
    federation["a"].states[federation["a"].run] = RunStatus(RunState.RUNNING)
    s, outcome = looked(lost, federation, LIMIT + 50)
    assert texts(outcome.changes) == "Hospital A goes on."
    assert (s.site_runs[0].reason, s.site_runs[0].attempt.state) == ("", "running")
    assert not outcome.changes.new_attempts


def test_a_run_that_stays_unknown_is_tried_again_when_the_time_is_over(federation: Federation, lost: Snapshot):
    s, outcome = looked(lost, federation, LIMIT / 2)
    assert moves(outcome.changes) == {}
    assert texts(outcome.changes) == "", "it is said once"
    s, outcome = looked(s, federation, LIMIT / 2)
    assert isinstance(outcome, Advance)
    assert moves(outcome.changes) == {RUN["a"]: S.PENDING}
    assert "Hospital A tries again in 1.0 s: It was deleted there. (attempt 2 of 3)" in texts(outcome.changes)


def test_a_lost_run_is_asked_for_soon(federation: Federation, lost: Snapshot):
    _, outcome = looked(lost, federation, 0.5)
    assert 0 < (outcome.until - lost.now).total_seconds() <= LIMIT / 2
    before = lost
    for _ in range(3):  # not at every look in between
        before, outcome = looked(before, federation, 0.1)
        assert before.site_runs[0].attempt == lost.site_runs[0].attempt


def test_the_time_begins_again_after_each_sign_of_life(federation: Federation, lost: Snapshot):
    s = lost
    for _ in range(4):  # it goes on sending what it measures
        current = replace(s.site_runs[0].attempt, heard_at=s.now)
        s = replace(s, site_runs=(replace(s.site_runs[0], current=current), *s.site_runs[1:]))
        s, outcome = looked(s, federation, LIMIT * 0.6)
        assert moves(outcome.changes) == {}
    federation["a"].deliver()
    s, outcome = looked(s, federation, LIMIT)
    assert moves(outcome.changes) == {RUN["a"]: S.ADMITTED}


def test_the_portals_own_processes_are_not_asked_twice(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].states[federation["a"].run] = DELETED
    _, outcome = looked(s, federation, 1)
    assert moves(outcome.changes) == {RUN["a"]: S.PENDING}


def test_a_run_that_fails_after_it_was_not_found_is_not_said_to_go_on(federation: Federation, lost: Snapshot):
    federation["a"].die(message="Killed.")
    _, outcome = looked(lost, federation, LIMIT / 2)
    assert texts(outcome.changes) == "Hospital A tries again in 1.0 s: Killed. (attempt 2 of 3)"
