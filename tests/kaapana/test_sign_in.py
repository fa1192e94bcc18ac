"""Signing in at a Kaapana's Keycloak, against the double's front door: real HTTP, real RS256 tokens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedportal.connectors.errors import SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.fields import SiteContext, Unfit
from fedportal.connectors.http import Http
from fedportal.connectors.kaapana import KaapanaConnector
from fedportal.connectors.oidc import Credentials, Grant, Provider, Token, read_claims
from fedportal.connectors.registry import build
from tests.kaapana.conftest import connector, credentials
from tests.kaapana_double.door import Door
from tests.kaapana_double.keycloak import REALM


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def provider(door: Door, signs_in: Credentials | None = None, **options) -> Provider:
    return Provider(Http(door.url), REALM, signs_in or credentials(), audience="kaapana", **options)


@pytest.mark.parametrize(("grant", "asked"), [(Grant.CLIENT, "client_credentials"), (Grant.PASSWORD, "password")])
def test_a_token_is_fetched_and_kept(door: Door, grant: Grant, asked: str) -> None:
    signs_in = provider(door, credentials(grant))
    token = signs_in.token()
    assert "kaapana" in token.audience
    assert "admin" in token.roles
    assert signs_in.token() is token
    assert door.keycloak.grants == [asked]
    assert door.keycloak.admitted(f"Bearer {token.access}")


def test_a_token_is_renewed_before_its_end_with_the_refresh_token(door: Door, clock: Clock) -> None:
    signs_in = provider(door, credentials(Grant.PASSWORD), clock=clock)
    first = signs_in.token()
    clock.now = door.keycloak.lives - 61
    assert signs_in.token() is first
    clock.now += 2
    assert signs_in.token() is not first
    assert door.keycloak.grants == ["password", "refresh_token"]


def test_a_refresh_token_that_has_run_out_leads_back_to_the_password(door: Door, clock: Clock) -> None:
    signs_in = provider(door, credentials(Grant.PASSWORD), clock=clock)
    signs_in.token()
    door.keycloak.refresh_tokens.clear()
    clock.now = 4000
    assert signs_in.token()
    assert door.keycloak.grants == ["password", "refresh_token", "password"]


def test_threads_that_need_a_token_at_once_fetch_one(door: Door) -> None:
    signs_in = provider(door)
    door.faults.add("slow-0.3", "/token")
    tokens: list[Token] = []
    threads = [threading.Thread(target=lambda: tokens.append(signs_in.token())) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({token.access for token in tokens}) == 1
    assert len(door.keycloak.grants) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"client_secret": "wrong"}, "client or its secret"),
        ({"grant": Grant.PASSWORD, "password": "wrong"}, "User, password or refresh token"),
    ],
)
def test_wrong_credentials_are_refused_in_words(door: Door, changes: dict, says: str) -> None:
    with pytest.raises(SiteRefused, match=says) as refused:
        provider(door, credentials(**changes)).token()
    assert refused.value.remedy
    assert "wrong" not in f"{refused.value.message} {refused.value.remedy}".replace("is wrong", "")


def test_a_token_for_another_audience_is_told_from_a_wrong_password(door: Door) -> None:
    door.keycloak.audience = ["account"]
    with pytest.raises(SiteRefused, match="for account, the site wants kaapana") as refused:
        provider(door).token()
    assert "audience mapper" in refused.value.remedy


def test_a_site_that_calls_itself_otherwise_is_refused_before_a_secret_is_sent(door: Door) -> None:
    door.keycloak.issuer = "https://kaapana.example/auth/realms/kaapana"
    with pytest.raises(SiteRefused, match=r"calls itself https://kaapana\.example"):
        provider(door).token()
    assert door.keycloak.grants == []


def test_a_realm_that_is_not_there_and_a_keycloak_that_is_away_are_told_apart(door: Door) -> None:
    with pytest.raises(SiteRefused, match="no realm"):
        Provider(Http(door.url), "auth/realms/other", credentials()).token()
    door.faults.add("503", "/token", 5)
    with pytest.raises(SiteUnreachable):
        provider(door).token()


@pytest.mark.parametrize("token", ["", "abc", "a.b.c", "a.W10.c"])
def test_what_is_no_token_is_not_taken_for_one(token: str) -> None:
    with pytest.raises(SiteMisbehaved):
        read_claims(token)


def test_secrets_are_in_no_repr(door: Door) -> None:
    signs_in = credentials(Grant.PASSWORD, refresh_token="refresh-me")
    text = repr(signs_in) + repr(provider(door).token())
    for secret in ("client-secret", "pass-word", "refresh-me", "eyJ"):
        assert secret not in text


# --- device login -------------------------------------------------------------------------------------


def test_a_person_confirms_a_code_and_the_refresh_token_is_kept(door: Door) -> None:
    door.keycloak.device_answers = ["authorization_pending", "slow_down"]
    kept: list[str] = []
    site = connector(door, credentials=credentials(Grant.DEVICE), keep=kept.append)
    with pytest.raises(SiteRefused, match="Nobody has signed the portal in"):
        site.provider.token()
    login = site.start_device_login()
    assert login.user_code in login.address
    assert "device-code" not in repr(login)
    assert site.poll_device_login(login) == 1.0
    assert site.poll_device_login(login) == 6.0
    token = site.poll_device_login(login)
    assert isinstance(token, Token)
    assert token.refresh in door.keycloak.refresh_tokens
    assert kept == [token.refresh]
    # Another process goes on with what was kept.
    again = connector(door, credentials=credentials(Grant.DEVICE, refresh_token=token.refresh))
    assert "admin" in again.provider.token().roles


@pytest.mark.parametrize(("answer", "says"), [("access_denied", "declined"), ("expired_token", "run out")])
def test_a_declined_or_late_device_login_ends(door: Door, answer: str, says: str) -> None:
    door.keycloak.device_answers = [answer]
    site = connector(door, credentials=credentials(Grant.DEVICE))
    login = site.start_device_login()
    with pytest.raises(SiteRefused, match=says):
        site.poll_device_login(login)


def test_a_realm_without_device_login_says_so(door: Door) -> None:
    door.keycloak.offers_device = False
    with pytest.raises(SiteRefused, match="no device login"):
        connector(door, credentials=credentials(Grant.DEVICE)).start_device_login()


# --- the door -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["redirect", "page"])
def test_a_login_page_means_a_fresh_token_once_and_then_refused(door: Door, answer: str) -> None:
    door.faults.login_answer = answer
    site = connector(door)
    first = site.provider.token()
    door.keycloak.lives = -10.0  # what the proxy thinks of every token from now on
    door.faults.skew = 7200.0
    with pytest.raises(SiteRefused, match="wants a login"):
        site.api.project()
    assert door.keycloak.grants == ["client_credentials"] * 2
    door.keycloak.lives = 3600.0
    assert site.api.project().name == "admin"
    assert site.provider.token() is not first


def test_an_expired_token_is_renewed_without_a_word(door: Door) -> None:
    site = connector(door)
    site.provider.token()
    door.faults.skew = 7200.0
    assert site.api.project().form["kubernetes_namespace"] == "project-admin"
    assert len(door.keycloak.grants) == 2


@pytest.fixture(params=[False, True], ids=["until-0.6", "from-0.7"])
def generation(request: pytest.FixtureRequest) -> Iterator[Door]:
    door = Door(by_path=request.param)
    yield door
    door.close()


@pytest.mark.parametrize("path", ["dagdetails", "client/dataset"])
def test_a_404_of_the_proxy_is_no_word_about_a_run_or_a_dataset(door: Door, path: str) -> None:
    """Kaapana's proxy answers so while the server behind it is started again."""
    door.faults.add("404", path)
    api = connector(door).api
    with pytest.raises(SiteUnreachable, match="not Kaapana"):
        api.run_state("fp-train", "fp-train-1") if path == "dagdetails" else api.series_of("lung")


def test_a_dataset_is_resolved_inside_the_project_in_both_generations(generation: Door) -> None:
    generation.datasets["lung"] = ["1.2.3", "1.2.4"]
    site = connector(generation)
    assert site.api.series_of("lung") == ["1.2.3", "1.2.4"]
    assert site.api.series_of("liver") == []
    prefix = f"/project/{generation.project['id']}" if generation.by_path else ""
    assert f"GET {prefix}/kaapana-backend/client/dataset" in generation.requests


def test_a_project_that_does_not_exist_is_refused(door: Door) -> None:
    with pytest.raises(SiteRefused, match="no project lung"):
        connector(door, project="lung").api.project()


def test_a_check_says_which_step_fails_and_what_helps(door: Door) -> None:
    def failed(**options) -> tuple[str, str, str]:
        report = connector(door, **options).check()
        step = next(step for step in report.steps if step.ok is False)
        assert not report.ok
        assert all(later.ok is None for later in report.steps[report.steps.index(step) + 1 :])
        return step.name, step.message, step.remedy

    assert failed(credentials=credentials(client_secret="x"))[0] == "Login"
    door.keycloak.roles = ["user"]
    assert failed()[0] == "Rights"
    door.keycloak.roles = ["admin"]
    assert failed(project="other")[0] == "Project"
    assert failed()[:1] == ("Workflows",)  # nothing answers behind /flow here
    door.faults.skew = 120.0
    name, message, remedy = failed()
    assert (name, remedy) == ("Realm", "Let the site's machine use NTP.")
    assert "120 seconds" in message or "119 seconds" in message


def test_a_hospitals_own_authority_is_believed_only_where_it_is_given(tmp_path: Path) -> None:
    door = Door(tls=tmp_path)
    try:
        steps = {step.name: step for step in connector(door).check().steps}
        assert steps["Certificate"].ok
        assert "Valid until" in steps["Certificate"].message
        stranger = connector(door, credentials=credentials())
        stranger.http = Http(door.url)
        with pytest.raises(SiteRefused, match="authority that the portal does not know"):
            stranger.http.get("x")
    finally:
        door.close()


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_a_certificate_that_shall_not_be_verified_is_remarked_on_and_in_nobodys_way(tmp_path: Path) -> None:
    door = Door(tls=tmp_path)
    try:
        unverified = KaapanaConnector(door.url, credentials(), verify=False)
        steps = {step.name: step for step in unverified.check().steps}
        assert steps["Certificate"].ok
        assert "Not verified" in steps["Certificate"].message
        assert "authority" in steps["Certificate"].remedy
        assert steps["Login"].ok
    finally:
        door.close()


# --- as it is registered ------------------------------------------------------------------------------

CONFIG = {"base_url": "", "generation": "0.7", "project": "admin", "grant": "device", "client_id": "fedportal"}


def test_a_registered_site_keeps_the_token_that_a_person_has_confirmed(door: Door) -> None:
    stored: dict[str, str] = {"client_secret": "client-secret"}
    config = {**CONFIG, "base_url": door.url}
    assert KaapanaConnector.needs_sign_in(config)
    assert not KaapanaConnector.needs_sign_in({**config, "grant": "client"})
    context = SiteContext("mainz", keep=stored.__setitem__)
    site = build("kaapana", config, stored, site=context)
    assert isinstance(site, KaapanaConnector)
    site.poll_device_login(site.start_device_login())
    assert stored["refresh_token"] in door.keycloak.refresh_tokens
    again = build("kaapana", config, stored, site=context)
    assert isinstance(again, KaapanaConnector)
    assert again.api.project().name == "admin"


@pytest.mark.parametrize(
    ("config", "secrets", "field"),
    [
        ({"grant": "client"}, {}, "client_secret"),
        ({"grant": "password", "generation": "0.6"}, {"password": "x"}, "username"),
        ({"grant": "password", "username": "u"}, {"password": "x"}, "grant"),
        ({"base_url": "https://kaapana.example/flow"}, {}, "base_url"),
    ],
)
def test_values_that_cannot_work_are_refused_before_they_are_stored(config: dict, secrets: dict, field: str) -> None:
    good = {**CONFIG, "base_url": "https://kaapana.example"}
    assert KaapanaConnector.clean_config(good, {}) == good
    with pytest.raises(Unfit) as unfit:
        KaapanaConnector.clean_config({**good, **config}, secrets)
    assert unfit.value.field == field
    assert unfit.value.message
