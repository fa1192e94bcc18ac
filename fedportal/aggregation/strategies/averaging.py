"""Strategies whose global model is the mean of the sites' models; what differs happens at the sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedportal.aggregation.strategies.base import WEIGHTING, Option, OptionValue, Strategy, number


class FedAvg(Strategy):
    """The weighted mean of the sites' models, each key by itself."""

    name = "fedavg"
    title = "Federated averaging"
    about = "The mean of the sites' models. A good first choice."
    paper = "McMahan et al., AISTATS 2017, arXiv:1602.05629"
    options = (WEIGHTING,)


class FedProx(Strategy):
    """The mean of models that were held near the global one: the sites add μ/2·‖w − w_global‖² to their loss."""

    name = "fedprox"
    title = "FedProx"
    about = "Averaging, while a pull towards the global model keeps sites with unlike data from drifting apart."
    paper = "Li et al., MLSys 2020, arXiv:1812.06127"
    options = (
        WEIGHTING,
        Option(
            name="proximal_mu",
            title="Proximal term μ",
            default=0.01,
            least=1e-6,
            most=10.0,
            help="Strength of the pull. The paper tries 0.001, 0.01, 0.1 and 1.",
        ),
    )

    def plan_fields(self, options: Mapping[str, OptionValue]) -> dict[str, Any]:
        return {"proximal_mu": number(options, "proximal_mu")}


class FedBN(Strategy):
    """The mean of everything but the normalisation layers, which stay at each site.

    The global model holds their mean over the sites: it is what somebody downloads who has no such layers.
    """

    name = "fedbn"
    title = "FedBN"
    about = "Averaging, while each site keeps its own normalisation layers. For scanners that look unlike."
    paper = "Li et al., ICLR 2021, arXiv:2102.07623"
    options = (WEIGHTING,)
    needs_norm_entries = True
    why_no_averaged_moments = "the layers that stay at a site would be moved by other sites' gradients"

    def plan_fields(self, options: Mapping[str, OptionValue]) -> dict[str, Any]:
        return {"local_layers": "normalisation"}
