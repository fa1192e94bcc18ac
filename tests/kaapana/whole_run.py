"""A whole experiment of two hospitals, one of them a Kaapana in which the portal is a member of a project and no more.

    python -m tests.kaapana.whole_run --door URL --ca FILE --hospital FOLDER --json FILE

Real store, orchestrator and trainers; the Kaapana is a double that runs already, with its home and its Secrets in ``FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.stage import ROOT, Stage, temporary_folder

LOCAL, MEMBER = "graz", "mainz"
PLAN = {"rounds": 1, "local_epochs": 1, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
PATIENCE = 600.0
"""Seconds for each part, on any machine."""


def carry_out(stage: Stage, *, door: str, ca: str, hospital: Path) -> dict[str, Any]:
    """Return what came of it: the experiment's state and reason, and of the Kaapana's check and runs."""
    data = stage.folder / "hospitals"
    arguments = ["--out", data, "--site-names", f"{LOCAL},{MEMBER}", "--sites", 2, "--size", 16]
    command = [sys.executable, "-m", "trainer", "phantoms", *map(str, [*arguments, "--train", 2, "--validation", 1])]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    shutil.copytree(data / MEMBER, hospital / "home" / "datasets", dirs_exist_ok=True)
    stage.start("store")
    stage.load()
    from fedportal.connectors.local import LocalConnector
    from fedportal.experiments.models import Attempt, LogPiece
    from fedportal.sites import services
    from fedportal.sites.connection import key_of

    config: dict[str, Any] = {"data_root": str(data / LOCAL), "work_dir": str(stage.folder / "work"), "threads": 1}
    local = services.register(slug=LOCAL, name="Graz", connector="local", config=config)
    services.record_check(local, LocalConnector(**config).check())
    config = {
        "base_url": door,
        "generation": "0.6",
        "control": "workflow",
        "project": "admin",
        "grant": "password",
        "client_id": "fedportal",
        "username": "portal",
        "ca_certificate": ca,
    }
    secrets = {"client_secret": "client-secret", "password": "pass-word"}
    member = services.register(slug=MEMBER, name="Mainz", connector="kaapana", config=config, secrets=secrets)
    (hospital / "secrets.json").write_text(json.dumps({"fedportal": {"site-key": key_of(member)}}))
    stage.start("trainer", "orchestrator")
    with contextlib.suppress(TimeoutError):  # a check that a slow machine has failed is repeated
        stage._wait(lambda: member.checks.exists() and member.checks.latest("pk").ok, PATIENCE)
    check = member.checks.latest("pk")
    said: dict[str, Any] = {"problems": [step for step in check.steps if not step["ok"]]}
    if said["problems"]:
        return said
    experiment = stage.wait_for_end(stage.experiment(plan=PLAN, title="A member trains"), timeout=PATIENCE)
    attempts = Attempt.objects.filter(site_run__participation__site=member).order_by("pk")
    pieces = LogPiece.objects.filter(attempt__in=attempts).order_by("pk")
    return {
        **said,
        "steps": [step["name"] for step in check.steps],
        "state": experiment.state,
        "reason": f"{experiment.reason}\n{stage.journal(experiment)}",
        "runs": [attempt.run for attempt in attempts],
        "states": [attempt.site_run.state for attempt in attempts],
        "logs": "".join(piece.text for piece in pieces),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option in ("--ca", "--hospital", "--json"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--door", required=True)
    options = parser.parse_args()
    folder = temporary_folder()
    with Stage(folder) as stage:
        try:
            said = carry_out(stage, door=options.door, ca=options.ca.read_text(), hospital=options.hospital)
        except Exception:
            said = {"trouble": f"{traceback.format_exc()}\n{stage.log('orchestrator')}"}
        options.json.write_text(json.dumps(said))
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
