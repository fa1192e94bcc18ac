"""Who may see and do what with sites, on every page and over the API."""

import pytest

from fedportal.sites.models import Site
from tests.factories import ada, audrey, make_dataset, make_site, make_user, otto, stella
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
    ("GET", "/sites/register/local/"): OPERATORS,
    ("POST", "/sites/register/local/"): OPERATORS,  # 200: the empty form is shown again with its errors
    ("GET", "/sites/register/telepathy/"): {**OPERATORS, "otto": 404},
    ("GET", "/sites/mainz/connector/"): OPERATORS,
    ("GET", "/sites/mainz/edit/?connector=telepathy"): {**OPERATORS, "otto": 404},
    ("GET", "/sites/mainz/key/"): ACT,
    ("POST", "/sites/mainz/key/"): ACT,  # 302: this site has none, and the operator reads so where the button was
    ("GET", "/sites/mainz/handout/"): ACT,
    ("POST", "/sites/mainz/handout/"): ACT,
    ("GET", "/sites/mainz/sign-in/"): NO_GET,
    ("POST", "/sites/mainz/sign-in/"): ACT,
    ("GET", "/sites/mainz/reissue/"): NO_GET,
    ("POST", "/sites/mainz/reissue/"): ACT,
    ("GET", "/sites/mainz/datasets/Task01_BrainTumour/"): OPERATORS,
    ("POST", "/sites/mainz/datasets/Task01_BrainTumour/"): ACT,
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
    ("PATCH", "/api/sites/mainz/datasets/Task01_BrainTumour/"): API_WRITE,  # 400: what it is a copy of is missing
    ("GET", "/api/sites/mainz/checks/"): API_READ,
    ("GET", "/api/connectors/"): {**API_WRITE, "otto": 200},
    ("POST", "/api/connectors/"): API_NO,
    ("POST", "/api/sites/"): API_WRITE,
    ("GET", "/api/sites/mainz/key/"): dict.fromkeys(CAST, 405) | {"nobody": 401},
    ("POST", "/api/sites/mainz/key/"): {**API_WRITE, "otto": 409},
    ("GET", "/api/sites/mainz/sign-in/"): {**API_WRITE, "otto": 404},
    ("POST", "/api/sites/mainz/sign-in/"): {**API_WRITE, "otto": 409},
    ("POST", "/api/sites/mainz/handout/"): {**API_WRITE, "otto": 409},
    ("POST", "/api/sites/mainz/reissue/"): {**API_WRITE, "otto": 409},
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
    client.post("/sites/register/local/", GOOD)
    client.post("/sites/mainz/retire/")
    assert [row.is_retired for row in Site.objects.all()] == [False]
