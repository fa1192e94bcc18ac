"""The connectors that the portal has, through the forms: what a hospital's people give is enough to build them."""

import json

import pytest
from cryptography.fernet import Fernet

from fedportal.connectors import registry
from fedportal.orchestrator.snapshot import site_view
from fedportal.orchestrator.tools import Connectors
from fedportal.sites.connection import handout_of
from fedportal.sites.forms import site_form
from fedportal.sites.models import ConnectorKind, Site
from tests.factories import make_user
from tests.orchestrator.fakes import MemoryStore
from tests.sites.probe import certificate

pytestmark = pytest.mark.django_db
NAMED = {"name": "Mainz", "slug": "mainz"}
COPIED = {
    "instance_name": "kaapana-mainz",
    "host": "kaapana.mainz.example",
    "port": 443,
    "token": "1f0c8a52-6a53-4f0e-9d54-2a0c1d7a4711",
    "fernet_key": Fernet.generate_key().decode(),
    "ssl_check": True,
}
"""What “copy definition” of a Kaapana gives."""
PROJECT = json.dumps({"id": "5f6f2c30", "name": "admin", "kubernetes_namespace": "project-admin"})
KAAPANA = {
    "base_url": "https://kaapana.mainz.example",
    "generation": "0.6",
    "control": "workflow",
    "project": "admin",
    "grant": "client",
    "client_id": "fedportal",
    "client_secret": "secret-4711",
    "realm": "auth/realms/kaapana",
    "audience": "kaapana",
    "verify": "on",
}
TYPED = {
    "local": {"data_root": "/srv/data", "work_dir": "/srv/work", "threads": "1"},
    "airflow": {"url": "https://airflow.mainz.example/base", "user": "portal", "password": "pass-4711"},
    "kaapana": KAAPANA,
    "kaapana-pull": {"definition": json.dumps(COPIED), "project": PROJECT, "dag": "fp-train"},
}


def register(kind: str, **more: str) -> Site:
    form = site_form(kind)({**NAMED, **TYPED[kind], **more})
    assert form.is_valid(), form.errors
    return form.store(by=make_user())


def test_every_kind_that_a_site_may_have_can_be_chosen():
    assert set(registry.KINDS) == set(ConnectorKind.values) == set(TYPED)


@pytest.mark.parametrize("kind", TYPED)
def test_what_is_typed_is_enough_to_build_the_connector(kind):
    site = register(kind)
    Connectors(MemoryStore())(site_view(site))
    assert "4711" not in json.dumps(site.config)
    form = site_form(kind)(instance=site)
    assert "4711" not in form.as_p()
    if kind != "local":
        assert site.secrets


@pytest.mark.parametrize("kind", ["airflow", "kaapana"])
def test_a_connector_takes_an_authority_of_the_hospitals_own(kind):
    assert register(kind, ca_certificate=certificate()).config["ca_certificate"].startswith("-----BEGIN")


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"client_secret": ""}, "client_secret"),
        ({"grant": "password"}, "username"),
        ({"grant": "password", "username": "u", "password": "p", "generation": "0.7"}, "grant"),
        ({"base_url": "https://kaapana.mainz.example/path"}, "base_url"),
        ({"base_url": "https://169.254.169.254"}, "base_url"),
    ],
)
def test_a_kaapana_that_cannot_be_signed_in_to_is_refused(typed, field):
    assert list(site_form("kaapana")({**NAMED, **KAAPANA, **typed}).errors) == [field]


def test_definitions_are_exchanged_in_kaapanas_own_form(settings):
    settings.FEDPORTAL_PUBLIC_URL = "https://portal.example"
    site = register("kaapana-pull")
    assert (site.config["instance_name"], site.secrets["token"]) == ("kaapana-mainz", COPIED["token"])
    ours = handout_of(site)
    assert set(ours) == set(COPIED)
    assert (ours["host"], ours["port"]) == ("portal.example", 443)
    assert ours["token"] not in (COPIED["token"], "")
    definition = json.dumps({**COPIED, "instance_name": "kaapana-ulm"})
    other = site_form("kaapana-pull")(
        {"name": "Ulm", "slug": "ulm", "definition": definition, "project": PROJECT, "dag": "x"}
    )
    assert other.is_valid(), other.errors
    assert handout_of(other.store(by=make_user()))["token"] != ours["token"]
