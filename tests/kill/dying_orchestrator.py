"""An orchestrator that is killed at every dangerous moment of every aggregation, once each, and started again at once.

    python -m tests.kill.dying_orchestrator FOLDER

The moments of a round's end at which disk and store know more than the rows:

- *half stored*: the global model is in the store, the memory that belongs to it lies on the orchestrator's disk only,
- *stored*: both are in the store, the round is not closed.

Each death leaves a file in ``FOLDER``. Every life is a process of its own; it is forked from one that has only imported
the portal, so that the many starts cost little.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import django

from fedportal.demo.processes import die_with_parent

MOMENTS = ("half-stored", "stored")


def main(folder: Path) -> int:
    django.setup()
    from django.core.management import call_command

    import fedportal.orchestrator.management.commands.orchestrate  # noqa: F401 - once for all lives

    _prepare(folder)
    while True:
        life = os.fork()
        if life == 0:
            die_with_parent()
            call_command("orchestrate")
            os._exit(1)
        _, status = os.waitpid(life, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return 1  # it ended by itself, which an orchestrator never does


def _prepare(folder: Path) -> None:
    """Have the act of aggregating die at its moments."""
    from fedportal.connectors.objectstore import ObjectStore
    from fedportal.orchestrator import engine

    put_file, settle = ObjectStore.put_file, engine.settle

    def die_once(experiment: str, round_number: int, moment: str) -> None:
        mark = folder / experiment / f"r{round_number}" / moment
        if not mark.exists():
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def put_file_and_die(self: ObjectStore, key: str, *arguments: Any, **others: Any) -> str:
        digest = put_file(self, key, *arguments, **others)
        *_, experiment, round_folder, name = key.split("/")
        if name == "global.safetensors" and round_folder != "r00000":  # the initial model is no aggregate
            die_once(experiment, int(round_folder[1:]), "half-stored")
        return digest

    def die_or_settle(experiment: Any, s: Any, outcome: Any, **options: Any) -> None:
        if outcome.changes.model is not None and s.round.state.value == "aggregating":
            die_once(s.key, s.round.number, "stored")
        settle(experiment, s, outcome, **options)

    ObjectStore.put_file = put_file_and_die
    engine.settle = die_or_settle


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
