import pytest
from django.utils import timezone

from fedportal.connectors.base import CheckReport, CheckStep
from fedportal.experiments.models import Participation
from fedportal.sites import services
from fedportal.sites.models import Site
from tests.factories import ada, audrey, eve, make_dataset, make_experiment, make_site, make_user, otto, stella
from tests.sites.test_forms import GOOD

pytestmark = pytest.mark.django_db
CAST = {"nobody": None, "ada": ada, "stella": stella, "zoe": None, "otto": otto, "audrey": audrey}
"""Stella is the site's steward, Zoe is the steward of another one."""
READ = {"nobody": 302, "ada": 200, "stella": 200, "zoe": 200, "otto": 200, "audrey": 200}
OPERATORS = {"nobody": 302, "ada": 403, "stella": 403, "zoe": 403, "otto": 200, "audrey": 403}
ACT = {who: 302 if status == 200 else status for who, status in OPERATORS.items()}
CHECK = {**ACT, "stella": 302}
NO_GET = dict.fromkeys(CAST, 405) | {"nobody": 302}
STAFF = dict.fromkeys(CAST, 302) | {"otto": 200}
API_READ = {**READ, "nobody": 401}
API_WRITE = {"nobody": 401, "ada": 403, "stella": 403, "zoe": 403, "otto": 400, "audrey": 403}
API_CHECK = {"nobody": 401, "ada": 403, "stella": 202, "zoe": 403, "otto": 202, "audrey": 403}
API_NO = dict.fromkeys(CAST, 403) | {"nobody": 401, "otto": 405}
TABLE = {
    ("GET", "/sites/"): READ,
    ("GET", "/sites/mainz/"): READ,
    ("GET", "/sites/nowhere/"): dict.fromkeys(CAST, 404) | {"nobody": 302},
    ("GET", "/sites/register/"): OPERATORS,
    ("POST", "/sites/register/"): OPERATORS,  # 200: the empty form is shown again with its errors
    ("GET", "/sites/mainz/edit/"): OPERATORS,
    ("POST", "/sites/mainz/edit/"): OPERATORS,
    ("GET", "/sites/mainz/check/"): NO_GET,
    ("POST", "/sites/mainz/check/"): CHECK,
    ("GET", "/sites/mainz/retire/"): NO_GET,
    ("POST", "/sites/mainz/retire/"): ACT,
    ("GET", "/sites/mainz/reinstate/"): NO_GET,
    ("POST", "/sites/mainz/reinstate/"): ACT,
    ("GET", "/admin/sites/site/"): STAFF,
    ("GET", "/admin/sites/site/add/"): STAFF,
    ("GET", "/api/sites/"): API_READ,
    ("GET", "/api/sites/mainz/"): API_READ,
    ("GET", "/api/sites/mainz/datasets/"): API_READ,
    ("GET", "/api/sites/mainz/checks/"): API_READ,
    ("POST", "/api/sites/"): API_WRITE,
    ("POST", "/api/sites/mainz/check/"): API_CHECK,
    ("PATCH", "/api/sites/mainz/"): {**API_WRITE, "otto": 200},
    ("POST", "/api/sites/mainz/retire/"): {**API_WRITE, "otto": 200},
    ("POST", "/api/sites/mainz/reinstate/"): {**API_WRITE, "otto": 200},
    ("PUT", "/api/sites/mainz/"): API_NO,
    ("DELETE", "/api/sites/mainz/"): API_NO,
}
CASES = [(method, url, who, status) for (method, url), row in TABLE.items() for who, status in row.items()]


@pytest.fixture
def site() -> Site:
    site = make_site("mainz", name="Mainz", contact="it@mainz.example")
    make_dataset(site)
    return site


@pytest.mark.parametrize(("method", "url", "who", "status"), CASES)
def test_who_may_do_what(client, site, method, url, who, status):
    if who == "zoe":
        person = make_user("zoe", "steward")
        make_site("other").stewards.add(person)
        client.force_login(person)
    elif CAST[who]:
        person = CAST[who]()
        if who == "stella":
            site.stewards.add(person)
        client.force_login(person)
    assert client.generic(method, url).status_code == status


def test_a_refused_role_changes_nothing(client, site):
    client.force_login(ada())
    client.post("/sites/register/", GOOD)
    client.post("/sites/mainz/retire/")
    assert [row.is_retired for row in Site.objects.all()] == [False]


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
    answer = client.post("/sites/register/", GOOD)
    assert (answer.status_code, answer.url) == (302, "/sites/mainz/")
    assert Site.objects.get().check_is_pending


def test_a_refused_form_keeps_what_was_typed(client):
    client.force_login(otto())
    shown = client.post("/sites/register/", {**GOOD, "data_root": "data"}).content.decode()
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
    assert "takes part in an experiment that is not over" in answer.content.decode()
    assert not Site.objects.get().is_retired


def test_a_site_is_retired_and_taken_back(client, site):
    client.force_login(otto())
    client.post("/sites/mainz/retire/")
    assert "Retired" in client.get("/sites/mainz/").content.decode()
    assert "Retired sites (1)" in client.get("/sites/").content.decode()
    client.post("/sites/mainz/reinstate/")
    assert not Site.objects.get().is_retired
