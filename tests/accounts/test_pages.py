from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone
from knox.models import AuthToken
from rest_framework.test import APIClient

from fedportal.accounts import services
from fedportal.accounts.models import Role, User
from tests.factories import PASSWORD, ada, audrey, eve, make_user, otto, stella

pytestmark = pytest.mark.django_db
CAST = {"nobody": None, "ada": ada, "stella": stella, "otto": otto, "audrey": audrey}
SIGN_IN = 302
OWN = {"nobody": SIGN_IN, "ada": 200, "stella": 200, "otto": 200, "audrey": 200}
TABLE = {
    ("GET", "/accounts/login/"): {"nobody": 200, "ada": 302, "stella": 302, "otto": 302, "audrey": 302},
    ("GET", "/accounts/logout/"): {"nobody": SIGN_IN, "ada": 405, "stella": 405, "otto": 405, "audrey": 405},
    ("GET", "/accounts/profile/"): OWN,
    ("GET", "/accounts/password/"): OWN,
    ("GET", "/accounts/tokens/create/"): dict.fromkeys(CAST, 302),
    ("POST", "/accounts/tokens/create/"): OWN,
    ("GET", "/admin/accounts/user/"): {"nobody": 302, "ada": 302, "stella": 302, "otto": 200, "audrey": 302},
    ("GET", "/admin/accounts/user/add/"): {"nobody": 302, "ada": 302, "stella": 302, "otto": 200, "audrey": 302},
    ("GET", "/admin/knox/authtoken/"): {"nobody": 302, "ada": 302, "stella": 302, "otto": 200, "audrey": 302},
    ("GET", "/admin/knox/authtoken/add/"): {"nobody": 302, "ada": 302, "stella": 302, "otto": 403, "audrey": 302},
    ("GET", "/api/me/"): {"nobody": 401, "ada": 200, "stella": 200, "otto": 200, "audrey": 200},
    ("POST", "/api/me/"): {"nobody": 401, "ada": 405, "stella": 405, "otto": 405, "audrey": 405},
}
CASES = [(method, url, who, status) for (method, url), row in TABLE.items() for who, status in row.items()]


@pytest.mark.parametrize(("method", "url", "who", "status"), CASES)
def test_who_may_open_what(client, method, url, who, status):
    if CAST[who]:
        client.force_login(CAST[who]())
    assert client.generic(method, url, "days=30", "application/x-www-form-urlencoded").status_code == status


# --- sign-in ----------------------------------------------------------------------------------------


def test_the_sign_in_page_says_what_the_portal_is(client):
    shown = client.get("/accounts/login/").content.decode()
    assert "Images stay where they are." in shown
    assert 'autocomplete="current-password"' in shown


def test_signing_in_leads_on(client):
    ada()
    answer = client.post("/accounts/login/", {"username": "ada", "password": PASSWORD, "next": "/sites/"})
    assert (answer.status_code, answer.url) == (302, "/sites/")


def test_signing_in_leads_to_no_other_site(client):
    ada()
    answer = client.post("/accounts/login/", {"username": "ada", "password": PASSWORD, "next": "https://evil.example/"})
    assert answer.url == "/"


@pytest.mark.parametrize(
    "sent",
    [
        {"username": "ada", "password": "wrong"},
        {"username": "nobody", "password": PASSWORD},
        {"username": "closed", "password": PASSWORD},
        {"username": "", "password": ""},
    ],
)
def test_a_refused_sign_in_does_not_tell_what_was_wrong(client, sent):
    ada()
    User.objects.create_user("closed", password=PASSWORD, is_active=False)
    answer = client.post("/accounts/login/", sent)
    assert answer.status_code == 200
    assert "_auth_user_id" not in client.session
    if sent["username"]:
        assert "User name and password do not match." in answer.content.decode()


def test_signing_out_is_a_post(client):
    client.force_login(ada())
    assert client.post("/accounts/logout/").status_code == 302
    assert "_auth_user_id" not in client.session


# --- profile ----------------------------------------------------------------------------------------


def test_people_change_their_name(client):
    client.force_login(ada())
    client.post("/accounts/profile/", {"first_name": "Ada", "last_name": "King", "email": "ada@example.org"})
    assert str(User.objects.get(username="ada")) == "Ada King"


def test_nobody_changes_their_own_role(client):
    client.force_login(ada())
    client.post("/accounts/profile/", {"first_name": "A", "role": Role.OPERATOR, "is_superuser": "on"})
    person = User.objects.get(username="ada")
    assert (person.role, person.is_superuser) == (Role.RESEARCHER, False)


def test_a_refused_profile_keeps_what_was_typed_and_stores_nothing(client):
    client.force_login(ada())
    shown = client.post("/accounts/profile/", {"first_name": "Changed", "email": "no address"}).content.decode()
    assert 'id="id_email_error"' in shown
    assert 'value="no address"' in shown
    assert "<h1>Ada</h1>" in shown
    assert User.objects.get(username="ada").first_name == "Ada"


def test_a_name_is_shown_as_text(client):
    person = ada()
    person.first_name = "<script>alert(1)</script>"
    person.save()
    client.force_login(person)
    assert "<script>alert" not in client.get("/accounts/profile/").content.decode()


def test_people_change_their_password(client):
    client.force_login(ada())
    new = "a-much-longer-secret-9"
    sent = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
    assert client.post("/accounts/password/", sent).status_code == 302
    assert User.objects.get(username="ada").check_password(new)


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"old_password": "wrong", "new_password1": "long-enough-1234", "new_password2": "long-enough-1234"}, "old_password"),
        ({"old_password": PASSWORD, "new_password1": "long-enough-1234", "new_password2": "other"}, "new_password2"),
        ({"old_password": PASSWORD, "new_password1": "short", "new_password2": "short"}, "new_password2"),
        ({"old_password": PASSWORD, "new_password1": "1357924680135", "new_password2": "1357924680135"}, "new_password2"),
    ],
)  # fmt: skip
def test_a_refused_password_names_the_field(client, sent, field):
    client.force_login(ada())
    answer = client.post("/accounts/password/", sent)
    assert field in answer.context["form"].errors
    assert User.objects.get(username="ada").check_password(PASSWORD)


def test_a_refused_address_is_named_in_the_api():
    program = APIClient()
    program.force_authenticate(ada())
    assert list(program.patch("/api/me/", {"email": "nobody"}, format="json").data["errors"]) == ["email"]


# --- tokens -----------------------------------------------------------------------------------------


def call(secret: str):
    program = APIClient()
    program.credentials(HTTP_AUTHORIZATION=f"Token {secret}")
    return program.get("/api/me/")


def test_a_token_is_shown_once_stored_as_a_hash_and_opens_the_api(client):
    client.force_login(ada())
    answer = client.post("/accounts/tokens/create/", {"days": "30"})
    secret = answer.context["new_secret"]
    assert secret in answer.content.decode()
    assert answer["Cache-Control"].startswith("max-age=0, no-cache, no-store")
    assert secret not in client.get("/accounts/profile/").content.decode()
    assert not AuthToken.objects.filter(digest=secret).exists()
    assert call(secret).data["username"] == "ada"


@pytest.mark.parametrize(("days", "lifetime"), [("30", timedelta(days=30)), ("0", None)])
def test_a_token_lives_as_long_as_chosen(client, days, lifetime):
    client.force_login(ada())
    client.post("/accounts/tokens/create/", {"days": days})
    expiry = AuthToken.objects.get().expiry
    if lifetime is None:
        assert expiry is None
    else:
        assert abs(expiry - timezone.now() - lifetime) < timedelta(minutes=1)


@pytest.mark.parametrize("days", ["", "31", "-1", "for ever"])
def test_other_lifetimes_are_refused(client, days):
    client.force_login(ada())
    answer = client.post("/accounts/tokens/create/", {"days": days})
    assert "days" in answer.context["token_form"].errors
    assert not AuthToken.objects.exists()


def test_an_expired_token_opens_nothing():
    _, secret = services.create_token(ada(), days=30)
    AuthToken.objects.update(expiry=timezone.now() - timedelta(seconds=1))
    assert call(secret).status_code == 401


def test_a_deleted_token_opens_nothing(client):
    person = ada()
    client.force_login(person)
    token, secret = services.create_token(person, days=30)
    assert client.post(f"/accounts/tokens/{token.token_key}/delete/").status_code == 302
    assert call(secret).status_code == 401


def test_nobody_deletes_the_token_of_another(client):
    token, secret = services.create_token(ada(), days=30)
    client.force_login(eve())
    assert client.post(f"/accounts/tokens/{token.token_key}/delete/").status_code == 404
    assert call(secret).status_code == 200


def test_the_eleventh_token_is_refused_in_words(client):
    person = ada()
    client.force_login(person)
    for _ in range(services.MAX_TOKENS):
        services.create_token(person, days=30)
    for page in ("profile/", "tokens/create/"):  # the answer to the tenth has the same form
        came_from = {"referer": f"http://testserver/accounts/{page}"}
        answer = client.post("/accounts/tokens/create/", {"days": "30"}, headers=came_from, follow=True)
        assert person.auth_token_set.count() == services.MAX_TOKENS
        assert "You already have ten API tokens." in answer.content.decode()


# --- admin ------------------------------------------------------------------------------------------


def test_an_operator_adds_a_person_with_a_role(client):
    client.force_login(otto())
    sent = {
        "username": "new",
        "password1": "a-long-secret-77",
        "password2": "a-long-secret-77",
    }
    answer = client.post("/admin/accounts/user/add/", {**sent, "role": Role.STEWARD})
    assert answer.status_code == 302
    assert User.objects.get(username="new").role == Role.STEWARD


def test_an_operator_sees_whose_tokens_exist_and_revokes_them(client):
    client.force_login(otto())
    token, secret = services.create_token(ada(), days=30)
    shown = client.get("/admin/knox/authtoken/").content.decode()
    assert f"{token.token_key[:8]}…" in shown
    assert client.post(f"/admin/knox/authtoken/{token.pk}/delete/", {"post": "yes"}).status_code == 302
    assert call(secret).status_code == 401


@pytest.mark.parametrize("person", [ada, stella, audrey])
def test_the_admin_says_to_others_that_it_is_for_operators(client, person):
    client.force_login(person())
    answer = client.get("/admin/", follow=True)
    assert answer.status_code == 403
    assert "Only operators of the portal may do this." in answer.content.decode()


@pytest.mark.parametrize("address", ["/admin/", "/admin/login/", "/admin/sites/site/?q=mainz"])
def test_a_stranger_signs_in_to_the_admin_on_the_portals_own_page_and_comes_back(client, address):
    otto()
    asked = client.get(address, follow=True)
    assert "Images stay where they are." in asked.content.decode()
    sent = {"username": "otto", "password": PASSWORD, "next": asked.context["next"]}
    answer = client.post("/accounts/login/", sent)
    assert (answer.status_code, answer.url) == (302, address.replace("login/", ""))


def test_the_first_operator_is_made_by_a_command(client, monkeypatch):
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", PASSWORD)
    call_command("createsuperuser", "--no-input", "--username=first", "--email=first@example.org")
    assert User.objects.get(username="first").role == Role.OPERATOR


def test_the_role_alone_opens_the_admin(client):
    operator = make_user("olga", Role.OPERATOR)
    client.force_login(operator)
    shown = client.get("/admin/").content.decode()
    assert all(f"/admin/{room}/" in shown for room in ("accounts/user", "sites/site", "experiments/experiment"))
    User.objects.update(role=Role.RESEARCHER)
    assert client.get("/admin/sites/site/").status_code == 302


def test_an_operator_changes_no_superuser_and_makes_none_in_the_admin(client):
    client.force_login(make_user("olga", Role.OPERATOR))
    above, other = otto(), ada()
    page = f"/admin/accounts/user/{above.pk}/change/"
    assert client.post(page, {"role": Role.RESEARCHER}).status_code == 403
    assert client.post(f"/admin/accounts/user/{above.pk}/password/", {}).status_code == 403
    shown = client.get(page).content.decode()
    assert "Reset password" not in shown
    assert above.password not in shown
    assert "Reset password" in client.get(f"/admin/accounts/user/{other.pk}/change/").content.decode()
    sent = {"username": "other", "role": Role.STEWARD, "is_active": "on", "is_superuser": "on"}
    assert client.post(f"/admin/accounts/user/{other.pk}/change/", sent).status_code == 302
    other.refresh_from_db()
    assert (other.username, other.role, other.is_superuser) == ("ada", Role.STEWARD, False)


def test_nobody_shuts_themselves_out_in_the_admin(client):
    me = otto()
    client.force_login(me)
    answer = client.post(f"/admin/accounts/user/{me.pk}/change/", {"role": Role.RESEARCHER, "first_name": "O."})
    assert answer.status_code == 302
    me.refresh_from_db()
    assert (me.first_name, me.role, me.is_active, me.is_superuser) == ("O.", Role.OPERATOR, True, True)


def test_the_admin_wears_the_portals_colours(client):
    client.force_login(otto())
    shown = client.get("/admin/").content.decode()
    assert "/static/css/tokens.css" in shown
    assert "/static/css/admin.css" in shown
    assert 'name="theme" value="dark"' in shown
