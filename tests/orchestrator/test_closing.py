"""Ending a round: quorum, scores, aggregation."""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from fedportal.aggregation.errors import AggregationFailed, AggregationRefused
from fedportal.aggregation.strategies import STRATEGIES
from fedportal.connectors.errors import ObjectDamaged, SiteUnreachable, StoreUnreachable
from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Advance, Fail
from fedportal.orchestrator.snapshot import Measurement
from fedportal.orchestrator.steps.closing import aggregate, collect, means
from tests.factories import make_plan
from tests.orchestrator.fakes import START, Federation, key_of, model_bytes, weights_of
from tests.orchestrator.snapshots import KEY, RUN, attempt, model, site_run, snapshot, texts
from trainer.contract import Kind, Manifest, Optimizer, Stored, signed

S = SiteRunState
COLLECTING, AGGREGATING = RoundState.COLLECTING, RoundState.AGGREGATING


# --- collect --------------------------------------------------------------------------------------


def test_with_the_quorum_the_round_is_aggregated(federation: Federation):
    runs = (site_run("a", S.ADMITTED), site_run("b", S.ADMITTED), site_run("c", S.FAILED))
    outcome = collect(snapshot(COLLECTING, site_runs=runs), federation.tools)
    assert isinstance(outcome, Advance)
    assert outcome.changes.round_through == (AGGREGATING,)


def test_without_the_quorum_the_round_fails_and_says_who_is_missing(federation: Federation):
    runs = (
        site_run("a", S.ADMITTED),
        site_run("b", S.FAILED, reason="Case 7 has label 9."),
        site_run("c", S.REJECTED, reason="Not finite."),
    )
    outcome = collect(snapshot(COLLECTING, site_runs=runs), federation.tools)
    assert isinstance(outcome, Fail)
    assert outcome.reason == (
        "Round 1 has updates from 1 site, 2 sites needed. Hospital B: Case 7 has label 9. Hospital C: Not finite."
    )


def test_a_failing_round_ends_what_still_runs(federation: Federation):
    stray = attempt("b", launched_at=START)
    runs = (site_run("a", S.ADMITTED), site_run("b", S.TIMED_OUT))
    outcome = collect(snapshot(COLLECTING, site_runs=runs, strays=(stray,)), federation.tools)
    assert isinstance(outcome, Fail)
    assert federation["b"].cancelled == [stray.run]
    assert [change.attempt for change in outcome.changes.attempts] == [stray.id]


def test_a_failing_round_says_who_has_not_confirmed_the_end_of_a_run(federation: Federation):
    stray = attempt("b", launched_at=START)
    federation["b"].trouble = SiteUnreachable("No route to it.")
    runs = (site_run("a", S.ADMITTED), site_run("b", S.TIMED_OUT))
    outcome = collect(snapshot(COLLECTING, site_runs=runs, strays=(stray,)), federation.tools)
    assert isinstance(outcome, Fail)
    assert f"Hospital B has not confirmed the end of {stray.run}; it may still be computing." in texts(outcome.changes)


@pytest.mark.parametrize(("stragglers", "outcome"), [("wait", Advance), ("drop", Advance), ("fail", Fail)])
def test_with_stragglers_fail_every_site_has_to_deliver(federation: Federation, stragglers: str, outcome: type):
    runs = (site_run("a", S.ADMITTED), site_run("b", S.ADMITTED), site_run("c", S.TIMED_OUT))
    assert isinstance(collect(snapshot(COLLECTING, site_runs=runs, stragglers=stragglers), federation.tools), outcome)


def test_the_final_evaluation_ends_without_aggregation(federation: Federation):
    runs = (site_run("a", S.ADMITTED, seconds={"load": 0.5, "validate_incoming": 2.0, "push": 9.0}),)
    s = snapshot(COLLECTING, site_runs=runs, is_evaluation=True, number=3)
    changes = collect(s, federation.tools).changes
    assert changes.round_through == (RoundState.DONE,)
    assert changes.slowest_site == 2.5


def test_a_final_evaluation_that_no_site_could_do_does_not_fail_the_experiment(federation: Federation):
    s = snapshot(COLLECTING, site_runs=(site_run("a", S.FAILED),), is_evaluation=True, number=3)
    outcome = collect(s, federation.tools)
    assert isinstance(outcome, Advance)
    assert outcome.changes.score is None
    assert "kept without a score" in texts(outcome.changes)


# --- scores ---------------------------------------------------------------------------------------


def measured(site: str, value: float | None, cases: int = 1, *, region: str = "mean", name: str = "dice"):
    return Measurement(site, name, region, value, cases)


def test_the_global_dice_counts_every_held_out_case_once():
    (number,) = means([measured("a", 0.9, 1), measured("b", 0.5, 3)])
    assert (number.value, number.cases) == (pytest.approx(0.6), 4)


@pytest.mark.parametrize("undefined", [None, math.nan, math.inf])
def test_undefined_values_count_nowhere(undefined: float | None):
    (number,) = means([measured("a", 0.9, 2), measured("b", undefined, 5)])
    assert (number.value, number.cases) == (0.9, 2)


def test_a_number_that_no_site_could_measure_stays_undefined():
    (number,) = means([measured("a", None), measured("b", None)])
    assert (number.value, number.cases) == (None, 0)


def test_the_mean_does_not_depend_on_the_order_of_arrival():
    values = [
        measured(site, value) for site, value in zip("abcdefg", (0.1, 0.7, 0.2, 0.3, 1e-9, 0.5, 0.9), strict=True)
    ]
    assert means(values)[0].value == means(values[::-1])[0].value


# --- aggregate ------------------------------------------------------------------------------------


def delivered(federation: Federation, values: dict[str, float], **fields):
    """A round whose updates lie in the store, each a constant; cases 8."""
    runs = []
    for slug, value in values.items():
        data = model_bytes(value)
        federation.store.objects[f"fedportal/{KEY}/r00001/{slug}/a1/update.safetensors"] = data
        runs.append(
            site_run(
                slug, S.ADMITTED, train_cases=8, update_sha256=sha256(data).hexdigest(), update_size=len(data),
                seconds={"train": value},
            )
        )  # fmt: skip
    return snapshot(AGGREGATING, site_runs=tuple(runs), incoming=model(federation), **fields)


def test_the_admitted_updates_become_the_next_global_model(federation: Federation, tmp_path: Path):
    outcome = aggregate(delivered(federation, {"a": 2.0, "b": 4.0, "c": 6.0}), federation.tools)
    new = outcome.changes.model
    assert new.key == f"fedportal/{KEY}/r00001/global.safetensors"
    assert (weights_of(federation.store.objects[new.key], tmp_path) == 4.0).all()
    assert new.sha256 == sha256(federation.store.objects[new.key]).hexdigest()
    assert outcome.changes.round_through == (RoundState.DONE,)
    assert outcome.changes.new_round == (2, "train")
    assert outcome.changes.slowest_site == 6.0
    assert [change.fields["weight"] for change in outcome.changes.site_runs] == [pytest.approx(1 / 3)] * 3
    assert "Round 1 aggregated from 3 of 3 sites." in texts(outcome.changes)


def test_only_admitted_updates_are_aggregated(federation: Federation, tmp_path: Path):
    s = delivered(federation, {"a": 2.0, "b": 4.0, "c": 600.0})
    runs = (*s.site_runs[:2], replace(s.site_runs[2], state=S.REJECTED))
    outcome = aggregate(replace(s, site_runs=runs), federation.tools)
    assert (weights_of(federation.store.objects[outcome.changes.model.key], tmp_path) == 3.0).all()
    assert "Round 1 aggregated from 2 of 3 sites." in texts(outcome.changes)
    assert outcome.changes.lines[0].data["left_out"] == ["c"]


@pytest.mark.parametrize(("weighting", "expected"), [("cases", 5.0), ("uniform", 4.0)])
def test_sites_count_by_their_cases_or_alike(federation: Federation, tmp_path: Path, weighting: str, expected: float):
    s = delivered(federation, {"a": 2.0, "b": 6.0}, weighting=weighting)
    runs = (s.site_runs[0], replace(s.site_runs[1], train_cases=24))
    outcome = aggregate(replace(s, site_runs=runs), federation.tools)
    assert (weights_of(federation.store.objects[outcome.changes.model.key], tmp_path) == expected).all()


def test_a_site_counts_for_no_more_cases_than_its_dataset_has(federation: Federation, tmp_path: Path):
    s = delivered(federation, {"a": 2.0, "b": 6.0}, weighting="cases")
    runs = (s.site_runs[0], replace(s.site_runs[1], train_cases=10**7))
    participants = tuple(replace(participant, cases=8) for participant in s.participants)
    outcome = aggregate(replace(s, site_runs=runs, participants=participants), federation.tools)
    assert (weights_of(federation.store.objects[outcome.changes.model.key], tmp_path) == 4.0).all()


def test_aggregating_again_after_a_crash_gives_the_same_bytes_without_the_spool(federation: Federation):
    s = delivered(federation, {"a": 0.1, "b": 0.7, "c": 0.3})
    first = aggregate(s, federation.tools).changes.model
    for path in federation.tools.spool.rglob("*.safetensors"):
        path.unlink()
    again = aggregate(replace(s, site_runs=s.site_runs[::-1]), federation.tools).changes.model
    assert again == first


def test_files_that_a_power_cut_spoilt_are_not_believed_by_the_next_process(federation: Federation):
    s = delivered(federation, {"a": 0.1, "b": 0.7, "c": 0.3})
    first = aggregate(s, federation.tools).changes.model
    for path in federation.tools.spool.rglob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    restarted = replace(federation.tools, counted={})
    assert aggregate(s, restarted).changes.model == first


@pytest.mark.parametrize("strategy", [name for name, known in STRATEGIES.items() if known.uses_server_state])
def test_a_server_optimizers_memory_is_published_with_each_round_and_read_from_there(
    federation: Federation, strategy: str
):
    s = delivered(federation, {"a": 0.1, "b": 0.7, "c": 0.3}, strategy=strategy)
    first = aggregate(s, federation.tools).changes.model
    memory = federation.store.objects[first.server_state_key]
    assert (first.server_state_sha256, first.server_state_size) == (sha256(memory).hexdigest(), len(memory))

    key = f"fedportal/{KEY}/r00000/server-state.safetensors"
    federation.store.objects[key] = memory
    remembered = replace(
        s.model,
        server_state_key=key,
        server_state_sha256=first.server_state_sha256,
        server_state_size=first.server_state_size,
    )
    second = aggregate(replace(s, incoming=remembered), federation.tools).changes.model
    assert second.sha256 != first.sha256
    for path in federation.tools.spool.rglob("*.safetensors"):  # as after a move to another machine
        path.unlink()
    assert aggregate(replace(s, incoming=remembered), federation.tools).changes.model == second


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_goes_through_a_round(federation: Federation, strategy: str):
    outcome = aggregate(delivered(federation, {"a": 2.0, "b": 4.0, "c": 9.0}, strategy=strategy), federation.tools)
    assert isinstance(outcome, Advance)
    assert bool(outcome.changes.model.server_state_key) is STRATEGIES[strategy].uses_server_state
    assert sum(change.fields["weight"] for change in outcome.changes.site_runs) == pytest.approx(1)


def test_a_median_of_two_fails_the_round_with_the_reason(federation: Federation):
    outcome = aggregate(delivered(federation, {"a": 2.0, "b": 4.0}, strategy="median"), federation.tools)
    assert isinstance(outcome, Fail)
    assert "Coordinate-wise median needs at least 3 sites in every round, not 2" in outcome.reason


def test_after_the_last_round_comes_the_evaluation(federation: Federation):
    s = delivered(federation, {"a": 2.0, "b": 4.0}, rounds_planned=1)
    assert aggregate(s, federation.tools).changes.new_round == (2, "evaluate")


def tired(federation: Federation, **fields):
    """Round 2 of 9; the initial model had 0.9, that of round 1 has 0.5 by now; patience is 1."""
    models = (replace(model(), dice=0.9), replace(model(round_number=1), dice=None))
    s = delivered(federation, {"a": 2.0, "b": 4.0}, measurements=(measured("a", 0.5), measured("b", 0.5)))
    (federation.tools.spool / KEY / "r00002").mkdir(parents=True)
    newest = replace(s.newest, number=2)
    incoming = replace(s.model, round_number=1)
    given = {"patience": 1, "rounds_planned": 9} | fields
    return replace(s, newest=newest, incoming=incoming, models=models, **given)


def test_without_a_better_model_the_round_is_the_last_and_its_model_is_still_made_and_measured(federation: Federation):
    changes = aggregate(tired(federation), federation.tools).changes
    assert changes.model.round_number == 2
    assert (changes.new_round, changes.rounds_planned) == ((3, "evaluate"), 2)
    assert "No model for 1 round had a better mean Dice than that of the start with 0.900" in texts(changes)


@pytest.mark.parametrize("fields", [{"patience": 2}, {"patience": 0}])
def test_with_patience_left_training_goes_on(federation: Federation, fields):
    changes = aggregate(tired(federation, **fields), federation.tools).changes
    assert (changes.new_round, changes.rounds_planned) == ((3, "train"), None)


def test_the_last_planned_round_does_not_stop_early(federation: Federation):
    changes = aggregate(tired(federation, rounds_planned=2), federation.tools).changes
    assert (changes.new_round, changes.rounds_planned) == ((3, "evaluate"), None)
    assert "stops early" not in texts(changes)


def test_updates_that_do_not_go_together_fail_the_round(federation: Federation):
    federation.aggregation.trouble = AggregationRefused("They do not fit.")
    outcome = aggregate(delivered(federation, {"a": 2.0, "b": 4.0}), federation.tools)
    assert isinstance(outcome, Fail)
    assert outcome.reason == "The updates could not be aggregated: They do not fit."


def test_a_killed_aggregation_is_left_to_the_engine(federation: Federation):
    federation.aggregation.trouble = AggregationFailed("It was killed.")
    with pytest.raises(AggregationFailed):
        aggregate(delivered(federation, {"a": 2.0, "b": 4.0}), federation.tools)


def test_an_unknown_strategy_fails_with_its_name(federation: Federation):
    outcome = aggregate(delivered(federation, {"a": 2.0}, strategy="magic"), federation.tools)
    assert isinstance(outcome, Fail)
    assert "magic" in outcome.reason


def test_a_silent_store_leaves_the_round_as_it_is(federation: Federation):
    s = delivered(federation, {"a": 2.0, "b": 4.0})
    federation.store.is_down = True
    with pytest.raises(StoreUnreachable):
        aggregate(s, federation.tools)


def delivered_with_states(federation: Federation, states: dict[str, float]):
    """A round whose sites have delivered their optimizers' states, too, with the manifests that announce them."""
    s = delivered(federation, dict.fromkeys(states, 2.0), plan=make_plan(optimizer=Optimizer(treatment="aggregate")))
    for run in s.site_runs:
        data = model_bytes(states[run.site.slug])
        federation.store.objects[f"{s.prefix(run.attempt)}/optimizer.safetensors"] = data
        manifest = Manifest(
            run=run.attempt.run, experiment=KEY, round=1, site=run.site.slug, attempt=1, kind=Kind.TRAIN,
            exit_code=0, message="", optimizer=Stored(sha256(data).hexdigest(), len(data)),
        )  # fmt: skip
        document = signed(manifest.to_json(), key_of(run.attempt.run))
        federation.store.objects[f"{s.prefix(run.attempt)}/manifest.json"] = document
    return s


def test_optimizer_states_are_averaged_beside_the_model(federation: Federation, tmp_path: Path):
    new = aggregate(delivered_with_states(federation, {"a": 10.0, "b": 30.0}), federation.tools).changes.model
    assert new.server_state_key == f"fedportal/{KEY}/r00001/server-state.safetensors"
    state = federation.store.objects[new.server_state_key]
    assert (new.server_state_sha256, new.server_state_size) == (sha256(state).hexdigest(), len(state))
    assert np.allclose(weights_of(state, tmp_path), 20.0)


def test_optimizer_states_that_a_power_cut_spoilt_are_not_believed_by_the_next_process(federation: Federation):
    s = delivered_with_states(federation, {"a": 10.0, "b": 30.0})
    first = aggregate(s, federation.tools).changes.model
    for path in federation.tools.spool.rglob("*-optimizer.safetensors"):
        path.write_bytes(model_bytes(99.0))
    assert aggregate(s, replace(federation.tools, counted={})).changes.model == first


def test_an_optimizer_state_that_was_replaced_in_the_store_is_not_averaged(federation: Federation):
    s = delivered_with_states(federation, {"a": 10.0, "b": 30.0})
    federation.store.objects[f"fedportal/{KEY}/r00001/a/a1/optimizer.safetensors"] = model_bytes(99.0)
    with pytest.raises(ObjectDamaged):
        aggregate(s, federation.tools)


def test_the_site_runs_keep_their_rows(federation: Federation):
    changes = aggregate(delivered(federation, {"a": 2.0, "b": 4.0}), federation.tools).changes
    assert {change.site_run for change in changes.site_runs} == {RUN["a"], RUN["b"]}
    assert not any(change.through for change in changes.site_runs)


def test_a_round_scores_the_model_before_it_by_region_and_site(federation: Federation):
    values = (
        measured("a", 0.8),
        measured("b", 0.6),
        measured("a", 0.9, region="WT"),
        measured("b", None, region="WT"),
        measured("a", 4.5, region="WT", name="hd95"),
        measured("c", 1.0),
    )
    s = delivered(federation, {"a": 2.0, "b": 4.0}, measurements=values)
    score = aggregate(s, federation.tools).changes.score
    assert (score.round_number, score.dice) == (0, pytest.approx(0.7))
    assert score.scores == {
        "all": {"dice": {"WT": 0.9, "mean": pytest.approx(0.7)}, "hd95": {"WT": 4.5}},
        "sites": {
            "a": {"dice": {"mean": 0.8, "WT": 0.9}, "hd95": {"WT": 4.5}},
            "b": {"dice": {"mean": 0.6, "WT": None}},
        },
    }
    assert len(score.numbers) == 3
