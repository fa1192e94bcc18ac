"""Kill every part of the portal in every step of a round, and the orchestrator in every round of every strategy that
remembers; see that the experiment ends by itself with the same models.

    python -m tests.kill.matrix                      all of it (some minutes on two quiet cores)
    python -m tests.kill.matrix --who orchestrator   one row
    python -m tests.kill.matrix --step training      one column
    python -m tests.kill.matrix --memory fedadam     one strategy (see tests/kill/memories.py)

Prints a table and, with ``--json FILE``, writes one line per case as soon as it is known. Everything is real: object
store, portal, orchestrator, trainer, data. Exits with 1 when a case failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.kill import memories
from tests.stage import Stage, temporary_folder

WHO = ("orchestrator", "portal", "runs", "trainer", "store")
"""``runs``: the sites' training processes. ``trainer``: the warm server that starts them."""
STEPS = (
    "round_pending",
    "publishing",
    "dispatching",
    "training",
    "collecting",
    "aggregating",
    "evaluating",
    "done",
)
RUNS_AT_WORK = ("dispatching", "training", "evaluating")
"""In the other steps there is no training process to be killed."""
# Enough epochs for the trainers to be at work still when they are to be killed, on a fast machine, too.
PLAN = {"rounds": 2, "local_epochs": 30, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
TIMEOUT = 1800
"""Seconds; a busy machine takes long, and an orchestrator that does not live at all is noticed at once."""


class Matrix:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.expected = self._undisturbed()

    def _undisturbed(self) -> list[str]:
        self.stage.start("orchestrator")
        experiment = self.stage.wait_for_end(self.stage.experiment(plan=PLAN, title="Undisturbed"), timeout=TIMEOUT)
        self.stage.kill("orchestrator")
        models = _models(experiment)
        if len(models) != PLAN["rounds"] + 1:
            raise RuntimeError(f"the undisturbed run failed: {experiment.reason}\n{self.stage.journal(experiment)}")
        return models

    def case(self, who: str, step: str) -> dict[str, Any]:
        """Run an experiment, kill ``who`` in ``step``, bring it back; say how it ended."""
        folder = self.stage.folder / "halt"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begun = time.monotonic()
        self.stage.spawn("orchestrator", ["-m", "tests.kill.halting_orchestrator", step, str(folder)])
        experiment = self.stage.experiment(plan=PLAN, title=f"{who} killed in {step}")
        try:
            _wait_for(folder / "halted", TIMEOUT)
            killed = self._kill(who)
            (folder / "go").touch()
            self._bring_back(who)
            experiment = self.stage.wait_for_end(experiment, timeout=TIMEOUT)
        except TimeoutError as error:
            return self._verdict(who, step, begun, experiment, str(error))
        finally:
            if "orchestrator" in self.stage.processes:
                self.stage.kill("orchestrator")
        return self._verdict(who, step, begun, experiment, "", killed=killed)

    def _kill(self, who: str) -> int:
        if who == "runs":
            return self.stage.kill_runs()
        self.stage.kill(who)
        return 1

    def _bring_back(self, who: str) -> None:
        if who != "runs":
            self.stage.start(who)

    def _verdict(
        self, who: str, step: str, begun: float, experiment: Any, trouble: str, *, killed: int = 0
    ) -> dict[str, Any]:
        from fedportal.experiments.models import Attempt

        models = _models(experiment)
        attempts = Attempt.objects.filter(site_run__round__experiment=experiment).count()
        same = models == self.expected
        ok = same and experiment.state == "completed"
        if not ok:
            trouble = (
                trouble or f"{experiment.reason}\n{self.stage.journal(experiment)}\n{self.stage.log('orchestrator')}"
            )
        return {
            "who": who,
            "step": step,
            "ok": ok,
            "state": experiment.state,
            "same_models": same,
            "killed": killed,
            "attempts": attempts,
            "seconds": round(time.monotonic() - begun, 1),
            "trouble": trouble,
        }


def _models(experiment: Any) -> list[str]:
    return list(experiment.models.order_by("round_number").values_list("sha256", flat=True))


def _wait_for(path: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path.name} did not come within {timeout:.0f} s")
        time.sleep(0.005)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--who", choices=WHO, action="append")
    parser.add_argument("--step", choices=STEPS, action="append")
    parser.add_argument("--cases", help="pairs like portal:training,store:publishing")
    parser.add_argument("--memory", choices=memories.MEMORIES, action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--settings", default="fedportal.settings", help="the portal's settings module")
    options = parser.parse_args()
    cases, names = _chosen(options)
    folder = temporary_folder()
    results = []

    def book(result: dict[str, Any]) -> None:
        results.append(result)
        verdict = "same models" if result["ok"] else f"FAILED ({result['state']})"
        place, time_ = f"{result['who']:<13} {result['step']:<34}", f"{result['seconds']:>6.1f} s"
        say(f"{place} {verdict:<12} {time_}, {result['attempts']} attempts, {result['killed']} killed")
        if not result["ok"]:
            say(result["trouble"])
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(result) + "\n")

    try:
        with Stage(folder, settings=options.settings) as stage:
            stage.start("store")
            stage.set_up()
            stage.start("trainer", "portal")
            if cases:
                matrix = Matrix(stage)
                for who, step in cases:
                    book(matrix.case(who, step))
            if names:
                for result in memories.run(stage, names):
                    book(result)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    failed = [result for result in results if not result["ok"]]
    say(f"{len(results) - len(failed)} of {len(results)} cases ended with the models of the undisturbed run.")
    return 1 if failed else 0


def _chosen(options: argparse.Namespace) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the cases and the memories to run: what was asked for, or everything."""
    cases = [
        (who, step)
        for who in options.who or WHO
        for step in options.step or STEPS
        if who != "runs" or step in RUNS_AT_WORK
    ]
    if options.cases:
        cases = [tuple(pair.split(":")) for pair in options.cases.split(",")]
    some = options.cases or options.who or options.step
    if options.memory:
        return (cases if some else []), options.memory
    return cases, ([] if some else list(memories.MEMORIES))


if __name__ == "__main__":
    sys.exit(main())
