"""Who the demo's sites are: how many cases each has, of which tumours, seen by which scanner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.phantoms.lesion import Tumours
from trainer.phantoms.scanner import Look

VARIANTS = ("scanner", "iid", "missing-subtypes", "unequal")
"""How the sites differ: by scanner and tumour statistics; not at all; in which kinds of tumour they have ever
seen; in how many training cases they have. The last three have one scanner look, so that one thing differs."""


@dataclass(frozen=True)
class Profile:
    """One site. ``index`` (from 0) is part of every case's seed, so a site is the same alone or among others."""

    name: str
    index: int
    train: int
    validation: int
    look: Look
    tumours: Tumours


_LOOKS = (
    (Look(), Tumours()),
    (Look(noise=0.045, bias=0.15, gamma=0.85, units=(150, 400)), Tumours(radius=22, non_enhancing=0.2)),
    (
        Look(noise=0.04, bias=0.15, gamma=1.25, slice_mm=6, units=(2000, 4000)),
        Tumours(radius=31, non_enhancing=0.3),
    ),
)

_SUBTYPES = (
    Tumours(non_enhancing=1.0),
    Tumours(radius=14, smallest=9, largest=18, non_enhancing=0.0),
    Tumours(radius=31, smallest=24, non_enhancing=0.0),
)
"""Never enhancing; only small; only large and enhancing."""

_SHARES = (0.5, 1, 2)


def cohort(variant: str, *, names: Sequence[str], train: int, validation: int, seed: int) -> list[Profile]:
    """Return the profiles of the sites called ``names``. The first three scanners are fixed, further ones are
    drawn from ``seed``; sub-types and unequal sizes repeat after three sites."""
    profiles = []
    for index, name in enumerate(names):
        look, tumours, cases = Look(), Tumours(), train
        if variant == "scanner":
            look, tumours = _LOOKS[index] if index < len(_LOOKS) else _drawn(seed, index)
        elif variant == "missing-subtypes":
            tumours = _SUBTYPES[index % len(_SUBTYPES)]
        elif variant == "unequal":
            cases = max(1, round(train * _SHARES[index % len(_SHARES)]))
        elif variant != "iid":
            raise ValueError(f"variant {variant!r}: one of {', '.join(VARIANTS)}")
        profiles.append(Profile(name, index, cases, validation, look, tumours))
    return profiles


def default_names(sites: int) -> list[str]:
    """Return a, b, c … z, site-27, site-28 …"""
    return [chr(ord("a") + i) if i < 26 else f"site-{i + 1}" for i in range(sites)]


def _drawn(seed: int, index: int) -> tuple[Look, Tumours]:
    """A scanner and its patients for a site beyond the third, within the range of the first three."""
    rng = np.random.default_rng([seed, index])
    scale = float(np.exp(rng.uniform(np.log(150), np.log(2700))))
    look = Look(
        noise=float(rng.uniform(0.03, 0.05)),
        bias=float(rng.uniform(0.08, 0.17)),
        gamma=float(rng.uniform(0.85, 1.25)),
        slice_mm=float(rng.choice([0, 0, 5, 6])),
        units=(scale, 1.5 * scale),
    )
    return look, Tumours(radius=float(rng.uniform(22, 31)), non_enhancing=float(rng.uniform(0.1, 0.3)))
