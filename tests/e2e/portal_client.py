"""A program at the portal's REST API with a token of its own, and hospitals with tiny data to experiment with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

from tests.e2e.conftest import ROOT, Stack
from trainer.contract import attempt_key, attempt_prefix, metrics_token, site_key

DATASET = "Task01_BrainTumour"
TINY = {"rounds": 1, "local_epochs": 1, "batch_size": 2, "network": {"channels": [4, 8], "strides": [2]}}
"""A recipe that trains in a fraction of a second."""
OVER = ("completed", "failed", "cancelled")


class Client:
    """Somebody's program. Signs in once, as a browser would, to make the token that it works with."""

    def __init__(self, stack: Stack, person: str) -> None:
        self.stack = stack
        self.browser = requests.Session()
        self.submit(
            "/accounts/login/", {"username": person, "password": stack.passwords[person]}, of="/accounts/login/"
        )
        page = self.submit("/accounts/tokens/create/", {"days": "30"}, of="/accounts/profile/").text
        self.token = re.search(r">\s*([0-9a-f]{64})\s*<", page)[1]

    def submit(self, address: str, values: dict[str, str], *, of: str) -> requests.Response:
        """Send a form of the page ``of``."""
        page = self.browser.get(self.stack.address + of).text
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)', page)[1]
        return self.browser.post(self.stack.address + address, {**values, "csrfmiddlewaretoken": token})

    def send(self, method: str, address: str, document: Any = None) -> requests.Response:
        headers = {"Authorization": f"Token {self.token}"}
        return requests.request(
            method, f"{self.stack.address}/api{address}", json=document, headers=headers, timeout=30
        )

    def get(self, address: str) -> Any:
        answer = self.send("GET", address)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, address: str, document: Any = None) -> Any:
        answer = self.send("POST", address, document)
        assert answer.status_code in (200, 201, 202), answer.text
        return answer.json()

    def rows(self, address: str) -> list[dict[str, Any]]:
        """Return a whole list that the API gives piece by piece."""
        found, after = [], 0
        while piece := self.get(f"{address}?limit=2000&after={after}"):
            if not piece["results"]:
                return found
            found += piece["results"]
            after = piece["next"]
        return found

    # --- experiments ------------------------------------------------------------------------------

    def start(self, sites: list[str], *, title: str, plan: dict[str, Any] | None = None, **fields: Any) -> str:
        """Create an experiment with the tiny recipe and start it; return its key."""
        participants = [{"site": site, "dataset": DATASET} for site in sites]
        fields.setdefault("min_sites", 1)
        document = {"title": title, "plan": {**TINY, **(plan or {})}, "participants": participants, **fields}
        key = self.post("/experiments/", document)["key"]
        self.post(f"/experiments/{key}/start/")
        return key

    def wait(self, key: str, *states: str, timeout: float = 90) -> dict[str, Any]:
        """Return the experiment when it is in one of the states (default: over)."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            experiment = self.get(f"/experiments/{key}/")
            if experiment["state"] in (states or OVER):
                return experiment
            time.sleep(0.3)
        raise AssertionError(f"{key} is still {experiment['state']}: {self.sentences(key)[-6:]}")

    def sentences(self, key: str, *, site: str = "", kind: str = "") -> list[str]:
        """Return what the journal says, oldest first."""
        return [
            event["text"]
            for event in self.rows(f"/experiments/{key}/journal/")
            if (not site or event["site"] == site) and (not kind or event["kind"] == kind)
        ]

    def site_run(self, key: str, site: str, *, round: int = 1) -> dict[str, Any]:
        found = next(r for r in self.get(f"/experiments/{key}/rounds/") if r["number"] == round)
        return next(run for run in found["site_runs"] if run["site"] == site)


class Sites:
    """What the hospitals of a running demo do, seen from their own machines: by the folders in which they work."""

    def __init__(self, stack: Stack, operator: Client) -> None:
        self.stack, self.operator = stack, operator

    def wait_until_checked(self, slug: str, health: str = "healthy", timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            site = self.operator.get(f"/sites/{slug}/")
            if site["health"] == health and not site["check_is_pending"]:
                return
            time.sleep(0.3)
        raise AssertionError(f"{slug} is {site['health']}")

    def work(self, slug: str) -> Path:
        return self.stack.folder / "work" / slug

    def process(self, key: str, slug: str, *, round: int = 1, attempt: int = 1, timeout: float = 30) -> int:
        """Return the process (and group) that works for a site, as soon as there is one."""
        file = self.work(slug) / "runs" / f"fp-{key}-r{round}-{slug}-a{attempt}" / "pid"
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if file.exists() and (text := file.read_text().strip()):
                return int(text)
            time.sleep(0.02)
        raise AssertionError(f"{slug} did not begin")

    def is_alive(self, process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
        except FileNotFoundError:
            return False

    def signal(self, process: int, number: signal.Signals) -> None:
        os.killpg(process, number)

    # --- in a site's place ------------------------------------------------------------------------

    def key(self, run: str, slug: str) -> str:
        """Return the key of an attempt, which the site has."""
        secret = json.loads((self.stack.folder / "demo.json").read_text())["secret_key"]
        return attempt_key(site_key(hashlib.sha256(b"attempts:" + secret.encode()).digest(), slug), run)

    def token(self, run: str, slug: str) -> str:
        return metrics_token(self.key(run, slug))

    def place(self, key: str, slug: str) -> str:
        """Return where the first attempt of a site in round 1 puts its objects."""
        return attempt_prefix(experiment=key, round=1, site=slug, attempt=1)


class Hospitals(Sites):
    """Hospitals with three tiny cases each, registered through the API; ``folder`` holds their data."""

    def __init__(self, stack: Stack, operator: Client, folder: Path, slugs: tuple[str, ...]) -> None:
        super().__init__(stack, operator)
        self.folder = folder
        counts = ["--size", "16", "--train", "2", "--validation", "1", "--workers", "1"]
        names = ["--sites", str(len(slugs)), "--site-names", ",".join(slugs)]
        command = [sys.executable, "-m", "trainer", "phantoms", "--out", str(folder), *names, *counts]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for slug in slugs:
            config = {"data_root": str(folder / slug), "work_dir": str(self.work(slug)), "threads": 1}
            document = {"slug": slug, "name": slug.title(), "connector": "local", "config": config}
            operator.post("/sites/", document)
        for slug in slugs:
            self.wait_until_checked(slug)

    def dataset(self, slug: str) -> Path:
        return self.folder / slug / DATASET

    def case(self, slug: str, what: str, number: int = 0) -> Path:
        """Return the ``image`` or ``label`` file of a training case."""
        listed = json.loads((self.dataset(slug) / "dataset.json").read_text())["training"]
        return self.dataset(slug) / listed[number][what]
