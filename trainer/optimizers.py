"""The optimizer of a plan, its learning rate over the whole federation, and what becomes of its state between rounds.

Treatment *reset*: nothing is kept. *keep*: the state stays at the site, one file per round. *aggregate*: the
portal averages the sites' states and sends the mean back. Both files are safetensors with the keys
``<entry>.<parameter>``: ``exp_avg``, ``exp_avg_sq`` (``max_exp_avg_sq`` with AMSGrad) and ``step`` (int64) for Adam
and AdamW, ``momentum_buffer`` for SGD.
"""

from __future__ import annotations

import math
import re
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer import weights
from trainer.contract import Exit, JobSpec, Optimizer, TrainingPlan
from trainer.job import Fault, Report, Site

KEEP_ROUNDS = 2
"""How many rounds back a site keeps optimizer state: a round may be repeated, even when the next has begun."""
FORGOTTEN_SECONDS = 90 * 24 * 3600
"""An experiment with which a site went on this long ago is over: its optimizer state goes."""


def build(model: nn.Module, plan: Optimizer) -> torch.optim.Optimizer:
    parameters = model.parameters()
    match plan.name:
        case "adam" | "adamw":
            kind = torch.optim.Adam if plan.name == "adam" else torch.optim.AdamW
            return kind(parameters, lr=plan.learning_rate, weight_decay=plan.weight_decay, amsgrad=plan.amsgrad)
        case "sgd":
            return torch.optim.SGD(
                parameters,
                lr=plan.learning_rate,
                momentum=plan.momentum,
                weight_decay=plan.weight_decay,
                nesterov=plan.momentum > 0,
            )
        case _:
            raise Fault(Exit.BAD_JOB, f"There is no optimizer {plan.name}.")


# --- the schedule ---------------------------------------------------------------------------------


def learning_rate(plan: TrainingPlan, *, round: int, progress: float) -> float:
    """Return the learning rate at ``progress`` (0 to 1) of round ``round`` (from 1): one curve over all rounds.

    It rises linearly over the warm-up rounds and then follows the schedule over what is left.
    """
    schedule = plan.schedule
    position = min(max(round - 1 + progress, 0.0), float(plan.rounds))
    base = plan.optimizer.learning_rate
    if position < schedule.warmup_rounds:
        return base * position / schedule.warmup_rounds
    after = position - schedule.warmup_rounds
    left = plan.rounds - schedule.warmup_rounds
    share = after / left if left else 0.0
    floor = schedule.final_factor
    match schedule.name:
        case "cosine":
            factor = floor + (1 - floor) * (1 + math.cos(math.pi * share)) / 2
        case "polynomial":
            factor = floor + (1 - floor) * (1 - share) ** schedule.power
        case "step":
            factor = schedule.step_factor ** math.floor(after / schedule.step_rounds)
        case _:
            factor = 1.0
    return base * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


# --- the state ------------------------------------------------------------------------------------


def restore(
    optimizer: torch.optim.Optimizer, model: nn.Module, spec: JobSpec, *, site: Site, sent: Path | None, report: Report
) -> None:
    """Give a fresh optimizer the state that the plan's treatment asks for.

    A kept state that is missing or does not fit is no failure: a site that joins late or lost its disk starts fresh
    and says so. A state ``sent`` by the portal that does not fit is a :class:`Fault` MODEL_MISMATCH.
    """
    match spec.plan.optimizer.treatment:
        case "keep" if spec.round > 1:
            path = kept_path(site, spec.experiment, spec.round - 1)
            if not path.is_file():
                report.say(f"No optimizer state of round {spec.round - 1} is kept here: starting with a fresh one.")
                return
            try:
                _load(path, optimizer, model)
            except Fault as fault:
                report.say(f"The kept optimizer state does not fit: starting with a fresh one. {fault.message}")
        case "aggregate" if sent is not None:
            _load(sent, optimizer, model)
        case _:
            pass


def preserve(
    optimizer: torch.optim.Optimizer, model: nn.Module, spec: JobSpec, *, site: Site, run_dir: Path
) -> Path | None:
    """Store the state as the treatment asks; return the file to send back, if it is to be sent.

    Repeating a round repeats its result: what it starts from, the file of the round before, is still there.
    """
    _forget(site)
    match spec.plan.optimizer.treatment:
        case "keep":
            path = kept_path(site, spec.experiment, spec.round)
            weights.save_tensors(path, tensors_of(optimizer, model), round=spec.round)
            for old in path.parent.glob("optimizer-r*.safetensors"):
                number = re.fullmatch(r"optimizer-r(\d+)", old.stem)
                if number and int(number[1]) < spec.round - KEEP_ROUNDS:
                    old.unlink(missing_ok=True)
            return None
        case "aggregate":
            path = run_dir / "optimizer.safetensors"
            weights.save_tensors(path, tensors_of(optimizer, model), round=spec.round)
            return path
        case _:
            return None


def _forget(site: Site) -> None:
    """Delete the optimizer state of experiments of long ago. A site is never told that an experiment has ended."""
    latest = time.time() - FORGOTTEN_SECONDS
    for path in (site.work_dir / "state").glob("*/optimizer-r*.safetensors"):
        with suppress(OSError):  # another run was faster, or layers of the site lie beside it and stay
            if path.stat().st_mtime < latest:
                path.unlink()
                path.parent.rmdir()


def kept_path(site: Site, experiment: str, round: int) -> Path:
    return site.state(experiment) / f"optimizer-r{round}.safetensors"


def tensors_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state as ``{"exp_avg.<parameter>": tensor, …}``; step counts become int64 scalars.

    A parameter that never had a gradient has zeros, and one of several names stands there under each: so every site
    sends the same keys, and the portal knows from the model which.
    """
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state = optimizer.state.get(parameter, {})
        for entry in _entries(optimizer):
            value = state.get(entry)
            if entry == "step":
                found[f"step.{name}"] = torch.tensor(0 if value is None else int(value), dtype=torch.int64)
            else:
                found[f"{entry}.{name}"] = torch.zeros_like(parameter) if value is None else value
    return found


def _load(path: Path, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    expected = {}
    entries = _entries(optimizer)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        for entry in entries:
            expected[f"{entry}.{name}"] = torch.tensor(0) if entry == "step" else parameter.detach()
    found = weights.load_tensors(path, expected)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        state = {entry: found[f"{entry}.{name}"] for entry in entries}
        if "step" in state:
            # Adam counts in float32, on the CPU unless it is fused
            state["step"] = state["step"].to(torch.float32)
        optimizer.state[parameter] = {
            entry: value if entry == "step" else value.to(parameter.device) for entry, value in state.items()
        }


def _entries(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What the optimizer keeps per parameter; nothing for SGD without momentum."""
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()
    extra = ("max_exp_avg_sq",) if optimizer.defaults["amsgrad"] else ()
    return ("exp_avg", "exp_avg_sq", "step", *extra)
