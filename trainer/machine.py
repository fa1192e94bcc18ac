"""Settle a run's process on its machine: device, threads, precision, and arithmetic that repeats itself."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.contract import TrainingPlan


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes. ``mixed``: float16 where it is safe, on a GPU."""

    device: torch.device
    threads: int
    mixed: bool

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.float16) if self.mixed else contextlib.nullcontext()


def settle(plan: TrainingPlan, *, allowed: int, seed: int, say: Callable[[str], None]) -> Machine:
    """Set this process's threads and seed and return its machine. Call it once, before the first tensor.

    ``allowed``: threads that the site allows, 0 = all processors that the process may use. The plan may ask for fewer, never
    for more. Sums depend on their order, so the same result to the bit needs the same number of threads.
    """
    allowed = allowed or len(os.sched_getaffinity(0))
    threads = min(plan.threads or allowed, allowed)
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    mixed = plan.precision == "mixed"
    if mixed and not cuda:
        say("There is no GPU here: computing in float32 instead of mixed precision.")
    if cuda:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    # what MONAI will change in its next version is nothing to tell the readers of a run's log
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    # warn only: 3D pooling and upsampling have no repeatable gradient on a GPU
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.manual_seed(seed)
    return Machine(torch.device("cuda" if cuda else "cpu"), threads, mixed and cuda)
