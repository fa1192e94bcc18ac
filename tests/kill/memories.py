"""All that is remembered from round to round, each in an experiment of its own: the strategies' server state, averaged
optimizer moments, the patience of an early stop. Once undisturbed; once with the orchestrator killed at two moments
of every round's aggregation (see :mod:`tests.kill.dying_orchestrator`). Both have to end with the same bytes.

The sites keep their optimizers' state besides (but where it is averaged), as the laptop preset has it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tests.kill.dying_orchestrator import MOMENTS
from tests.stage import Stage

PLAN = {"rounds": 3, "local_epochs": 1, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
MEMORIES: dict[str, dict[str, Any]] = {
    "fedavgm": {"fields": {"strategy": "fedavgm"}},
    "fedadam": {"fields": {"strategy": "fedadam"}},
    "fedyogi": {"fields": {"strategy": "fedyogi"}},
    "fedadagrad": {"fields": {"strategy": "fedadagrad", "strategy_options": {"beta1": 0.5}}},
    "averaged_optimizer": {"plan": {"optimizer": {"treatment": "aggregate"}}},
    # Weights that hardly move: no model is better than the start, and the experiment stops a round early.
    "early_stop": {
        "fields": {"strategy": "fedavgm", "patience": 2},
        "plan": {"rounds": 4, "optimizer": {"learning_rate": 1e-7}},
    },
}
TIMEOUT = 1800
"""Seconds; a busy machine takes long for many deaths, and an orchestrator that does not live at all is noticed at once."""


def run(stage: Stage, names: Sequence[str]) -> list[dict[str, Any]]:
    """Run the experiments of ``names``, all at once; return how each ended, in rows like those of the matrix."""
    stage.start("orchestrator")
    calm = {name: _begun(stage, name, "undisturbed") for name in names}
    expected = {name: _remembered(stage.wait_for_end(row, timeout=TIMEOUT)) for name, row in calm.items()}
    stage.kill("orchestrator")
    folder = stage.folder / "deaths"
    begun = time.monotonic()
    stage.spawn("orchestrator", ["-m", "tests.kill.dying_orchestrator", str(folder)])
    disturbed = {name: _begun(stage, name, "killed in every round") for name in names}
    rows = []
    for name, experiment in disturbed.items():
        trouble = ""
        try:
            stage.wait_for_end(experiment, timeout=TIMEOUT)
        except TimeoutError as error:
            trouble = str(error)
        found = _remembered(experiment)
        deaths = sorted("/".join(mark.parts[-2:]) for mark in (folder / experiment.key).glob("r*/*"))
        wanted = sorted(f"r{r}/{moment}" for r in range(1, experiment.rounds_planned + 1) for moment in MOMENTS)
        same = found == expected[name]
        ok = same and experiment.state == "completed" and deaths == wanted
        if not ok:
            trouble = f"{trouble}\nexpected {expected[name]}\nfound    {found}\ndied at  {deaths}\n"
            trouble += f"{stage.journal(experiment)}\n{stage.log('orchestrator')}"
        rows.append(
            {
                "who": "orchestrator",
                "step": step_of(name),
                "ok": ok,
                "state": experiment.state,
                "same_models": same,
                "killed": len(deaths),
                "attempts": sum(r.site_runs.count() for r in experiment.rounds.all()),
                "seconds": round(time.monotonic() - begun, 1),
                "trouble": trouble,
            }
        )
    stage.kill("orchestrator")
    return rows


def step_of(name: str) -> str:
    return f"every round of {name}"


def _begun(stage: Stage, name: str, how: str) -> Any:
    own = MEMORIES[name]
    return stage.experiment(plan={**PLAN, **own.get("plan", {})}, title=f"{name} {how}", **own.get("fields", {}))


def _remembered(experiment: Any) -> dict[str, Any]:
    """What has to be the same: every model and memory with its score, and when the experiment stopped at which best."""
    columns = ("round_number", "sha256", "server_state_sha256", "dice")
    return {
        "models": [list(row) for row in experiment.models.order_by("round_number").values_list(*columns)],
        "best": experiment.best_model and experiment.best_model.round_number,
        "rounds": experiment.rounds_planned,
        "aggregated": experiment.events.filter(kind="aggregated").count(),
        "stopped_early": experiment.events.filter(kind="stopped_early").count(),
    }
