"""Dice and Hausdorff distance against values that can be worked out by hand."""

import math

import pytest
import torch

from tests.trainer.conftest import BRAIN
from trainer.metrics import dice, hd95, records


def ball(*, empty=False) -> torch.Tensor:
    mask = torch.zeros(12, 12, 12, dtype=torch.bool)
    if not empty:
        mask[2:6, 2:6, 2:6] = True
    return mask


def test_dice_is_twice_the_overlap_over_the_sum():
    shifted = ball().roll(2, dims=0)
    predicted = torch.stack([ball(), shifted, ball().roll(5, dims=1)])
    assert dice(predicted, torch.stack([ball()] * 3)) == pytest.approx([1.0, 0.5, 0.0])


def test_a_region_that_is_rightly_empty_counts_one_and_a_wrong_one_nought():
    predicted = torch.stack([ball(empty=True), ball(), ball(empty=True)])
    truth = torch.stack([ball(empty=True), ball(empty=True), ball()])
    assert dice(predicted, truth) == [1.0, 0.0, 0.0]


def test_the_hausdorff_distance_is_in_millimetres_along_each_axis():
    predicted = torch.stack([ball(), ball().roll(3, dims=0), ball().roll(3, dims=2)])
    found = hd95(predicted, torch.stack([ball()] * 3), spacing=(1.0, 1.0, 2.5))
    assert found == pytest.approx([0.0, 3.0, 7.5])


def test_an_empty_region_has_no_hausdorff_distance():
    predicted = torch.stack([ball(empty=True), ball(), ball()])
    truth = torch.stack([ball(empty=True), ball(empty=True), ball()])
    found = hd95(predicted, truth, spacing=(1, 1, 1))
    assert math.isnan(found[0])
    assert math.isnan(found[1])
    assert found[2] == 0.0


def test_records_are_means_over_the_cases_that_have_a_value():
    nan = math.nan
    made = records("hd95", [[1.0, nan, nan], [3.0, 5.0, nan]], task=BRAIN, phase="local", step=7, progress=1.0)
    assert [(r.region, r.value, r.cases) for r in made] == [
        ("WT", 2.0, 2),
        ("TC", 5.0, 1),
        ("ET", None, 0),
        ("mean", 3.5, 2),
    ]
    assert {(r.name, r.phase, r.step, r.progress) for r in made} == {("hd95", "local", 7, 1.0)}


def test_where_nothing_has_a_value_the_mean_has_none():
    made = records("hd95", [[math.nan] * 3], task=BRAIN, phase="local", step=0, progress=0.0)
    assert [r.value for r in made] == [None] * 4
