"""The networks and losses of a plan."""

import dataclasses
import json
import math

import pytest
import torch

from tests.trainer.conftest import BRAIN
from trainer import losses, networks
from trainer.contract import LOSSES, NETWORKS, Exit, Network, TrainingPlan, input_shape, plan_problems
from trainer.job import Fault

COMBINATIONS = [
    (name, norm)
    for name in NETWORKS
    for norm in ("instance", "batch", "group")
    if name != "swin_unetr" or norm == "group"  # its smallest volume takes seconds
]


@pytest.mark.parametrize(("name", "norm"), COMBINATIONS)
def test_every_network_takes_the_smallest_volume_it_asks_for_and_learns_all_its_weights(name, norm):
    network = Network(name=name, channels=(4, 8, 8), strides=(1, 2), norm=norm, dropout=0.1)
    model = networks.build(BRAIN, network)
    shape = input_shape(network, (1, 1, 1))
    logits = model(torch.randn(1, 4, *shape))
    assert logits.shape == (1, 3, *shape)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_laptop_network_has_the_size_that_was_measured():
    model = networks.build(BRAIN, Network(channels=(8, 16, 32, 64), strides=(1, 2, 2)))
    assert sum(parameter.numel() for parameter in model.parameters()) == 123_273


def test_the_original_network_is_of_the_reference_experiments_size():
    network = Network(channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), residual_units=2)
    model = networks.build(BRAIN, network)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_810_074
    assert input_shape(network, (128, 128, 64)) == (128, 128, 64)


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (Network(channels=(8, 16, 32, 64), strides=(1, 2, 2)), (40, 40, 40), (40, 40, 40)),
        (Network(channels=(8, 16, 32, 64), strides=(1, 2, 2)), (41, 39, 37), (44, 40, 40)),
        (Network(channels=(8, 16, 32), strides=(2, 2)), (3, 3, 3), (8, 4, 4)),
        (Network(name="segresnet", channels=(8, 16, 32), strides=(1, 1)), (13, 13, 13), (16, 16, 16)),
        (Network(name="swin_unetr", channels=(12, 24), strides=(1,)), (16, 16, 40), (64, 32, 64)),
    ],
)
def test_volumes_are_padded_to_the_networks_divisor(network, shape, expected):
    assert input_shape(network, shape) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_a_definition_is_plain_json(name):
    definition = networks.definition(BRAIN, Network(name=name, norm="group"))
    assert json.loads(json.dumps(definition)) == definition


def test_a_residual_unet_has_residual_units_even_where_the_plan_names_none():
    plain = networks.definition(BRAIN, Network(name="unet"))
    residual = networks.definition(BRAIN, Network(name="residual_unet"))
    assert (plain["num_res_units"], residual["num_res_units"]) == (0, 2)


def test_a_dynunet_of_two_levels_is_refused():
    with pytest.raises(Fault, match="three levels") as caught:
        networks.build(BRAIN, Network(name="dynunet", channels=(8, 16), strides=(2,)))
    assert caught.value.exit is Exit.BAD_JOB
    plan = TrainingPlan(task=BRAIN, network=Network(name="dynunet", channels=(8, 16), strides=(2,)))
    assert plan_problems(plan) == {"network.channels": "DynUNet needs at least 3 levels"}


def test_an_unknown_network_or_loss_is_refused():
    with pytest.raises(Fault):
        networks.build(BRAIN, dataclasses.replace(Network(), name="transformer"))
    with pytest.raises(Fault):
        losses.build("hinge")


def logits_for(target: torch.Tensor, confidence: float) -> torch.Tensor:
    return (target * 2 - 1) * confidence


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_least_for_the_truth_and_has_a_gradient(name):
    target = torch.zeros(2, 3, 8, 8, 8)
    target[:, :, 2:5, 2:5, 2:5] = 1
    loss = losses.build(name)
    right, unsure, wrong = (float(loss(logits_for(target, c), target)) for c in (20.0, 0.5, -20.0))
    assert right < 0.01 < unsure < wrong
    logits = logits_for(target, 0.5).requires_grad_()
    loss(logits, target).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_region_that_no_case_of_the_batch_has_gives_a_finite_loss(name):
    target = torch.zeros(2, 3, 8, 8, 8)
    target[:, 0, 2:5] = 1
    logits = torch.randn(2, 3, 8, 8, 8, requires_grad=True)
    value = losses.build(name)(logits, target)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(logits.grad).all()


def test_dice_is_taken_over_the_batch():
    """A case without the region is not a loss of 1 by itself, as it would be case by case."""
    target = torch.zeros(2, 1, 8, 8, 8)
    target[0, 0, 2:5] = 1
    assert float(losses.build("dice")(logits_for(target, 20.0), target)) < 0.01
