"""Two hospitals with Kaapana, one that the portal reaches and one that asks it for work, from their registration to the
model, all from the browser. Each is a real Airflow 2.11 with the extension as it is shipped; the third one is the demo's.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import ROOT, Stack
from tests.e2e.pages import (
    compose,
    definition,
    download_model,
    expect_ready,
    points,
    register,
    site_key,
    wait_for_lines,
    wait_until_over,
)
from tests.e2e.portal_client import Client
from tests.kaapana_double.double import TRAINER, KaapanaDouble, dies_with_parent
from tests.trainer_process.bench import wait_for

pytestmark = [pytest.mark.browser, pytest.mark.slow]

REACHED, ASKING = "aachen", "essen"
NAMES = {REACHED: "Aachen University Hospital", ASKING: "Essen University Hospital"}
DATA = {REACHED: "linden", ASKING: "seeblick"}
"""Whose data of the demo they have."""
DEMO_SITE = "Altberg University Hospital"
PATIENCE = 120_000
"""Milliseconds for what a browser waits for while two Airflows share the machine."""
OPEN = {"queued", "running"}
DIRECT_STEPS = {"Name", "Certificate", "Realm", "Login", "Rights", "Project", "Workflows", "Trainer", "Key", "Clock"}
PULL_STEPS = {"Poll", "Automatic sync", "Clock", "DAG", "Trainer", "Code", "Object store", "Datasets"}


class Hospitals:
    """The two Kaapanas, and what their people do."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.kaapanas = {
            slug: KaapanaDouble(folder / slug, site_key="", pod=TRAINER, tls=slug == REACHED, preexec=dies_with_parent)
            for slug in NAMES
        }
        self.backend: subprocess.Popen[bytes] | None = None
        self.confirmed = folder / "backend" / "confirmed"
        self.confirmed.parent.mkdir()
        self.are_registered = False

    def start(self) -> None:
        for slug, kaapana in self.kaapanas.items():
            if not kaapana.airflow.is_installed:
                pytest.fail("Airflow 2 is not installed: run `make airflow`.")
            shutil.copytree(self.stack.folder / "hospitals" / DATA[slug], kaapana.home / "datasets")
            kaapana.start(wait=False)
        for kaapana in self.kaapanas.values():
            kaapana.wait()

    def paste_definition(self, definition: dict[str, object]) -> None:
        """Let the hospital's backend poll, where each run waits until a steward has confirmed it."""
        kaapana = self.kaapanas[ASKING]
        settings = self.folder / "backend.json"
        values = {
            "definition": definition,
            "instance_name": f"{ASKING}.example",
            "data_root": str(kaapana.home / "datasets"),
            "work_dir": str(self.confirmed.parent),
            "airflow": kaapana.airflow.url,
            "confirms": True,
        }
        settings.write_text(json.dumps(values))
        command = ["-m", "tests.relay.pulling_site", "--portal", self.stack.address, "--settings", str(settings)]
        with (self.folder / "backend.log").open("ab") as log:
            self.backend = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=log, stderr=log, preexec_fn=dies_with_parent
            )

    def stop(self) -> None:
        if self.backend is not None:
            self.backend.kill()
            self.backend.wait()
        for kaapana in self.kaapanas.values():
            kaapana.stop()


@pytest.fixture(scope="module")
def hospitals(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    hospitals = Hospitals(stack, tmp_path_factory.mktemp("hospitals"))
    try:
        hospitals.start()
        yield hospitals
    finally:
        hospitals.stop()
        operator = Client(stack, "operator")
        for slug in {site["slug"] for site in operator.get("/sites/")["results"]}.intersection(NAMES):
            operator.post(f"/sites/{slug}/retire/")


def test_an_operator_registers_a_kaapana_and_one_that_asks_for_work(open_page, hospitals):
    page = open_page("operator")
    page.set_default_timeout(PATIENCE)
    authority = hospitals.folder / "authority.pem"
    reached, asking = (hospitals.kaapanas[slug] for slug in (REACHED, ASKING))
    authority.write_text(reached.door.ca)

    fields = {
        "Address": reached.door.url,
        "Client's secret": reached.door.keycloak.client_secret,
        "Certificate of the authority": authority,
    }
    register(page, "Kaapana, reached by the portal", name=NAMES[REACHED], slug=REACHED, fields=fields)
    copied = {
        "instance_name": f"{ASKING}.example",
        "host": f"{ASKING}.example",
        "port": 443,
        "token": "8d6a9b1e-57a1-4b8e-8f5c-2a2f5f7a9c11",
        "fernet_key": "deactivated",
        "ssl_check": False,
    }
    fields = {"Definition of the site": json.dumps(copied), "Project": json.dumps(asking.door.project)}
    register(page, "Kaapana behind a firewall", name=NAMES[ASKING], slug=ASKING, fields=fields)

    # the first checks say what is missing, and what to do
    poll = page.locator(".step--bad", has_text="has never polled").locator(".steps__remedy")
    expect(poll).to_contain_text("Paste the portal's definition into the site's Kaapana", timeout=PATIENCE)
    hospitals.paste_definition(definition(page, ASKING))
    asking.give_key(site_key(page, ASKING))
    page.goto(f"/sites/{REACHED}/")
    secret = page.locator(".step--bad", has_text="Trainer")
    expect(secret).to_contain_text("The project's Secret “fedportal” holds no site key", timeout=PATIENCE)
    reached.give_key(site_key(page, REACHED))
    page.get_by_role("button", name="Test connection").click()
    told = expect_ready(page, REACHED)
    assert set(told) >= DIRECT_STEPS
    assert "/auth/realms/kaapana" in told["Realm"]

    # the run that describes the trainer waits, as every run does there
    page.goto(f"/sites/{ASKING}/")
    page.get_by_role("button", name="Test connection").click()
    waiting = page.locator(".step--bad", has_text="It waits for the steward's confirmation")
    expect(waiting).to_contain_text("A steward may have to confirm fp-check", timeout=PATIENCE)
    hospitals.confirmed.touch()
    told = expect_ready(page, ASKING)
    assert set(told) >= PULL_STEPS
    assert "starts each run after a steward's confirmation" in told["Automatic sync"]
    assert "Mbit/s" in told["Object store"]
    for kaapana in (reached, asking):
        assert kaapana.runs("fp-check")[-1][1] == "success"
    hospitals.are_registered = True


def test_a_researcher_trains_on_both_and_a_steward_confirms(open_page, stack, hospitals):
    assert hospitals.are_registered
    hospitals.confirmed.unlink()
    page = open_page("researcher")
    page.set_default_timeout(PATIENCE)
    sites = (*NAMES.values(), DEMO_SITE)
    key = compose(
        page, "Two Kaapanas", rounds=2, epochs=None, sites=sites, without=("Linden Hospital", "Seeblick Clinic")
    )
    page.get_by_role("button", name="Start the experiment").click()
    page.wait_for_url(f"**/experiments/{key}/", wait_until="commit")
    page.evaluate("window.neverReloaded = true")
    wait_for_lines(page, "loss", 2, timeout=120)
    expect(page.locator("#feed")).to_contain_text("It waits for the steward's confirmation", timeout=PATIENCE)
    assert not [line for line, *_ in points(page, "loss") if line == NAMES[ASKING]]
    hospitals.confirmed.touch()
    wait_for_lines(page, "loss", 3, timeout=120)
    wait_until_over(page)
    assert page.evaluate("window.neverReloaded"), "all points came by themselves"
    assert {line for line, *_ in points(page, "dice")} >= set(sites)

    researcher = Client(stack, "researcher")
    digest = hashlib.sha256(download_model(page)).hexdigest()
    assert digest == researcher.get(f"/experiments/{key}/models/")[-1]["sha256"]
    for kaapana in hospitals.kaapanas.values():
        # two rounds of training, one that measures the final model; nothing ran twice. Airflow ends a run after its update is taken.
        wait_for(lambda kaapana=kaapana: {state for _, state in kaapana.runs()}.isdisjoint(OPEN), seconds=120)
        assert [state for _, state in kaapana.runs()] == ["success"] * 3
        for log in (kaapana.home / "work" / "runs").glob(f"fp-{key}-*/log.txt"):
            assert log.read_text().count('"run begins"') == 1
