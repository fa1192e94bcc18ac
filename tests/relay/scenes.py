"""Scenes with hospitals that poll: real portal, orchestrator, object store, trainers, and a process for each hospital.

    python -m tests.relay.scenes                       all scenes, about a minute on two free cores
    python -m tests.relay.scenes --only cancel
    python -m tests.relay.scenes --json FILE           one line per scene as soon as it is known

``graz`` polls as releases up to 0.6 do, ``mainz`` as later versions do, ``ulm`` starts its trainer from cold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.relay.polling_stage import PollingStage
from tests.stage import temporary_folder

SITES = ("graz", "mainz", "ulm")
PLAN = {"rounds": 1, "local_epochs": 1, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
LONG = {**PLAN, "local_epochs": 1000}
FILE_SIZE = 96 * 2**20


def dialects(stage: PollingStage) -> str:
    """Both dialects, every call made twice at one site, its reports in the wrong order: each run runs once."""
    experiment = stage.wait_for_end(stage.experiment(plan=PLAN, title="Both dialects"), timeout=240)
    assert experiment.state == "completed", f"{experiment.reason}\n{stage.journal(experiment)}"
    from fedportal.relay.models import RemoteJob

    # the manifest ends a run for the portal; the site's own word comes a poll later
    stage.wait_for(lambda: not RemoteJob.objects.exclude(state="finished").exists())
    runs = RemoteJob.objects.filter(is_check=False)
    assert runs.count() == len(SITES) * 2, list(runs)
    assert all(job.conf == {} for job in runs)
    for log in stage.folder.glob("work/*/runs/*/log.txt"):
        assert log.read_text().count('"run begins"') == 1, log
    return f"{experiment.duration.total_seconds():.1f} s"


def steward(stage: PollingStage) -> str:
    """A site that starts nothing without a steward's word: the portal says so, and goes on when it is given."""
    stage.kill("site-graz")
    stage.open_site("graz", confirms=True)
    stage.kill("site-ulm")
    stage.open_site("ulm")
    experiment = stage.experiment(plan=PLAN, title="A steward confirms")
    from fedportal.experiments.models import SiteRun

    waiting = SiteRun.objects.filter(round__experiment=experiment, participation__site__slug="graz")
    stage.wait_for(lambda: "confirmation" in (waiting.first() or SiteRun()).reason, timeout=90)
    assert waiting.first().state == "dispatched"
    confirmed = stage.folder / "work" / "graz" / "confirmed"
    confirmed.touch()
    experiment = stage.wait_for_end(experiment, timeout=120)
    assert experiment.state == "completed", stage.journal(experiment)
    assert "steward's confirmation" in stage.journal(experiment)
    confirmed.unlink()
    stage.kill("site-graz")
    stage.open_site("graz")
    return f"{experiment.duration.total_seconds():.1f} s"


def power_cuts(stage: PollingStage) -> str:
    """The polling side of a hospital, then the portal, are killed while runs go on: nothing is lost, nothing runs twice."""
    experiment = stage.experiment(plan={**PLAN, "local_epochs": 240}, title="Power cuts")
    from fedportal.relay.models import RemoteJob

    runs = RemoteJob.objects.filter(run__startswith=f"fp-{experiment.key}-r1-")
    stage.wait_for(runs.filter(site__slug="mainz", state="running").exists, timeout=120)
    stage.kill("site-mainz")
    stage.kill("portal")
    time.sleep(3)
    stage.start("portal")
    stage.open_site("mainz", dialect="sync")
    experiment = stage.wait_for_end(experiment, timeout=240)
    assert experiment.state == "completed", f"{experiment.reason}\n{stage.journal(experiment)}"
    stage.wait_for(lambda: not runs.exclude(state="finished").exists(), timeout=60)
    for log in stage.folder.glob(f"work/*/runs/fp-{experiment.key}-*/log.txt"):
        assert log.read_text().count('"run begins"') == 1, log
    return f"{experiment.duration.total_seconds():.1f} s"


def cancel(stage: PollingStage) -> str:
    """The training processes of all sites end, at the old dialect without any word for it in the protocol."""
    experiment = stage.experiment(plan=LONG, title="To be cancelled")
    from fedportal.experiments import services
    from fedportal.relay.models import RemoteJob

    runs = RemoteJob.objects.filter(run__startswith=f"fp-{experiment.key}-")
    stage.wait_for(lambda: runs.filter(state="running").count() == len(SITES), timeout=120)
    stage.wait_for(lambda: experiment.metrics.filter(phase="train").values("site_run").distinct().count() == len(SITES))
    assert living(stage, experiment.key) == len(SITES)
    services.cancel(experiment=experiment, by=experiment.owner)
    clicked = time.monotonic()
    stage.wait_for(lambda: living(stage, experiment.key) == 0)
    gone = time.monotonic() - clicked
    experiment = stage.wait_for_end(experiment, timeout=60)
    assert experiment.state == "cancelled", stage.journal(experiment)
    return f"{gone:.1f} s from the click to the end of the last process"


def relay(stage: PollingStage) -> str:
    """A large file through the portal and back, by the client that Kaapana uses: the process does not grow with it."""
    from fedportal.experiments.store import object_store
    from fedportal.sites.models import Site

    store, site = object_store(), Site.objects.get(slug="graz")
    key = "fedportal/large234/r00001/graz/a1/update.safetensors"
    path = stage.folder / "large"
    piece = os.urandom(2**20)
    with path.open("wb") as file:
        for _ in range(FILE_SIZE // len(piece)):
            file.write(piece)
    url = f"{stage.start_file_relay()}/kaapana-backend/remote/minio-presigned-url"
    before = memory(stage)
    token = {"FederatedAuthorization": site.secrets["portal_token"], "User-Agent": "kaapana"}

    def headers(presigned: str) -> dict[str, str]:
        parts = urlsplit(presigned)
        return {**token, "presigned-url": f"{parts.path}?{parts.query}"}

    begun = time.monotonic()
    with path.open("rb") as file:
        answer = requests.post(
            url, files={"file": file}, headers=headers(store.presign_put(key, timedelta(hours=1))), timeout=120
        )
    assert answer.status_code == 200, answer.text
    up = time.monotonic() - begun
    begun = time.monotonic()
    with requests.get(
        url, headers=headers(store.presign_get(key, timedelta(hours=1))), stream=True, timeout=120
    ) as back:
        assert back.status_code == 200
        assert int(back.headers["Content-Length"]) == FILE_SIZE
        received = 0
        for chunk in back.iter_content(2**20):
            assert chunk == piece[: len(chunk)] or received % len(piece)
            received += len(chunk)
    down = time.monotonic() - begun
    assert received == FILE_SIZE
    grown = memory(stage) - before
    assert grown < FILE_SIZE // 2, f"the relay grew by {grown / 2**20:.0f} MiB for a file of {FILE_SIZE / 2**20:.0f}"
    speed = FILE_SIZE / 2**20
    return f"{speed / up:.0f} MiB/s up, {speed / down:.0f} down, the relay grew by {grown / 2**20:.0f} MiB"


def only_the_portal(stage: PollingStage) -> str:
    """A site that reaches the portal and nothing else: its models and updates go through the relay."""
    from fedportal.relay.models import RemoteJob
    from fedportal.sites.models import Site

    relay_address = stage.start_file_relay().replace("127.0.0.1", "localhost")
    # everything that is not localhost goes to a proxy that is not there: the store and the door for metrics are at 127.0.0.1
    closed = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "NO_PROXY": "localhost"}
    stage.kill("site-ulm")
    RemoteJob.objects.filter(is_check=True, site__slug="ulm").delete()
    stage.open_site(
        "ulm",
        warm=False,
        address=stage.address.replace("127.0.0.1", "localhost"),
        environment={**closed, "no_proxy": "localhost", "FEDPORTAL_RELAY": relay_address},
    )
    Site.objects.filter(slug="ulm").update(check_due_at=timezone_now())
    stage.wait_for(RemoteJob.objects.filter(is_check=True, site__slug="ulm", state="finished").exists, timeout=60)
    stage.wait_for(lambda: Site.objects.get(slug="ulm").last_check.ok)
    experiment = stage.wait_for_end(stage.experiment(plan=PLAN, title="Only the portal"), timeout=240)
    assert experiment.state == "completed", f"{experiment.reason}\n{stage.journal(experiment)}"
    check = Site.objects.get(slug="ulm").last_check
    assert next(step for step in check.steps if step["name"] == "Object store")["ok"], check.steps
    logs = "".join(log.read_text() for log in stage.folder.glob(f"work/ulm/runs/fp-{experiment.key}-*/log.txt"))
    assert "the portal does not answer, records wait" in logs, "the way out was not closed"
    stage.kill("site-ulm")
    stage.open_site("ulm")
    return f"{experiment.duration.total_seconds():.1f} s"


def timezone_now() -> Any:
    from django.utils import timezone

    return timezone.now()


SCENES: dict[str, Callable[[PollingStage], str]] = {
    "dialects": dialects,
    "relay": relay,
    "only-the-portal": only_the_portal,
    "steward": steward,
    "power-cuts": power_cuts,
    "cancel": cancel,
}


def living(stage: PollingStage, key: str) -> int:
    """Return how many runs of an experiment have a process."""
    from fedportal.connectors.trainer_process import is_locked

    return sum(is_locked(folder / "lock") for folder in stage.folder.glob(f"work/*/runs/fp-{key}-*"))


def memory(stage: PollingStage) -> int:
    """Return the most memory that the relay's process has had, in bytes."""
    status = Path(f"/proc/{stage.processes['relay'].pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=SCENES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    folder = temporary_folder()
    with PollingStage(folder, sites=SITES) as stage:
        stage.start("store")
        stage.set_up_polling()
        stage.start("portal", "trainer", "orchestrator")
        stage.open_site("graz", faults=["twice", "late"])
        stage.open_site("mainz", dialect="sync")
        stage.open_site("ulm", warm=False)
        stage.wait_until_checked()
        for name in [options.only] if options.only else SCENES:
            begun = time.monotonic()
            try:
                result = {"scene": name, "ok": True, "said": SCENES[name](stage)}
            except Exception:
                logs = "\n".join(stage.log(f"site-{slug}", 8) for slug in SITES)
                trouble = f"{traceback.format_exc()}\n{logs}\n{stage.log('orchestrator')}\n{stage.log('portal', 20)}"
                result = {"scene": name, "ok": False, "said": trouble}
            result["seconds"] = round(time.monotonic() - begun, 1)
            results.append(result)
            sys.stdout.write(
                f"{name:<16} {'ok' if result['ok'] else 'FAILED'} {result['seconds']:6.1f} s  {result['said']}\n"
            )
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
