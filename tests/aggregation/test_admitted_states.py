"""The state of an optimizer is admitted only as the global model and the plan say it must be, in the first round, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedportal.aggregation.admission import admit, admit_state
from fedportal.aggregation.process import AggregationProcess
from tests.aggregation.models import network, save
from trainer import networks, optimizers, weights
from trainer.contract import Network, Optimizer, Region, Task

ADAM = Optimizer().entries
PARAMETERS = ("conv.weight", "norm.weight")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model", network())


def state(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    """What Adam remembers of :func:`network` after six steps; ``changes`` by a name without its dots."""
    found = {}
    for key in PARAMETERS:
        values = network()[key]
        found |= {f"exp_avg.{key}": values, f"exp_avg_sq.{key}": values**2, f"step.{key}": np.array(6, np.int64)}
    return {key: value for key, value in (found | changes).items() if value is not None}


def test_what_an_honest_trainer_sends_is_admitted(tmp_path, model):
    assert admit_state(save(tmp_path / "state", state(), buffers=()), model, ADAM).admitted


HOSTILE = {
    "another network's": ({"exp_avg.conv.weight": None}, "lacks “exp_avg.conv.weight”"),
    "an entry too many": ({"exp_avg.other": np.zeros(3, np.float32)}, "“exp_avg.other”"),
    "moments of a buffer": ({"exp_avg.norm.running_mean": np.zeros(4, np.float32)}, "“exp_avg.norm.running_mean”"),
    "another shape": ({"exp_avg.norm.weight": np.zeros(5, np.float32)}, "“exp_avg.norm.weight” is F32 5"),
    "another format": ({"exp_avg.norm.weight": np.zeros(4, np.float64)}, "“exp_avg.norm.weight” is F64 4"),
    "a step for each weight": ({"step.norm.weight": np.zeros(4, np.int64)}, "“step.norm.weight” is I64 4"),
    "not finite": ({"exp_avg.norm.weight": np.full(4, np.nan, np.float32)}, "not finite"),
    "squares below zero": ({"exp_avg_sq.norm.weight": np.full(4, -1e-9, np.float32)}, "below zero"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_any_other_state_is_refused_with_the_entry_that_is_to_blame(tmp_path, model, name):
    changes, reason = HOSTILE[name]
    verdict = admit_state(save(tmp_path / "state", state(**changes), buffers=()), model, ADAM)
    assert (verdict.admitted, reason in verdict.reason) == (False, True), verdict.reason


def test_it_is_judged_in_a_process_of_its_own_as_updates_are(tmp_path, model):
    good = save(tmp_path / "good", state(), buffers=())
    bad = save(tmp_path / "bad", {"x": np.zeros(1)}, buffers=())
    with AggregationProcess() as process:
        assert process.admit_state(good, model, ADAM).admitted
        assert "lacks" in process.admit_state(bad, model, ADAM).reason


@pytest.mark.parametrize("optimizer", [Optimizer(amsgrad=True), Optimizer(name="sgd"), Optimizer("sgd", momentum=0.0)])
@pytest.mark.parametrize("name", ["unet", "dynunet"])  # a DynUNet has each of its parameters under several names
def test_the_trainer_sends_what_the_portal_expects(tmp_path, name, optimizer):
    task = Task("BRATS", ("FLAIR",), {0: "background", 1: "edema"}, (Region("WT", (1,)),))
    net = networks.build(task, Network(name=name, channels=(4, 8, 8), strides=(1, 2), norm="batch"))
    weights.save_model(tmp_path / "model", net, round=0)
    sent = optimizers.tensors_of(optimizers.build(net, optimizer), net)
    weights.save_tensors(tmp_path / "state", sent, round=1)
    verdict = admit_state(tmp_path / "state", tmp_path / "model", optimizer.entries)
    assert verdict.admitted, verdict.reason


def test_a_variance_below_zero_is_refused(tmp_path, model):
    hostile = network() | {"norm.running_var": np.array([1, 1, -1e-6, 1], np.float32)}
    verdict = admit(save(tmp_path / "update", hostile), model)
    assert verdict.reason == "“norm.running_var” is a variance, but below zero."
