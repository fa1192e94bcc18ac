"""The socket: who may listen, and until when."""

import pytest
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone

from fedportal.accounts.models import User
from fedportal.experiments import journal
from fedportal.monitoring.watchers import refused, watcher_of
from tests import factories
from tests.monitoring.sockets import close_code, connected, messages_until, next_message, texts_of, until_closed, write

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]


async def test_who_is_not_signed_in_is_told_to(running):
    async with connected(running.key, AnonymousUser()) as socket:
        assert await close_code(socket) == 4401


@pytest.mark.parametrize("key", ["own", "unknown"])
async def test_a_stranger_learns_nothing_not_even_that_it_exists(running, key):
    eve = await write(factories.eve)
    async with connected(running.key if key == "own" else "aaaaaaaa", eve) as socket:
        assert await close_code(socket) == 4404


@pytest.mark.parametrize("who", ["owner", "viewer", "steward", "otto", "audrey"])
async def test_who_may_see_the_experiment_may_listen(running, ada, who):
    def person():
        if who == "owner":
            return ada
        if who == "viewer":
            bob = factories.make_user("bob")
            running.viewers.add(bob)
            return bob
        if who == "steward":
            stella = factories.stella()
            running.participations.first().site.stewards.add(stella)
            return stella
        return getattr(factories, who)()

    async with connected(running.key, await write(person)) as socket:
        assert (await next_message(socket))["state"] == "running"


async def test_a_viewer_who_loses_the_right_gets_nothing_more(running):
    bob = await write(factories.make_user, "bob")
    await write(running.viewers.add, bob)
    async with connected(running.key, bob) as socket:
        await next_message(socket)
        await write(running.viewers.remove, bob)
        await write(journal.record, running, "note", "A secret")
        seen, code = await until_closed(socket)
        assert code == 4404
        assert not any("A secret" in text for text in seen)


async def test_a_person_who_is_switched_off_is_sent_away(running, ada):
    async with connected(running.key, ada) as socket:
        await next_message(socket)
        await write(User.objects.filter(pk=ada.pk).update, is_active=False)
        await write(journal.record, running, "note", "More")
        assert await close_code(socket) == 4404


def signed_in(person):
    """Sign somebody in, as the page does; return the browser."""
    browser = Client()
    browser.force_login(person)
    return browser


def sign_out(browser):
    browser.post("/accounts/logout/")


def change_password(browser):
    values = {
        "old_password": factories.PASSWORD,
        "new_password1": "a-long-secret-77",
        "new_password2": "a-long-secret-77",
    }
    assert browser.post("/accounts/password/", values).status_code == 302


def run_out(browser):
    Session.objects.filter(session_key=browser.session.session_key).update(expire_date=timezone.now())


@pytest.mark.parametrize("end", [sign_out, change_password, run_out])
async def test_a_socket_closes_when_its_sign_in_ends_elsewhere_and_others_go_on(running, ada, end):
    here, there = await write(signed_in, ada), await write(signed_in, ada)
    session = await write(lambda: here.session)
    async with connected(running.key, ada, session=session) as socket:
        await next_message(socket)
        await write(sign_out, there)
        await write(journal.record, running, "note", "Still here")
        await messages_until(socket, lambda m: any("Still here" in text for text in texts_of([m])))
        await write(end, here)
        await write(journal.record, running, "note", "A secret")
        seen, code = await until_closed(socket)
        assert code == 4401
        assert not any("A secret" in text for text in seen)


def test_a_password_that_an_operator_has_changed_ends_the_sign_in(running, ada):
    session = signed_in(ada).session
    watcher = watcher_of({"user": ada, "session": session})
    assert refused(running.pk, [watcher]) == {}
    ada.set_password("another-horse-battery")
    ada.save()
    assert refused(running.pk, [watcher]) == {watcher: 4401}
