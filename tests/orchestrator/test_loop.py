"""The loop and its command, as processes of their own on a database file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.test_competing import PREPARE, ROOT

SLOW_AND_QUICK = """
import threading, time
import django; django.setup()
from datetime import timedelta
from fedportal.experiments.models import Experiment
from fedportal.orchestrator import engine
from fedportal.orchestrator.errands import Errands, Pace
from fedportal.orchestrator.loop import Loop
from fedportal.orchestrator.outcomes import Changes, Wait
from fedportal.orchestrator.sitework import Tools

slow, quick = Experiment.objects.order_by("pk")
Experiment.objects.update(due_at="2020-01-01T00:00:00Z")
steps = {slow.pk: 0, quick.pk: 0}
enough = threading.Event()

def step_for(s):
    def step(s, tools):
        steps[s.id] += 1
        if s.id == slow.pk and not enough.wait(30):
            raise SystemExit("the quick one was held up")
        if steps[quick.pk] == 5:
            enough.set()
        if steps[slow.pk] and enough.is_set() and s.id == slow.pk:
            loop.stop()
        changes = Changes()
        changes.say("step", "A step.")
        return Wait(s.now, changes)
    return step

engine.step_for = step_for
tools = Tools(store=None, aggregation=None, connector=None, trainer=None, spool=None, secret=b"", public_url="",
              url_lifetime=timedelta(hours=1), errands=Errands(), pace=Pace())
loop = Loop(engine.Engine(tools, worker="w"), workers={workers})
loop.run()
slow.refresh_from_db(); quick.refresh_from_db()
print(steps[quick.pk] >= 5, steps[slow.pk] >= 1, repr(slow.claimed_by + quick.claimed_by))
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "FEDPORTAL_STATE": str(tmp_path)}


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=90, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_a_slow_step_of_one_experiment_delays_no_other(environment: dict[str, str], workers: int):
    assert python(PREPARE, environment).returncode == 0
    done = python(SLOW_AND_QUICK.replace("{workers}", str(workers)), environment)
    assert done.stdout.split() == ["True", "True", "''"], done.stderr


def orchestrate(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "manage.py", "orchestrate", *arguments],
        cwd=ROOT,
        env={**environment, "FEDPORTAL_WORKER_ID": "hospital"},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return process


@pytest.mark.slow
def test_the_command_ends_in_order_on_sigterm_and_a_second_one_has_a_name_of_its_own(environment: dict[str, str]):
    assert python(PREPARE, environment).returncode == 0
    # paused, so that no step is at hand: the sites of these rows do not exist
    python("import django; django.setup()\n"
           "from fedportal.experiments.models import Experiment\n"
           "Experiment.objects.update(state='paused')", environment)  # fmt: skip
    first = orchestrate(environment)
    assert "orchestrator hospital-1 is at work" in first.stderr.readline()
    second = orchestrate(environment)
    assert "orchestrator hospital-2 is at work" in second.stderr.readline()
    for process in (first, second):
        process.send_signal(signal.SIGTERM)
    assert [process.wait(30) for process in (first, second)] == [0, 0]


@pytest.mark.slow
def test_once_returns_when_nothing_is_due(environment: dict[str, str]):
    assert python("import django; django.setup()\n"
                  "from django.core.management import call_command\n"
                  "call_command('migrate', verbosity=0)", environment).returncode == 0  # fmt: skip
    assert orchestrate(environment, "--once").wait(60) == 0
