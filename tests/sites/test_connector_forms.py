import json

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from fedportal.connectors import registry
from fedportal.connectors.fields import Field
from fedportal.sites import services
from fedportal.sites.connection import described, stored_fields
from fedportal.sites.form_fields import form_field
from fedportal.sites.forms import SiteForm, site_form
from fedportal.sites.models import ConnectorKind, Site
from fedportal.sites.services import SiteBusy
from tests.factories import make_dataset, make_experiment, make_site, make_user, otto
from tests.sites.probe import DEFINITION, KIND, TYPED, certificate

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("probe")]


def registered(**more) -> Site:
    form = site_form(KIND)({**TYPED, **more})
    assert form.is_valid(), form.errors
    return form.store(by=make_user())


def test_every_kind_of_field_is_stored_where_it_belongs():
    site = registered(ca_certificate=certificate())
    assert site.connector == KIND
    assert site.config.pop("ca_certificate").startswith("-----BEGIN CERTIFICATE-----")
    assert site.config == {
        "base_url": "https://kaapana.mainz.example",
        "project": "tumours",
        "version": "new",
        "timeout": 20,
        "verify": True,
        "instance_name": "mainz-kaapana",
        "port": 443,
        "ssl_check": True,
    }
    secrets = Site.objects.get().secrets
    assert len(secrets.pop("portal_token")) >= 40
    assert secrets == {"password": "pass-4711", "token": "tok-4711"}


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("base_url", "", "required"),
        ("base_url", "kaapana.mainz.example", "https://"),
        ("base_url", "ftp://kaapana.mainz.example", "https://"),
        ("base_url", "file:///etc/passwd", "https://"),
        ("base_url", "http://kaapana.mainz.example", "https:// only"),
        ("base_url", "https://169.254.169.254/latest", "no site has"),
        ("base_url", "https://[fe80::1]/", "no site has"),
        ("base_url", "https://[::ffff:169.254.169.254]/", "no site has"),
        ("base_url", "https://metadata.google.internal/", "no site has"),
        ("base_url", "https://0.0.0.0/", "no site has"),
        ("base_url", "https://user:word@mainz.example/", "user name or password"),
        ("base_url", "https://mainz.example/?next=x", "address only"),
        ("base_url", "https://mainz.example/#x", "address only"),
        ("base_url", "https://mainz.example/a b", "address only"),
        ("base_url", "https://mainz.example:99999/", "not a URL"),
        ("base_url", "https://" + "x" * 4000, "4000"),
        ("project", "x" * 4001, "4000"),
        ("password", "", "required"),
        ("password", "x" * 8001, "8000"),
        ("password", "tumours", "must not be the name of the project"),
        ("version", "", "required"),
        ("version", "0.5", "valid choice"),
        ("timeout", "", "required"),
        ("timeout", "0", "greater than or equal to 1"),
        ("timeout", "301", "less than or equal to 300"),
        ("ca_certificate", "hello", "No certificate found"),
        ("ca_certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "damaged"),
        ("ca_certificate", "x" * 131_073, "larger than 128 kB"),
        ("definition", "", "required"),
        ("definition", "{", "not JSON"),
        ("definition", "[" * 100_000, "too long"),
        ("definition", "[" * 20_000, "not JSON"),
        ("definition", "[1]", "not an object"),
        ("definition", "{}", "required"),
        ("definition", '{"port": 443, "token": "t"}', "instance_name: This field is required"),
        ("definition", DEFINITION.replace("443", "0"), "port: Ensure this value"),
        ("definition", DEFINITION.replace("443", "[443]"), "port: expected a single value"),
        ("definition", DEFINITION.replace('"tok-4711"', '""'), "token: This field is required"),
        ("definition", DEFINITION.replace("mainz-kaapana", "portal"), "own name"),
    ],
)
def test_a_refused_value_names_its_field_and_the_reason(field, value, reason):
    form = site_form(KIND)({**TYPED, field: value})
    assert list(form.errors) == [field]
    assert reason in form.errors[field].as_text()
    assert not Site.objects.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"days": -1}, "expired on"),
        ({"with_key": True}, "contains a private key"),
        ({"name": "kaapana.mainz.example", "authority": False, "signed_by": "Mainz CA"}, "that signed it: Mainz CA"),
    ],
)
def test_a_certificate_that_cannot_serve_is_refused(options, reason):
    form = site_form(KIND)({**TYPED, "ca_certificate": certificate(**options)})
    assert list(form.errors) == ["ca_certificate"]
    assert reason in form.errors["ca_certificate"].as_text()


def test_what_does_not_fit_together_is_said_above_the_form():
    form = site_form(KIND)({**TYPED, "version": "old", "otp_seed": "seed"})
    assert form.non_field_errors() == ["Old versions have no second factor."]


def test_a_certificate_is_uploaded_as_a_file_and_told_in_words():
    pem = certificate("Mainz Root") + certificate("Mainz Server", authority=False)
    chosen = {"ca_certificate-file": SimpleUploadedFile("ca.pem", b"Bag attributes\n" + pem.encode())}
    form = site_form(KIND)({**TYPED, "ca_certificate": "overruled"}, chosen)
    assert form.is_valid(), form.errors
    site = form.store(by=make_user())
    assert "Bag attributes" not in site.config["ca_certificate"]
    words = dict(described(site))["Authority"]
    assert words.startswith("Mainz Root, expires ")
    assert "Mainz Server, expires " in words
    assert "Stored: Mainz Root, expires " in site_form(KIND)(instance=site).as_p()


@pytest.mark.parametrize("content", [b"\x30\x82\x01\x0a\xff\xfe", b"x" * 200_000])
def test_a_file_that_is_no_certificate_is_refused(content):
    chosen = {"ca_certificate-file": SimpleUploadedFile("ca.der", content)}
    assert list(site_form(KIND)(TYPED, chosen).errors) == ["ca_certificate"]


def test_no_secret_is_ever_shown():
    site = registered(otp_seed="seed-4711")
    for form in (site_form(KIND)(instance=site), site_form(KIND)({**TYPED, "name": ""}, instance=site)):
        shown = form.as_p()
        assert "4711" not in shown
        assert site.secrets["portal_token"] not in shown


def test_an_empty_secret_and_an_empty_definition_keep_what_is_stored():
    site = registered(otp_seed="seed-4711")
    before = dict(site.secrets)
    form = site_form(KIND)({**TYPED, "password": "", "definition": "", "project": "lungs"}, instance=site)
    assert form.is_valid(), form.errors
    form.store(by=make_user())
    site = Site.objects.get()
    assert (site.secrets, site.config["project"], site.config["port"]) == (before, "lungs", 443)


def test_a_new_secret_and_a_new_definition_replace_what_is_stored():
    site = registered()
    typed = {**TYPED, "password": "new-4712", "definition": DEFINITION.replace("tok-4711", "tok-4712")}
    form = site_form(KIND)(typed, instance=site)
    assert form.is_valid(), form.errors
    form.store(by=make_user())
    secrets = Site.objects.get().secrets
    assert (secrets["password"], secrets["token"]) == ("new-4712", "tok-4712")
    assert secrets["portal_token"] == site.secrets["portal_token"]


def test_only_a_secret_that_may_be_missing_can_be_forgotten():
    site = registered(otp_seed="seed-4711")
    typed = {**TYPED, "password": "", "definition": ""}
    shown = site_form(KIND)(instance=site).as_p()
    assert 'name="otp_seed-forget"' in shown
    assert 'name="password-forget"' not in shown
    form = site_form(KIND)({**typed, "otp_seed-forget": "on", "password-forget": "on"}, instance=site)
    assert form.is_valid(), form.errors
    form.store(by=make_user())
    assert set(Site.objects.get().secrets) == {"password", "token", "portal_token"}


def test_another_connector_begins_with_nothing_of_the_old_one():
    site = make_site("mainz", name="Mainz", secrets={"password": "old-4710"})
    form = site_form(KIND)({**TYPED, "password": ""}, instance=site)
    assert list(form.errors) == ["password"]
    form = site_form(KIND)(TYPED, instance=site)
    assert form.is_valid(), form.errors
    form.store(by=make_user())
    site = Site.objects.get()
    assert (site.connector, site.secrets["password"]) == (KIND, "pass-4711")
    assert "data_root" not in site.config


def test_a_site_that_takes_part_in_something_keeps_its_connector():
    site = make_site("mainz", name="Mainz")
    experiment = make_experiment(sites=0, started_at=site.registered_at)
    experiment.participations.create(site=site, dataset=make_dataset(site))
    form = site_form(KIND)(TYPED, instance=site)
    assert form.is_valid(), form.errors
    with pytest.raises(SiteBusy):
        form.store(by=make_user())
    assert Site.objects.get().connector == "local"


def test_new_credentials_replace_only_the_issued_ones():
    site = registered()
    before = dict(site.secrets)
    services.reissue(site, by=otto())
    after = Site.objects.get().secrets
    assert {name for name in after if after[name] != before[name]} == {"portal_token"}


@pytest.mark.parametrize("kind", ConnectorKind.values)
def test_no_connector_takes_a_name_of_the_sites_own(kind):
    connector = registry.KINDS.get(kind)
    if connector is None:
        pytest.skip("not in this portal")
    names = {field.name for field in [*connector.FIELDS, *stored_fields(connector)]}
    assert not names & {*SiteForm.Meta.fields, "connector"}
    assert connector.TITLE
    assert connector.SUMMARY
    assert json.dumps([field.default for field in connector.FIELDS])


def test_help_and_names_in_certificates_are_shown_as_they_were_written():
    assert form_field(Field("project", "Project", "As /aii/projects/<name> shows it.")).help_text == (
        "As /aii/projects/&lt;name&gt; shows it."
    )
    field = form_field(Field("ca", "Authority", "", kind="file"))
    field.mark_stored(certificate("<b>Mainz</b>"))
    assert "&lt;b&gt;Mainz&lt;/b&gt;, expires" in field.help_text
