"""Make golden_flower.json: what Flower's own strategies compute on random updates. Run by hand, never by the tests.

    python -m venv scratch && scratch/bin/pip install flwr==1.27.0
    scratch/bin/python tests/aggregation/golden_flower.py

Flower departs from Reddi et al. in two points, which are set right from outside: its second moments start at 0 (the
algorithm asks for at least τ²), and its FedAdam corrects the bias of the moments (the algorithm does not).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
)

SITES = {"a": 7, "b": 1, "c": 12, "d": 5, "e": 5}
ROUNDS, ELEMENTS = 3, 16
TAU, ETA, BETA1, BETA2 = 0.01, 0.1, 0.9, 0.99
ADAPTIVE = {"learning_rate": ETA, "beta1": BETA1, "beta2": BETA2, "tau": TAU}


def results_of(strategy: Any, start: np.ndarray, updates: list[dict[str, list[float]]], *, unbias: bool = False) -> Any:
    if hasattr(strategy, "v_t"):
        strategy.v_t = [np.full_like(start, TAU**2)]
    found = []
    for number, sites in enumerate(updates, 1):
        if unbias:
            strategy.eta = ETA / (np.sqrt(1 - BETA2 ** (number + 1.0)) / (1 - BETA1 ** (number + 1.0)))
        answers = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([np.array(values)]), SITES[name], {}))
            for name, values in sites.items()
        ]
        merged, _ = strategy.aggregate_fit(number, answers, [])
        found.append(parameters_to_ndarrays(merged)[0].tolist())
    return found


def main() -> None:
    random = np.random.default_rng(20210)
    start = random.standard_normal(ELEMENTS)
    updates = [
        {name: (start + 0.3 * random.standard_normal(ELEMENTS)).tolist() for name in SITES} for _ in range(ROUNDS)
    ]
    initial = {"initial_parameters": ndarrays_to_parameters([start])}
    adaptive = {**initial, "eta": ETA, "tau": TAU}
    both = {**adaptive, "beta_1": BETA1, "beta_2": BETA2}
    cases = [
        ("fedavg", {}, FedAvg(inplace=False), False),
        (
            "fedavgm",
            {"learning_rate": 0.5, "momentum": 0.9},
            FedAvgM(**initial, server_learning_rate=0.5, server_momentum=0.9),
            False,
        ),
        ("fedadam", ADAPTIVE, FedAdam(**both), True),
        ("fedyogi", ADAPTIVE, FedYogi(**both), False),
        ("fedadagrad", {"learning_rate": ETA, "beta1": 0.0, "tau": TAU}, FedAdagrad(**adaptive), False),
        ("median", {}, FedMedian(), False),
        ("trimmed_mean", {"trim": 0.2}, FedTrimmedAvg(beta=0.2), False),
    ]
    document = {
        "made_with": "flwr 1.27.0",
        "cases_per_site": SITES,
        "start": start.tolist(),
        "updates": updates,
        "cases": [
            {"strategy": name, "options": options, "results": results_of(strategy, start, updates, unbias=unbias)}
            for name, options, strategy, unbias in cases
        ],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
