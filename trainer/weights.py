"""Weights as safetensors files: written with the same bytes every time, read back strictly, never by pickle.

The only metadata is the key ``fedportal`` with ``{"buffers": [...], "round": n}``: which entries are floating
buffers (BatchNorm statistics), so that the aggregation can give them their own rule. Where sites keep layers of
their own, ``"local": [...]`` names the entries that are only their mean in a global model.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.contract import Exit
from trainer.job import Fault

METADATA_KEY = "fedportal"


def floating_buffers(model: nn.Module) -> list[str]:
    """Names of the floating-point entries of the state that are no parameters, in the state's order."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return [
        name for name, tensor in model.state_dict().items() if name not in parameters and tensor.is_floating_point()
    ]


def save_model(path: Path, model: nn.Module, *, local: Sequence[str] = (), round: int) -> None:
    """Write the model's whole state; ``round`` is the one that made it (0 = initial model)."""
    save_tensors(path, model.state_dict(), buffers=floating_buffers(model), local=local, round=round)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, buffers: Sequence[str] = (), local: Sequence[str] = (), round: int
) -> None:
    """Write tensors to ``path`` so that readers see all of the file or none of it.

    Tied tensors are written once under each of their names: the reader knows nothing of the tie, and the
    aggregation averages every key by itself.
    """
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    note = {"buffers": list(buffers), "round": round} | ({"local": list(local)} if local else {})
    text = json.dumps(note, sort_keys=True, separators=(",", ":"))
    with replacing(path) as temporary:
        save_file(own, temporary, metadata={METADATA_KEY: text})


def load_model(path: Path, model: nn.Module) -> None:
    """Load the file into ``model``. Raises :class:`Fault` MODEL_MISMATCH unless names, shapes, dtypes all agree."""
    expected = model.state_dict()
    model.load_state_dict(load_tensors(path, expected), strict=True)


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read exactly the tensors of ``expected`` (its values serve as shapes and dtypes only), finite ones.

    Raises :class:`Fault` MODEL_MISMATCH naming the first tensor that does not fit.
    """
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise Fault(Exit.MODEL_MISMATCH, f"{path.name} is not a readable safetensors file.") from error
    for name in sorted(set(expected) ^ set(found)):
        raise Fault(Exit.MODEL_MISMATCH, f"{name} is {'missing' if name in expected else 'unknown'}.")
    for name, tensor in found.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            raise Fault(
                Exit.MODEL_MISMATCH,
                f"{name} is {_described(tensor)}, the network has {_described(wanted)}.",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise Fault(Exit.MODEL_MISMATCH, f"{name} has values that are not finite.")
    return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; put it in ``path``'s place when the block ends well, else remove it.

    The data are on the disk before the name is: a power failure leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {'×'.join(str(n) for n in tensor.shape) or 'scalar'}"
