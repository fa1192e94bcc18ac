"""Layers of which each site keeps its own from round to round (FedBN, Li et al. 2021, arXiv:2102.07623).

They are found by the type of their modules, never by their names: a name says nothing about what a layer is. An update
holds them all the same, so that the global model has their mean over the sites for whoever has none of his own.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from trainer import weights
from trainer.contract import JobSpec, TrainingPlan
from trainer.job import Fault, Report, Site

NORMALISATION = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
KEEP_ROUNDS = 3
"""Of how many of its rounds a site keeps them: one may be repeated, even when the next has begun."""


def local_names(model: nn.Module, plan: TrainingPlan) -> list[str]:
    """Return the entries of the model's state that stay at the site, in the state's order; none for most plans."""
    if plan.local_layers == "none":
        return []
    found = {
        f"{name}.{entry}"
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, NORMALISATION)
        for entry in module.state_dict()
    }
    return [name for name in model.state_dict() if name in found]


def restore(model: nn.Module, spec: JobSpec, *, site: Site, report: Report) -> None:
    """Lay the site's own layers over a global model: those of the last round before this one that it took part in.

    A site without any, new or after the loss of its disk, goes on with the mean over the sites and says so.
    """
    names = local_names(model, spec.plan)
    if not names or spec.round == 1:
        return
    number = max((n for n in _kept(site, spec.experiment) if n < spec.round), default=None)
    if number is None:
        report.say("No normalisation layers are kept here: starting with the mean over the sites.")
        return
    expected = model.state_dict()
    try:
        found = weights.load_tensors(kept_path(site, spec.experiment, number), {name: expected[name] for name in names})
    except Fault as fault:
        report.say(f"The kept normalisation layers do not fit: starting with the mean over the sites. {fault.message}")
        return
    model.load_state_dict(expected | found)


def preserve(model: nn.Module, spec: JobSpec, *, site: Site) -> None:
    """Store the site's own layers after training; repeating a round repeats its result."""
    names = local_names(model, spec.plan)
    if not names:
        return
    state = model.state_dict()
    path = kept_path(site, spec.experiment, spec.round)
    weights.save_tensors(path, {name: state[name] for name in names}, round=spec.round)
    # by number, not by distance: what a site that missed some rounds goes on from is older than that
    for old in sorted(_kept(site, spec.experiment))[:-KEEP_ROUNDS]:
        kept_path(site, spec.experiment, old).unlink(missing_ok=True)


def kept_path(site: Site, experiment: str, round: int) -> Path:
    return site.state(experiment) / f"layers-r{round}.safetensors"


def _kept(site: Site, experiment: str) -> list[int]:
    """Return the rounds whose layers are on the site's disk."""
    found = (re.fullmatch(r"layers-r(\d+)", path.stem) for path in site.state(experiment).glob("layers-r*.safetensors"))
    return [int(match[1]) for match in found if match]
