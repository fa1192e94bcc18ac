"""Runs that a site has and does not begin: what people are told, and when."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from fedportal.connectors.base import RunState, RunStatus
from fedportal.experiments.states import SiteRunState as S
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps.watching import WAITS_LONG, watch
from tests.orchestrator.fakes import Federation
from tests.orchestrator.snapshots import at_work, later

CONFIRM = RunStatus(RunState.WAITING, message="It waits for the steward's confirmation.")


def after(s: Snapshot, federation: Federation, seconds: float) -> tuple[Snapshot, list[str]]:
    """Look so many seconds later at the only site; return the snapshot with its reason, and the journal's lines."""
    federation.clock.tick(seconds)
    changes = watch(later(s, seconds), federation.tools).changes
    for change in changes.site_runs:
        if "reason" in change.fields:
            run = replace(s.site_runs[0], reason=str(change.fields["reason"]))
            s = replace(s, site_runs=(run,))
    return s, [line.text for line in changes.lines]


def test_what_a_run_waits_for_is_said_once_it_has_lasted(federation: Federation):
    s = at_work(federation, "a", run_state=S.DISPATCHED)
    federation["a"].states[federation["a"].run] = CONFIRM
    s, lines = after(s, federation, 5)
    assert (s.site_runs[0].reason, lines) == ("", [])
    long = (WAITS_LONG + timedelta(seconds=1)).total_seconds()
    s, lines = after(s, federation, long)
    assert s.site_runs[0].reason == "It waits for the steward's confirmation."
    assert lines == ["Hospital A: It waits for the steward's confirmation."]
    s, lines = after(s, federation, long + 60)
    assert lines == []


def test_the_reason_goes_when_the_run_begins(federation: Federation):
    s = at_work(federation, "a", run_state=S.DISPATCHED)
    federation["a"].states[federation["a"].run] = CONFIRM
    s, _ = after(s, federation, 100)
    federation["a"].states[federation["a"].run] = RunStatus(RunState.RUNNING)
    s, lines = after(s, federation, 200)
    assert s.site_runs[0].reason == ""
    assert lines == ["Hospital A goes on."]
