"""How updates become one model: each strategy says what it needs, so that a form can refuse what makes no sense.

A strategy works on one chunk of one entry at a time and sees plain float64 arrays; it knows nothing of files,
memory or sites' names. It acts in two movements: :meth:`Strategy.combine` makes one value out of the sites'
values, and :meth:`Strategy.step`, for strategies with server state (momentum, Adam at the server), moves the
global model towards it. Buffers are always the weighted mean and never see ``step``: a server optimizer on
running variances makes them negative.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedportal.aggregation.dtypes import Float64s
from fedportal.aggregation.errors import AggregationRefused

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

    def refusal(self, value: object) -> str | None:
        if self.choices:
            if value in self.choices:
                return None
            return f"{self.title} is one of {', '.join(self.choices)}, not {value!r}."
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and self.least <= float(str(value)) <= self.most:
            return None
        return f"{self.title} is a number from {self.least:g} to {self.most:g}, not {value!r}."


class SiteValues(Protocol):
    """The same chunk of the same entry at every site that counts, in the order of the sites' names."""

    weights: Sequence[int]
    """Positive, without a common divisor: only their proportion has a meaning."""
    scratch: Float64s
    """As long as the chunk, free to use."""

    def read(self, site: int) -> NDArray[Any]:
        """Return a site's values (float16, float32 or float64), valid until the next read."""
        ...


class Strategy(Protocol):
    """What a form and the aggregation know about a way to aggregate."""

    name: str
    title: str
    paper: str
    min_sites: int
    weighted: bool
    """Whether sites may count by their cases; otherwise every site has one voice."""
    uses_server_state: bool
    handles_buffers: bool
    """Whether networks with running statistics (batch normalisation) may be aggregated."""
    options: Sequence[Option]

    def counts(self, cases: Sequence[int], options: Mapping[str, OptionValue]) -> list[int]:
        """Return how much each site counts; 0 for a site whose update has no part in the result."""
        ...

    def combine(self, values: SiteValues, out: Float64s) -> None:
        """Write one value per element into ``out``."""
        ...

    def slots(self, options: Mapping[str, OptionValue]) -> Mapping[str, float]:
        """Return the server state kept per parameter: its name and the value that it starts with."""
        ...

    def step(
        self,
        model: Float64s,
        combined: Float64s,
        state: Mapping[str, Float64s],
        options: Mapping[str, OptionValue],
    ) -> None:
        """Turn ``combined`` into the new global model, in place, and ``state`` into the new state."""
        ...


class FedAvg:
    """The weighted mean of the sites' models, each key by itself."""

    name = "fedavg"
    title = "Federated averaging"
    paper = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    min_sites = 1
    weighted = True
    uses_server_state = False
    handles_buffers = True
    options: Sequence[Option] = (
        Option(name="weighting", title="Weighting of sites", default="cases", choices=("cases", "uniform")),
    )

    def counts(self, cases: Sequence[int], options: Mapping[str, OptionValue]) -> list[int]:
        """Return the cases, or 1 for every site that trained on any."""
        if options["weighting"] == "uniform":
            return [min(count, 1) for count in cases]
        return list(cases)

    def combine(self, values: SiteValues, out: Float64s) -> None:
        weighted_mean(values, out)

    def slots(self, options: Mapping[str, OptionValue]) -> Mapping[str, float]:
        return {}

    def step(
        self,
        model: Float64s,
        combined: Float64s,
        state: Mapping[str, Float64s],
        options: Mapping[str, OptionValue],
    ) -> None:
        """Leave the mean as it is: it is the new global model."""


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


STRATEGIES: dict[str, Strategy] = {strategy.name: strategy for strategy in (FedAvg(),)}


def refusal(
    strategy: str, *, sites: int, options: Mapping[str, object] | None = None, has_buffers: bool = False
) -> str | None:
    """Return why a strategy cannot be used like this, in a sentence for a form, or ``None``."""
    known = STRATEGIES.get(strategy)
    if known is None:
        return f"There is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}."
    if sites < known.min_sites:
        return f"{known.title} needs at least {known.min_sites} sites, there are {sites}."
    if has_buffers and not known.handles_buffers:
        return f"{known.title} cannot merge the running statistics of this network: choose a norm without them."
    given = dict(options or {})
    for option in known.options:
        trouble = option.refusal(given.pop(option.name, option.default))
        if trouble:
            return trouble
    if given:
        return f"{known.title} has no option {', '.join(map(repr, given))}."
    return None


def complete_options(strategy: Strategy, given: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Return the options with defaults filled in. Raises :class:`AggregationRefused` for one that does not fit."""
    trouble = refusal(strategy.name, sites=strategy.min_sites, options=given)
    if trouble:
        raise AggregationRefused(trouble)
    return {option.name: given.get(option.name, option.default) for option in strategy.options}
