"""Measure a model on the site's held-out cases: Dice, loss, and at the planned rounds the Hausdorff distance."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from trainer import layers, losses, metrics, networks, weights
from trainer.cache import PreparedCase, prepare
from trainer.cases import check_task, read_dataset
from trainer.contract import Exit, JobSpec, Kind, MetricRecord, Phase, TrainingPlan
from trainer.data import pad, regions_of, seed_for, unpad
from trainer.failures import machine_faults
from trainer.images import Recipe
from trainer.job import Fault, Outcome, Report, Site
from trainer.machine import Machine, settle


def evaluate(
    spec: JobSpec,
    *,
    site: Site,
    run_dir: Path,  # noqa: ARG001 - the exchange calls every kind of work alike
    model: Path,
    report: Report,
) -> Outcome:
    """Evaluate the incoming model at ``model`` (safetensors) and report records of phase *incoming*."""
    with machine_faults():
        machine = settle(
            spec.plan, allowed=site.threads, seed=seed_for(spec.plan.seed, spec.round, spec.site), say=report.say
        )
        started = time.monotonic()
        dataset = read_dataset(site.data_root, spec.dataset)
        recipe = recipe_for(spec, check_task(dataset, spec.plan.task))
        if not dataset.validation:
            raise Fault(Exit.NO_CASES, "There is no case to validate with.")
        cases = prepare(dataset.validation, recipe, cache=site.cache, threads=machine.threads, report=report)
        network = networks.build(spec.plan.task, spec.plan.network)
        weights.load_model(model, network)
        layers.restore(network, spec, site=site, report=report)
        network.to(machine.device)
        loaded = time.monotonic()
        validate(network, cases, spec, machine=machine, phase=Phase.INCOMING, report=report)
        ended = time.monotonic()
        return Outcome(
            validation_cases=len(cases), seconds={"load": loaded - started, "validate_incoming": ended - loaded}
        )


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
) -> None:
    """Measure ``network`` on ``cases`` and report one record per number. The network is left in evaluation mode."""
    plan = spec.plan
    loss_of = losses.build(plan.loss)
    with_distance = is_distance_round(plan, spec.round) or (
        spec.kind is Kind.EVALUATE and plan.validation.hd95_every > 0
    )
    dice, distance, loss = [], [], []
    network.eval()
    with torch.inference_mode():
        for case in cases:
            truth = regions_of(case.label, plan.task).to(machine.device)
            logits = predict(network, case.image.float(), plan, machine=machine)
            loss.append(float(loss_of(logits[None], truth[None].float())))
            predicted = logits.sigmoid() >= metrics.THRESHOLD
            dice.append(metrics.dice(predicted, truth))
            if with_distance:
                distance.append(metrics.hd95(predicted, truth, spacing=case.spacing))
    place = {"task": plan.task, "phase": phase, "step": step, "progress": progress}
    for record in metrics.records("dice", dice, **place):
        report.metric(record)
    if with_distance:
        for record in metrics.records("hd95", distance, **place):
            report.metric(record)
    mean = sum(loss) / len(loss)
    report.metric(
        MetricRecord(
            phase, "loss", mean if math.isfinite(mean) else None, "", step, progress, cases=len(loss), at=time.time()
        )
    )


def predict(network: nn.Module, image: Tensor, plan: TrainingPlan, *, machine: Machine) -> Tensor:
    """Return logits float32 [region, x, y, z] for an image float32 [channel, x, y, z] of any size.

    With a patch in the plan a window slides over the volume; else the whole volume is seen at once, padded.
    """
    shape = image.shape[-3:]
    inputs = image[None].to(machine.device)
    with machine.autocast():
        if plan.patch is None:
            logits = unpad(network(pad(inputs, networks.input_shape(plan.network, shape))), shape)
        else:
            logits = sliding_window_inference(
                inputs,
                roi_size=networks.input_shape(plan.network, plan.patch),
                sw_batch_size=plan.batch_size,
                predictor=network,
                overlap=plan.validation.overlap,
                mode="gaussian",
            )
    return logits[0].float()


def is_distance_round(plan: TrainingPlan, round: int) -> bool:
    """Say whether the Hausdorff distance is planned for this round: every n-th and the last. (The final evaluation has
    a round of its own, which an early stop may put anywhere.)"""
    every = plan.validation.hd95_every
    return every > 0 and (round % every == 0 or round == plan.rounds)


def recipe_for(spec: JobSpec, order: tuple[int, ...]) -> Recipe:
    return Recipe(order=order, labels=tuple(sorted(spec.plan.task.labels)), spacing=spec.plan.spacing)
