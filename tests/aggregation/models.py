"""Small models as files, for the tests of the aggregation; written by the safetensors library, not by our own writer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fedportal.aggregation.merge import Aggregate, Contribution, aggregate
from fedportal.aggregation.weights import Header, WeightsFile, WeightsWriter

Tensors = Mapping[str, np.ndarray]
BUFFERS = ("norm.running_mean", "norm.running_var")


def note(buffers: Sequence[str] = BUFFERS, round: int = 0, local: Sequence[str] = ()) -> dict[str, str]:
    own = {"buffers": list(buffers), "round": round} | ({"local": list(local)} if local else {})
    return {"fedportal": json.dumps(own)}


def save(
    path: Path, tensors: Tensors, *, buffers: Sequence[str] = BUFFERS, round: int = 0, local: Sequence[str] = ()
) -> Path:
    # The library writes the bytes of an array that is not contiguous, or has no dimension, wrongly or not at all.
    save_file({key: np.array(value, order="C") for key, value in tensors.items()}, path, note(buffers, round, local))
    return path


def network(seed: int = 0) -> dict[str, np.ndarray]:
    """A convolution with batch normalisation: parameters, floating buffers, a counter and a flag."""
    random = np.random.default_rng(seed)
    return {
        "conv.weight": random.standard_normal((4, 2, 3, 3, 3)).astype(np.float32),
        "norm.weight": random.standard_normal(4).astype(np.float32),
        "norm.running_mean": random.standard_normal(4).astype(np.float32),
        "norm.running_var": random.random(4).astype(np.float32),
        "norm.num_batches_tracked": np.array(10 + seed, np.int64),
        "deep_supervision": np.array(True),
    }


def write(path: Path, header: Header, tensors: Iterable[np.ndarray]) -> None:
    """Write a model by our own writer, ``tensors`` in the order of ``header``: for formats that NumPy does not have."""
    with WeightsWriter(path, header) as writer:
        for entry, tensor in zip(header.entries.values(), tensors, strict=True):
            writer.write(tensor, entry.start)
        writer.commit()


def read_header(path: Path) -> Header:
    with WeightsFile(path) as weights:
        return weights.header


def raw(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors in their stored form, bfloat16 as bits."""
    with WeightsFile(path) as weights:
        tensors = {}
        for key, entry in weights.header.entries.items():
            tensors[key] = np.empty(entry.shape, entry.dtype.stored)
            weights.read_into(tensors[key], entry)
        return tensors


def merged(
    folder: Path, sites: Mapping[str, tuple[Tensors, int]], *, reference: Tensors | None = None, **others: Any
) -> Aggregate:
    """Write and merge updates given as name of site → (tensors, cases), in the order given."""
    contributions = [Contribution(name, save(folder / f"{name}.update", t), n) for name, (t, n) in sites.items()]
    first = next(iter(sites.values()))[0] if sites else {}
    arguments = {
        "reference": save(folder / "reference", first if reference is None else reference),
        "contributions": contributions,
        "strategy": "fedavg",
        "options": {},
        "state_in": None,
        "out": folder / "global",
        "state_out": None,
    }
    return aggregate(**{**arguments, **others})
