"""The papers' formulas in plain NumPy, whole arrays in float64: what every strategy is measured against.

Written from the papers, without a look at the strategies: McMahan et al. 2017, algorithm 1; Hsu et al. 2019, section
4.3; Reddi et al. 2021, algorithm 2; Yin et al. 2018, definitions 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray


def mean(sites: Sequence[Array], cases: Sequence[int]) -> Array:
    return sum(np.float64(n) / sum(cases) * site.astype(np.float64) for site, n in zip(sites, cases, strict=True))


@dataclass
class Server:
    """A server of one of the papers, for one array; remembers from round to round."""

    strategy: str
    options: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Array] = field(default_factory=dict)

    def round(self, model: Array, sites: Sequence[Array], cases: Sequence[int]) -> Array:
        match self.strategy:
            case "fedavg" | "fedprox" | "fedbn":
                return mean(sites, cases)
            case "fedavgm":
                gradient = model.astype(np.float64) - mean(sites, cases)
                self.memory["v"] = self.options["momentum"] * self.memory.get("v", 0.0) + gradient
                return model - self.options["learning_rate"] * self.memory["v"]
            case "fedadam" | "fedyogi" | "fedadagrad":
                return self._adaptive(model.astype(np.float64), mean(sites, cases))
            case "median":
                return np.median(np.stack([site.astype(np.float64) for site in sites]), axis=0)
            case "trimmed_mean":
                rows = np.sort(np.stack([site.astype(np.float64) for site in sites]), axis=0)
                k = max(1, math.floor(self.options["trim"] * len(sites)))
                return rows[k : len(sites) - k].mean(axis=0)
        raise AssertionError(self.strategy)

    def _adaptive(self, x: Array, target: Array) -> Array:
        eta, beta1, tau = (self.options[name] for name in ("learning_rate", "beta1", "tau"))
        delta = target - x
        m = beta1 * self.memory.get("m", np.zeros_like(x)) + (1 - beta1) * delta
        v = self.memory.get("v", np.full_like(x, tau**2))
        if self.strategy == "fedadam":
            v = self.options["beta2"] * v + (1 - self.options["beta2"]) * delta**2
        elif self.strategy == "fedyogi":
            v = v - (1 - self.options["beta2"]) * delta**2 * np.sign(v - delta**2)
        else:
            v = v + delta**2
        self.memory = {"m": m, "v": v}
        return x + eta * m / (np.sqrt(v) + tau)
