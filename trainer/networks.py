"""Build the network of a plan from MONAI's.

:func:`definition` is plain data in the form of a MONAI bundle's ``network_def``, so the downloaded bundle
holds exactly the network that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from monai.networks import nets
from torch import nn

from trainer.contract import Exit, Network, Task, swin_width
from trainer.job import Fault


def build(task: Task, network: Network) -> nn.Module:
    """Return the network with fresh weights: task channels in, one channel of logits per region out."""
    arguments = definition(task, network)
    return getattr(nets, arguments.pop("_target_").rpartition(".")[2])(**arguments)


def definition(task: Task, network: Network) -> dict[str, Any]:
    """Return MONAI's class and arguments for a network, as JSON values.

    What a network does not have it ignores: SegResNet takes its width from the first of ``channels`` (doubled at
    every level, always stride 2), SwinUNETR likewise (rounded up to a multiple of 12) and five levels always, and
    the Attention U-Net normalises by batch. Raises :class:`Fault` BAD_JOB for a DynUNet of two levels.
    """
    channels, strides = list(network.channels), list(network.strides)
    io: dict[str, Any] = {
        "spatial_dims": 3,
        "in_channels": len(task.channels),
        "out_channels": len(task.regions),
    }
    match network.name:
        case "unet" | "residual_unet":
            units = network.residual_units
            if network.name == "residual_unet":
                units = max(units, 2)
            # with residual units MONAI normalises the output channels, too
            widths = [*channels, len(task.regions)] if units else channels
            return {
                "_target_": "monai.networks.nets.UNet",
                **io,
                "channels": channels,
                "strides": strides,
                "num_res_units": units,
                "norm": _norm(network.norm, widths),
                "dropout": network.dropout,
            }
        case "segresnet":
            levels = len(channels)
            return {
                "_target_": "monai.networks.nets.SegResNet",
                **io,
                "init_filters": channels[0],
                "blocks_down": [max(1, network.residual_units)] * levels,
                "blocks_up": [1] * (levels - 1),
                "norm": _norm(network.norm, channels[:1]),
                "dropout_prob": network.dropout or None,
            }
        case "dynunet":
            if len(channels) < 3:
                raise Fault(Exit.BAD_JOB, "DynUNet needs at least three levels.")
            return {
                "_target_": "monai.networks.nets.DynUNet",
                **io,
                "kernel_size": [3] * len(channels),
                "strides": [1, *strides],
                "upsample_kernel_size": strides,
                "filters": channels,
                "norm_name": _norm(network.norm, channels, affine=True),
                "dropout": network.dropout or None,
                "res_block": network.residual_units > 0,
            }
        case "attention_unet":
            return {
                "_target_": "monai.networks.nets.AttentionUnet",
                **io,
                "channels": channels,
                "strides": strides,
                "dropout": network.dropout,
            }
        case "swin_unetr":
            width = swin_width(network)
            return {
                "_target_": "monai.networks.nets.SwinUNETR",
                **io,
                "feature_size": width,
                "norm_name": _norm(network.norm, [width]),
                "drop_rate": network.dropout,
            }
        case _:
            raise Fault(Exit.BAD_JOB, f"There is no network {network.name}.")


def _norm(name: str, widths: Sequence[int], *, affine: bool = False) -> str | list[Any]:
    match name:
        case "group":
            return ["group", {"num_groups": math.gcd(8, *widths)}]
        case "instance" if affine:
            return ["instance", {"affine": True}]
        case _:
            return name
