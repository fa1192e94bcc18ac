"""Measure models on the site's held-out cases: Dice, loss, and at the planned rounds the Hausdorff distance."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from trainer import layers, losses, metrics, networks, weights
from trainer.cache import PreparedCase
from trainer.compare import compare, scores_of
from trainer.contract import INCOMING_SUBJECT, JobSpec, Kind, MetricRecord, Phase
from trainer.data import regions_of, seed_for
from trainer.failures import machine_faults
from trainer.gather import copies, gather, named
from trainer.inference import predict
from trainer.job import Outcome, Report, Site
from trainer.machine import Machine, settle


def evaluate(
    spec: JobSpec, *, site: Site, model: Path, subjects: Mapping[str, tuple[Path, ...]], report: Report
) -> Outcome:
    """Evaluate the incoming model at ``model`` (safetensors) and report records of phase *incoming*.

    With a key for their pseudonyms it is measured case by case, too, and so are ``subjects`` (name → files of models).
    """
    with machine_faults():
        machine = settle(
            spec.plan, allowed=site.threads, seed=seed_for(spec.plan.seed, spec.round, spec.site), say=report.say
        )
        seconds: dict[str, float] = {}
        clock = time.monotonic()
        _, cases = gather(spec, site=site, threads=machine.threads, report=report)
        network = networks.build(spec.plan.task, spec.plan.network)
        weights.load_model(model, network)
        layers.restore(network, spec, site=site, report=report)
        network.to(machine.device)
        clock = lap(seconds, "load", clock)
        measured = validate(network, cases, spec, machine=machine, phase=Phase.INCOMING, report=report)
        clock = lap(seconds, "validate_incoming", clock)
        names = named(cases, spec)
        scores = [
            score
            for name, case in names.items()
            for score in scores_of(INCOMING_SUBJECT, name, measured[cases.index(case)], spec.plan.task)
        ]
        if subjects:
            scores += compare(subjects, names, spec, network=network, machine=machine, report=report)
            lap(seconds, "subjects", clock)
        return Outcome(
            validation_cases=len(cases),
            seconds=seconds,
            held_out=tuple(names),
            cases=tuple(scores),
            copies=copies(spec, site=site, report=report),
        )


def lap(seconds: dict[str, float], name: str, since: float) -> float:
    """Note how long a part took; return when it ended."""
    now = time.monotonic()
    seconds[name] = now - since
    return now


def validate(
    network: nn.Module,
    cases: Sequence[PreparedCase],
    spec: JobSpec,
    *,
    machine: Machine,
    phase: Phase,
    step: int = 0,
    progress: float = 0.0,
    report: Report,
) -> list[metrics.Measured]:
    """Measure ``network`` on ``cases``, report one record per number, and return what was measured in each case.

    The network is left in evaluation mode."""
    plan = spec.plan
    loss_of = losses.build(plan.loss)
    measured, loss = [], []
    network.eval()
    with torch.inference_mode():
        for case in cases:
            truth = regions_of(case.label, plan.task).to(machine.device)
            logits = predict(network, case.image.float(), plan, machine=machine)
            loss.append(float(loss_of(logits[None], truth[None].float())))
            spacing = case.spacing if measures_distance(spec) else None
            measured.append(metrics.measure(logits.sigmoid(), truth, spacing=spacing))
    place = {"task": plan.task, "phase": phase, "step": step, "progress": progress}
    for name in measured[0]:
        for record in metrics.records(name, [case[name] for case in measured], **place):
            report.metric(record)
    mean = sum(loss) / len(loss)
    report.metric(
        MetricRecord(
            phase, "loss", mean if math.isfinite(mean) else None, "", step, progress, cases=len(loss), at=time.time()
        )
    )
    return measured


def measures_distance(spec: JobSpec) -> bool:
    """Say whether the Hausdorff distance is measured: where planned every n-th round, in the last and in evaluations (the
    final one has a round of its own, which an early stop may put anywhere), and always where models are compared."""
    every = spec.plan.validation.hd95_every
    is_planned = spec.kind is Kind.EVALUATE or spec.round == spec.plan.rounds or (every and spec.round % every == 0)
    return bool(spec.subjects) or (every > 0 and bool(is_planned))
