"""A portal that asks its sites once an hour, and hears of their results all the same.

    python -m tests.airflow.waking --airflow 3 --folder FOLDER --port PORT --json FILE

Two sites on the portal's machine and one with a real Airflow, which runs in FOLDER already, train a round and measure the
model, twice:

``told``    by the trainer's word to the portal; the orchestrator looks into the store once an hour, too
``silent``  the sites reach the object store and not the portal

Writes for each update how many seconds after its manifest was in the store it was taken.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.airflow_server import AirflowServer
from tests.stage import ROOT, Stage, temporary_folder

PLAN = {"rounds": 1, "local_epochs": 1, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
SLUG = "mainz"
SELDOM = 3600.0
WAYS = ("told", "silent")
NOBODY = "http://127.0.0.1:9"


def orchestrate(way: str) -> None:
    """Be an orchestrator that asks its sites once an hour."""
    import django

    django.setup()
    from datetime import timedelta

    from django.core.management import call_command

    from fedportal.orchestrator.steps import starting, watching

    for name in starting.POLL:
        starting.POLL[name] = (SELDOM, SELDOM)
    starting.POLL_REMOTE = (SELDOM, SELDOM)
    watching.LONGEST_WAIT = timedelta(seconds=SELDOM)
    if way == "told":
        watching.STORE_LOOK = timedelta(seconds=SELDOM)
    call_command("orchestrate")


def give_to(stage: Stage, server: AirflowServer, home: Path) -> None:
    """Let the site :data:`SLUG` of the stage be the hospital of this Airflow."""
    from fedportal.sites.connection import key_of
    from fedportal.sites.models import Site

    site = Site.objects.get(slug=SLUG)
    data, work = site.config["data_root"], site.config["work_dir"]
    site.connector, site.config = "airflow", {"url": server.url, "user": server.user}
    site.secrets = {"password": server.password}
    site.save()
    home.mkdir(parents=True, exist_ok=True)
    (home / "key").write_text(key_of(site))
    options = ["--dags", server.dags, "--home", home, "--data-root", data, "--work-dir", work]
    options += ["--socket", stage.environment["FEDPORTAL_TRAINER_SOCKET"], "--key-file", home / "key"]
    options += ["--python", sys.executable, "--threads", "1"]
    command = [sys.executable, "-m", "trainer.install", *map(str, options)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def told(stage: Stage, experiment: Any) -> dict[str, Any]:
    """Return the state, and for each update of ``site r<round>`` the seconds until it was taken."""
    taken = {}
    for event in experiment.events.filter(kind="admitted"):
        run = f"fp-{experiment.key}-r{event.round_number}-{event.site}-a1"
        (log,) = stage.folder.glob(f"work/*/runs/{run}/log.txt")
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        ended = next(line["at"] for line in lines if line["message"] == "the result is in the object store")
        taken[f"{event.site} r{event.round_number}"] = round(event.at.timestamp() - ended, 2)
    return {"state": str(experiment.state), "taken_after": taken, "journal": stage.journal(experiment)}


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--airflow", type=int, choices=(2, 3), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = temporary_folder()
    try:
        with Stage(folder) as stage:
            stage.start("store")
            stage.set_up()
            stage.start("trainer", "portal")
            give_to(stage, AirflowServer(options.airflow, options.folder, options.port), folder / "home")
            report = {}
            for way in WAYS:
                public = {"FEDPORTAL_PUBLIC_URL": NOBODY} if way == "silent" else {}
                stage.spawn(
                    "orchestrator",
                    ["-c", f"from tests.airflow.waking import orchestrate; orchestrate({way!r})"],
                    **public,
                )
                experiment = stage.experiment(plan=PLAN, title=way)
                report[way] = told(stage, stage.wait_for_end(experiment, timeout=400))
                stage.kill("orchestrator")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(report))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if all(way["state"] == "completed" for way in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
