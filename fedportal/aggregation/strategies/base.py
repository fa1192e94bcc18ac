"""What a strategy is: what a form may know about it, and the two movements of a merge.

A strategy works on one chunk of one entry at a time and sees plain float64 arrays; it knows nothing of files,
memory or sites' names. It acts in two movements: :meth:`Strategy.combine` makes one value out of the sites'
values, and :meth:`Strategy.step`, for strategies with server state (momentum, Adam at the server), moves the
global model towards it. ``step`` sees trained parameters only: a server optimizer on running variances would make
them negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedportal.aggregation.dtypes import Float64s

OptionValue = str | float


@dataclass(frozen=True)
class Option:
    """A choice that a strategy leaves to the researcher: one of ``choices``, or a number in ``least`` … ``most``."""

    name: str
    title: str
    default: OptionValue
    choices: tuple[str, ...] = ()
    least: float = -math.inf
    most: float = math.inf
    help: str = ""

    def refusal(self, value: object) -> str | None:
        if self.choices:
            if value in self.choices:
                return None
            return f"{self.title} is one of {', '.join(self.choices)}, not {value!r}."
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and self.least <= float(str(value)) <= self.most:
            return None
        return f"{self.title} is a number from {self.least:g} to {self.most:g}, not {value!r}."


WEIGHTING = Option(name="weighting", title="Weighting of sites", default="cases", choices=("cases", "uniform"))


class SiteValues(Protocol):
    """The same chunk of the same entry at every site that counts, in the order of the sites' names."""

    weights: Sequence[int]
    """Positive, without a common divisor: only their proportion has a meaning."""
    scratch: Float64s
    """As long as the chunk, free to use."""

    def read(self, site: int) -> NDArray[Any]:
        """Return a site's values (float16, float32 or float64), valid until the next read."""
        ...


class Strategy:
    """A way to aggregate: as it stands the weighted mean, from which each strategy departs in what it declares."""

    name: str
    title: str
    about: str
    """What it does and when it helps, in a sentence for the form."""
    paper: str
    options: Sequence[Option] = ()
    min_sites: int = 1
    why_min_sites: str = ""
    uses_server_state: bool = False
    merges_buffers: bool = False
    """Whether :meth:`combine` makes the floating buffers too; otherwise they are the weighted mean."""
    needs_norm_entries: bool = False
    """Whether it makes sense only where normalisation layers have something to learn or to remember."""
    why_no_averaged_moments: str = ""
    """Why the sites' optimizer state cannot be averaged and sent back beside it; empty: it can."""

    @property
    def weighted(self) -> bool:
        """Whether sites may count by their cases; otherwise every site has one voice."""
        return any(option is WEIGHTING for option in self.options)

    def plan_fields(self, options: Mapping[str, OptionValue]) -> dict[str, Any]:
        """Return what the plan has to tell the sites, by field of :class:`trainer.contract.TrainingPlan`."""
        return {}

    def counts(self, cases: Sequence[int], options: Mapping[str, OptionValue]) -> list[int]:
        """Return how much each site counts: its cases, or 1; 0 for a site whose update has no part in the result."""
        if options.get("weighting") == "cases":
            return list(cases)
        return [min(count, 1) for count in cases]

    def combine(self, values: SiteValues, out: Float64s, options: Mapping[str, OptionValue]) -> None:
        """Write one value per element into ``out``."""
        weighted_mean(values, out)

    def slots(self, options: Mapping[str, OptionValue]) -> Mapping[str, float]:
        """Return the server state kept per parameter: its name and the value that it starts with."""
        return {}

    def step(
        self,
        model: Float64s,
        combined: Float64s,
        state: Mapping[str, Float64s],
        options: Mapping[str, OptionValue],
    ) -> None:
        """Turn ``combined`` into the new global model, in place, and ``state`` into the new state."""


def number(options: Mapping[str, OptionValue], name: str) -> float:
    return float(options[name])


def weighted_mean(values: SiteValues, out: Float64s) -> None:
    """Write the weighted mean into ``out``: a sum with whole-number weights, divided once at the end.

    A float32 value times a count below 2²⁹ is exact in float64, so that equal updates come out to the bit,
    and so do proportional weights. For float64 values nothing is exact: there the mean is held between the
    smallest and the largest value.
    """
    least = most = None
    for site, weight in enumerate(values.weights):
        value = values.read(site)
        if site == 0:
            np.multiply(value, float(weight), out=out, dtype=np.float64)
        elif weight == 1:
            np.add(out, value, out=out)
        else:
            np.copyto(values.scratch, value)
            np.multiply(values.scratch, float(weight), out=values.scratch)
            np.add(out, values.scratch, out=out)
        if value.dtype == np.float64:
            least = value.copy() if least is None else np.minimum(least, value, out=least)
            most = value.copy() if most is None else np.maximum(most, value, out=most)
    np.divide(out, float(sum(values.weights)), out=out)
    if least is not None and most is not None:
        np.clip(out, least, most, out=out)
