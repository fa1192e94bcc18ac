"""The augmentation presets: random changes of a training sample that a scanner or a patient could have made."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSimulateLowResolutiond,
)
from torch import Tensor

from trainer.contract import Exit
from trainer.job import Fault

Augment = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(image float32 [channel, x, y, z], label uint8 [x, y, z], seed) → the same, changed."""


def build(preset: str) -> Augment:
    """Return the preset's change. *light*: flips, brightness and contrast by 10 %. *standard*: also rotation, zoom and
    noise. *strong*: wider, also gamma, blur and low resolution. *none* changes nothing."""
    steps = _steps(preset)
    if not steps:
        return lambda image, label, _seed: (image, label)
    chain = Compose(steps)

    def augment(image: Tensor, label: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        chain.set_random_state(seed=seed % 2**32)
        changed = chain({"image": image, "label": label[None]})
        return (
            torch.as_tensor(changed["image"]).as_subclass(Tensor).float(),
            torch.as_tensor(changed["label"]).as_subclass(Tensor)[0].to(torch.uint8),
        )

    return augment


def _steps(preset: str) -> list[Callable]:
    both, image = ["image", "label"], ["image"]
    flips = [RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)]
    brightness = [
        RandScaleIntensityd(image, factors=0.1, prob=1.0),
        RandShiftIntensityd(image, offsets=0.1, prob=1.0),
    ]
    match preset:
        case "none":
            return []
        case "light":
            return [*flips, *brightness]
        case "standard":
            return [_affine(both, prob=0.3, degrees=15, zoom=0.1), *flips, *brightness, _noise(image)]
        case "strong":
            return [
                _affine(both, prob=0.5, degrees=30, zoom=0.3),
                *flips,
                RandScaleIntensityd(image, factors=0.25, prob=0.5),
                RandShiftIntensityd(image, offsets=0.25, prob=0.5),
                RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
                RandGaussianSmoothd(image, prob=0.2, sigma_x=(0.5, 1.0), sigma_y=(0.5, 1.0), sigma_z=(0.5, 1.0)),
                RandSimulateLowResolutiond(image, prob=0.2, zoom_range=(0.5, 1.0)),
                _noise(image),
            ]
        case _:
            raise Fault(Exit.BAD_JOB, f"There is no augmentation {preset}.")


def _affine(keys: list[str], *, prob: float, degrees: float, zoom: float) -> RandAffined:
    return RandAffined(
        keys,
        prob=prob,
        rotate_range=(math.radians(degrees),) * 3,
        scale_range=(zoom,) * 3,
        mode=("bilinear", "nearest"),
        padding_mode="zeros",
    )


def _noise(keys: list[str]) -> RandGaussianNoised:
    return RandGaussianNoised(keys, prob=0.15, std=0.1)
