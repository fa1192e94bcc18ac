"""Deadlines, stragglers and a lost quorum while sites work."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Wait
from fedportal.orchestrator.steps.watching import watch
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.snapshots import (
    KEY,
    RUN,
    at_work,
    later,
    moves,
    site_run,
    texts,
)
from trainer.contract import Exit

S = SiteRunState


def test_the_deadline_ends_all_that_have_not_delivered(federation: Federation):
    s = at_work(federation, "a", "b", "c", deadline_at=START + timedelta(minutes=1), deadline=timedelta(minutes=1))
    federation["a"].deliver()
    outcome = watch(later(s, 60), federation.tools)
    assert moves(outcome.changes) == {RUN["a"]: S.ADMITTED, RUN["b"]: S.TIMED_OUT, RUN["c"]: S.TIMED_OUT}
    assert outcome.changes.round_through == (RoundState.COLLECTING,)
    assert "Hospital B: It did not deliver within 1 min 0 s." in texts(outcome.changes)


def test_a_delivery_that_is_being_fetched_at_the_deadline_is_not_late(federation: Federation):
    s = at_work(federation, "a", "b", deadline_at=START)
    federation.errands.hanging.add(("look", f"fp-{KEY}-r1-a-a1"))
    federation["a"].deliver(s.site_runs[0].attempt.run)
    outcome = watch(s, federation.tools)
    assert moves(outcome.changes) == {RUN["b"]: S.TIMED_OUT}
    assert isinstance(outcome, Wait)
    assert s.now < outcome.until <= s.now + timedelta(seconds=1)


def test_the_next_look_is_not_after_the_deadline(federation: Federation):
    s = at_work(federation, "a", deadline_at=START + timedelta(seconds=0.05))
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.until == START + timedelta(seconds=0.05)


def test_stragglers_are_dropped_when_the_grace_after_the_quorum_is_over(federation: Federation):
    s = at_work(federation, "a", "b", "c", stragglers="drop", grace=timedelta(minutes=5))
    for slug in "ab":
        federation[slug].deliver()
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.changes.round_fields == {"quorum_at": START}
    rest = replace(s, site_runs=(site_run("a", S.ADMITTED), site_run("b", S.ADMITTED), s.site_runs[2]))
    rest = replace(rest, newest=replace(s.round, quorum_at=START))
    assert moves(watch(later(rest, 299), federation.tools).changes) == {}
    assert moves(watch(later(rest, 300), federation.tools).changes) == {RUN["c"]: S.TIMED_OUT}


def test_waiting_for_all_goes_on_after_the_quorum(federation: Federation):
    s = at_work(federation, "a", "b", "c", stragglers="wait", quorum_at=START - timedelta(minutes=50))
    assert moves(watch(s, federation.tools).changes) == {}


def test_with_stragglers_fail_one_failed_site_stops_the_others(federation: Federation):
    s = at_work(federation, "a", "b", stragglers="fail")
    federation["a"].deliver(exit_code=int(Exit.NO_DATASET), message="No dataset.", update=b"")
    outcome = watch(s, federation.tools)
    assert moves(outcome.changes) == {RUN["a"]: S.FAILED, RUN["b"]: S.TIMED_OUT}
    assert outcome.changes.round_through == (RoundState.COLLECTING,)


def test_a_lost_quorum_is_shown_while_others_still_train(federation: Federation):
    s = at_work(federation, "a", "b", min_sites=2)
    federation["a"].deliver(exit_code=int(Exit.NO_DATASET), message="No dataset.", update=b"")
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.reason.startswith("Round 1 needs updates from 2 sites, but only 1 can still deliver. Let Hospital A")
