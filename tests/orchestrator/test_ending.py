"""Ending an experiment: its files, or its cancellation."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from fedportal.connectors.errors import SiteUnreachable, StoreUnreachable
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator.errands import Errands
from fedportal.orchestrator.outcomes import Advance, Wait
from fedportal.orchestrator.snapshot import ArtefactView, ContributionView, SiteRunView, Snapshot
from fedportal.orchestrator.steps import STEPS, step_for
from fedportal.orchestrator.steps.ending import cancel, finish
from tests.orchestrator.fakes import START, Federation
from tests.orchestrator.snapshots import KEY, RUN, attempt, model, moves, site_run, snapshot, texts

S = SiteRunState


def done(federation: Federation, dices=(0.1, 0.8, 0.6), **fields) -> Snapshot:
    models = tuple(replace(model(federation, n), dice=dice) for n, dice in enumerate(dices))
    shares = (ContributionView(2, "a", 8, 0.5, "1" * 64), ContributionView(1, "a", 8, 1.0, "2" * 64))
    return snapshot(
        RoundState.DONE,
        number=3,
        is_evaluation=True,
        models=models,
        contributions=shares,
        incoming=models[-1],
        **fields,
    )


# --- finish ---------------------------------------------------------------------------------------


def test_every_model_gets_a_recipe_and_final_and_best_a_bundle(federation: Federation):
    outcome = finish(done(federation), federation.tools)
    made = [(new.model, new.kind) for new in outcome.changes.artefacts]
    assert made == [(1, "recipe"), (2, "recipe"), (3, "recipe"), (2, "bundle"), (3, "bundle")]
    assert outcome.changes.experiment_to is ExperimentState.COMPLETED
    assert "Final Dice 0.600. The best model is that of round 1 with 0.800." in texts(outcome.changes)


def test_the_best_model_is_chosen_by_the_region_that_was_asked_for(federation: Federation):
    s = done(federation)
    regions = (0.9, 0.2, 0.7)
    models = tuple(
        replace(model, scores={"all": {"dice": {"ET": value}}}) for model, value in zip(s.models, regions, strict=True)
    )
    outcome = finish(replace(s, models=models, best_by="ET"), federation.tools)
    assert "Final Dice of ET 0.700. The best model is that of round 0 with 0.900." in texts(outcome.changes)
    assert [new.model for new in outcome.changes.artefacts if new.kind == "bundle"] == [3]  # not the initial one


def test_a_recipe_says_how_its_model_came_about(federation: Federation):
    finish(done(federation), federation.tools)
    recipe = json.loads(federation.store.objects[f"fedportal/{KEY}/r00002/recipe.json"])
    assert recipe["round"] == 2
    assert recipe["plan"]["task"]["name"] == "BRATS"
    assert recipe["contributions"] == [{"site": "a", "train_cases": 8, "weight": 0.5, "update_sha256": "1" * 64}]
    assert recipe["weights"]["sha256"] == done(federation).models[2].sha256
    assert recipe["dice"] == 0.6


def test_a_recipe_withholds_small_numbers_of_cases(federation: Federation):
    shares = (ContributionView(2, "a", 3, 0.1, "1" * 64), ContributionView(2, "b", 27, 0.9, "2" * 64))
    finish(replace(done(federation), contributions=shares), federation.tools)
    recipe = json.loads(federation.store.objects[f"fedportal/{KEY}/r00002/recipe.json"])
    assert [share["train_cases"] for share in recipe["contributions"]] == [None, 27]


def test_bundles_wait_until_the_spool_is_tidied(federation: Federation):
    key = ("tidy", f"{KEY}-3")
    federation.errands.hanging.add(key)
    federation.errands.start(key, lambda: None)
    assert isinstance(finish(done(federation), federation.tools), Wait)


def test_a_bundle_that_cannot_be_made_does_not_fail_the_experiment(federation: Federation):
    federation.command_fails["bundle"] = "MONAI is missing."
    outcome = finish(done(federation), federation.tools)
    assert outcome.changes.experiment_to is ExperimentState.COMPLETED
    assert "The MONAI bundle of the model of round 2 could not be made: MONAI is missing." in texts(outcome.changes)


def test_models_without_a_score_end_with_the_last_as_final(federation: Federation):
    outcome = finish(done(federation, (None, None, None)), federation.tools)
    assert [new.model for new in outcome.changes.artefacts if new.kind == "bundle"] == [3]
    assert texts(outcome.changes) == "The experiment is complete after 2 rounds."


def test_finishing_again_makes_no_artefact_twice(federation: Federation):
    made = (ArtefactView(1, "recipe"), ArtefactView(2, "recipe"), ArtefactView(3, "recipe"), ArtefactView(3, "bundle"))
    outcome = finish(done(federation, artefacts=made), federation.tools)
    assert [(new.model, new.kind) for new in outcome.changes.artefacts] == [(2, "bundle")]


def test_leftovers_go_and_models_stay(federation: Federation):
    prefix = f"fedportal/{KEY}"
    for key in (f"{prefix}/r00001/a/a1/update.safetensors", f"{prefix}/r00002/b/a2/spec.json"):
        federation.store.objects[key] = b"x"
    federation.store.uploads["open"] = f"{prefix}/r00003/c/a1/update.safetensors"
    s = done(federation)
    finish(s, federation.tools)
    left = set(federation.store.objects)
    assert {m.key for m in s.models} <= left
    assert not any("/a1/" in key or "/a2/" in key for key in left)
    assert federation.store.uploads == {}
    assert not (federation.tools.spool / KEY).exists()


def test_a_run_that_cannot_be_ended_is_named(federation: Federation):
    federation["b"].trouble = SiteUnreachable("No route.")
    stray = attempt("b", launched_at=START)
    outcome = finish(done(federation, strays=(stray,)), federation.tools)
    assert f"Hospital B has not confirmed the end of {stray.run}" in texts(outcome.changes)
    assert outcome.changes.experiment_to is ExperimentState.COMPLETED


def test_a_run_that_is_still_being_started_is_ended_too(federation: Federation):
    stray, errands = attempt("b", launched_at=START), Errands()
    errands.start(("launch", stray.run), lambda: time.sleep(0.2))
    outcome = finish(done(federation, strays=(stray,)), replace(federation.tools, errands=errands))
    assert federation["b"].cancelled == [stray.run]
    assert "has not confirmed" not in texts(outcome.changes)
    assert outcome.changes.experiment_to is ExperimentState.COMPLETED


def test_a_silent_store_postpones_the_end(federation: Federation):
    s = done(federation)
    federation.store.is_down = True
    with pytest.raises(StoreUnreachable):
        finish(s, federation.tools)


# --- cancel ---------------------------------------------------------------------------------------


def cancelling(*runs: SiteRunView) -> Snapshot:
    strays = tuple(run.attempt for run in runs if run.attempt.ended_at is None)
    return snapshot(site_runs=runs, strays=strays, state=ExperimentState.CANCELLING)


def test_cancelling_ends_every_run_and_then_the_experiment(federation: Federation):
    s = cancelling(site_run("a", S.RUNNING), site_run("b", S.PENDING), site_run("c", S.ADMITTED, ended_at=START))
    outcome = cancel(s, federation.tools)
    assert isinstance(outcome, Advance)
    assert [len(federation[slug].cancelled) for slug in "abc"] == [1, 1, 0]
    assert moves(outcome.changes) == {RUN["a"]: S.CANCELLED, RUN["b"]: S.CANCELLED}
    assert outcome.changes.round_through == (RoundState.CANCELLED,)
    assert outcome.changes.experiment_to is ExperimentState.CANCELLED


def test_cancelling_waits_for_an_unreachable_site_and_names_it(federation: Federation):
    federation["a"].trouble = SiteUnreachable("No route.")
    outcome = cancel(cancelling(site_run("a", S.RUNNING), site_run("b", S.RUNNING)), federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.reason == "Waiting for Hospital A to confirm that the run has ended."
    assert outcome.until > START
    assert [change.fields["state"] for change in outcome.changes.attempts] == ["cancelled"]


def test_cancelling_gives_up_on_a_site_after_a_limit_and_says_so(federation: Federation):
    federation["a"].trouble = SiteUnreachable("No route.")
    s = replace(cancelling(site_run("a", S.RUNNING)), stopping_since=START - timedelta(minutes=15))
    outcome = cancel(s, federation.tools)
    assert outcome.changes.experiment_to is ExperimentState.CANCELLED
    assert "Hospital A did not confirm within 15 minutes" in outcome.changes.experiment_because


def test_a_launch_under_way_is_not_overtaken_by_its_own_cancel(federation: Federation):
    run = site_run("a", S.PENDING)
    federation.errands.hanging.add(("launch", run.attempt.run))
    federation.errands.start(("launch", run.attempt.run), lambda: None)
    outcome = cancel(cancelling(run), federation.tools)
    assert isinstance(outcome, Wait)
    assert federation["a"].cancelled == []


def test_cancelling_removes_leftovers_even_of_open_uploads(federation: Federation):
    federation.store.uploads["open"] = f"fedportal/{KEY}/r00001/a/a1/update.safetensors"
    cancel(cancelling(site_run("a", S.RUNNING)), federation.tools)
    assert federation.store.uploads == {}


def test_a_silent_store_does_not_hold_up_a_cancel(federation: Federation):
    federation.store.is_down = True
    outcome = cancel(cancelling(site_run("a", S.RUNNING)), federation.tools)
    assert outcome.changes.experiment_to is ExperimentState.CANCELLED
    assert "could not be removed" in texts(outcome.changes)


# --- the table ------------------------------------------------------------------------------------


def test_every_state_of_a_round_has_a_step():
    assert set(STEPS) == set(RoundState)


def test_cancelling_comes_before_whatever_the_round_would_do():
    assert step_for(cancelling(site_run("a", S.RUNNING))) is cancel


def test_a_dead_round_of_a_running_experiment_fails_it(federation: Federation):
    s = snapshot(RoundState.CANCELLED)
    assert "Cancelled" in step_for(s)(s, federation.tools).reason
