"""Beginning a round: which sites take part, what is published, how the sites are started."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from fedportal.connectors.errors import SiteRefused, SiteUnreachable, StoreUnreachable
from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Advance, Fail, Wait
from fedportal.orchestrator.steps.opening import dispatch, open_round, publish
from fedportal.orchestrator.steps.starting import tidy
from tests.factories import make_plan
from tests.orchestrator.fakes import START, Federation, key_of
from tests.orchestrator.snapshots import KEY, RUN, attempt, model, moves, participant, site_run, snapshot, texts
from trainer.contract import Optimizer, spec_from_json, verified

PENDING, PUBLISHING, DISPATCHING = RoundState.PENDING, RoundState.PUBLISHING, RoundState.DISPATCHING


# --- open -----------------------------------------------------------------------------------------


def test_all_healthy_sites_take_part(federation: Federation):
    outcome = open_round(snapshot(PENDING), federation.tools)
    assert isinstance(outcome, Advance)
    assert outcome.changes.round_through == (PUBLISHING,)
    assert [new.run for new in outcome.changes.new_site_runs] == [f"fp-{KEY}-r1-{slug}-a1" for slug in "abc"]


def test_a_site_with_a_problem_is_skipped_and_the_journal_says_why(federation: Federation):
    people = (participant("a"), participant("b", problem="The disk is full."), participant("c"))
    changes = open_round(snapshot(PENDING, participants=people), federation.tools).changes
    skipped = [new for new in changes.new_site_runs if not new.run]
    assert [(new.participation, new.because) for new in skipped] == [(12, "The disk is full.")]
    assert "Hospital B is left out of round 1: The disk is full." in texts(changes)


def test_a_site_that_nobody_checked_is_asked_first(federation: Federation):
    federation["b"].problem = "No dataset."
    people = (participant("a", is_checked=False), participant("b", is_checked=False), participant("c"))
    changes = open_round(snapshot(PENDING, participants=people), federation.tools).changes
    assert [(new.participation, bool(new.run)) for new in changes.new_site_runs] == [
        (11, True),
        (12, False),
        (13, True),
    ]
    assert (federation["a"].checks, federation["c"].checks) == (1, 0)


def test_a_site_whose_check_hangs_is_left_out(federation: Federation):
    federation.errands.hanging.add(("check", 1))
    people = (participant("a", is_checked=False), participant("b"), participant("c"))
    changes = open_round(snapshot(PENDING, participants=people), federation.tools).changes
    assert [new.because for new in changes.new_site_runs if not new.run] == ["It did not answer within 20 seconds."]


def test_too_few_sites_make_the_round_wait_with_a_reason_and_ask_for_checks(federation: Federation):
    people = (participant("a"), *(participant(slug, problem="Down.") for slug in "bc"))
    outcome = open_round(snapshot(PENDING, participants=people), federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.reason == (
        "Round 1 waits for sites: 1 of 3 can take part, 2 are needed. Hospital B: Down. Hospital C: Down."
    )
    assert outcome.until == START + timedelta(seconds=15)
    assert outcome.changes.checks == [2, 3]
    assert not outcome.changes.new_site_runs


def test_too_few_sites_until_the_deadline_fail_the_round(federation: Federation):
    people = (participant("a"), *(participant(slug, problem="Down.") for slug in "bc"))
    late = snapshot(PENDING, participants=people, now=START + timedelta(hours=1))
    assert isinstance(open_round(late, federation.tools), Fail)


def test_a_round_taken_up_again_keeps_what_was_admitted_and_tries_the_rest_anew(federation: Federation):
    runs = (
        site_run("a", SiteRunState.ADMITTED),
        site_run("b", SiteRunState.PENDING, ended_at=START, number=3),
        site_run("c", SiteRunState.SKIPPED, number=0),
    )
    changes = open_round(snapshot(PENDING, site_runs=runs), federation.tools).changes
    assert moves(changes) == {RUN["c"]: SiteRunState.PENDING}
    assert [(new.site_run, new.number) for new in changes.new_attempts] == [(RUN["b"], 4), (RUN["c"], 1)]
    assert not changes.new_site_runs


def test_admitted_updates_count_for_the_quorum_of_a_round_taken_up_again(federation: Federation):
    people = (participant("a", problem="Down."), participant("b", problem="Down."), participant("c"))
    runs = (
        site_run("a", SiteRunState.ADMITTED),
        site_run("b", SiteRunState.PENDING, ended_at=START),
        site_run("c", SiteRunState.PENDING, ended_at=START),
    )
    changes = open_round(snapshot(PENDING, participants=people, site_runs=runs), federation.tools).changes
    assert moves(changes) == {RUN["b"]: SiteRunState.SKIPPED}
    assert [new.site_run for new in changes.new_attempts] == [RUN["c"]]


def test_a_later_round_puts_its_jobs_at_once(federation: Federation):
    outcome = open_round(snapshot(PENDING, number=2, incoming=model(federation, 1)), federation.tools)
    assert outcome.changes.round_through == (PUBLISHING, DISPATCHING)
    assert [new.upload["published"] for new in outcome.changes.new_site_runs] == [True, True, True]
    assert {f"fedportal/{KEY}/r00002/{slug}/a1/spec.json" for slug in "abc"} <= set(federation.store.objects)


def test_a_job_that_cannot_be_put_at_once_is_left_to_publishing(federation: Federation):
    s = snapshot(PENDING, number=2, incoming=model(federation, 1))
    federation.store.is_down = True
    outcome = open_round(s, federation.tools)
    assert outcome.changes.round_through == (PUBLISHING,)
    assert [new.upload for new in outcome.changes.new_site_runs] == [{}, {}, {}]


# --- publish --------------------------------------------------------------------------------------


def unpublished(slug: str):
    return site_run(slug, upload={})


def test_the_first_round_makes_the_initial_model(federation: Federation):
    outcome = publish(snapshot(PUBLISHING, site_runs=(unpublished("a"),)), federation.tools)
    assert isinstance(outcome, Advance)
    new = outcome.changes.model
    assert (new.round_number, new.key) == (0, f"fedportal/{KEY}/r00000/global.safetensors")
    assert len(federation.store.objects[new.key]) == new.size
    assert federation.commands[0][0] == "init"
    assert not outcome.changes.round_through


def test_an_initial_model_that_cannot_be_made_fails_with_the_trainers_sentence(federation: Federation):
    federation.command_fails["init"] = '{"level": "error", "message": "The plan is senseless."}\n'
    outcome = publish(snapshot(PUBLISHING), federation.tools)
    assert isinstance(outcome, Fail)
    assert outcome.reason == "The initial model could not be made: The plan is senseless."


def test_a_later_round_without_its_model_fails(federation: Federation):
    assert isinstance(publish(snapshot(PUBLISHING, number=2), federation.tools), Fail)


def test_each_site_gets_a_signed_job_of_its_own(federation: Federation):
    s = snapshot(PUBLISHING, site_runs=(unpublished("a"), unpublished("b")), incoming=model(federation))
    changes = publish(s, federation.tools).changes
    assert changes.round_through == (DISPATCHING,)
    assert [change.fields["upload"]["published"] for change in changes.attempts] == [True, True]
    run = f"fp-{KEY}-r1-b-a1"
    data = federation.store.objects[f"fedportal/{KEY}/r00001/b/a1/spec.json"]
    spec = spec_from_json(verified(data, key_of(run)))
    assert (spec.run, spec.site, spec.dataset, spec.model.sha256) == (run, "b", "Task01_BrainTumour", s.model.sha256)
    assert spec.metrics_url == f"http://portal.test/api/runs/{run}/metrics"
    assert spec.optimizer_out is None
    assert spec.expires_at == (START + timedelta(hours=24)).timestamp()


def test_publishing_twice_opens_no_second_job_for_a_published_attempt(federation: Federation):
    s = snapshot(PUBLISHING, site_runs=(site_run("a"), unpublished("b")), incoming=model(federation))
    publish(s, federation.tools)
    assert not any("/a/a1/" in key for key in federation.store.writes)


def test_a_large_update_travels_in_parts_and_no_url_reaches_the_rows(federation: Federation):
    federation.store.large = 1
    s = snapshot(PUBLISHING, site_runs=(unpublished("a"),), incoming=model(federation))
    (change,) = publish(s, federation.tools).changes.attempts
    remembered = change.fields["upload"]["update.safetensors"]
    assert remembered == {"upload_id": "upload-1", "part_size": s.model.size + 2**20, "parts": 2}
    assert "memory:" not in str(change.fields)


def test_averaged_optimizer_state_goes_out_with_the_job(federation: Federation):
    plan = make_plan(optimizer=Optimizer(treatment="aggregate"))
    state = {"server_state_key": "fedportal/x/state", "server_state_sha256": "1" * 64, "server_state_size": 9}
    s = snapshot(PUBLISHING, site_runs=(unpublished("a"),), incoming=replace(model(federation), **state), plan=plan)
    publish(s, federation.tools)
    data = federation.store.objects[f"fedportal/{KEY}/r00001/a/a1/spec.json"]
    spec = spec_from_json(verified(data, key_of(f"fp-{KEY}-r1-a-a1")))
    assert spec.optimizer_in.size == 9
    assert spec.optimizer_out.url.endswith("optimizer.safetensors")


def test_a_job_that_cannot_be_put_stops_the_step(federation: Federation):
    s = snapshot(PUBLISHING, site_runs=(unpublished("a"),), incoming=model(federation))
    federation.store.is_down = True
    with pytest.raises(StoreUnreachable):
        publish(s, federation.tools)


# --- dispatch -------------------------------------------------------------------------------------


def published(federation: Federation, *slugs: str):
    s = snapshot(PUBLISHING, site_runs=tuple(unpublished(slug) for slug in slugs), incoming=model(federation))
    publish(s, federation.tools)
    return snapshot(DISPATCHING, site_runs=tuple(site_run(slug) for slug in slugs), incoming=s.incoming)


def test_dispatching_starts_all_sites_and_sets_the_deadline(federation: Federation):
    changes = dispatch(published(federation, "a", "b", "c"), federation.tools).changes
    assert set(moves(changes).values()) == {SiteRunState.DISPATCHED}
    assert [len(federation[slug].launched) for slug in "abc"] == [1, 1, 1]
    assert changes.round_through == (RoundState.TRAINING,)
    assert changes.round_fields == {"dispatched_at": START, "deadline_at": START + timedelta(hours=1)}
    assert "at 3 sites: Hospital A, Hospital B and Hospital C." in texts(changes)


def test_every_address_of_a_round_works_until_its_deadline(federation: Federation, monkeypatch: pytest.MonkeyPatch):
    """A run may begin days after its job was put, when somebody at the site has confirmed it."""
    lifetimes = []
    s = replace(published(federation, "a"), deadline=timedelta(days=3))
    sign = federation.store.presign_get
    for verb in ("presign_get", "presign_put"):
        monkeypatch.setattr(
            federation.store, verb, lambda key, expires, **_: lifetimes.append(expires) or sign(key, expires)
        )
    publish(replace(s, site_runs=(unpublished("a"),)), federation.tools)
    dispatch(s, federation.tools)
    assert len(lifetimes) == 4, "model, manifest, log, job"
    assert min(lifetimes) > timedelta(days=3)
    assert len(federation["a"].launched) == 1


def test_sites_on_this_machine_find_the_model_on_the_rounds_shelf(federation: Federation):
    s = published(federation, "a", "b")
    spooled = federation.tools.spool / KEY / "r00000" / "global.safetensors"
    spooled.parent.mkdir(parents=True)
    spooled.write_bytes(federation.store.objects[s.model.key])
    dispatch(s, federation.tools)
    assert (federation.tools.spool / KEY / "r00001" / s.model.sha256).read_bytes() == spooled.read_bytes()


def test_leftovers_that_cannot_be_removed_are_in_the_log(federation: Federation, caplog: pytest.LogCaptureFixture):
    s = published(federation, "a")
    federation.store.is_down = True
    tidy(replace(s, newest=replace(s.round, number=2)), federation.tools)
    assert "stay until its end" in caplog.text


def test_a_run_that_is_already_there_counts_as_started(federation: Federation):
    s = published(federation, "a")
    for _ in range(2):
        changes = dispatch(s, federation.tools).changes
        assert moves(changes) == {RUN["a"]: SiteRunState.DISPATCHED}
    assert len(federation["a"].launched) == 1


def test_a_site_that_does_not_answer_delays_nobody(federation: Federation):
    federation.errands.hanging.add(("launch", f"fp-{KEY}-r1-a-a1"))
    changes = dispatch(published(federation, "a", "b"), federation.tools).changes
    assert moves(changes) == {RUN["b"]: SiteRunState.DISPATCHED}
    assert changes.round_through == (RoundState.TRAINING,)


def test_an_unreachable_site_stays_pending_and_is_told_of(federation: Federation):
    s = published(federation, "a")
    federation["a"].trouble = SiteUnreachable("No route to it.")
    changes = dispatch(s, federation.tools).changes
    assert moves(changes) == {}
    assert changes.site_runs[0].fields["reason"] == "It cannot be started yet: No route to it."
    assert "Hospital A: It cannot be started yet: No route to it. Trying again." in texts(changes)


def test_a_refusing_site_fails_with_its_remedy(federation: Federation):
    s = published(federation, "a", "b")
    federation["a"].trouble = SiteRefused("The login is wrong.", remedy="Renew the password.")
    changes = dispatch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: SiteRunState.FAILED, RUN["b"]: SiteRunState.DISPATCHED}
    assert changes.site_runs[0].because == "The login is wrong. Renew the password."


def test_earlier_attempts_are_ended_before_the_next_is_started(federation: Federation):
    s = published(federation, "a")
    old = attempt("a", 1, round=9)
    changes = dispatch(replace(s, strays=(old,)), federation.tools).changes
    assert federation["a"].cancelled == [old.run]
    ended = [change for change in changes.attempts if change.attempt == old.id]
    assert ended[0].fields == {"ended_at": START, "state": "cancelled"}
