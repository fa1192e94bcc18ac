"""An orchestrator that stops at a chosen point of a round, so that something can be killed exactly there.

    python -m tests.kill.halting_orchestrator STEP FOLDER

``STEP`` is the state whose step has just acted and is about to be settled, the moment at which sites and store know
more than the rows. It writes ``FOLDER/halted``, waits for ``FOLDER/go`` and goes on like any orchestrator.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import django


def main(step: str, folder: Path) -> None:
    django.setup()
    from django.core.management import call_command

    from fedportal.orchestrator import engine

    settle = engine.settle

    def halting(experiment: Any, s: Any, outcome: Any, **options: Any) -> None:
        state = "beginning" if s.newest is None else s.round.state.value
        if s.state.value == "cancelling":
            state = "cancelling"
        if state == step and _is_the_moment(step, s, outcome) and not (folder / "halted").exists():
            (folder / "halted").touch()
            while not (folder / "go").exists():
                time.sleep(0.005)
        settle(experiment, s, outcome, **options)

    engine.settle = halting
    call_command("orchestrate")


def _is_the_moment(step: str, s: Any, outcome: Any) -> bool:
    """In the second round where there is one, so that a model of ours is in use; while sites train, at the first look."""
    if step in ("training", "evaluating"):
        return s.round.number >= 2
    moves = bool(outcome.changes.round_through or outcome.changes.experiment_to or outcome.changes.model)
    return moves and (s.round.number >= 2 or (step == "publishing" and outcome.changes.model is not None))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
