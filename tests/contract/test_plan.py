"""A plan reads what it wrote, and refuses every other value with a sentence at its field."""

import dataclasses
import math

import pytest

from tests.contract.documents import (
    PLAN,
    TASK,
    through_json,
)
from trainer.contract import (
    ContractError,
    Network,
    Optimizer,
    Region,
    Schedule,
    TrainingPlan,
    Validation,
    has_norm_entries,
    plan_from_json,
    plan_problems,
)


@pytest.mark.parametrize("plan", [PLAN, dataclasses.replace(PLAN, patch=(64, 64, 32), spacing=(1.5, 1.5, 2.0))])
def test_a_plan_survives_json(plan):
    assert plan_from_json(through_json(plan.to_json())) == plan


def test_the_digest_of_a_plan_changes_with_every_field():
    changed = [
        dataclasses.replace(PLAN, seed=1),
        dataclasses.replace(PLAN, optimizer=Optimizer(learning_rate=2e-3)),
        dataclasses.replace(PLAN, task=dataclasses.replace(TASK, labels={0: "background", 1: "oedema"})),
    ]
    assert len({plan.digest() for plan in [PLAN, *changed]}) == 4


REFUSED_PLANS = {
    "task.channels": {"task": dataclasses.replace(TASK, channels=())},
    "task.regions": {"task": dataclasses.replace(TASK, regions=(Region("X", (7,)),))},
    "network.name": {"network": Network(name="transformer9000")},
    "network.channels": {"network": Network(channels=(8,), strides=())},
    "network.strides": {"network": Network(channels=(8, 16), strides=(3,))},
    "network.residual_units": {"network": Network(residual_units=9)},
    "network.norm": {"network": Network(norm="layer")},
    "network.dropout": {"network": Network(dropout=1.0)},
    "loss": {"loss": "mse"},
    "optimizer.name": {"optimizer": Optimizer(name="lion")},
    "optimizer.learning_rate": {"optimizer": Optimizer(learning_rate=float("nan"))},
    "optimizer.weight_decay": {"optimizer": Optimizer(weight_decay=-1)},
    "optimizer.momentum": {"optimizer": Optimizer(momentum=1.0)},
    "optimizer.amsgrad": {"optimizer": Optimizer(name="sgd", amsgrad=True)},
    "optimizer.treatment": {"optimizer": Optimizer(treatment="forget")},
    "schedule.name": {"schedule": Schedule(name="random")},
    "schedule.warmup_rounds": {"schedule": Schedule(warmup_rounds=13)},
    "schedule.final_factor": {"schedule": Schedule(final_factor=2)},
    "schedule.power": {"schedule": Schedule(power=0)},
    "schedule.step_rounds": {"schedule": Schedule(step_rounds=0)},
    "schedule.step_factor": {"schedule": Schedule(step_factor=0)},
    "validation.local": {"validation": Validation(local="yes")},
    "validation.hd95_every": {"validation": Validation(hd95_every=-1)},
    "validation.overlap": {"validation": Validation(overlap=1)},
    "rounds": {"rounds": 0},
    "local_epochs": {"local_epochs": 0},
    "batch_size": {"batch_size": True},
    "patches_per_case": {"patches_per_case": 0},
    "patch": {"patch": (4, 64, 64)},
    "spacing": {"spacing": (0.0, 1.0, 1.0)},
    "augmentation": {"augmentation": "magic"},
    "precision": {"precision": "bfloat8"},
    "threads": {"threads": -1},
    "seed": {"seed": 2**31},
    "proximal_mu": {"proximal_mu": 10.5},
    "local_layers": {"local_layers": "everything"},
}


@pytest.mark.parametrize("name", REFUSED_PLANS)
def test_every_field_of_the_plan_has_a_refused_value_that_names_it(name):
    assert name in plan_problems(dataclasses.replace(PLAN, **REFUSED_PLANS[name]))


@pytest.mark.parametrize("value", [-0.1, 10.5, float("nan"), True, "0.1"])
def test_a_proximal_term_is_a_number_from_0_to_10(value):
    assert "proximal_mu" in plan_problems(dataclasses.replace(PLAN, proximal_mu=value))
    assert not plan_problems(dataclasses.replace(PLAN, proximal_mu=0.01))


@pytest.mark.parametrize(
    ("network", "keeps"),
    [
        (Network(norm="instance"), False),
        (Network(norm="batch"), True),
        (Network(norm="group"), True),
        (Network(name="segresnet", norm="instance"), False),
        (Network(name="dynunet", norm="instance"), True),
        (Network(name="attention_unet", norm="instance"), True),
    ],
)
def test_layers_can_stay_at_a_site_only_where_they_have_something_to_keep(network, keeps):
    plan = dataclasses.replace(PLAN, network=network, local_layers="normalisation")
    assert has_norm_entries(network) is keeps
    assert ("local_layers" not in plan_problems(plan)) is keeps


def test_every_field_of_the_plan_is_covered_by_a_refused_value():
    parts = {"network": Network, "optimizer": Optimizer, "schedule": Schedule, "validation": Validation}
    wanted = {f.name for f in dataclasses.fields(TrainingPlan)} - set(parts) - {"task"}
    wanted |= {f"{part}.{f.name}" for part, cls in parts.items() for f in dataclasses.fields(cls)}
    assert wanted <= set(REFUSED_PLANS)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda d: d.pop("task"),
        lambda d: d.update(batch_size="two"),
        lambda d: d.update(surprise=1),
        lambda d: d["network"].update(depth=3),
        lambda d: d["task"].update(labels="none"),
        lambda d: d["task"].update(regions=[{"name": "X"}]),
        lambda d: d.update(patch=[64, 64]),
        lambda d: d.update(optimizer=None),
        lambda d: d.update(patch=[math.inf, 64, 64]),
        lambda d: d.update(spacing=[10**400, 1, 1]),
        lambda d: d["optimizer"].update(learning_rate=10**400),
        lambda d: d["task"]["regions"][0].update(labels=[math.inf]),
    ],
)
def test_a_broken_plan_document_is_a_contract_error(break_it):
    document = through_json(PLAN.to_json())
    break_it(document)
    with pytest.raises(ContractError):
        plan_from_json(document)
