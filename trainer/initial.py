"""Make the initial global model of an experiment: round 0, the same bytes for the same plan."""

from __future__ import annotations

from pathlib import Path

import torch

from trainer import layers, networks, weights
from trainer.contract import TrainingPlan
from trainer.data import seed_for
from trainer.failures import machine_faults


def init(plan: TrainingPlan, out: Path) -> None:
    """Write the plan's network with fresh weights to ``out``. They depend on the plan's seed and network alone."""
    with machine_faults(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(plan.seed, "initial"))
        model = networks.build(plan.task, plan.network)
        weights.save_model(out, model, local=layers.local_names(model, plan), round=0)
