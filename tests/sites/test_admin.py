from datetime import UTC, datetime

import pytest
from django.contrib.admin.models import LogEntry

from fedportal.accounts.models import Role
from fedportal.connectors import registry
from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.sites import services
from fedportal.sites.models import Site
from tests.factories import make_site, make_user, otto, stella
from tests.sites.probe import KIND, TYPED
from tests.sites.test_forms import GOOD

pytestmark = pytest.mark.django_db
INLINES = {f"{prefix}-{name}": "0" for prefix in ("checks", "datasets") for name in ("TOTAL_FORMS", "INITIAL_FORMS")}


@pytest.fixture
def admin(client):
    client.force_login(otto())
    return client


def test_the_admin_asks_for_the_connector_first(admin, probe):
    shown = admin.get("/admin/sites/site/add/").content.decode()
    assert "?connector=local" in shown
    assert f"?connector={KIND}" in shown
    assert probe.SUMMARY in shown
    assert "base_url" not in shown
    shown = admin.get(f"/admin/sites/site/add/?connector={KIND}").content.decode()
    assert 'name="base_url"' in shown
    assert "Check due at" not in shown, "of a site that is not there yet nothing is known"
    assert (
        "How does the portal reach the site?"
        in admin.get("/admin/sites/site/add/?connector=telepathy").content.decode()
    )


def test_a_site_is_registered_in_the_admin(admin, probe):
    person = stella()
    answer = admin.post(f"/admin/sites/site/add/?connector={KIND}", {**TYPED, "stewards": [person.pk]})
    assert answer.status_code == 302
    site = Site.objects.get()
    assert (site.connector, site.secrets["password"]) == (KIND, "pass-4711")
    assert (site.config["timeout"], site.check_is_pending) == (20, True)
    assert list(site.stewards.all()) == [person]


def test_a_site_is_changed_in_the_admin_and_keeps_its_secrets(admin, probe):
    admin.post(f"/admin/sites/site/add/?connector={KIND}", TYPED)
    before = Site.objects.get()
    typed = {**TYPED, **INLINES, "slug": "other", "password": "", "definition": "", "project": "lungs"}
    assert admin.post(f"/admin/sites/site/{before.pk}/change/", typed).status_code == 302
    site = Site.objects.get()
    assert (site.slug, site.config["project"], site.secrets) == ("mainz", "lungs", before.secrets)


def test_the_history_says_who_changed_what_wherever_it_was_done(admin, probe):
    admin.post(f"/admin/sites/site/add/?connector={KIND}", TYPED)
    site = Site.objects.get()
    kept = {"password": "", "definition": ""}
    admin.post(
        f"/admin/sites/site/{site.pk}/change/",
        {**TYPED, **INLINES, **kept, "project": "lungs", "password": "pass-4712"},
    )
    admin.force_login(make_user("olga", Role.OPERATOR))
    admin.post("/sites/mainz/edit/", {**TYPED, **kept, "project": "lungs", "city": "Mainz"})
    admin.patch("/api/sites/mainz/", {"contact": "it@mainz.example"}, content_type="application/json")
    admin.post("/sites/mainz/retire/")
    admin.post("/sites/mainz/reinstate/")
    assert [(act.user.username, act.get_change_message()) for act in services.acts(site)] == [
        ("olga", "Put the site back into use"),
        ("olga", "Retired the site"),
        ("olga", "Changed “Contact”"),
        ("olga", "Changed “City”"),
        ("otto", "Changed “Project”, “Password”"),
        ("otto", f"Registered the site with the connector {probe.TITLE}"),
    ]
    assert "Retired the site" in admin.get(f"/admin/sites/site/{site.pk}/history/").content.decode()
    assert "Put the site back into use" in admin.get("/sites/mainz/").content.decode()
    admin.force_login(stella())
    assert "Put the site back into use" not in admin.get("/sites/mainz/").content.decode()


def test_times_are_told_by_24_hours_and_with_their_zone(admin):
    site = make_site("mainz", registered_at=datetime(2026, 11, 3, 14, 5, tzinfo=UTC))
    assert "3 November 2026, 14:05 UTC" in admin.get(f"/admin/sites/site/{site.pk}/change/").content.decode()
    assert "3 November 2026" in admin.get("/sites/mainz/").content.decode()


def test_a_site_whose_connector_this_portal_lacks_gets_another_one(admin, monkeypatch):
    monkeypatch.delitem(registry.KINDS, KIND, raising=False)
    site = make_site("mainz", connector=KIND)
    assert admin.get(f"/admin/sites/site/{site.pk}/change/").url == "/sites/mainz/connector/"
    assert admin.get("/admin/sites/site/").status_code == 200


def test_a_refused_site_stores_nothing(admin):
    answer = admin.post("/admin/sites/site/add/?connector=local", {**GOOD, "data_root": "data"})
    assert "data_root" in answer.context["adminform"].form.errors
    assert not Site.objects.exists()


def test_secrets_are_in_no_page_of_the_admin_and_in_no_record_of_changes(admin, probe):
    admin.post(f"/admin/sites/site/add/?connector={KIND}", TYPED)
    site = Site.objects.get()
    admin.post(f"/admin/sites/site/{site.pk}/change/", {**TYPED, **INLINES, "password": "pass-4712"})
    assert Site.objects.get().secrets["password"] == "pass-4712"
    for page in ("", f"{site.pk}/change/", f"{site.pk}/history/"):
        shown = admin.get(f"/admin/sites/site/{page}").content.decode()
        assert "471" not in shown
        assert site.secrets["portal_token"] not in shown
    assert "471" not in "".join(LogEntry.objects.values_list("change_message", flat=True))


def test_a_site_is_retired_and_not_deleted(admin):
    site = make_site("mainz")
    assert admin.post(f"/admin/sites/site/{site.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Site.objects.filter(slug="mainz").exists()


def test_a_secret_that_was_typed_into_a_refused_form_is_not_sent_back(admin, probe):
    answer = admin.post(f"/admin/sites/site/add/?connector={KIND}", {**TYPED, "slug": "X"})
    assert "slug" in answer.context["adminform"].form.errors
    assert "4711" not in answer.content.decode()


def test_sites_are_checked_by_the_action_and_by_the_button(admin):
    mainz, bonn, kiel = make_site("mainz"), make_site("bonn"), make_site("kiel")
    services.retire(kiel, by=make_user())
    sent = {"action": "check_now", "_selected_action": [mainz.pk, kiel.pk]}
    admin.post("/admin/sites/site/", sent)
    assert admin.post(f"/admin/sites/site/{bonn.pk}/check/").status_code == 302
    pending = {site.slug for site in Site.objects.all() if site.check_is_pending}
    assert pending == {"mainz", "bonn"}


def test_the_button_refuses_a_retired_site_in_words(admin):
    site = make_site("kiel")
    services.retire(site, by=make_user())
    answer = admin.post(f"/admin/sites/site/{site.pk}/check/", follow=True)
    assert "This site is retired" in answer.content.decode()


@pytest.mark.parametrize(("method", "status"), [("get", 405), ("put", 405)])
def test_the_button_is_a_post(admin, method, status):
    assert getattr(admin, method)(f"/admin/sites/site/{make_site().pk}/check/").status_code == status


def test_who_is_no_operator_cannot_press_the_button(client):
    client.force_login(make_user("clerk", is_staff=True))
    site = make_site()
    assert client.post(f"/admin/sites/site/{site.pk}/check/", follow=True).status_code == 403
    assert not Site.objects.get().check_is_pending


def test_the_last_checks_are_shown_in_the_sites_own_words(admin):
    site = make_site("mainz")
    for number in range(7):
        services.record_check(site, CheckReport((CheckStep("trainer", False, f"word {number}", "Install it."),)))
    shown = admin.get(f"/admin/sites/site/{site.pk}/change/").content.decode()
    assert "word 6" in shown
    assert "word 2" in shown
    assert "word 1" not in shown
    assert "Install it." in shown
