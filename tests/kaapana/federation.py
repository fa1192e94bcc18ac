"""A federation with a Kaapana in it: real portal, orchestrator, object store and trainers, and the whole double.

    python -m tests.kaapana.federation [--rounds 2]

``mainz`` is a Kaapana that the portal reaches through its front door over TLS; ``graz`` and ``ulm`` are on the portal's
machine. The pods are the extension's own, with the real trainer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.kaapana_double.double import KaapanaDouble, dies_with_parent
from tests.stage import ROOT, Stage, temporary_folder

POD = (sys.executable, "-u", "-m", "trainer.kaapana")
PLAN = {"local_epochs": 1, "threads": 1, "seed": 7, "network": {"channels": [4, 8], "strides": [2]}}
SLUG = "mainz"


class KaapanaStage(Stage):
    """A stage whose site ``mainz`` is a Kaapana."""

    def open_kaapana(self) -> KaapanaDouble:
        """Start the Kaapana with a dataset that lies ready, and let the operator register it."""
        from fedportal.sites import services
        from fedportal.sites.connection import key_of

        self.kaapana = KaapanaDouble(self.folder / "kaapana", site_key="", pod=POD, tls=True, preexec=dies_with_parent)
        shutil.copytree(self.folder / "hospitals" / SLUG, self.kaapana.home / "datasets")
        self.kaapana.start()
        site = services.register(
            slug=SLUG,
            name="Mainz",
            connector="kaapana",
            config={
                "base_url": self.kaapana.door.url,
                "generation": "0.6",
                "project": "admin",
                "grant": "client",
                "client_id": "fedportal",
                "ca_certificate": self.kaapana.door.ca,
            },
            secrets={"client_secret": self.kaapana.door.keycloak.client_secret},
        )
        # What the hospital's IT does with the key that the portal shows.
        self.kaapana.secrets.write_text(json.dumps({"fedportal": {"site-key": key_of(site)}}))
        return self.kaapana

    def set_up(self, *, size: int = 16, train: int = 2, validation: int = 1) -> None:
        """Make the data of all sites, and the rows of all but the Kaapana."""
        data = self.folder / "hospitals"
        counts = ["--sites", 3, "--size", size, "--train", train, "--validation", validation, "--workers", 1]
        command = ["phantoms", "--out", data, "--site-names", "graz,mainz,ulm", *counts]
        subprocess.run([sys.executable, "-m", "trainer", *map(str, command)], cwd=ROOT, check=True, capture_output=True)
        os.environ.update(self.environment)
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        from fedportal.connectors.local import LocalConnector
        from fedportal.sites import services

        for slug in ("graz", "ulm"):
            config = {"data_root": str(data / slug), "work_dir": str(self.folder / "work" / slug), "threads": 1}
            site = services.register(slug=slug, name=slug.title(), connector="local", config=config)
            services.record_check(site, LocalConnector(**config).check())

    def wait_until_checked(self, *, timeout: float = 120) -> None:
        from fedportal.sites.models import Site

        end = time.monotonic() + timeout
        while True:
            check = Site.objects.get(slug=SLUG).last_check
            if check is not None and check.ok:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"{check and check.first_problem}\n{self.log('orchestrator')}")
            time.sleep(0.5)

    def close(self) -> None:
        if hasattr(self, "kaapana"):
            self.kaapana.stop()
        super().close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = temporary_folder()
    try:
        with KaapanaStage(folder) as stage:
            stage.start("store")
            stage.set_up()
            stage.start("portal", "trainer")
            stage.open_kaapana()
            stage.start("orchestrator")
            stage.wait_until_checked()
            experiment = stage.experiment(plan={**PLAN, "rounds": options.rounds}, title="With a Kaapana")
            experiment = stage.wait_for_end(experiment, timeout=400)
            report = told(stage, experiment)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(report))
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if report["state"] == "completed" else 1


def told(stage: KaapanaStage, experiment) -> dict:
    from fedportal.experiments.models import Attempt, SiteRun
    from fedportal.sites.models import Site

    runs = SiteRun.objects.filter(round__experiment=experiment, participation__site__slug=SLUG)
    return {
        "state": str(experiment.state),
        "reason": experiment.reason,
        "seconds": experiment.duration.total_seconds(),
        "datasets": [dataset.name for dataset in Site.objects.get(slug=SLUG).datasets.all()],
        "site_runs": [str(run.state) for run in runs.order_by("round__number")],
        "attempts": Attempt.objects.filter(site_run__in=runs).count(),
        "dag_runs": stage.kaapana.runs(),
        "journal": stage.journal(experiment),
    }


if __name__ == "__main__":
    sys.exit(main())
