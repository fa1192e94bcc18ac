"""Weights files: same bytes, strict reading, whole or not there."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from trainer import weights
from trainer.contract import Exit
from trainer.job import Fault


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)


def test_the_same_weights_are_the_same_bytes(tmp_path: Path):
    torch.manual_seed(0)
    model = Tied()
    for name in "ab":
        weights.save_model(tmp_path / name, model, round=3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_tensors_are_written_under_each_of_their_names(tmp_path: Path):
    model = Tied()
    weights.save_model(tmp_path / "a", model, round=0)
    with safe_open(tmp_path / "a", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())
        assert torch.equal(file.get_tensor("second.weight"), model.first.weight)
    other = Tied()
    weights.load_model(tmp_path / "a", other)
    assert other.first.weight is other.second.weight
    assert torch.equal(other.first.weight, model.first.weight)


def test_floating_buffers_are_named_but_not_counters_or_tied_parameters(tmp_path: Path):
    assert weights.floating_buffers(Tied()) == ["norm.running_mean", "norm.running_var"]
    weights.save_model(tmp_path / "a", Tied(), round=7)
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata() == {
            "fedportal": '{"buffers":["norm.running_mean","norm.running_var"],"round":7}',
        }


def change(state: dict, name: str, value) -> dict:
    if value is None:
        return {key: tensor for key, tensor in state.items() if key != name}
    return state | {name: value}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("first.bias", None, "first.bias is missing"),
        ("third.bias", torch.zeros(3), "third.bias is unknown"),
        ("first.bias", torch.zeros(4), "first.bias is float32 4, the network has float32 3"),
        ("first.bias", torch.zeros(3, dtype=torch.float64), "float64 3"),
        ("first.bias", torch.tensor([0.0, torch.nan, 0.0]), "not finite"),
        ("norm.num_batches_tracked", torch.tensor(1.0), "float32 scalar, the network has int64 scalar"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(tmp_path: Path, name, value, said):
    model = Tied()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights.save_tensors(tmp_path / "a", change(model.state_dict(), name, value), round=0)
    with pytest.raises(Fault, match=said) as caught:
        weights.load_model(tmp_path / "a", model)
    assert caught.value.exit is Exit.MODEL_MISMATCH
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"garbage", b"\x80\x04pickle"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(Fault) as caught:
        weights.load_model(tmp_path / "a", Tied())
    assert caught.value.exit is Exit.MODEL_MISMATCH


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half() -> None:
        with weights.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
