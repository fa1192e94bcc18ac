"""Sign-ins by a code that a person confirms, against the Keycloak of the Kaapana double."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.utils import timezone

from fedportal.connectors.errors import SiteError
from fedportal.orchestrator import sign_ins
from fedportal.orchestrator.snapshot import site_view
from fedportal.orchestrator.tools import Connectors
from fedportal.sites import services
from fedportal.sites.models import SignIn, SignInState, Site
from tests.factories import make_site, otto
from tests.kaapana_double.door import Door
from tests.kaapana_double.keycloak import REALM
from tests.orchestrator.fakes import Federation, MemoryStore

pytestmark = pytest.mark.django_db


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@pytest.fixture
def tools(federation: Federation):
    federation.tools.connector = Connectors(MemoryStore())
    return federation.tools


@pytest.fixture
def site(door: Door) -> Site:
    config = {"base_url": door.url, "generation": "0.7", "grant": "device", "client_id": "fedportal"}
    return make_site("mainz", connector="kaapana", config=config, secrets={"client_secret": "client-secret"})


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none is waited for."""
    made: list[float] = []
    monkeypatch.setattr(sign_ins.time, "sleep", made.append)
    return made


def asked(site: Site) -> SignIn:
    row = services.request_sign_in(site, by=otto())
    SignIn.objects.filter(pk=row.pk).update(state=SignInState.WAITING)
    return row


def test_a_confirmed_code_gives_the_portal_a_token_that_it_keeps(door, tools, site, pauses):
    shown = []
    door.keycloak.device_answers = ["authorization_pending", "slow_down"]
    sign_ins.time.sleep = lambda pause: (pauses.append(pause), shown.append(SignIn.objects.get()))
    sign_ins.sign_in(asked(site), tools)
    assert shown[0].user_code == "WDJB-MJHT"
    assert shown[0].address == f"{door.url}{REALM}/device?user_code=WDJB-MJHT"
    assert shown[0].expires_at > timezone.now()
    assert pauses == [1.0, 1.0, 6.0]
    row, site = SignIn.objects.get(), Site.objects.get()
    assert (row.state, row.user_code, row.address) == ("done", "", "")
    assert set(site.secrets) == {"client_secret", "refresh_token"}
    assert site.check_is_pending


def test_a_token_that_the_site_renews_is_kept_for_the_next_start_of_the_portal(door, tools, site):
    sign_ins.sign_in(asked(site), tools)
    first = Site.objects.get().secrets["refresh_token"]
    restarted = Connectors(MemoryStore())(site_view(Site.objects.get()))
    restarted.provider.token()
    second = Site.objects.get().secrets["refresh_token"]
    assert first != second
    assert door.keycloak.grants[-1] == "refresh_token"
    assert Site.objects.get().secrets["client_secret"] == "client-secret"


def test_a_token_that_the_site_renews_is_no_other_way_to_the_site(door, tools, site):
    """A connector that was built anew would know none of the runs that it has started."""
    sign_ins.sign_in(asked(site), tools)
    connector = tools.connector(site_view(Site.objects.get()))
    connector.provider.drop(connector.provider.token())
    connector.provider.token()
    assert door.keycloak.grants[-1] == "refresh_token"
    assert tools.connector(site_view(Site.objects.get())) is connector
    site = Site.objects.get()
    services.update(site, secrets={"client_secret": "another"})
    assert tools.connector(site_view(site)) is not connector


def test_a_token_that_another_process_has_renewed_is_the_one_that_counts(door, tools, site):
    sign_ins.sign_in(asked(site), tools)
    connector = tools.connector(site_view(Site.objects.get()))
    Connectors(MemoryStore())(site_view(Site.objects.get())).provider.token()
    door.keycloak.refresh_tokens = {Site.objects.get().secrets["refresh_token"]}  # each is good for one use
    connector.provider.drop(connector.provider.token())
    assert connector.provider.token()


def test_an_outage_of_a_moment_does_not_end_a_sign_in(door, tools, site):
    door.faults.add("503", "/token")
    sign_ins.sign_in(asked(site), tools)
    assert SignIn.objects.get().state == SignInState.DONE


def test_who_is_asked_to_slow_down_stays_slow(door, tools, site, pauses):
    door.keycloak.device_answers = ["slow_down", "authorization_pending"]
    sign_ins.sign_in(asked(site), tools)
    assert pauses == [1.0, 6.0, 6.0]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (["access_denied"], "declined"),
        (["expired_token"], "run out"),
        (["authorization_pending", "server_error"], "server_error"),
    ],
)
def test_a_code_that_is_not_confirmed_is_told_with_a_remedy(door, tools, site, answers, message):
    door.keycloak.device_answers = answers
    sign_ins.sign_in(asked(site), tools)
    row = SignIn.objects.get()
    assert row.state == SignInState.FAILED
    assert message in row.message
    assert row.remedy
    assert "refresh_token" not in Site.objects.get().secrets


def test_a_realm_without_device_login_is_told(door, tools, site):
    door.keycloak.offers_device = False
    sign_ins.sign_in(asked(site), tools)
    assert "offers no device login" in SignIn.objects.get().message


def test_a_site_that_does_not_answer_is_told(door, tools, site):
    site.config["base_url"] = "http://127.0.0.1:9"
    site.save()
    sign_ins.sign_in(asked(site), tools)
    assert "refuses the connection" in SignIn.objects.get().message


def test_nobody_is_sent_to_an_address_that_no_site_has(door, tools, site, monkeypatch):
    connector = tools.connector(site_view(site))
    login = connector.start_device_login()
    object.__setattr__(login, "address", "javascript:alert(1)")
    monkeypatch.setattr(connector, "start_device_login", lambda: login)
    sign_ins.sign_in(asked(site), tools)
    row = SignIn.objects.get()
    assert (row.state, row.address) == ("failed", "")


def test_a_later_sign_in_takes_over(door, tools, site, pauses):
    row = asked(site)
    sign_ins.time.sleep = lambda _: services.request_sign_in(site, by=row.asked_by)
    sign_ins.sign_in(row, tools)
    assert SignIn.objects.get().state == SignInState.ASKED
    assert "device_code" not in door.keycloak.grants


def test_a_sign_in_is_begun_by_one(tools, site, monkeypatch):
    begun = []
    monkeypatch.setattr(sign_ins, "_in_thread", lambda row, _: begun.append(row.site.slug))
    services.request_sign_in(site, by=otto())
    for _ in range(2):
        for thread in sign_ins.sign_in_due(tools):
            thread.join()
    assert begun == ["mainz"]


def test_without_a_sign_in_the_check_says_where_to_do_it(tools, site):
    with pytest.raises(SiteError) as refusal:
        tools.connector(site_view(site)).provider.token()
    assert "on the site's page" in refusal.value.remedy
