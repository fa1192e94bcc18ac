"""While sites work: failures, retries, silence, strays, logs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from fedportal.aggregation.errors import AggregationFailed
from fedportal.connectors.base import RunState, RunStatus
from fedportal.connectors.errors import SiteUnreachable
from fedportal.experiments.states import SiteRunState
from fedportal.orchestrator.outcomes import Advance, Changes, Wait
from fedportal.orchestrator.snapshot import SiteRunView
from fedportal.orchestrator.steps.logs import MAX_LOG, take_logs
from fedportal.orchestrator.steps.strays import cancel_strays
from fedportal.orchestrator.steps.watching import STORE_LOOK, STORE_SILENT, watch
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.snapshots import (
    KEY,
    RUN,
    at_work,
    attempt,
    elsewhere,
    later,
    moves,
    site_run,
    snapshot,
    texts,
)
from trainer.contract import Exit

S = SiteRunState


def test_a_dead_run_is_tried_again_after_a_pause(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.clock.tick(1)
    federation["a"].die(message="Killed.")
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Advance)
    (change,) = outcome.changes.site_runs
    assert (change.through, change.because) == ((S.PENDING,), "Killed.")
    assert change.fields["not_before"] == START + timedelta(seconds=1)
    assert [(new.number, new.run) for new in outcome.changes.new_attempts] == [(2, f"fp-{KEY}-r1-a-a2")]
    assert "Hospital A tries again in 1.0 s: Killed. (attempt 2 of 3)" in texts(outcome.changes)


def test_a_run_that_the_site_lost_is_tried_again(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.clock.tick(1)
    federation["a"].states.clear()
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.PENDING}


def test_a_failure_that_would_come_again_ends_the_site_run_at_once(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.clock.tick(1)
    federation["a"].die(exit_code=Exit.WRONG_LABEL, message="Case 7 has label 9.")
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.FAILED}
    assert "Hospital A failed: Case 7 has label 9. Another attempt would fail in the same way." in texts(changes)


def test_a_failed_manifest_is_believed_without_asking_the_site(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver(exit_code=int(Exit.DIVERGED), message="The loss became infinite.", update=b"")
    federation["a"].states.clear()
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.FAILED}
    assert changes.measured, "what it measured before is kept"


def test_the_last_attempt_fails_the_site_run(federation: Federation):
    s = at_work(federation, "a", "b")
    third = replace(s.site_runs[0], tries=3)
    federation.clock.tick(1)
    federation["a"].die()
    changes = watch(replace(s, site_runs=(third, s.site_runs[1])), federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.FAILED}
    assert "That was attempt 3 of 3." in texts(changes)


def test_a_run_that_says_success_but_delivered_nothing_is_tried_again(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.clock.tick(1)
    federation["a"].states[federation["a"].run] = RunStatus(RunState.SUCCEEDED, 0)
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.PENDING}


def test_the_next_attempt_is_published_and_launched_when_its_pause_is_over(federation: Federation):
    s = at_work(federation, "a", "b")
    second = site_run("a", S.PENDING, number=2, upload={}, not_before=START + timedelta(seconds=4))
    s = replace(s, site_runs=(second, s.site_runs[1]))
    early = watch(s, federation.tools)
    assert isinstance(early, Wait)
    assert early.until <= START + timedelta(seconds=4)
    assert not early.changes.attempts
    due = later(s, 4)
    published = watch(due, federation.tools)
    assert isinstance(published, Advance)
    (change,) = published.changes.attempts
    ready = site_run("a", S.PENDING, number=2, upload=change.fields["upload"])
    launched = watch(replace(due, site_runs=(ready, s.site_runs[1])), federation.tools)
    assert moves(launched.changes) == {RUN["a"]: S.DISPATCHED}
    assert federation["a"].run.endswith("-a2")


def test_a_site_run_that_a_person_retries_gets_a_new_attempt(federation: Federation):
    s = at_work(federation, "a", "b")
    retried = site_run("a", S.PENDING, ended_at=START)
    changes = watch(replace(s, site_runs=(retried, s.site_runs[1])), federation.tools).changes
    assert [(new.site_run, new.number) for new in changes.new_attempts] == [(RUN["a"], 2)]


def test_a_silent_site_is_told_of_once_and_again_when_it_answers(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].trouble = SiteUnreachable("No route to it.")
    told = []
    for _ in range(6):
        federation.clock.tick(100)
        changes = watch(s, federation.tools).changes
        told += [line.text for line in changes.lines]
        reasons = [c.fields["reason"] for c in changes.site_runs if "reason" in c.fields]
        if reasons:
            s = replace(s, site_runs=(replace(s.site_runs[0], reason=reasons[0]), s.site_runs[1]))
    assert told == ["Hospital A: No route to it. Trying again."]
    federation["a"].trouble = None
    federation.clock.tick(100)
    changes = watch(s, federation.tools).changes
    assert texts(changes) == "Hospital A goes on."
    assert changes.site_runs[0].fields == {"reason": ""}


def test_a_bug_in_one_connector_does_not_end_the_experiment(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].trouble = ZeroDivisionError("a bug")
    federation["b"].deliver()
    for _ in range(3):
        federation.clock.tick(100)
        changes = watch(s, federation.tools).changes
    assert "Hospital A: a bug. Trying again." in texts(changes)


def test_an_update_that_kills_the_judge_costs_its_site_an_attempt(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    federation.aggregation.trouble = AggregationFailed("It needed more memory than its limit.")
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.PENDING}
    assert changes.site_runs[0].because == "The update could not be judged: It needed more memory than its limit."


def test_a_hanging_site_hides_no_delivery_of_another(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.errands.hanging |= {("poll", f"fp-{KEY}-r1-a-a1"), ("look", f"fp-{KEY}-r1-a-a1")}
    federation["b"].deliver()
    assert moves(watch(s, federation.tools).changes) == {RUN["b"]: S.ADMITTED}


def test_a_silent_store_makes_the_round_wait_with_a_reason(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    federation.store.is_down = True
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.reason == STORE_SILENT
    assert moves(outcome.changes) == {}


@pytest.mark.parametrize(("connector", "soon"), [("airflow", True), ("local", False)])
def test_the_store_is_looked_into_between_two_questions_to_a_site_elsewhere(
    federation: Federation, connector: str, soon: bool
):
    """It may reach the store and not the portal. The end of a run on the portal's own machine is seen at once."""
    s = at_work(federation, "a")
    run = s.site_runs[0]
    site = replace(run.site, connector=connector)
    s = replace(s, site_runs=(replace(run, participant=replace(run.participant, site=site)),))
    federation.tools.pace.forget(("poll", run.attempt.run))
    federation.tools.pace.heard(("poll", run.attempt.run), first=60, longest=60)
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert (outcome.until - s.now <= STORE_LOOK) is soon


def test_a_site_is_not_asked_at_every_look(federation: Federation):
    s = elsewhere(at_work(federation, "a"))
    asked = []
    federation["a"].poll = lambda run: asked.append(run) or RunStatus(RunState.RUNNING)
    for _ in range(10):
        federation.clock.tick(0.03)
        watch(s, federation.tools)
    assert asked == []
    federation.clock.tick(2)
    watch(s, federation.tools)
    watch(s, federation.tools)
    assert len(asked) == 1


# --- strays and logs --------------------------------------------------------------------------------


def test_a_run_that_nobody_waits_for_is_ended_and_confirmed(federation: Federation):
    stray = attempt("c", 1, round=1, launched_at=START)
    s = replace(at_work(federation, "a"), strays=(stray,))
    changes = watch(s, federation.tools).changes
    assert federation["c"].cancelled == [stray.run]
    assert [c.fields["state"] for c in changes.attempts if c.attempt == stray.id] == ["cancelled"]


def test_an_unconfirmed_stray_is_asked_again_later(federation: Federation):
    stray = attempt("c", 1, launched_at=START)
    s = snapshot(strays=(stray,))
    federation["c"].trouble = SiteUnreachable("No route.")
    changes = Changes()
    assert cancel_strays(s, federation.tools, changes) == [stray]
    federation["c"].trouble = None
    assert cancel_strays(s, federation.tools, changes) == [stray], "not at once: the pause is not over"
    federation.clock.tick(10)
    assert cancel_strays(s, federation.tools, changes) == []


def test_the_log_is_read_on_while_the_run_works_and_once_more_at_its_end(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].log = "one\n"
    watch(s, federation.tools)
    changes = Changes()
    take_logs(s, federation.tools, changes)
    assert [(log.offset, log.text, log.next_offset) for log in changes.logs] == [(0, "one\n", 4)]
    federation["a"].log = "one\ntwo\n"
    federation["a"].deliver()
    run = replace(s.site_runs[0], current=replace(s.site_runs[0].attempt, log_offset=4))
    s = replace(s, site_runs=(run, s.site_runs[1]))
    outcome = watch(s, federation.tools)
    take_logs(s, federation.tools, outcome.changes)
    assert [(log.offset, log.text) for log in outcome.changes.logs] == [(4, "two\n")]


@pytest.mark.parametrize("beginning", ["", "x"])
def test_a_log_is_kept_up_to_a_limit(federation: Federation, beginning: str):
    s = at_work(federation, "a")
    federation["a"].log = beginning + "ü" * MAX_LOG
    watch(s, federation.tools)
    changes = Changes()
    take_logs(s, federation.tools, changes)
    assert changes.logs[0].text == beginning + "ü" * ((MAX_LOG - len(beginning)) // 2), "whole characters"
    full = replace(s.site_runs[0], current=replace(s.site_runs[0].attempt, log_offset=MAX_LOG))
    federation.clock.tick(1000)
    watch(replace(s, site_runs=(full,)), federation.tools)
    assert federation.errands.keys("logs") == []


def test_a_site_run_without_an_attempt_gets_its_first(federation: Federation):
    s = at_work(federation, "a")
    late: SiteRunView = site_run("b", S.PENDING, number=0)
    changes = watch(replace(s, site_runs=(*s.site_runs, late)), federation.tools).changes
    assert [(new.site_run, new.number) for new in changes.new_attempts] == [(RUN["b"], 1)]


def test_earlier_rounds_are_cleared_up_once_while_the_sites_work(federation: Federation):
    s = at_work(federation, "a", "b")
    s = replace(s, newest=replace(s.round, number=2))
    spool = federation.tools.spool / KEY
    for name in ("r00000/global.safetensors", "r00001/global.safetensors", "r00001/a-a1-update.safetensors"):
        (spool / name).parent.mkdir(parents=True, exist_ok=True)
        (spool / name).write_bytes(b"x")
    prefix = f"fedportal/{KEY}"
    old, now = f"{prefix}/r00001/a/a1/update.safetensors", f"{prefix}/r00002/a/a1/spec.json"
    model_key = f"{prefix}/r00001/global.safetensors"
    for key in (old, now, model_key):
        federation.store.objects[key] = b"x"
    watch(s, federation.tools)
    assert old not in federation.store.objects
    assert {now, model_key} <= set(federation.store.objects)
    assert [str(path.relative_to(spool)) for path in spool.rglob("*.safetensors")] == ["r00001/global.safetensors"]
    federation.store.objects[old] = b"x"
    watch(s, federation.tools)
    assert old in federation.store.objects, "not again at every look"
