"""Credentials are encrypted at rest, written and never read, and no key is needed that is not there."""

import io
import logging

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connection, transaction
from django.test import override_settings

from fedportal.sites.models import Site
from tests.factories import ada, make_site, otto

pytestmark = pytest.mark.django_db
SECRET = "top-secret-4711"
OLD, NEW, OTHER = (Fernet.generate_key().decode() for _ in range(3))


def stored(slug: str = "mainz") -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secrets FROM sites_site WHERE slug = %s", [slug])
        return cursor.fetchone()[0]


def test_the_database_sees_credentials_only_encrypted():
    make_site("mainz", secrets={"password": SECRET})
    assert SECRET not in stored()
    assert "password" not in stored()
    assert Site.objects.get().secrets == {"password": SECRET}


def test_no_credentials_are_an_empty_column():
    make_site("mainz")
    assert stored() == ""


@pytest.mark.parametrize("person", [ada, otto])
def test_no_page_and_no_answer_of_the_api_holds_a_secret(client, person):
    site = make_site("mainz", secrets={"password": SECRET})
    client.force_login(person())
    for url in ("/sites/", "/sites/mainz/", "/sites/mainz/edit/", "/api/sites/", "/api/sites/mainz/", "/api/schema/"):
        assert SECRET not in client.get(url).content.decode()
    assert SECRET not in f"{site} {site!r}"


def test_dumpdata_writes_no_credentials():
    make_site("mainz", secrets={"password": SECRET})
    out = io.StringIO()
    call_command("dumpdata", "sites", stdout=out)
    assert '"slug": "mainz"' in out.getvalue()
    assert SECRET not in out.getvalue()
    assert stored() not in out.getvalue()


def test_no_log_line_holds_a_secret(client, caplog):
    client.force_login(otto())
    make_site("mainz", secrets={"password": SECRET})
    with caplog.at_level(logging.DEBUG):
        client.get("/sites/mainz/")
        client.post("/admin/sites/site/add/", {"credentials": f"password = {SECRET}"})
    assert SECRET not in caplog.text


def test_without_keys_nothing_is_stored():
    refused = pytest.raises(ImproperlyConfigured, match="FEDPORTAL_KEYS")
    with override_settings(FEDPORTAL_KEYS=[]), refused, transaction.atomic():
        make_site("mainz", secrets={"password": SECRET})
    assert not Site.objects.exists()


# --- rotate_keys ------------------------------------------------------------------------------------


def test_keys_are_rotated_without_losing_a_credential():
    with override_settings(FEDPORTAL_KEYS=[OLD]):
        make_site("mainz", secrets={"password": SECRET})
        make_site("kiel")
    out = io.StringIO()
    with override_settings(FEDPORTAL_KEYS=[NEW, OLD]):
        call_command("rotate_keys", stdout=out)
    assert "1 site(s)" in out.getvalue()
    with override_settings(FEDPORTAL_KEYS=[NEW]):
        assert Site.objects.get(slug="mainz").secrets == {"password": SECRET}


def test_a_credential_that_no_key_opens_stops_the_rotation_and_nothing_is_changed():
    with override_settings(FEDPORTAL_KEYS=[OLD]):
        make_site("bonn", secrets={"password": SECRET})
    with override_settings(FEDPORTAL_KEYS=[OTHER]):
        make_site("mainz", secrets={"password": SECRET})
    before = stored("bonn")
    with (
        override_settings(FEDPORTAL_KEYS=[NEW, OLD]),
        pytest.raises(CommandError, match=r"^mainz: None of the keys") as refusal,
    ):
        call_command("rotate_keys")
    assert SECRET not in str(refusal.value)
    assert stored("bonn") == before
