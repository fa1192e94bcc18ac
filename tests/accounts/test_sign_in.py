"""Guessing passwords: who tries too many is made to wait, whichever door they try, and nobody else is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from fedportal.accounts.authentication import MOST_HERE, MOST_OF_ACCOUNT, MOST_OF_ADDRESS, PAUSE
from fedportal.accounts.models import WrongPasswords
from tests.factories import PASSWORD, ada, eve, otto

pytestmark = pytest.mark.django_db
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


@pytest.fixture(autouse=True)
def people():
    return ada(), eve(), otto()


def sign_in(username="ada", password=PASSWORD, *, address=HERE, door="/accounts/login/"):
    return Client(REMOTE_ADDR=address).post(door, {"username": username, "password": password})


def guess(times, username="ada", **where):
    for number in range(times):
        answer = sign_in(username, f"guess {number}", **where)
    return answer


def test_who_guesses_is_told_to_wait_and_the_right_password_does_not_help():
    assert guess(MOST_HERE - 1).status_code == 200
    assert guess(1).status_code == 429  # the last wrong one says it already
    paused = sign_in()
    assert (paused.status_code, paused.headers["Retry-After"]) == (429, str(PAUSE))
    assert "Too many wrong passwords. Try again in 15 minutes" in paused.content.decode()
    assert "_auth_user_id" not in paused.client.session


def test_no_other_account_and_no_other_address_has_to_wait():
    guess(MOST_HERE)
    assert sign_in("eve").status_code == 302
    assert sign_in(address=ELSEWHERE).status_code == 302


def test_the_right_password_forgets_the_wrong_ones():
    for _ in range(2):
        guess(MOST_HERE - 1)
        assert sign_in().status_code == 302


def test_an_account_is_not_guessed_at_from_many_addresses():
    for number in range(MOST_OF_ACCOUNT // 5):
        guess(5, address=f"198.51.100.{number}")
    assert sign_in(address=ELSEWHERE).status_code == 429


def test_an_address_does_not_try_one_password_on_everybody():
    for number in range(MOST_OF_ADDRESS):
        guess(1, f"person{number}")
    assert sign_in("eve").status_code == 429
    assert sign_in("eve", address=ELSEWHERE).status_code == 302


def test_one_good_account_does_not_pay_for_guesses_at_others():
    for number in range(MOST_OF_ADDRESS):
        guess(1, f"person{number}")
        if number % 9 == 0:
            sign_in("eve")
    assert sign_in().status_code == 429


def test_the_admins_door_is_no_other_way_in():
    right = sign_in("otto", door="/admin/login/?next=/admin/sites/site/")
    assert (right.url, "_auth_user_id" in right.client.session) == (
        "/accounts/login/?next=/admin/sites/site/",
        False,
    )


def test_the_pause_ends_and_nothing_is_left_of_it():
    guess(MOST_HERE)
    begun = timezone.now() - timedelta(seconds=PAUSE)
    WrongPasswords.objects.update(since=begun)
    assert sign_in().status_code == 302
    guess(1, "eve")
    assert not WrongPasswords.objects.filter(since__lte=begun).exists()


def test_a_network_of_ipv6_is_one_address():
    for number in range(MOST_HERE):
        guess(1, address=f"2001:db8::{number:x}")
    assert sign_in(address="2001:db8::beef").status_code == 429
    assert sign_in(address="2001:db8:0:1::1").status_code == 302


@pytest.mark.django_db(transaction=True)
def test_processes_of_the_portal_count_together():
    """Guesses at the same moment, each over a connection of its own, as those of several processes are."""

    def guess_once(_: int) -> None:
        try:
            sign_in("ada", "wrong")
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(guess_once, range(MOST_HERE - 1)))
    assert set(WrongPasswords.objects.values_list("count", flat=True)) == {MOST_HERE - 1}
    assert guess(1).status_code == 429


def test_whoever_is_signed_in_stays_so():
    inside = sign_in().client
    for number in range(MOST_OF_ACCOUNT // 5):
        guess(5, address=f"198.51.100.{number}")
    assert inside.get("/accounts/profile/").status_code == 200


@pytest.mark.parametrize("username", ["\x00", "x" * 70_000, "é\u202e", "=cmd()"])
def test_any_text_for_a_name_is_only_a_wrong_one(username):
    assert guess(1, username).status_code == 200


@pytest.mark.parametrize(
    "header", ["Token \xff", "Token é", "Token", "Token a b", "Token " + "0" * 64, "Token " + "x" * 7000]
)
def test_what_is_no_token_is_refused_as_a_wrong_one(header):
    answer = APIClient().get("/api/me/", HTTP_AUTHORIZATION=header)
    assert answer.status_code == 401
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_the_session_of_before_is_not_that_of_after(client):
    """Whoever planted a session in somebody's browser is not signed in with them."""
    session = client.session
    session["planted"] = True
    session.save()
    before = session.session_key
    client.post("/accounts/login/", {"username": "ada", "password": PASSWORD})
    assert client.session.session_key != before
    assert not client.session.exists(before)
