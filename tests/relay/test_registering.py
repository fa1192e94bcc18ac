"""Registering a hospital that polls, from the pasted definition to its first poll."""

from __future__ import annotations

import json

import pytest
from django.test import Client
from django.urls import reverse

from fedportal.relay.models import RemoteInstance, RemoteJob
from fedportal.sites.connection import handout_of
from fedportal.sites.models import Site
from tests.factories import otto
from tests.relay.rows import PROJECT, Kaapana

pytestmark = pytest.mark.django_db
COPIED = {
    "instance_name": "mainz.example",
    "host": "kaapana.mainz.example",
    "port": 443,
    "token": "f2b0a3de-9d1c-4c73-9f0c-1f5f2f6f9b10",
    "fernet_key": "deactivated",
    "ssl_check": True,
}
"""What Kaapana's “copy definition” puts into the clipboard."""


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(otto())
    return client


def register(operator: Client, **changes: str):
    values = {"name": "Mainz", "slug": "mainz", "definition": json.dumps(COPIED), "project": json.dumps(PROJECT)}
    address = reverse("sites:create") + "kaapana-pull/"
    return operator.post(address, {**values, **changes}, follow=True)


def test_a_pasted_definition_makes_a_site_that_can_poll(operator):
    answer = register(operator)
    assert answer.status_code == 200
    site = Site.objects.get(slug="mainz")
    assert site.connector == "kaapana-pull"
    assert site.config["instance_name"] == "mainz.example"
    handout = handout_of(site)
    assert set(handout) == set(COPIED), "the portal hands out what Kaapana pastes"
    assert len(handout["token"]) >= 43
    assert Kaapana("mainz", token=handout["token"]).poll().status_code == 200


def test_a_second_site_of_the_same_instance_name_is_refused(operator):
    register(operator)
    answer = register(operator, name="Mainz again", slug="mainz2")
    text = answer.content.decode()
    assert "Mainz already has the instance name “mainz.example”" in text
    assert not Site.objects.filter(slug="mainz2").exists()
    other = json.dumps({**COPIED, "instance_name": "ulm.example"})
    register(operator, name="Ulm", slug="ulm", definition=other)
    assert Site.objects.filter(slug="ulm").exists()
    values = {"name": "Mainz", "definition": json.dumps(COPIED), "project": json.dumps(PROJECT)}
    operator.post(reverse("sites:edit", args=["mainz"]), values)
    assert Site.objects.get(slug="mainz").config["instance_name"] == "mainz.example", "it may keep its own"


def test_neither_token_is_stored_in_the_open_or_shown(operator):
    register(operator)
    site = Site.objects.get(slug="mainz")
    assert COPIED["token"] not in json.dumps(site.config)
    assert site.secrets["portal_token"] not in json.dumps(site.config)
    page = operator.get(reverse("sites:detail", args=["mainz"])).content.decode()
    assert COPIED["token"] not in page
    assert site.secrets["portal_token"] not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"definition": "no json"},
        {"definition": "{}"},
        {"definition": json.dumps({**COPIED, "instance_name": "two words"})},
        {"definition": json.dumps({**COPIED, "fernet_key": "short"})},
        {"project": ""},
        {"project": "no json"},
        {"project": '{"name": "admin"}'},
    ],
)
def test_what_cannot_work_is_refused_in_the_form(operator, changes):
    answer = register(operator, **changes)
    assert answer.status_code == 200
    assert answer.context["form"].errors
    assert not Site.objects.exists()


def test_every_site_gets_a_token_of_its_own(operator):
    register(operator)
    register(operator, name="Ulm", slug="ulm", definition=json.dumps({**COPIED, "instance_name": "ulm.example"}))
    tokens = {site.secrets["portal_token"] for site in Site.objects.all()}
    assert len(tokens) == 2


def test_the_admin_shows_polls_and_jobs_without_their_secrets(operator):
    from tests.relay.rows import polling_site, put

    polling_site("mainz")
    Kaapana("mainz").poll()
    put()
    job = RemoteJob.objects.get()
    for page in (
        reverse("admin:relay_remotejob_changelist"),
        reverse("admin:relay_remotejob_change", args=[job.pk]),
        reverse("admin:relay_remoteinstance_changelist"),
        reverse("admin:relay_remoteinstance_change", args=[RemoteInstance.objects.get().pk]),
    ):
        answer = operator.get(page)
        assert answer.status_code == 200
        text = answer.content.decode()
        assert "mainz" in text.lower()
        assert "X-Amz" not in text
        assert "gAAAAAB" not in text
        operator.post(page, {"state": "finished"})
    job.refresh_from_db()
    assert job.state == "queued"
