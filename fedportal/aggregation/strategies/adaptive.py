"""Server optimizers: the mean movement of the sites is a gradient, and the portal takes a step of its own along it.

They act on trained parameters only and keep their moments in a state file of each round, so that a restart goes on
where the last round ended. All of them see Δ = mean of the sites' models − global model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedportal.aggregation.dtypes import Float64s
from fedportal.aggregation.strategies.base import WEIGHTING, Option, OptionValue, Strategy, number

WHY_NO_AVERAGED_MOMENTS = "it keeps a memory of its own at the portal, and two memories would push twice"


class FedAvgM(Strategy):
    """Averaging with momentum: v ← β·v + Δ, w ← w + η·v (Hsu et al., algorithm in section 4.3)."""

    name = "fedavgm"
    title = "FedAvgM"
    about = "Averaging with momentum at the portal: steadier when sites pull in different directions."
    paper = "Hsu, Qi and Brown, 2019, arXiv:1909.06335"
    uses_server_state = True
    why_no_averaged_moments = WHY_NO_AVERAGED_MOMENTS
    options = (
        WEIGHTING,
        Option(
            name="learning_rate",
            title="Server learning rate",
            default=1.0,
            least=1e-4,
            most=10.0,
            help="Share of the sites' mean movement that the portal takes over.",
        ),
        Option(
            name="momentum",
            title="Server momentum",
            default=0.5,
            least=0.0,
            most=0.999,
            help="Share of the last movement that is kept; 0 is plain averaging. The paper uses 0.9, for many rounds.",
        ),
    )

    def slots(self, options: Mapping[str, OptionValue]) -> Mapping[str, float]:
        return {"velocity": 0.0}

    def step(
        self,
        model: Float64s,
        combined: Float64s,
        state: Mapping[str, Float64s],
        options: Mapping[str, OptionValue],
    ) -> None:
        velocity = state["velocity"]
        np.subtract(combined, model, out=combined)
        velocity *= number(options, "momentum")
        velocity += combined
        np.multiply(velocity, number(options, "learning_rate"), out=combined)
        combined += model


def _adaptive_options(*, beta1: float, beta2: float | None) -> tuple[Option, ...]:
    options = [
        WEIGHTING,
        Option(
            name="learning_rate",
            title="Server learning rate",
            default=0.01,
            least=1e-6,
            most=10.0,
            help="About the largest change of a weight in a round.",
        ),
        Option(
            name="beta1",
            title="First moment β₁",
            default=beta1,
            least=0.0,
            most=0.999,
            help="Share of the last movement that is kept.",
        ),
    ]
    if beta2 is not None:
        options.append(
            Option(
                name="beta2",
                title="Second moment β₂",
                default=beta2,
                least=0.0,
                most=0.9999,
                help="Share of the memory of squared movements that is kept.",
            )
        )
    options.append(
        Option(
            name="tau",
            title="Adaptivity τ",
            default=1e-3,
            least=1e-9,
            most=1.0,
            help="Movements below it count as small; larger means less adaptive.",
        )
    )
    return tuple(options)


class _Adaptive(Strategy):
    """Reddi et al., algorithm 2: m ← β₁·m + (1 − β₁)·Δ, v by :meth:`second`, w ← w + η·m / (√v + τ).

    v starts at τ², the least that the algorithm allows. There is no bias correction, as in the paper.
    """

    paper = "Reddi et al., ICLR 2021, arXiv:2003.00295"
    uses_server_state = True
    why_no_averaged_moments = WHY_NO_AVERAGED_MOMENTS

    def slots(self, options: Mapping[str, OptionValue]) -> Mapping[str, float]:
        return {"first_moment": 0.0, "second_moment": number(options, "tau") ** 2}

    def step(
        self,
        model: Float64s,
        combined: Float64s,
        state: Mapping[str, Float64s],
        options: Mapping[str, OptionValue],
    ) -> None:
        first, second = state["first_moment"], state["second_moment"]
        beta1 = number(options, "beta1")
        np.subtract(combined, model, out=combined)
        first *= beta1
        first += (1.0 - beta1) * combined
        np.square(combined, out=combined)
        self.second(second, combined, options)
        np.sqrt(second, out=combined)
        combined += number(options, "tau")
        np.divide(first, combined, out=combined)
        combined *= number(options, "learning_rate")
        combined += model

    def second(self, moment: Float64s, square: Float64s, options: Mapping[str, OptionValue]) -> None:
        """Bring v, in place, to its new value, given Δ²."""
        raise NotImplementedError


class FedAdam(_Adaptive):
    """v ← β₂·v + (1 − β₂)·Δ²."""

    name = "fedadam"
    title = "FedAdam"
    about = "Adam at the portal: every weight has a step size of its own. For many rounds and unlike sites."
    options = _adaptive_options(beta1=0.9, beta2=0.99)

    def second(self, moment: Float64s, square: Float64s, options: Mapping[str, OptionValue]) -> None:
        beta2 = number(options, "beta2")
        moment *= beta2
        moment += (1.0 - beta2) * square


class FedYogi(_Adaptive):
    """v ← v − (1 − β₂)·Δ²·sign(v − Δ²)."""

    name = "fedyogi"
    title = "FedYogi"
    about = "Like FedAdam, but its step sizes change more slowly after a sudden jump."
    options = _adaptive_options(beta1=0.9, beta2=0.99)

    def second(self, moment: Float64s, square: Float64s, options: Mapping[str, OptionValue]) -> None:
        moment -= (1.0 - number(options, "beta2")) * square * np.sign(moment - square)


class FedAdagrad(_Adaptive):
    """v ← v + Δ². The paper runs it without a first moment, β₁ = 0."""

    name = "fedadagrad"
    title = "FedAdagrad"
    about = "Step sizes that only shrink: quick at first, calm at the end."
    options = _adaptive_options(beta1=0.0, beta2=None)

    def second(self, moment: Float64s, square: Float64s, options: Mapping[str, OptionValue]) -> None:
        moment += square
