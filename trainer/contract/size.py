"""How large a network is and how much memory its training takes, from the plan alone.

The counts follow MONAI's classes as :mod:`trainer.networks` builds them: parameters to the number, what a training step
keeps for its backward pass as an estimate (tests compare both with the real networks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.contract.plan import Network, Task, TrainingPlan

SWIN_DEPTH = 5
"""SwinUNETR halves the volume five times, whatever the plan's strides say."""
SWIN_WINDOW = 7
FLOAT = 4
"""Bytes of a number (float32)."""
MOMENTS = {"adam": 2, "adamw": 2, "sgd": 1}
"""Numbers that an optimizer remembers of each weight; AMSGrad remembers one more."""
PROCESS = 400 * 2**20
"""Bytes of a trainer before its first step: Python, torch, MONAI."""
AT_WORK = 1.5
"""How much more than it keeps a step needs at its height, for gradients and the layers' own room. Measured on a processor
with six networks: 1.0 (SwinUNETR) to 2.1 (residual U-Net)."""


def divisor(network: Network) -> int:
    """Return the number of voxels that every edge of the network's input must be a multiple of."""
    match network.name:
        case "segresnet":
            return 1 << (len(network.channels) - 1)
        case "swin_unetr":
            return 1 << SWIN_DEPTH
        case _:
            return math.prod(network.strides)


def input_shape(network: Network, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the smallest shape in voxels, not below ``shape``, that the network takes.

    The first edge is at least twice the divisor: the deepest level would else be a single voxel, which no instance
    or batch normalisation can work on.
    """
    step = divisor(network)
    x, y, z = (step * math.ceil(edge / step) for edge in shape)
    return max(x, 2 * step), y, z


def swin_width(network: Network) -> int:
    """Return the feature size of a SwinUNETR: the first of ``channels``, rounded up to a multiple of 12."""
    return 12 * math.ceil(network.channels[0] / 12)


def parameters_of(task: Task, network: Network) -> int:
    """Return how many numbers training changes."""
    return _tally(task, network, 1).parameters


def activations_of(task: Task, network: Network, shape: Sequence[int]) -> int:
    """Return how many numbers one sample of ``shape`` (voxels) leaves behind for the backward pass, about."""
    return round(_tally(task, network, math.prod(input_shape(network, shape))).kept)


def update_bytes(plan: TrainingPlan) -> int:
    """Return the bytes that a site sends back each round, about: weights, and the optimizer's moments where averaged."""
    moments = MOMENTS[plan.optimizer.name] if plan.optimizer.treatment == "aggregate" else 0
    return FLOAT * (1 + moments) * parameters_of(plan.task, plan.network)


def training_memory(plan: TrainingPlan, shape: Sequence[int]) -> int:
    """Return the bytes that a training process needs for batches of volumes or patches of ``shape`` voxels, about.

    Weights, gradients, the optimizer's moments and a second copy of the model, what the backward pass needs of a batch,
    and the process itself, in float32. Right within a factor of 1.5.
    """
    weights = parameters_of(plan.task, plan.network)
    copies = 3 + MOMENTS[plan.optimizer.name] + (1 if plan.optimizer.amsgrad else 0) + (1 if plan.proximal_mu else 0)
    of_a_sample = activations_of(plan.task, plan.network, shape)
    return PROCESS + round(FLOAT * (copies * weights + AT_WORK * plan.batch_size * of_a_sample))


class _Tally:
    """Counts layer by layer. ``kept``: numbers that the backward pass needs; ``voxels`` are those of a layer's output."""

    def __init__(self) -> None:
        self.parameters = 0
        self.kept = 0.0

    def conv(self, inner: int, outer: int, voxels: float, *, kernel: int = 3, bias: bool = True) -> None:
        self.parameters += inner * outer * kernel**3 + (outer if bias else 0)
        self.keep(outer, voxels)

    def norm(self, width: int, *, has_weights: bool) -> None:
        self.parameters += 2 * width if has_weights else 0

    def keep(self, width: int, voxels: float) -> None:
        self.kept += width * voxels


def _tally(task: Task, network: Network, voxels: float) -> _Tally:
    inner, outer = len(task.channels), len(task.regions)
    tally = _Tally()
    tally.keep(inner + 2 * outer, voxels)  # the image, the target and the loss
    _OF[network.name](tally, network, inner, outer, voxels)
    return tally


def _unet(tally: _Tally, network: Network, inner: int, outer: int, voxels: float) -> None:
    units = max(network.residual_units, 2) if network.name == "residual_unet" else network.residual_units
    has_weights = network.norm != "instance"

    def block(inner: int, outer: int, voxels: float, *, is_last: bool = False) -> None:
        tally.conv(inner, outer, voxels)
        if not is_last:
            tally.norm(outer, has_weights=has_weights)
            tally.parameters += 1  # PReLU's slope
            tally.keep(2 * outer, voxels)  # after normalisation and after activation

    def down(inner: int, outer: int, voxels: float, stride: int) -> None:
        for number in range(max(units, 1)):
            block(outer if number else inner, outer, voxels)
        if units and (stride > 1 or inner != outer):
            tally.conv(inner, outer, voxels, kernel=3 if stride > 1 else 1)

    def level(inner: int, outer: int, voxels: float, number: int) -> None:
        width, below = network.channels[number], voxels / network.strides[number] ** 3
        deepest = number == len(network.strides) - 1
        down(inner, width, below, network.strides[number])
        if deepest:
            down(width, network.channels[-1], below, 1)
        else:
            level(width, width, below, number + 1)
        joined = width + (network.channels[-1] if deepest else width)
        tally.keep(joined, below)  # both, side by side
        block(joined, outer, voxels, is_last=not number and not units)
        if units:
            block(outer, outer, voxels, is_last=not number)

    level(inner, outer, voxels, 0)


def _segresnet(tally: _Tally, network: Network, inner: int, outer: int, voxels: float) -> None:
    has_weights = network.norm != "instance"
    levels = len(network.channels)
    width = network.channels[0]

    def block(width: int, voxels: float) -> None:
        for _ in range(2):
            tally.norm(width, has_weights=has_weights)
            tally.keep(width, voxels)  # after normalisation; the activation is done in place
            tally.conv(width, width, voxels, bias=False)

    tally.conv(inner, width, voxels, bias=False)
    for level in range(levels):
        here = voxels / 8**level
        if level:
            tally.conv(width * 2 ** (level - 1), width * 2**level, here, bias=False)
        for _ in range(max(1, network.residual_units)):
            block(width * 2**level, here)
    for level in reversed(range(levels - 1)):
        tally.conv(width * 2 ** (level + 1), width * 2**level, voxels / 8 ** (level + 1), kernel=1, bias=False)
        tally.keep(width * 2**level, voxels / 8**level)  # drawn up to the larger size
        block(width * 2**level, voxels / 8**level)
    tally.norm(width, has_weights=has_weights)
    tally.keep(width, voxels)
    tally.conv(width, outer, voxels, kernel=1)


def _dynunet(tally: _Tally, network: Network, inner: int, outer: int, voxels: float) -> None:
    # its instance normalisation has weights, too
    def block(inner: int, outer: int, voxels: float, *, stride: int = 1, is_residual: bool = False) -> None:
        for number in range(2):
            tally.conv(outer if number else inner, outer, voxels, bias=False)
            tally.norm(outer, has_weights=True)
            tally.keep(outer, voxels)
        if is_residual and (inner != outer or stride > 1):
            tally.conv(inner, outer, voxels, kernel=1, bias=False)
            tally.norm(outer, has_weights=True)

    is_residual = network.residual_units > 0
    widths, sizes = network.channels, [voxels]
    block(inner, widths[0], voxels, is_residual=is_residual)
    for number, stride in enumerate(network.strides):
        sizes.append(sizes[-1] / stride**3)
        block(widths[number], widths[number + 1], sizes[-1], stride=stride, is_residual=is_residual)
    for number, stride in reversed(list(enumerate(network.strides))):
        tally.conv(widths[number + 1], widths[number], sizes[number], kernel=stride, bias=False)
        tally.keep(2 * widths[number], sizes[number])
        block(2 * widths[number], widths[number], sizes[number])
    tally.conv(widths[0], outer, voxels, kernel=1)


def _attention_unet(tally: _Tally, network: Network, inner: int, outer: int, voxels: float) -> None:
    # batch normalisation and ReLU always
    def block(inner: int, outer: int, voxels: float) -> None:
        tally.conv(inner, outer, voxels)
        tally.norm(outer, has_weights=True)
        tally.keep(outer, voxels)

    def level(voxels: float, number: int) -> None:
        width, wider, below = *network.channels[number : number + 2], voxels / network.strides[number] ** 3
        block(width, wider, below)
        block(wider, wider, below)
        if number + 2 < len(network.channels):
            level(below, number + 1)
        block(wider, width, voxels)  # drawn up
        half = width // 2
        for inner, outer in ((width, half), (width, half), (half, 1)):  # the gate
            tally.conv(inner, outer, voxels, kernel=1)
            tally.norm(outer, has_weights=True)
        tally.keep(half + 4 * width, voxels)
        tally.conv(2 * width, width, voxels)
        tally.parameters += 1  # PReLU's slope; the instance normalisation before it has no weights
        tally.keep(2 * width, voxels)

    first = network.channels[0]
    block(inner, first, voxels)
    block(first, first, voxels)
    level(voxels, 0)
    tally.conv(first, outer, voxels, kernel=1)


def _swin_unetr(tally: _Tally, network: Network, inner: int, outer: int, voxels: float) -> None:
    has_weights = network.norm != "instance"
    width = swin_width(network)
    places = (2 * SWIN_WINDOW - 1) ** 3

    def block(inner: int, outer: int, voxels: float) -> None:
        for number in range(2):
            tally.conv(outer if number else inner, outer, voxels, bias=False)
            tally.norm(outer, has_weights=has_weights)
            tally.keep(outer, voxels)
        if inner != outer:
            tally.conv(inner, outer, voxels, kernel=1, bias=False)
            tally.norm(outer, has_weights=has_weights)
            tally.keep(outer, voxels)

    def attention(width: int, heads: int, voxels: float) -> None:
        tally.parameters += 4 * width + places * heads  # two layer normalisations, the biases of relative positions
        tally.parameters += 3 * width * (width + 1) + width * (width + 1)  # qkv, projection
        tally.parameters += 4 * width * (width + 1) + width * (4 * width + 1)  # the two layers after it
        tally.keep(16 * width + 2 * heads * SWIN_WINDOW**3, voxels)

    tally.conv(inner, width, voxels / 8, kernel=2)
    for stage in range(4):
        deep, here = width * 2**stage, voxels / 8 ** (stage + 1)
        for _ in range(2):
            attention(deep, 3 * 2**stage, here)
        tally.parameters += 8 * deep * 2 * deep + 2 * 8 * deep  # the merging of eight neighbours
        tally.keep(2 * 8 * deep + 2 * deep, here / 8)
    block(inner, width, voxels)
    for stage in range(3):
        block(width * 2**stage, width * 2**stage, voxels / 8 ** (stage + 1))
    block(16 * width, 16 * width, voxels / 8**SWIN_DEPTH)
    for stage in (4, 3, 2, 1, 0):
        here = width * 2 ** max(stage - 1, 0)
        deeper = width * 2**stage if stage else width
        size = voxels / 8**stage
        tally.conv(deeper, here, size, kernel=2, bias=False)
        tally.keep(2 * here, size)
        block(2 * here, here, size)
    tally.conv(width, outer, voxels, kernel=1)


_OF = {
    "unet": _unet,
    "residual_unet": _unet,
    "segresnet": _segresnet,
    "dynunet": _dynunet,
    "attention_unet": _attention_unet,
    "swin_unetr": _swin_unetr,
}
