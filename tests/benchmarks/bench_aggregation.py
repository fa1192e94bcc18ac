"""Measure the aggregation of 3D U-Net models against a plain copy of the same bytes.

    python tests/benchmarks/bench_aggregation.py [--models 3 10 30] [--threads 1 2] [--json]

The files lie in the page cache for all rows. ``copy`` is ``cp`` of every model to one scratch file; ``read`` is
read() into one reused buffer. The aggregation is timed from the portal's side: fork of the run and SHA-256 of the
result are in it. Nobody forces anything onto the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from fedportal.aggregation.dtypes import DTYPES, DType  # noqa: E402
from fedportal.aggregation.merge import Contribution  # noqa: E402
from fedportal.aggregation.process import AggregationProcess  # noqa: E402
from fedportal.aggregation.weights import layout  # noqa: E402
from tests.aggregation.models import write  # noqa: E402

ENCODER = ((4, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512))
DECODER = ((512, 768, 256), (256, 384, 128), (128, 192, 64))
"""3D U-Net of Çiçek et al. 2016 (arXiv:1606.06650) with batch normalisation: 19.07 M parameters, 92 tensors."""


def unet_tensors() -> Iterator[tuple[str, DType, tuple[int, ...]]]:
    def convolution(name: str, source: int, target: int) -> Iterator[tuple[str, DType, tuple[int, ...]]]:
        yield f"{name}.conv.weight", DTYPES["F32"], (target, source, 3, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.norm.{part}", DTYPES["F32"], (target,)
        yield f"{name}.norm.num_batches_tracked", DTYPES["I64"], ()

    for level, (source, middle, target) in enumerate(ENCODER):
        yield from convolution(f"encoder.{level}.0", source, middle if level else 32)
        yield from convolution(f"encoder.{level}.1", middle if level else 32, target)
    for level, (source, joined, target) in enumerate(DECODER):
        yield f"decoder.{level}.up.weight", DTYPES["F32"], (source, source, 2, 2, 2)
        yield f"decoder.{level}.up.bias", DTYPES["F32"], (source,)
        yield from convolution(f"decoder.{level}.0", joined, target)
        yield from convolution(f"decoder.{level}.1", target, target)
    yield "head.weight", DTYPES["F32"], (3, 64, 1, 1, 1)
    yield "head.bias", DTYPES["F32"], (3,)


def make_model(path: Path, *, seed: int) -> None:
    tensors = list(unet_tensors())
    buffers = [key for key, _, _ in tensors if "running" in key]
    header = layout(tensors, buffers=buffers)
    random = np.random.default_rng(seed)

    def values() -> Iterator[Any]:
        for entry in header.entries.values():
            if entry.dtype.name == "I64":
                yield np.array([seed], np.int64)
            else:
                yield random.standard_normal(entry.elements, np.float32)

    write(path, header, values())


def best(work: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def read_all(paths: list[Path]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def copy_all(paths: list[Path], scratch: Path) -> None:
    for path in paths:
        subprocess.run(["cp", "--reflink=never", str(path), str(scratch)], check=True)


def measure(folder: Path, models: list[Path], *, threads: int, times: int) -> dict[str, Any]:
    total = sum(path.stat().st_size for path in models)
    contributions = [Contribution(f"site-{i:02}", path, 8 + i % 5) for i, path in enumerate(models)]
    with AggregationProcess(threads=threads) as process:
        process.admit(models[-1], models[0])  # starts the warm process

        def aggregate() -> None:
            process.aggregate(
                reference=models[0],
                contributions=contributions,
                strategy="fedavg",
                options={},
                state_in=None,
                out=folder / "global.safetensors",
                state_out=None,
            )

        read_all(models)  # into the page cache
        seconds = best(aggregate, times)
        peak = process.peak_memory_bytes
        admission = best(lambda: process.admit(models[-1], models[0]), times)
    copy = best(lambda: copy_all(models, folder / "copy"), times)
    read = best(lambda: read_all(models), times)
    return {
        "models": len(models),
        "threads": threads,
        "gigabytes": round(total / 1e9, 3),
        "seconds": round(seconds, 4),
        "gigabytes_per_second": round(total / seconds / 1e9, 2),
        "copy_gigabytes_per_second": round(total / copy / 1e9, 2),
        "read_gigabytes_per_second": round(total / read / 1e9, 2),
        "of_copy": round(copy / seconds, 2),
        "admission_seconds": round(admission, 4),
        "peak_mebibytes": round(peak / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--times", type=int, default=5, help="repetitions; the best counts")
    parser.add_argument("--folder", type=Path, help="where the files go (default: a temporary folder)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        paths = [folder / f"{seed}.safetensors" for seed in range(max(options.models))]
        for seed, path in enumerate(paths):
            make_model(path, seed=seed)
        for count in options.models:
            for threads in options.threads:
                rows.append(measure(folder, paths[:count], threads=threads, times=options.times))
                if not options.json:
                    sys.stdout.write("  ".join(f"{key} {value}" for key, value in rows[-1].items()) + "\n")
                    sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"parameters": sum(_elements()), "rows": rows}, indent=2) + "\n")


def _elements() -> list[int]:
    tensors = [tensor for tensor in unet_tensors() if tensor[1].name == "F32" and "running" not in tensor[0]]
    return [int(np.prod(shape)) for _, _, shape in tensors]


if __name__ == "__main__":
    main()
