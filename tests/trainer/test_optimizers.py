"""The learning rate over the federation, and the optimizer's state between rounds."""

import dataclasses
import itertools
import math
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from tests.trainer.conftest import changed, write_dataset
from trainer import optimizers, weights
from trainer.contract import Exit, Optimizer, Schedule
from trainer.job import Fault
from trainer.optimizers import learning_rate, tensors_of


def curve(plan, points: int = 4) -> list[float]:
    return [
        learning_rate(plan, round=round, progress=i / points)
        for round in range(1, plan.rounds + 1)
        for i in range(points)
    ]


def test_a_constant_rate_is_constant(plan):
    assert set(curve(changed(plan, rounds=10))) == {1e-3}


@pytest.mark.parametrize("name", ["cosine", "polynomial"])
def test_a_falling_rate_falls_over_all_rounds_to_its_final_factor(plan, name):
    plan = changed(plan, rounds=10, schedule={"name": name, "final_factor": 0.1})
    rates = curve(plan)
    assert rates[0] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert learning_rate(plan, round=10, progress=1.0) == pytest.approx(1e-4)


def test_half_way_the_cosine_is_in_the_middle(plan):
    plan = changed(plan, rounds=10, schedule={"name": "cosine", "final_factor": 0.0})
    assert learning_rate(plan, round=6, progress=0.0) == pytest.approx(0.5e-3)


def test_a_polynomial_rate_has_its_power(plan):
    plan = changed(plan, rounds=4, schedule={"name": "polynomial", "final_factor": 0.0, "power": 2.0})
    assert learning_rate(plan, round=3, progress=0.0) == pytest.approx(1e-3 * 0.25)


def test_a_step_rate_is_halved_every_ten_rounds(plan):
    plan = changed(plan, rounds=25, schedule={"name": "step", "step_rounds": 10, "step_factor": 0.5})
    rates = [learning_rate(plan, round=round, progress=0.99) for round in (1, 10, 11, 20, 21, 25)]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


@pytest.mark.parametrize("name", ["constant", "cosine", "polynomial", "step"])
def test_a_warm_up_rises_over_its_rounds_and_the_schedule_begins_after_it(plan, name):
    plan = changed(plan, rounds=10, schedule=dataclasses.asdict(Schedule(name=name, warmup_rounds=2)))
    assert learning_rate(plan, round=1, progress=0.5) == pytest.approx(0.25e-3)
    assert learning_rate(plan, round=2, progress=0.5) == pytest.approx(0.75e-3)
    assert learning_rate(plan, round=3, progress=0.0) == pytest.approx(1e-3)


def test_a_warm_up_of_all_rounds_is_possible(plan):
    plan = changed(plan, rounds=2, schedule={"warmup_rounds": 2, "name": "cosine"})
    assert learning_rate(plan, round=2, progress=1.0) == pytest.approx(1e-3)


def test_the_planned_rate_is_used_and_reported(plan, work, report):
    plan = changed(plan, rounds=4, schedule={"name": "polynomial", "power": 1.0, "final_factor": 0.0})
    work(plan, round=3)
    # two steps, one per epoch, each in its middle
    assert report.values("train", "learning_rate") == pytest.approx([1e-3 * (1 - 2.25 / 4), 1e-3 * (1 - 2.75 / 4)])


# --- reset, keep, aggregate -----------------------------------------------------------------------


def names(network_tensors, entries) -> set[str]:
    return {f"{entry}.{name}" for name in network_tensors for entry in entries}


@pytest.mark.parametrize(
    ("optimizer", "entries"),
    [
        ({"name": "adam"}, ("exp_avg", "exp_avg_sq", "step")),
        ({"name": "adamw", "amsgrad": True}, ("exp_avg", "exp_avg_sq", "step", "max_exp_avg_sq")),
        ({"name": "sgd"}, ("momentum_buffer",)),
        ({"name": "sgd", "momentum": 0.0}, ()),
    ],
)
def test_the_state_that_is_sent_has_the_moments_of_every_parameter(plan, work, optimizer, entries):
    outcome, run_dir = work(changed(plan, optimizer={**optimizer, "treatment": "aggregate"}), round=2)
    assert outcome.optimizer == run_dir / "optimizer.safetensors"
    found = load_file(outcome.optimizer)
    parameters = load_file(outcome.update)
    assert set(found) == names(parameters, entries)
    for key, tensor in found.items():
        entry, _, name = key.partition(".")
        if entry == "step":
            assert (tensor.dtype, tensor.shape, int(tensor)) == (torch.int64, (), outcome.steps)
        else:
            assert tensor.shape == parameters[name].shape
    with safe_open(outcome.optimizer, "pt") as file:
        assert file.metadata() == {"fedportal": '{"buffers":[],"round":2}'}


def test_reset_keeps_nothing_and_sends_nothing(plan, work, site):
    outcome, run_dir = work(plan)
    assert outcome.optimizer is None
    assert [path.name for path in run_dir.iterdir()] == ["update.safetensors"]
    assert not site.state("abcd").exists()


@pytest.mark.parametrize("optimizer", [{"name": "adam"}, {"name": "adamw", "amsgrad": True}, {"name": "sgd"}])
def test_two_rounds_that_keep_the_state_are_one_long_round(plan, work, site, optimizer):
    """One case, no augmentation, no aggregation: only a lost state could make a difference."""
    write_dataset(site.data_root / "One", train=1)
    still = changed(
        plan, augmentation="none", local_epochs=1, batch_size=2, optimizer={**optimizer, "treatment": "keep"}
    )
    long, _ = work(changed(still, local_epochs=2), dataset="One")
    expected = load_file(long.update)
    first, _ = work(still, round=1, run="first", dataset="One")
    second, _ = work(still, round=2, run="second", dataset="One", model=first.update)
    for name, tensor in load_file(second.update).items():
        assert torch.equal(tensor, expected[name])
    reset = changed(still, optimizer={"treatment": "reset"})
    fresh, _ = work(reset, round=2, run="fresh", dataset="One", model=first.update)
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in load_file(fresh.update).items())


def test_a_state_that_is_sent_back_is_taken_up_like_a_kept_one(plan, work):
    results = []
    for treatment in ("keep", "aggregate"):
        plan = changed(plan, optimizer={"treatment": treatment})
        first, _ = work(plan, round=1, run=f"{treatment}-1")
        second, _ = work(plan, round=2, run=f"{treatment}-2", model=first.update, optimizer=first.optimizer)
        results.append(second.update.read_bytes())
    assert results[0] == results[1]


def test_repeating_a_round_that_keeps_state_repeats_its_result(plan, work, site):
    plan = changed(plan, optimizer={"treatment": "keep"})
    first, _ = work(plan, round=1)
    second, _ = work(plan, round=2, attempt=1, model=first.update)
    kept = optimizers.kept_path(site, "abcd", 2).read_bytes()
    again, _ = work(plan, round=2, attempt=2, model=first.update)
    assert again.update.read_bytes() == second.update.read_bytes()
    assert optimizers.kept_path(site, "abcd", 2).read_bytes() == kept


def test_state_is_kept_for_two_rounds_back(plan, work, site):
    plan = changed(plan, rounds=12, local_epochs=1, optimizer={"treatment": "keep"})
    for round in range(7, 13):
        work(plan, round=round)
    kept = sorted(path.name for path in site.state("abcd").iterdir())
    assert kept == [f"optimizer-r{n}.safetensors" for n in (10, 11, 12)]


def test_state_of_experiments_of_long_ago_is_forgotten(plan, work, site):
    ended, layers, paused = (site.state(name) / "optimizer-r3.safetensors" for name in ("old1", "old2", "new1"))
    for path in (ended, layers, paused):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (layers.parent / "layers-r3.safetensors").write_bytes(b"x")
    for path in (ended, layers):
        os.utime(path, (time.time() - optimizers.FORGOTTEN_SECONDS - 60,) * 2)
    work(plan, round=1)
    assert not ended.parent.exists()
    assert [path.name for path in layers.parent.iterdir()] == ["layers-r3.safetensors"]
    assert paused.exists()


def test_a_site_without_kept_state_starts_fresh_and_says_so(plan, work, report):
    keep = changed(plan, optimizer={"treatment": "keep"})
    late, _ = work(keep, round=2)
    assert any("No optimizer state of round 1" in said for said in report.said)
    reset, _ = work(changed(plan, optimizer={"treatment": "reset"}), round=2, run="other", model=None)
    assert late.update.read_bytes() == reset.update.read_bytes()


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_kept_state_that_does_not_fit_is_left_aside_and_said(plan, work, site, report, content):
    keep = changed(plan, optimizer={"treatment": "keep"})
    first, _ = work(keep, round=1)
    path = optimizers.kept_path(site, "abcd", 1)
    if content is None:
        weights.save_tensors(path, {"exp_avg.other": torch.zeros(3)}, round=1)
    else:
        path.write_bytes(content)
    outcome, _ = work(keep, round=2, model=first.update)
    assert outcome.update is not None
    assert any("does not fit" in said for said in report.said)


def test_a_state_from_the_portal_that_does_not_fit_is_refused(plan, work, tmp_path: Path):
    weights.save_tensors(tmp_path / "sent", {"exp_avg.other": torch.zeros(3)}, round=1)
    with pytest.raises(Fault) as caught:
        work(changed(plan, optimizer={"treatment": "aggregate"}), round=2, optimizer=tmp_path / "sent")
    assert caught.value.exit is Exit.MODEL_MISMATCH


def test_a_parameter_without_gradient_has_a_state_of_zeros():
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "idle": nn.Linear(2, 1)})
    optimizer = optimizers.build(model, Optimizer())
    model["used"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = tensors_of(optimizer, model)
    assert int(found["step.used.weight"]) == 1
    assert int(found["step.idle.weight"]) == 0
    assert not found["exp_avg.idle.weight"].any()


def test_every_optimizer_takes_the_plans_settings():
    model = nn.Linear(2, 1)
    adam = optimizers.build(model, Optimizer(weight_decay=0.1, amsgrad=True, learning_rate=0.5))
    assert type(adam) is torch.optim.Adam
    assert {k: adam.defaults[k] for k in ("lr", "weight_decay", "amsgrad")} == {
        "lr": 0.5, "weight_decay": 0.1, "amsgrad": True,
    }  # fmt: skip
    assert type(optimizers.build(model, Optimizer(name="adamw"))) is torch.optim.AdamW
    sgd = optimizers.build(model, Optimizer(name="sgd", momentum=0.8, weight_decay=0.1))
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (0.8, 0.1)
    assert math.isclose(optimizers.build(model, Optimizer(name="sgd", momentum=0.0)).defaults["momentum"], 0.0)
