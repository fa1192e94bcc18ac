"""The API of accounts: one's own, and, for operators, everybody's."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from knox.models import AuthToken
from rest_framework.test import APIClient

from fedportal.accounts import services
from fedportal.accounts.models import Role, User
from tests.factories import PASSWORD, ada, audrey, eve, make_user, otto, stella

pytestmark = pytest.mark.django_db
NEW = "a-long-secret-77"


def api_of(person) -> APIClient:
    client = APIClient()
    client.force_authenticate(person)
    return client


@pytest.fixture
def api():
    return api_of(ada())


@pytest.fixture
def operator():
    return api_of(otto())


def refused_fields(answer):
    assert answer.status_code == 400, answer.content
    assert answer.headers["Content-Type"] == "application/problem+json"
    return list(answer.json()["errors"])


# --- who am I -------------------------------------------------------------------------------------


def test_the_own_name_and_address_are_changed(api):
    answer = api.patch("/api/me/", {"first_name": "Augusta", "email": "ada@example.org"}, format="json")
    assert (answer.status_code, answer.json()["name"]) == (200, "Augusta")
    assert User.objects.get(username="ada").email == "ada@example.org"


@pytest.mark.parametrize(
    "sent",
    [
        {"role": "operator"},
        {"username": "eve"},
        {"is_operator": True},
        {"is_superuser": True},
        {"password": NEW},
        {"colour": "red"},
        {"email": "nowhere"},
        {"first_name": "x" * 151},
    ],
)
def test_what_is_not_for_oneself_to_set_is_refused_by_its_name(api, sent):
    assert refused_fields(api.patch("/api/me/", sent, format="json")) == list(sent)
    person = User.objects.get(username="ada")
    assert (person.role, person.is_superuser, person.check_password(PASSWORD)) == (Role.RESEARCHER, False, True)


# --- password -------------------------------------------------------------------------------------


def test_the_own_password_is_changed_and_other_sessions_end(client):
    person = ada()
    client.force_login(person)
    there = APIClient()
    there.force_login(person)
    answer = there.post("/api/me/password/", {"old_password": PASSWORD, "new_password": NEW}, format="json")
    assert (answer.status_code, answer.content) == (204, b"")
    assert User.objects.get(username="ada").check_password(NEW)
    assert there.get("/api/me/").status_code == 200
    assert client.get("/api/me/").status_code == 401


@pytest.mark.parametrize(
    ("sent", "fields"),
    [
        ({"old_password": "wrong", "new_password": NEW}, ["old_password"]),
        ({"old_password": PASSWORD, "new_password": "short"}, ["new_password"]),
        ({"old_password": PASSWORD, "new_password": "12345678901"}, ["new_password"]),
        ({"old_password": PASSWORD}, ["new_password"]),
        ({"new_password": NEW}, ["old_password"]),
        ({"old_password": PASSWORD, "new_password": NEW, "new_password2": NEW}, ["new_password2"]),
    ],
)
def test_a_password_that_will_not_do_is_refused_by_the_field(api, sent, fields):
    answer = api.post("/api/me/password/", sent, format="json")
    assert refused_fields(answer) == fields
    assert NEW not in answer.content.decode()
    assert User.objects.get(username="ada").check_password(PASSWORD)


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_is_made_listed_without_its_secret_and_deleted(api):
    made = api.post("/api/me/tokens/", {"days": "30"}, format="json")
    assert (made.status_code, made.headers["Cache-Control"]) == (201, "no-store")
    secret, key = made.json()["token"], made.json()["key"]
    program = APIClient()
    program.credentials(HTTP_AUTHORIZATION=f"Token {secret}")
    listed = program.get("/api/me/tokens/")
    assert [token["key"] for token in listed.json()] == [key]
    assert secret not in listed.content.decode()
    assert AuthToken.objects.get().digest not in listed.content.decode()
    assert api.delete(f"/api/me/tokens/{key}/").status_code == 204
    assert program.get("/api/me/").status_code == 401


@pytest.mark.parametrize(
    ("sent", "field"),
    [({}, "days"), ({"days": 31}, "days"), ({"days": "x"}, "days"), ({"days": 30, "user": 1}, "user")],
)
def test_a_token_of_another_life_is_refused(api, sent, field):
    assert refused_fields(api.post("/api/me/tokens/", sent, format="json")) == [field]
    assert not AuthToken.objects.exists()


def test_the_eleventh_token_is_refused(api):
    for _ in range(services.MAX_TOKENS):
        services.create_token(User.objects.get(username="ada"), days=30)
    answer = api.post("/api/me/tokens/", {"days": 0}, format="json")
    assert (answer.status_code, AuthToken.objects.count()) == (409, services.MAX_TOKENS)


@pytest.mark.django_db(transaction=True)
def test_of_two_tokens_created_at_once_the_eleventh_is_refused(monkeypatch):
    person = ada()
    for _ in range(services.MAX_TOKENS - 1):
        services.create_token(person, days=30)
    create = AuthToken.objects.create

    def create_slowly(*values, **more):
        time.sleep(0.3)  # the other one could count meanwhile
        return create(*values, **more)

    def outcome(_):
        try:
            services.create_token(person, days=30)
        except services.TooManyTokens:
            return "refused"
        finally:
            connection.close()
        return "created"

    monkeypatch.setattr(AuthToken.objects, "create", create_slowly)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(outcome, range(2))) == ["created", "refused"]


def test_the_token_of_another_is_not_found(api):
    token, _ = services.create_token(eve(), days=30)
    assert api.delete(f"/api/me/tokens/{token.token_key}/").status_code == 404
    assert api.get("/api/me/tokens/").json() == []
    assert AuthToken.objects.count() == 1


# --- people ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", [ada, stella, audrey])
@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("get", "/api/users/"),
        ("post", "/api/users/"),
        ("get", "/api/users/eve/"),
        ("patch", "/api/users/eve/"),
        ("get", "/api/users/eve/tokens/"),
        ("delete", "/api/users/eve/tokens/abc/"),
    ],
)
def test_people_are_for_operators(who, method, url):
    eve()
    answer = getattr(api_of(who()), method)(url, {"role": "operator"}, format="json")
    assert answer.status_code == 403
    assert "eve" not in answer.content.decode()


def test_an_operator_adds_a_person_who_signs_in(operator, client):
    sent = {"username": "grace", "role": "steward", "first_name": "Grace", "password": NEW}
    answer = operator.post("/api/users/", sent, format="json")
    assert answer.status_code == 201
    assert "password" not in answer.json()
    assert (answer.json()["role"], answer.json()["is_active"]) == ("steward", True)
    assert client.login(username="grace", password=NEW)


def test_a_person_without_a_password_cannot_sign_in(operator, client):
    assert operator.post("/api/users/", {"username": "grace"}, format="json").status_code == 201
    assert not User.objects.get(username="grace").has_usable_password()
    assert not client.login(username="grace", password="")


def test_nothing_that_opens_a_door_is_in_the_list(operator):
    person = eve()
    token, secret = services.create_token(person, days=30)
    shown = json.dumps([operator.get(f"/api/users/{part}").json() for part in ("", "eve/", "eve/tokens/")])
    assert token.token_key in shown
    for hidden in (secret, token.digest, person.password, "password"):
        assert hidden not in shown


def test_a_closed_account_is_out_everywhere_at_once(operator, client):
    person = eve()
    _, secret = services.create_token(person, days=30)
    client.force_login(person)
    program = APIClient()
    program.credentials(HTTP_AUTHORIZATION=f"Token {secret}")
    assert program.get("/api/me/").status_code == client.get("/api/me/").status_code == 200
    assert operator.patch("/api/users/eve/", {"is_active": False}, format="json").json()["is_active"] is False
    assert program.get("/api/me/").status_code == client.get("/api/me/").status_code == 401


def test_a_role_and_a_password_are_changed_and_the_rest_stays(operator):
    person = eve()
    answer = operator.patch("/api/users/eve/", {"role": "auditor", "password": NEW}, format="json")
    assert answer.status_code == 200
    person.refresh_from_db()
    assert (person.role, person.first_name, person.check_password(NEW)) == (Role.AUDITOR, "Eve", True)


def test_an_operator_deletes_a_token_of_somebody(operator):
    token, _ = services.create_token(eve(), days=30)
    assert operator.delete("/api/users/ada/tokens/abc/").status_code == 404
    assert operator.delete(f"/api/users/eve/tokens/{token.token_key}/").status_code == 204
    assert not AuthToken.objects.exists()


REFUSED = [
    ({"role": "emperor"}, "role"),
    ({"email": "nowhere"}, "email"),
    ({"is_active": "perhaps"}, "is_active"),
    ({"is_superuser": True}, "is_superuser"),
    ({"last_login": None}, "last_login"),
    ({"password": "short"}, "password"),
    ({"password": ""}, "password"),
    ({"colour": "red"}, "colour"),
]


@pytest.mark.parametrize(("sent", "field"), [*REFUSED, ({"username": "grace"}, "username")])
def test_a_change_that_cannot_be_is_refused_by_its_field(operator, sent, field):
    before = eve()
    assert refused_fields(operator.patch("/api/users/eve/", sent, format="json")) == [field]
    assert User.objects.filter(pk=before.pk, role=before.role, password=before.password, username="eve").exists()


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        *((sent | {"username": "new"}, field) for sent, field in REFUSED),
        ({}, "username"),
        ({"username": ""}, "username"),
        ({"username": "two words"}, "username"),
        ({"username": "otto"}, "username"),
        ({"username": "grace-hopper", "password": "grace-hopper"}, "password"),
    ],
)
def test_a_person_who_cannot_be_is_refused_by_the_field(operator, sent, field):
    assert refused_fields(operator.post("/api/users/", sent, format="json")) == [field]
    assert User.objects.count() == 1


@pytest.mark.parametrize("sent", [{"is_active": False}, {"role": "researcher"}])
def test_an_operator_does_not_shut_the_door_from_outside(operator, sent):
    answer = operator.patch("/api/users/otto/", sent, format="json")
    assert answer.status_code == 409
    assert "Ask another operator" in answer.json()["detail"]
    assert User.objects.get(username="otto").is_active


def test_an_operator_who_is_no_superuser_has_no_power_over_one():
    otto()
    deputy = api_of(make_user("olga", Role.OPERATOR))
    answer = deputy.patch("/api/users/otto/", {"password": NEW}, format="json")
    assert answer.status_code == 403
    assert User.objects.get(username="otto").check_password(PASSWORD)
    assert deputy.patch("/api/users/olga/", {"first_name": "Olga"}, format="json").status_code == 200


def test_an_account_is_closed_and_not_deleted(operator, client):
    person = eve()
    assert operator.delete("/api/users/eve/").status_code == 405
    client.force_login(User.objects.get(username="otto"))
    assert client.post(f"/admin/accounts/user/{person.pk}/delete/", {"post": "yes"}).status_code == 403
    assert User.objects.filter(username="eve").exists()
