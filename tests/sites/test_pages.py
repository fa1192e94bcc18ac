"""The pages of sites."""

import re
from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.utils import timezone

from fedportal.connectors import registry
from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.experiments.models import Participation
from fedportal.sites import services
from fedportal.sites.models import CHECK_WITHIN, SignIn, Site
from tests.factories import ada, eve, make_dataset, make_experiment, make_site, otto, stella
from tests.sites.probe import KIND, TYPED, certificate
from tests.sites.test_forms import GOOD
from trainer.contract import site_key

pytestmark = pytest.mark.django_db


@pytest.fixture
def site() -> Site:
    site = make_site("mainz", name="Mainz", contact="it@mainz.example")
    make_dataset(site)
    return site


def test_the_list_says_how_every_site_is(client, site):
    services.record_check(
        make_site("bonn", name="Bonn"),
        CheckReport((CheckStep("trainer", False, "does not start", "Install it."),)),
    )
    make_site("kiel", name="Kiel", healthy=False)
    client.force_login(ada())
    shown = client.get("/sites/").content.decode()
    for words in ("Ready", "Has a problem", "Trainer: does not start", "Not checked yet"):
        assert words in shown


def test_the_list_asks_the_database_as_often_for_many_sites_as_for_few(client, site, django_assert_num_queries):
    client.force_login(ada())
    with django_assert_num_queries(4):  # session, person, sites with counts, newest checks
        client.get("/sites/")
    for _ in range(5):
        make_dataset(make_site())
    with django_assert_num_queries(4):
        client.get("/sites/")


def test_an_empty_list_says_what_to_do_next(client):
    client.force_login(otto())
    assert "Register the first hospital" in client.get("/sites/").content.decode()


def test_the_detail_shows_the_check_step_by_step_with_the_remedy(client, site):
    steps = (
        CheckStep("folder", True, "found", seconds=0.02),
        CheckStep("trainer", False, "does not start", "Install it.", 1.0),
        CheckStep("datasets", None, ""),
    )
    services.record_check(site, CheckReport(steps, "0.1.0"))
    client.force_login(ada())
    shown = client.get("/sites/mainz/").content.decode()
    for words in ("Passed", "Failed", "Not reached", "does not start", "Install it.", "Task01_BrainTumour", "20 ms"):
        assert words in shown


def test_words_of_a_site_are_shown_as_text(client, site):
    services.record_check(site, CheckReport((CheckStep("x", False, "<script>alert(1)</script>", "<b>now</b>"),)))
    client.force_login(ada())
    shown = client.get("/sites/mainz/").content.decode()
    assert "<script>alert" not in shown
    assert "<b>now</b>" not in shown


def test_folders_are_for_operators(client, site):
    client.force_login(ada())
    assert "/nowhere/mainz" not in client.get("/sites/mainz/").content.decode()
    client.force_login(otto())
    assert "/nowhere/mainz" in client.get("/sites/mainz/").content.decode()


def test_the_history_shows_only_experiments_that_the_visitor_may_see(client, site):
    mine, hers = ada(), eve()
    for owner, title in ((mine, "Mine"), (hers, "Hers")):
        experiment = make_experiment(owner, sites=0, title=title)
        Participation.objects.create(experiment=experiment, site=site, dataset=site.datasets.get())
    client.force_login(mine)
    shown = client.get("/sites/mainz/").content.decode()
    assert "Mine" in shown
    assert "Hers" not in shown
    site.stewards.add(steward := stella())
    client.force_login(steward)
    assert "Hers" in client.get("/sites/mainz/").content.decode()


def test_a_requested_check_is_shown_until_it_is_made(client, site):
    client.force_login(otto())
    client.post("/sites/mainz/check/")
    assert "Check requested" in client.get("/sites/mainz/").content.decode()
    services.record_check(Site.objects.get(), CheckReport((CheckStep("folder", True, "found"),)))
    assert "Check requested" not in client.get("/sites/mainz/").content.decode()


def test_an_operator_registers_a_site_in_the_browser(client):
    client.force_login(otto())
    answer = client.post("/sites/register/local/", GOOD)
    assert (answer.status_code, answer.url) == (302, "/sites/mainz/")
    assert Site.objects.get().check_is_pending


def test_a_refused_form_keeps_what_was_typed(client):
    client.force_login(otto())
    shown = client.post("/sites/register/local/", {**GOOD, "data_root": "data"}).content.decode()
    assert 'value="data"' in shown
    assert 'value="Mainz"' in shown
    assert "Give the whole path, beginning with “/”." in shown
    assert not Site.objects.exists()


def test_an_operator_changes_a_site_in_the_browser(client, site):
    client.force_login(otto())
    assert 'value="/nowhere/mainz/data"' in client.get("/sites/mainz/edit/").content.decode()
    assert client.post("/sites/mainz/edit/", {**GOOD, "slug": "bonn", "city": "Mainz am Rhein"}).status_code == 302
    site = Site.objects.get()
    assert (site.slug, site.city, site.config["threads"]) == ("mainz", "Mainz am Rhein", 2)


def test_a_busy_site_is_not_retired_and_the_operator_reads_why(client, site):
    experiment = make_experiment(sites=0, started_at=timezone.now())
    Participation.objects.create(experiment=experiment, site=site, dataset=site.datasets.get())
    client.force_login(otto())
    answer = client.post("/sites/mainz/retire/", headers={"referer": "http://testserver/sites/mainz/"}, follow=True)
    assert "takes part in an experiment that has not ended" in answer.content.decode()
    assert not Site.objects.get().is_retired


def test_a_site_is_retired_and_taken_back(client, site):
    client.force_login(otto())
    client.post("/sites/mainz/retire/")
    assert "Retired" in client.get("/sites/mainz/").content.decode()
    assert "Retired sites (1)" in client.get("/sites/").content.decode()
    client.post("/sites/mainz/reinstate/")
    assert not Site.objects.get().is_retired


def test_the_connector_is_chosen_first_with_words_when_to_choose_which(client, probe):
    client.force_login(otto())
    shown = client.get("/sites/register/").content.decode()
    assert f'href="/sites/register/{KIND}/"' in shown
    assert probe.SUMMARY in shown
    assert 'href="/sites/register/local/"' in shown


def test_a_site_with_any_connector_is_registered_in_the_browser_and_told_to_operators(client, probe):
    client.force_login(otto())
    shown = client.get(f"/sites/register/{KIND}/").content.decode()
    for words in ("Where it answers.", 'enctype="multipart/form-data"', 'type="password"', "More settings"):
        assert words in shown
    answer = client.post(f"/sites/register/{KIND}/", {**TYPED, "ca_certificate": certificate()}, follow=True)
    shown = answer.content.decode()
    for words in ("https://kaapana.mainz.example", "≥ 0.7", "Mainz CA, expires", "20 s"):
        assert words in shown
    assert "4711" not in shown
    client.force_login(ada())
    shown = client.get("/sites/mainz/").content.decode()
    for words in ("kaapana.mainz.example", "Mainz CA", "Show the site"):
        assert words not in shown


def test_a_refused_address_is_shown_again_and_a_typed_secret_is_not(client, probe):
    client.force_login(otto())
    shown = client.post(f"/sites/register/{KIND}/", {**TYPED, "base_url": "http://mainz.example"}).content.decode()
    assert 'value="http://mainz.example"' in shown
    assert "Sites are reached by https:// only." in shown
    assert "4711" not in shown


def test_a_refused_advanced_setting_opens_its_fold(client, probe):
    client.force_login(otto())
    shown = client.post(f"/sites/register/{KIND}/", {**TYPED, "timeout": "0"}).content.decode()
    assert 'field" open>' in shown


def test_a_site_gets_another_connector_in_the_browser(client, site, probe):
    client.force_login(otto())
    assert f"/sites/mainz/edit/?connector={KIND}" in client.get("/sites/mainz/connector/").content.decode()
    assert 'name="base_url"' in client.get(f"/sites/mainz/edit/?connector={KIND}").content.decode()
    assert Site.objects.get().connector == "local"
    assert client.post(f"/sites/mainz/edit/?connector={KIND}", TYPED).status_code == 302
    assert Site.objects.get().connector == KIND


def test_a_site_whose_connector_this_portal_lacks_is_still_shown(client, monkeypatch):
    monkeypatch.delitem(registry.KINDS, KIND, raising=False)
    make_site("mainz", connector=KIND, config={"base_url": "https://old.example"})
    client.force_login(otto())
    assert "https://old.example" in client.get("/sites/mainz/").content.decode()
    assert client.get("/sites/mainz/edit/").status_code == 404
    assert client.get("/sites/mainz/connector/").status_code == 200


def test_the_key_of_a_site_is_shown_on_request_only_and_recorded(client, probe, caplog):
    make_site("mainz", connector=KIND, secrets={"portal_token": "t"})
    key = site_key(settings.FEDPORTAL_ATTEMPT_SECRET, "mainz").hex()
    client.force_login(otto())
    assert key not in client.get("/sites/mainz/").content.decode()
    assert not LogEntry.objects.exists()
    caplog.set_level("INFO")
    answer = client.post("/sites/mainz/key/")
    assert f"FEDPORTAL_SITE_KEY={key}" in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    assert LogEntry.objects.get().change_message == "Viewed the site's key"
    assert "(by otto)" in caplog.text
    assert key not in caplog.text


def test_the_definition_for_the_site_is_shown_on_request_only(client, probe):
    client.force_login(otto())
    client.post(f"/sites/register/{KIND}/", TYPED)
    token = Site.objects.get().secrets["portal_token"]
    assert token not in client.get("/sites/mainz/").content.decode()
    shown = client.post("/sites/mainz/handout/").content.decode()
    assert token in shown
    assert "Paste this over there." in shown
    client.post("/sites/mainz/reissue/")
    assert token not in client.post("/sites/mainz/handout/").content.decode()


def test_the_page_says_how_far_a_check_is(client, site):
    client.force_login(otto())
    client.post("/sites/mainz/check/")
    assert "A check is requested" in client.get("/sites/mainz/").content.decode()
    Site.objects.update(check_due_at=timezone.now() - timedelta(minutes=1))
    assert "Is the orchestrator running?" in client.get("/sites/mainz/").content.decode()
    now = timezone.now()
    Site.objects.update(check_due_at=now + timedelta(minutes=10), checking_since=now - timedelta(seconds=5))
    shown = client.get("/sites/mainz/").content.decode()
    assert "The site is being checked" in shown
    assert "data-waiting" in shown
    services.record_check(Site.objects.get(), CheckReport((CheckStep("folder", True, "found"),)))
    assert "data-waiting" not in client.get("/sites/mainz/").content.decode()


def test_a_check_whose_orchestrator_died_is_not_waited_for_for_ever(client, site):
    Site.objects.update(checking_since=timezone.now() - CHECK_WITHIN)
    client.force_login(otto())
    assert "data-waiting" not in client.get("/sites/mainz/").content.decode()


def test_the_health_history_is_a_strip_and_a_table_of_the_last_thirty(client, site):
    for number in range(32):
        services.record_check(site, CheckReport((CheckStep("trainer", number % 2 == 0, f"word {number}"),)))
    client.force_login(ada())
    shown = client.get("/sites/mainz/").content.decode()
    assert shown.count("health__mark health__mark--") == 30
    assert shown.count("health__mark--bad") == 15
    assert "word 31" in shown
    assert "word 1<" not in shown
    assert "the last 30 checks" in shown


@pytest.fixture
def unsigned():
    config = {"base_url": "https://kaapana.mainz.example", "grant": "device"}
    return make_site("mainz", connector="kaapana", config=config)


def test_an_operator_signs_the_portal_in_by_a_code(client, unsigned):
    client.force_login(otto())
    assert "Not signed in" in client.get("/sites/mainz/").content.decode()
    client.post("/sites/mainz/sign-in/")
    assert "The portal is asking the site for a code." in client.get("/sites/mainz/").content.decode()
    until = timezone.now() + timedelta(minutes=5)
    SignIn.objects.update(state="waiting", user_code="ABCD-EFGH", address="https://k.example/d", expires_at=until)
    shown = client.get("/sites/mainz/").content.decode()
    for words in ("ABCD-EFGH", 'href="https://k.example/d"', "data-waiting"):
        assert words in shown
    assert client.get("/api/sites/mainz/sign-in/").json()["user_code"] == "ABCD-EFGH"
    client.force_login(ada())
    assert "ABCD-EFGH" not in client.get("/sites/mainz/").content.decode()
    assert client.get("/api/sites/mainz/sign-in/").status_code == 403


def test_a_sign_in_that_failed_or_ran_out_says_so(client, unsigned):
    client.force_login(otto())
    client.post("/api/sites/mainz/sign-in/")
    SignIn.objects.update(state="failed", message="It was declined.", remedy="Begin again.")
    assert "It was declined. Begin again." in client.get("/sites/mainz/").content.decode()
    SignIn.objects.update(state="waiting", user_code="X", expires_at=timezone.now() - timedelta(seconds=1))
    shown = client.get("/sites/mainz/").content.decode()
    assert "not confirmed in time" in shown
    assert "data-waiting" not in shown


def test_a_site_where_nobody_signs_in_refuses_to(client, site):
    client.force_login(otto())
    assert client.post("/api/sites/mainz/sign-in/").status_code == 409
    assert "Sign-in at the site" not in client.get("/sites/mainz/").content.decode()


def test_the_steps_of_a_check_under_way_are_shown_as_they_come(client, site):
    now = timezone.now()
    Site.objects.update(check_due_at=now + timedelta(minutes=10), checking_since=now)
    steps = [
        CheckStep("name", True, "resolved", seconds=0.1),
        CheckStep("login", None, ""),
        CheckStep("data", None, ""),
    ]
    services.tell_progress(site, steps)
    client.force_login(ada())
    shown = client.get("/sites/mainz/").content.decode()
    for words in ("resolved", "In progress", "To come"):
        assert words in shown
    assert "1 dataset found" not in shown, "the last check's steps would be mistaken for the new ones"


def test_a_site_that_is_not_reached_says_since_when_and_when_it_is_tried_again(client):
    site = make_site("mainz")
    since, next_try = timezone.now() - timedelta(minutes=9), timezone.now() + timedelta(seconds=40.5)
    Site.objects.update(unreached_since=since, next_try_at=next_try, unreached_because="It is dead.")
    client.force_login(ada())
    text = client.get(site_page := f"/sites/{site.slug}/").content.decode()
    assert "Unreachable since" in text
    assert since.strftime("%H:%M") in text
    assert re.search(r"next try in \d+ s\. It is dead\.", text)
    Site.objects.update(unreached_since=None, next_try_at=None)
    assert "Unreachable" not in client.get(site_page).content.decode()


def test_a_step_that_is_worth_a_look_says_what_to_do_and_the_site_stays_ready(client):
    site = make_site("mainz", healthy=False)
    step = CheckStep("Code", True, "The site's trainer is of another version.", "Run the installation again.")
    services.record_check(site, CheckReport((step,)))
    client.force_login(ada())
    text = client.get("/sites/mainz/").content.decode()
    assert "Run the installation again." in text
    assert "step--warn" in text
    assert Site.objects.get().health == "healthy"
