"""Train the global model on the site's cases for one round. Called by the exchange between pull and push.

Order: settle the machine, prepare the cases, load the model, measure it as it came, train, write the update and have it
sent, measure again. The result depends on the plan's seed, the round and the site, not on the attempt or the run before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from trainer import augmentation, layers, losses, networks, optimizers, weights
from trainer.cache import PreparedCase
from trainer.contract import UPDATE_NAME, Exit, JobSpec, MetricRecord, Phase
from trainer.data import ahead, batches, seed_for
from trainer.evaluate import lap, validate
from trainer.failures import machine_faults
from trainer.gather import gather, named
from trainer.job import Deliver, Fault, Outcome, Report, Site
from trainer.machine import Machine, settle


def train(
    spec: JobSpec,
    *,
    site: Site,
    run_dir: Path,
    model: Path,
    optimizer: Path | None,
    report: Report,
    deliver: Deliver = lambda *_: None,
) -> Outcome:
    """Train from the global model at ``model`` and write ``update.safetensors`` into ``run_dir``.

    ``optimizer``: the averaged optimizer state, where the plan's treatment is *aggregate* and there is one yet.
    Raises :class:`Fault` for all that can be said to a person.
    """
    plan = spec.plan
    seconds: dict[str, float] = {}
    with machine_faults():
        machine = settle(plan, allowed=site.threads, seed=seed_for(plan.seed, spec.round, spec.site), say=report.say)

        clock = time.monotonic()
        training, held_out = gather(spec, site=site, threads=machine.threads, report=report)
        if not any(len(case.foreground) for case in training):
            raise Fault(Exit.EMPTY_MASK)
        network = networks.build(plan.task, plan.network)
        weights.load_model(model, network)
        layers.restore(network, spec, site=site, report=report)
        network.to(machine.device)
        stepper = optimizers.build(network, plan.optimizer)
        optimizers.restore(stepper, network, spec, site=site, sent=optimizer, report=report)
        clock = lap(seconds, "load", clock)

        validate(network, held_out, spec, machine=machine, phase=Phase.INCOMING, report=report)
        clock = lap(seconds, "validate_incoming", clock)

        steps = fit(network, stepper, training, spec, machine=machine, report=report)
        update = run_dir / UPDATE_NAME
        weights.save_model(update, network, local=layers.local_names(network, plan), round=spec.round)
        layers.preserve(network, spec, site=site)
        kept = optimizers.preserve(stepper, network, spec, site=site, run_dir=run_dir)
        clock = lap(seconds, "train", clock)
        deliver(update, kept)

        if plan.validation.local:
            validate(
                network, held_out, spec, machine=machine, phase=Phase.LOCAL, step=steps, progress=1.0, report=report
            )
            lap(seconds, "validate_local", clock)
        return Outcome(
            train_cases=len(training),
            validation_cases=len(held_out),
            steps=steps,
            update=update,
            optimizer=kept,
            seconds=seconds,
            held_out=tuple(named(held_out, spec)),
        )


def fit(
    network: nn.Module,
    stepper: torch.optim.Optimizer,
    cases: Sequence[PreparedCase],
    spec: JobSpec,
    *,
    machine: Machine,
    report: Report,
) -> int:
    """Run the round's local epochs, reporting the loss of every step; return the number of optimizer steps.

    The loss that is reported is the plan's, without a proximal term, so that experiments can be compared.
    Raises :class:`Fault` DIVERGED as soon as a loss, or in the end a weight, is not finite.
    """
    plan = spec.plan
    augment = augmentation.build(plan.augmentation)
    loss_of = losses.build(plan.loss)
    proximal = losses.ProximalTerm(network, plan.proximal_mu) if plan.proximal_mu else None
    scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.mixed)
    total = plan.local_epochs * plan.steps_per_epoch(len(cases))
    step = skipped = 0
    network.train()
    for epoch in range(plan.local_epochs):
        seed = seed_for(plan.seed, spec.round, spec.site, epoch)
        summed, samples = 0.0, 0
        made = batches(cases, plan, augment=augment, seed=seed)
        for batch in ahead(made) if machine.device.type == "cuda" else made:
            # the middle of the step: a warm-up's first step is not wasted on a rate of 0
            rate = optimizers.learning_rate(plan, round=spec.round, progress=(step + 0.5) / total)
            optimizers.set_learning_rate(stepper, rate)
            stepper.zero_grad(set_to_none=True)
            with machine.autocast():
                logits = network(batch.image.to(machine.device, non_blocking=True))
            loss = loss_of(logits.float(), batch.target.to(machine.device, non_blocking=True))
            value = loss.item()
            if not math.isfinite(value):
                raise Fault(Exit.DIVERGED, f"Epoch {epoch + 1}, step {step + 1} of {total}.")
            objective = loss if proximal is None else loss + proximal()
            scaler.scale(objective).backward()
            scaler.step(stepper)
            scale = scaler.get_scale()
            scaler.update()
            skipped += scaler.get_scale() < scale
            step += 1
            summed, samples = summed + value * len(batch.image), samples + len(batch.image)
            report.metric(_record("loss", value, step, step / total, len(batch.image)))
        report.metric(_record("epoch_loss", summed / samples, step, step / total, len(cases)))
        report.metric(_record("learning_rate", rate, step, step / total, len(cases)))
        report.say(
            f"Epoch {epoch + 1} of {plan.local_epochs}: loss {summed / samples:.4f}.",
            epoch=epoch + 1,
            loss=summed / samples,
        )
    if skipped:
        report.say(
            f"In {skipped} of {step} steps a gradient was too large for float16: they changed nothing.", skipped=skipped
        )
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise Fault(Exit.DIVERGED, "The weights are not finite.")
    return step


def _record(name: str, value: float, step: int, progress: float, cases: int) -> MetricRecord:
    return MetricRecord(Phase.TRAIN, name, value, "", step, progress, cases, time.time())
