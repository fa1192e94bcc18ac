"""How updates become one model: each strategy says what it needs, so that a form can refuse what makes no sense.

``docs/strategies.md`` has a paragraph on each for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedportal.aggregation.errors import AggregationRefused
from fedportal.aggregation.strategies.adaptive import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedportal.aggregation.strategies.averaging import FedAvg, FedBN, FedProx
from fedportal.aggregation.strategies.base import (
    WEIGHTING,
    Option,
    OptionValue,
    SiteValues,
    Strategy,
    weighted_mean,
)
from fedportal.aggregation.strategies.robust import Median, TrimmedMean

__all__ = [
    "STRATEGIES",
    "WEIGHTING",
    "Option",
    "OptionValue",
    "SiteValues",
    "Strategy",
    "complete_options",
    "plan_fields",
    "refusal",
    "weighted_mean",
]

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        FedAvg(),
        FedProx(),
        FedBN(),
        FedAvgM(),
        FedAdam(),
        FedYogi(),
        FedAdagrad(),
        Median(),
        TrimmedMean(),
    )
}


def refusal(
    strategy: str,
    *,
    sites: int,
    options: Mapping[str, object] | None = None,
    treatment: str = "reset",
    has_norm_entries: bool = True,
) -> str | None:
    """Return why a strategy cannot be used like this, in a sentence for a form, or ``None``.

    ``sites``: how many updates the smallest round may have. ``treatment``: what becomes of the sites' optimizer
    state. ``has_norm_entries``: whether the network's normalisation layers have parameters or buffers.
    """
    known = STRATEGIES.get(strategy)
    if known is None:
        return f"There is no strategy {strategy!r}; there are {', '.join(STRATEGIES)}."
    trouble = _refused_options(known, options or {})
    if trouble:
        return trouble
    if sites < known.min_sites:
        why = f": {known.why_min_sites}" if known.why_min_sites else ""
        plural = "" if known.min_sites == 1 else "s"
        return f"{known.title} needs at least {known.min_sites} site{plural} in every round, not {sites}{why}."
    if known.needs_norm_entries and not has_norm_entries:
        return (
            f"{known.title} keeps normalisation layers at the sites, but those of this network have nothing to keep: "
            "choose batch or group normalisation, or another strategy."
        )
    if treatment == "aggregate" and known.why_no_averaged_moments:
        return (
            f"{known.title} does not go with an averaged optimizer memory: {known.why_no_averaged_moments}. "
            "Let the sites start fresh or keep it."
        )
    return None


def complete_options(strategy: Strategy, given: Mapping[str, Any]) -> dict[str, OptionValue]:
    """Return the options with defaults filled in. Raises :class:`AggregationRefused` for one that does not fit."""
    trouble = _refused_options(strategy, given)
    if trouble:
        raise AggregationRefused(trouble)
    return _completed(strategy, given)


def plan_fields(strategy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan's fields that follow from the strategy, those of all strategies, most of them at rest.

    Raises :class:`AggregationRefused` for options that do not fit.
    """
    fields: dict[str, Any] = {"proximal_mu": 0.0, "local_layers": "none"}
    known = STRATEGIES.get(strategy)
    return fields if known is None else fields | known.plan_fields(complete_options(known, options))


def _refused_options(strategy: Strategy, given: Mapping[str, object]) -> str | None:
    left = dict(given)
    for option in strategy.options:
        trouble = option.refusal(left.pop(option.name, option.default))
        if trouble:
            return trouble
    return f"{strategy.title} has no option {', '.join(map(repr, left))}." if left else None


def _completed(strategy: Strategy, given: Mapping[str, Any]) -> dict[str, OptionValue]:
    return {option.name: given.get(option.name, option.default) for option in strategy.options}
