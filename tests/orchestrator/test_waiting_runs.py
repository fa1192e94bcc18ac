"""Runs that a site has and does not begin: what people are told, and when."""

from __future__ import annotations

from datetime import timedelta

from fedportal.connectors.base import RunState, RunStatus
from fedportal.experiments.states import SiteRunState as S
from fedportal.orchestrator.outcomes import Outcome
from fedportal.orchestrator.steps.watching import WAITS_LONG
from tests.orchestrator.fakes import Federation
from tests.orchestrator.snapshots import at_work, looked

CONFIRM = RunStatus(RunState.WAITING, message="It waits for the steward's confirmation.")


def lines_of(outcome: Outcome) -> list[str]:
    return [line.text for line in outcome.changes.lines]


def test_what_a_run_waits_for_is_said_once_it_has_lasted(federation: Federation):
    s = at_work(federation, "a", run_state=S.DISPATCHED)
    federation["a"].states[federation["a"].run] = CONFIRM
    s, outcome = looked(s, federation, 5)
    assert (s.site_runs[0].reason, lines_of(outcome)) == ("", [])
    long = (WAITS_LONG + timedelta(seconds=1)).total_seconds()
    s, outcome = looked(s, federation, long - 5)
    assert s.site_runs[0].reason == "It waits for the steward's confirmation."
    assert lines_of(outcome) == ["Hospital A: It waits for the steward's confirmation."]
    s, outcome = looked(s, federation, 60)
    assert lines_of(outcome) == []


def test_the_reason_goes_when_the_run_begins(federation: Federation):
    s = at_work(federation, "a", run_state=S.DISPATCHED)
    federation["a"].states[federation["a"].run] = CONFIRM
    s, _ = looked(s, federation, 100)
    federation["a"].states[federation["a"].run] = RunStatus(RunState.RUNNING)
    s, outcome = looked(s, federation, 100)
    assert s.site_runs[0].reason == ""
    assert lines_of(outcome) == ["Hospital A goes on."]
