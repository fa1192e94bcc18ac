"""While sites work: deliveries, failures, retries, deadlines, stragglers, strays, logs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from fedportal.aggregation.errors import AggregationFailed
from fedportal.connectors.base import RunState, RunStatus
from fedportal.connectors.errors import SiteUnreachable
from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Advance, Changes, Wait
from fedportal.orchestrator.snapshot import SiteRunView, Snapshot
from fedportal.orchestrator.steps.logs import MAX_LOG, take_logs
from fedportal.orchestrator.steps.opening import dispatch, publish
from fedportal.orchestrator.steps.watching import STORE_LOOK, STORE_SILENT, cancel_strays, watch
from tests.orchestrator.fakes import START, Federation, model_bytes
from tests.orchestrator.snapshots import KEY, RUN, attempt, elsewhere, model, moves, site_run, snapshot, texts
from trainer.contract import Exit, Kind, Manifest, Stored

S = SiteRunState


def at_work(federation: Federation, *slugs: str, **fields) -> Snapshot:
    """A round whose sites have been started and work."""
    waiting = tuple(site_run(slug, upload={}) for slug in slugs)
    first = snapshot(RoundState.PUBLISHING, site_runs=waiting, incoming=model(federation))
    changes = publish(first, federation.tools).changes
    uploads = [change.fields["upload"] for change in changes.attempts]
    ready = tuple(site_run(slug, upload=upload) for slug, upload in zip(slugs, uploads, strict=True))
    dispatch(snapshot(RoundState.DISPATCHING, site_runs=ready, incoming=first.incoming), federation.tools)
    state = fields.pop("run_state", S.RUNNING)
    runs = tuple(site_run(slug, state, upload=upload) for slug, upload in zip(slugs, uploads, strict=True))
    fields.setdefault("deadline_at", START + timedelta(hours=1))
    return snapshot(site_runs=runs, incoming=first.incoming, **fields)


def later(s: Snapshot, seconds: float) -> Snapshot:
    return replace(s, now=s.now + timedelta(seconds=seconds))


# --- deliveries -----------------------------------------------------------------------------------


def test_an_update_is_collected_while_others_still_train(federation: Federation):
    s = at_work(federation, "a", "b", "c")
    federation["b"].deliver()
    outcome = watch(later(s, 12), federation.tools)
    assert isinstance(outcome, Wait)
    (change,) = outcome.changes.site_runs
    assert change.through == (S.UPLOADED, S.ADMITTED)
    assert (change.fields["train_cases"], change.fields["steps"]) == (8, 6)
    assert change.fields["update_norm"] > 0
    assert "Hospital B delivered its update after 12 s." in texts(outcome.changes)
    assert outcome.changes.measured[0].records[0].value == 0.5


def test_the_round_is_aggregated_when_all_have_delivered(federation: Federation):
    s = at_work(federation, "a", "b")
    for slug in "ab":
        federation[slug].deliver()
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Advance)
    assert outcome.changes.round_through == (RoundState.COLLECTING, RoundState.AGGREGATING)


def test_a_round_in_which_one_is_missing_is_weighed_first(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    federation["b"].deliver(exit_code=int(Exit.NO_DATASET), message="No dataset.", update=b"")
    outcome = watch(s, federation.tools)
    assert outcome.changes.round_through == (RoundState.COLLECTING,)


def test_a_delivery_counts_even_when_the_site_says_that_the_run_failed(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    federation["a"].die()
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}


def test_a_manifest_that_comes_between_look_and_answer_is_not_missed(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.errands.hanging.add(("look", f"fp-{KEY}-r1-a-a1"))
    federation.tools.pace.forget(("poll", f"fp-{KEY}-r1-a-a1"))
    federation["a"].deliver()
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.until == s.now
    assert moves(outcome.changes) == {}


def test_an_evaluation_needs_no_update(federation: Federation):
    s = at_work(federation, "a")
    s = replace(s, newest=replace(s.round, is_evaluation=True, state=RoundState.EVALUATING))
    federation["a"].deliver(kind=Kind.EVALUATE, update=b"")
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.ADMITTED}
    assert "Hospital A measured the model" in texts(changes)


def test_a_late_update_of_an_old_attempt_is_ignored(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    second = site_run("a", S.RUNNING, number=2)
    federation["a"].states[second.attempt.run] = RunStatus(RunState.RUNNING)
    s = replace(s, site_runs=(second, s.site_runs[1]))
    assert moves(watch(s, federation.tools).changes) == {}


BAD_MANIFESTS = {
    "another key": ({"key": "00" * 32}, "wrong signature"),
    "another run": ({"run": "fp-other-r1-a-a1"}, "another run"),
    "another experiment": ({"experiment": "other"}, "another run"),
    "another round": ({"round": 2}, "another run"),
    "another site": ({"site": "b"}, "another run"),
    "another attempt": ({"attempt": 2}, "another run"),
    "another kind": ({"kind": Kind.EVALUATE}, "another run"),
    "no case": ({"train_cases": 0}, "trained on no case"),
    "another network": ({"update": model_bytes(np.zeros(1)).replace(b'"w"', b'"v"')}, "lacks “w”"),
    "not finite": ({"update": model_bytes(np.nan)}, "finite"),
    "not safetensors": ({"update": b"not a model"}, ""),
    "far too large": ({"update": b"\0" * (2**21)}, "The update has 2097152 bytes"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_delivery_that_must_not_be_used_is_rejected_with_a_reason(federation: Federation, name: str):
    s = at_work(federation, "a", "b")
    arguments, reason = BAD_MANIFESTS[name]
    federation["a"].deliver(**arguments)
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.REJECTED}
    assert reason in changes.site_runs[0].because
    assert changes.site_runs[0].because in texts(changes)
    assert not changes.new_attempts


def test_an_update_that_moved_too_far_is_rejected(federation: Federation):
    s = at_work(federation, "a", "b", max_relative_norm=0.5)
    federation["a"].deliver(update=model_bytes(100.0))
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.REJECTED}


def test_an_update_that_is_not_what_the_manifest_says_is_fetched_by_another_attempt(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    federation["a"].deliver(update=model_bytes(3.0), **{"message": "x"})
    key = f"fedportal/{KEY}/r00001/a/a1/update.safetensors"
    federation.store.objects[key] = b"\0" * manifest.update.size
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.PENDING}
    assert "did not arrive whole" in changes.site_runs[0].because


def left_on_the_shelf(federation: Federation, manifest: Manifest, data: bytes) -> Path:
    shelf = federation.tools.spool / KEY / "r00001"
    shelf.mkdir(parents=True, exist_ok=True)
    (shelf / manifest.update.sha256).write_bytes(data)
    return shelf / manifest.update.sha256


def test_an_update_that_a_run_on_this_machine_has_left_is_not_read_from_the_store(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    data = federation.store.objects.pop(f"fedportal/{KEY}/r00001/a/a1/update.safetensors")
    left = left_on_the_shelf(federation, manifest, data)
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}
    assert not left.exists(), "it is taken, not copied"


def test_something_else_on_the_shelf_is_not_believed(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    left_on_the_shelf(federation, manifest, b"\0" * manifest.update.size)
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}
    key = f"fedportal/{KEY}/r00001/a/a1/update.safetensors"
    spooled = federation.tools.spool / KEY / "r00001" / "a-a1-update.safetensors"
    assert spooled.read_bytes() == federation.store.objects[key]


def test_the_store_is_not_asked_about_runs_that_still_work_on_this_machine(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.store.is_down = True
    assert watch(s, federation.tools).reason == ""
    assert watch(elsewhere(s), federation.tools).reason == STORE_SILENT


def test_an_update_in_parts_is_completed_first(federation: Federation):
    federation.store.large = 1
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}
    assert list(federation.store.uploads.values()) == [f"fedportal/{KEY}/r00001/b/a1/update.safetensors"]


# --- failures -------------------------------------------------------------------------------------


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
    assert texts(changes) == "Hospital A answers again."
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


# --- time -----------------------------------------------------------------------------------------


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


def test_a_log_is_kept_up_to_a_limit(federation: Federation):
    s = at_work(federation, "a")
    federation["a"].log = "x" * (MAX_LOG + 1000)
    watch(s, federation.tools)
    changes = Changes()
    take_logs(s, federation.tools, changes)
    assert len(changes.logs[0].text) == MAX_LOG
    full = replace(s.site_runs[0], current=replace(s.site_runs[0].attempt, log_offset=MAX_LOG))
    federation.clock.tick(1000)
    watch(replace(s, site_runs=(full,)), federation.tools)
    assert federation.errands.keys("logs") == []


def test_the_manifests_update_hash_is_what_the_site_run_remembers(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    fields = watch(s, federation.tools).changes.site_runs[0].fields
    data = federation.store.objects[f"fedportal/{KEY}/r00001/a/a1/update.safetensors"]
    assert manifest.update == Stored(hashlib.sha256(data).hexdigest(), len(data))
    assert (fields["update_sha256"], fields["update_size"]) == (manifest.update.sha256, manifest.update.size)


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
