"""When an experiment stops early, and what chooses the best model."""

from __future__ import annotations

import math

import pytest

from fedportal.orchestrator.outcomes import Score
from fedportal.orchestrator.snapshot import ModelView
from fedportal.orchestrator.steps.stopping import early_stop
from tests.orchestrator.snapshots import snapshot


def after(*dice: float | None, patience: int = 2, region: str | None = None, **fields):
    """The state of things in the round after the last of these models, whose scores are 0, 1, 2, … in order."""
    models = [
        ModelView(
            number, number, "", "", 0, dice=0.1 if region else value, scores={"all": {"dice": {region or "WT": value}}}
        )
        for number, value in enumerate(dice)
    ]
    *earlier, newest = models
    score = Score(newest.round_number, newest.dice, newest.scores, ())
    unscored = ModelView(newest.id, newest.round_number, "", "", 0)
    s = snapshot(number=len(models), models=(*earlier, unscored), patience=patience, best_by=region or "mean", **fields)
    return early_stop(s, score)


@pytest.mark.parametrize(
    ("dice", "stops"),
    [
        ([0.1, 0.2], False),
        ([0.1, 0.5, 0.4], False),
        ([0.1, 0.5, 0.4, 0.45], True),
        ([0.1, 0.5, 0.4, 0.51], False),
        ([0.1, 0.5, 0.5, 0.5], True),  # as good is not better
        ([0.5, 0.4, 0.4], True),  # nothing better than the start
        ([0.1, 0.5, None, None], False),  # what was not measured costs no patience
        ([0.1, 0.5, 0.4, None, 0.3], True),
        ([None, None, None, None], False),
        ([0.1, 0.5, math.nan, 0.4], False),
        ([0.1, math.nan, 0.2, 0.15], False),
        ([0.0, 0.0, 0.0], True),
        ([math.inf, 0.1, 0.2], False),
    ],
)
def test_two_measured_rounds_without_a_better_model_are_enough(dice, stops):
    assert bool(after(*dice)) is stops


def test_without_patience_nothing_stops():
    assert after(0.9, *[0.1] * 50, patience=0) is None


def test_the_chosen_region_counts_and_not_the_mean():
    assert after(0.1, 0.5, 0.4, 0.3, region="ET")
    assert not after(0.1, 0.2, 0.3, 0.4, region="ET")  # the mean is the same in all of them


def test_the_reason_names_measure_rounds_and_best_model():
    s = snapshot(number=4, best_by="ET")
    text = after(0.1, 0.5, 0.4, 0.3, region="ET").text(s)
    assert text == (
        "No model for 2 rounds had a better Dice of ET than that of round 1 with 0.500: the experiment stops early. "
        "The model of round 4 is still measured."
    )
    assert "mean Dice than that of the start with 0.500" in after(0.5, 0.1, 0.1).text(snapshot())
