"""A process that advances experiments as fast as it can, for ``test_competing.py``; prints what it did as JSON."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import django


def main(name: str, seconds: float) -> None:
    django.setup()
    from django.db import OperationalError

    from fedportal.experiments.models import Experiment
    from fedportal.orchestrator import engine
    from fedportal.orchestrator.outcomes import Changes, Wait
    from tests.orchestrator.fakes import Federation

    held: list[tuple[int, float, float]] = []

    def step_for(_s: Any) -> Any:
        def step(s: Any, _tools: Any) -> Any:
            begun = time.monotonic()
            time.sleep(0.003)
            held.append((s.id, begun, time.monotonic()))
            changes = Changes()
            changes.say("step", f"{name} did a step.")
            return Wait(s.now - timedelta(seconds=1), changes)

        return step

    engine.step_for = step_for
    engine.take_logs = lambda *_: None
    driver = engine.Engine(Federation(Path()).tools, worker=name)
    ids = list(Experiment.objects.values_list("pk", flat=True))
    settled = locked = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for pk in ids:
            try:
                settled += driver.advance(pk)
            except OperationalError:
                locked += 1
    sys.stdout.write(json.dumps({"name": name, "settled": settled, "locked": locked, "held": held}))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
