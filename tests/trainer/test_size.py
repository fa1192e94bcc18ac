"""What the contract says about the size of a network, against the networks themselves."""

import itertools
import math

import pytest
import torch

from tests.trainer.conftest import BRAIN
from trainer import losses, networks
from trainer.contract import (
    NETWORKS,
    Network,
    Optimizer,
    Region,
    Task,
    TrainingPlan,
    activations_of,
    input_shape,
    parameters_of,
    plan_problems,
    training_memory,
    update_bytes,
)

SPLEEN = Task("Spleen", ("CT",), {0: "background", 1: "spleen"}, (Region("spleen", (1,)),))
SHAPES = [((8, 16, 32, 64), (1, 2, 2)), ((4, 6), (2,)), ((16, 16, 32), (2, 1)), ((12, 24, 48, 96, 192), (2, 2, 2, 2))]
COMBINATIONS = [
    Network(name=name, channels=channels, strides=strides, norm=norm, residual_units=units)
    for name, norm, (channels, strides), units in itertools.product(NETWORKS, ("instance", "group"), SHAPES, (0, 1, 3))
    if not (name == "dynunet" and len(channels) < 3)
    and not (name == "swin_unetr" and (units or len(channels) != 4))
    and not (name == "attention_unet" and units)
]


@pytest.mark.parametrize(
    "network", COMBINATIONS, ids=lambda n: f"{n.name}-{n.norm}-{len(n.channels)}-{n.residual_units}"
)
@pytest.mark.parametrize("task", [BRAIN, SPLEEN], ids=["brain", "spleen"])
def test_the_parameters_are_counted_to_the_number(task, network):
    # without memory and time, where that can be: SwinUNETR computes while it is built
    with torch.device("cpu" if network.name == "swin_unetr" else "meta"):
        model = networks.build(task, network)
    assert parameters_of(task, network) == sum(parameter.numel() for parameter in model.parameters())


def kept_by(network: Network, shape: tuple[int, int, int]) -> float:
    """Return how many numbers a forward pass of one sample really keeps for the backward pass."""
    model = networks.build(BRAIN, network)
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    target = (torch.rand(1, 3, *shape) > 0.5).float()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = losses.build("dice")(model(torch.randn(1, 4, *shape)), target)
    assert math.isfinite(float(loss.detach()))
    return sum(kept.values()) / 4


@pytest.mark.parametrize(
    ("name", "units"), [*((name, 0) for name in NETWORKS), ("unet", 2), ("segresnet", 2), ("dynunet", 2)]
)
def test_what_a_step_keeps_is_estimated_within_a_quarter(name, units):
    network = Network(name=name, channels=(12, 24, 48), strides=(2, 2), residual_units=units)
    shape = input_shape(network, (24, 24, 24))
    assert 0.9 < activations_of(BRAIN, network, (24, 24, 24)) / kept_by(network, shape) < 1.25


def test_the_reference_experiments_are_of_the_size_that_was_measured():
    original = Network(name="residual_unet", channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), residual_units=2)
    plan = TrainingPlan(task=BRAIN, network=original, batch_size=2)
    assert parameters_of(BRAIN, original) == 4_810_074
    # peak resident size of two steps with Adam on a processor: 1442 MiB
    assert 1 / 1.5 < training_memory(plan, (96, 96, 96)) / (1442 * 2**20) < 1.5
    small = TrainingPlan(task=BRAIN, network=Network(channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2)))
    assert 1 / 1.5 < training_memory(small, (96, 96, 96)) / (852 * 2**20) < 1.5


def test_memory_grows_with_what_is_remembered_of_each_weight():
    def plan(**optimizer):
        return TrainingPlan(task=BRAIN, network=Network(), optimizer=Optimizer(**optimizer))

    weights = 4 * parameters_of(BRAIN, Network())
    of = {name: training_memory(plan(name=name), (16, 16, 16)) for name in ("sgd", "adam", "adamw")}
    assert of["adam"] - of["sgd"] == weights
    assert of["adam"] == of["adamw"]
    assert training_memory(plan(amsgrad=True), (16, 16, 16)) - of["adam"] == weights
    assert update_bytes(plan()) == weights
    assert update_bytes(plan(treatment="aggregate")) == 3 * weights


def test_an_attention_unet_of_one_channel_is_refused():
    plan = TrainingPlan(task=BRAIN, network=Network(name="attention_unet", channels=(1, 8), strides=(2,)))
    assert plan_problems(plan) == {"network.channels": "Attention U-Net needs 2 channels or more"}
