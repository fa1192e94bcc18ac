"""A Kaapana in which the portal is a member of a project, from its registration to a check that ends well, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import Client
from playwright.sync_api import expect

from tests.e2e.pages import expect_ready, register, site_key
from tests.factories import otto
from tests.kaapana_double.door import Door
from tests.sites.conftest import checks_at_work
from tests.trainer.conftest import write_dataset
from trainer.check import hand_in, report
from trainer.site_file import SiteFile

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.store]


class Hospital:
    """The double's door and backend; in place of Airflow and a pod, the trainer's own check in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, ""
        write_dataset(folder / "data" / "Task01", shape=(4, 4, 4))
        self.door = Door(tls=folder)
        self.door.admit_members_only()
        self._make_job = self.door.backend.make_job
        self.door.backend.make_job = self._run

    def _run(self, workflow: dict[str, Any], dag: str, conf: dict[str, Any]) -> None:
        self._make_job(workflow, dag, conf)
        job, asked = self.door.backend.jobs[-1], conf["fedportal"]
        if not self.key:
            job["status"] = "failed"  # the Secret is missing, and the pod does not start
            return
        site = SiteFile(self.folder / "data", self.folder / "work", self.key)
        hand_in(report(site, asked), asked, bytes.fromhex(self.key))
        job["status"] = "finished"


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Hospital]:
    hospital = Hospital(tmp_path)
    yield hospital
    hospital.door.close()


@pytest.fixture
def session(live_server, transactional_db, object_store, settings) -> Iterator[str]:
    """A signed-in operator's session, while the orchestrator makes checks."""
    settings.FEDPORTAL_PUBLIC_URL = live_server.url
    client = Client()
    client.force_login(otto())
    with checks_at_work(object_store):
        yield client.cookies[django_settings.SESSION_COOKIE_NAME].value


def test_an_operator_registers_a_kaapana_as_a_member_of_a_project(open_page, hospital, tmp_path):
    authority = tmp_path / "authority.pem"
    authority.write_text(hospital.door.ca)
    keycloak = hospital.door.keycloak
    fields = {
        "Address": hospital.door.url,
        "Control": "as workflows of the project (a member of it)",
        "Signs in": "with user and password",
        "Client's secret": keycloak.client_secret,
        "User": "portal",
        "Password": keycloak.users["portal"],
        "Certificate of the authority": authority,
    }
    page = open_page("/sites/")
    register(page, "Kaapana, reached by the portal", name="Mainz Clinic", slug="mainz", fields=fields)

    failed = page.locator("[data-part=check] .step--bad")
    expect(failed).to_contain_text("fp-check failed at the site")
    expect(failed).to_contain_text("Give the extension the site's key")

    hospital.key = site_key(page, "mainz")
    page.goto("/sites/mainz/")
    page.get_by_role("button", name="Test connection").click()
    told = expect_ready(page, "mainz")
    steps = [
        "Name",
        "Certificate",
        "Realm",
        "Login",
        "Project",
        "Rights",
        "Workflows",
        "Logs",
        "Trainer",
        "Code",
        "Key",
    ]
    assert list(told) == [*steps, "Clock", "Disk", "Object store", "Live metrics", "Datasets"]
    assert "may use the workflows of the project, at hospital" in told["Rights"]
    assert "fetched with" in told["Object store"]
    assert "The site reaches the portal" in told["Live metrics"]
    assert "1 found: Task01" in told["Datasets"]
    assert not [request for request in hospital.door.requests if "/flow/" in request]
    assert page.complaints == []
