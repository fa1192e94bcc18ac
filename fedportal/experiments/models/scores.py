"""Which global model is the best: by the Dice of a region or of all, whatever could not be measured never counting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

MEAN = "mean"
"""What the mean over regions is called where a region's name can stand."""


class Scored(Protocol):
    """A global model with what the sites measured of it."""

    @property
    def round_number(self) -> int: ...

    def dice_of(self, region: str) -> float | None: ...


ScoredT = TypeVar("ScoredT", bound=Scored)


def dice_of(region: str, dice: float | None, scores: Mapping[str, Any]) -> float | None:
    """Return a model's Dice of a region, or over all of them; ``None`` where it is undefined or was not measured."""
    value = dice if region == MEAN else ((scores.get("all") or {}).get("dice") or {}).get(region)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def best_of(models: Iterable[ScoredT], region: str) -> ScoredT | None:
    """Return the model with the highest Dice of a region, the earliest of equals; ``None`` when none was measured."""
    best: ScoredT | None = None
    for model in sorted(models, key=lambda model: model.round_number):
        value = model.dice_of(region)
        if value is not None and (best is None or value > (best.dice_of(region) or 0.0)):
            best = model
    return best
