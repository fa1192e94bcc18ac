"""What a scanner makes of an anatomy: four contrasts, then its gamma, slices, coil, noise and arbitrary units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from trainer.phantoms.anatomy import Frame, Generator, smooth_noise
from trainer.phantoms.lesion import EDEMA, ENHANCING, NON_ENHANCING
from trainer.phantoms.template import Tissues

CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")
"""The contrasts in Task01's order and spelling."""


@dataclass(frozen=True)
class Signal:
    """Relative brightness in one contrast; ``texture`` weighs what T1 shows beyond its tissues."""

    csf: float
    gm: float
    wm: float
    texture: float
    edema: float
    non_enhancing: float
    enhancing: float


SIGNALS = {
    "FLAIR": Signal(csf=0.10, gm=0.58, wm=0.48, texture=-0.3, edema=1.06, non_enhancing=0.84, enhancing=0.92),
    "T1w": Signal(csf=0.17, gm=0.62, wm=0.86, texture=1.0, edema=0.55, non_enhancing=0.36, enhancing=0.50),
    "t1gd": Signal(csf=0.17, gm=0.62, wm=0.84, texture=1.0, edema=0.54, non_enhancing=0.32, enhancing=1.25),
    "T2w": Signal(csf=1.05, gm=0.62, wm=0.42, texture=-0.4, edema=0.96, non_enhancing=1.02, enhancing=0.80),
}


@dataclass(frozen=True)
class Look:
    """A scanner. ``noise`` and ``bias`` are standard deviations relative to white matter on T1 and to one,
    ``slice_mm`` the slice thickness, ``units`` the range of the arbitrary intensity scale."""

    noise: float = 0.035
    bias: float = 0.10
    gamma: float = 1.0
    slice_mm: float = 0.0
    units: tuple[float, float] = (800.0, 1200.0)


def scan(rng: Generator, frame: Frame, tissues: Tissues, label: np.ndarray, look: Look) -> np.ndarray:
    """Return the four contrasts as int16 (N, N, N, 4); background is exactly 0 and brain at least 1, as in a
    skull-stripped image."""
    brain = tissues.brain > 0.5
    # Borders between tumour parts are as soft as a voxel, the labels are not: as in life.
    soft = {part: ndimage.gaussian_filter((label == part).astype(np.float32), 0.45) for part in (1, 2, 3)}
    contrast = rng.uniform(0.8, 1.1)
    patchy = 1 + 0.1 * smooth_noise(rng, 14, frame.size)
    noise = look.noise * np.exp(rng.normal(0, 0.15))
    thickness = np.sqrt(max(0.0, look.slice_mm**2 - frame.voxel**2)) / 2.355 / frame.voxel
    image = np.zeros((*label.shape, len(CHANNELS)), dtype=np.int16)
    for channel, name in enumerate(CHANNELS):
        signal = SIGNALS[name]
        base = signal.csf * tissues.csf + signal.gm * tissues.gm + signal.wm * tissues.wm
        base = base + signal.texture * tissues.texture
        tumour = {EDEMA: signal.edema, NON_ENHANCING: signal.non_enhancing, ENHANCING: signal.enhancing}
        seen = base + contrast * sum(soft[part] * (value * patchy - base) for part, value in tumour.items())
        seen = np.clip(seen, 0, None) ** look.gamma
        if thickness:
            seen = ndimage.gaussian_filter1d(seen, thickness, axis=2)
        seen = seen * np.exp(look.bias * smooth_noise(rng, 3, frame.size))
        # Rician: a magnitude image has noise in both of its parts.
        real, imaginary = noise * rng.standard_normal((2, *label.shape), dtype=np.float32)
        seen = np.hypot(seen + real, imaginary) * rng.uniform(*look.units)
        image[..., channel] = np.where(brain, np.clip(np.rint(seen), 1, 32767), 0)
    return image
