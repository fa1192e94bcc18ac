"""Several processes on one SQLite file: no step is done twice, none at the same time as another of the experiment."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PREPARE = """
import django; django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from tests.orchestrator.fakes import Federation
from tests.orchestrator.rows import make_running
from pathlib import Path
for number in range(2):
    make_running(Federation(Path("."), ("a" * (number + 1),)), key=f"k3x9mq2{number}", min_sites=1)
"""
COUNT = """
import django; django.setup()
from fedportal.experiments.models import Event, Experiment
print(Event.objects.filter(kind="step").count(), *Experiment.objects.exclude(claimed_by="").values_list("key"))
"""


@pytest.mark.slow
def test_four_processes_share_the_steps_of_two_experiments(tmp_path: Path):
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "FEDPORTAL_STATE": str(tmp_path)}

    def python(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE
        )

    assert python("-c", PREPARE).wait(60) == 0
    processes = [python("-m", "tests.orchestrator.competitor", f"worker-{n}", "4") for n in range(4)]
    reports = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    written = python("-c", COUNT).communicate(timeout=60)[0].split()
    settled = sum(report["settled"] for report in reports)
    assert written == [str(settled)], "every settled step wrote its line once, and no claim was left"
    assert settled > 20
    assert all(report["settled"] for report in reports), "every process had its share"
    assert sum(report["locked"] for report in reports) == 0
    held = sorted(tuple(step) for report in reports for step in report["held"])
    for (experiment, _, ended), (following, begun, _) in itertools.pairwise(held):
        assert experiment != following or ended <= begun, "two workers held one experiment at the same time"
