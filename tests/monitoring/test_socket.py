"""The socket: that nothing is lost or doubled, that many viewers cost one reader."""

import asyncio
import json

import pytest
from channels.testing import WebsocketCommunicator
from django.db import DatabaseError, connection

from fedportal.experiments import journal
from fedportal.experiments.models import Attempt, SiteRun
from fedportal.experiments.states import ExperimentState, SiteRunState
from fedportal.monitoring import tail
from fedportal.monitoring.rows import newest_cursor
from fedportal.monitoring.watchers import Watcher
from tests.monitoring import scenes
from tests.monitoring.sockets import (
    WAIT,
    application,
    close_code,
    connected,
    messages_until,
    next_message,
    steps_of,
    texts_of,
    write,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quick")]


# --- exactly what came after ----------------------------------------------------------------------


async def test_a_new_socket_gets_the_state_and_then_what_comes(running, ada):
    opened = await write(scenes.open_round, running, 1)
    cursor = await write(newest_cursor, running)
    async with connected(running.key, ada, after=cursor, shown=1) as socket:
        first = await next_message(socket)
        assert {"head", "round-1", "models-list"} <= {f["id"] for f in first["fragments"]}
        assert first["series"] == []
        await write(scenes.train, opened, "mainz", range(1, 4))
        await write(journal.record, running, "note", "Something happened.")
        messages = await messages_until(socket, lambda m: texts_of([m]))
        assert steps_of(messages) == [1, 2, 3]
        assert "Something happened." in texts_of(messages)[0]
        assert messages[-1]["cursor"] == str(await write(newest_cursor, running))


async def test_a_page_that_comes_back_gets_exactly_what_it_missed(running, ada):
    opened = await write(scenes.open_round, running, 1)
    async with connected(running.key, ada) as socket:
        await write(scenes.train, opened, "mainz", range(1, 4))
        cursor = (await messages_until(socket, lambda m: 3 in steps_of([m])))[-1]["cursor"]
    await write(scenes.train, opened, "mainz", range(4, 8))
    await write(journal.record, running, "note", "While you were away")
    async with connected(running.key, ada, after=cursor) as socket:
        await write(scenes.train, opened, "mainz", range(8, 10))
        messages = await messages_until(socket, lambda m: 9 in steps_of([m]))
        # Seen by the reader and by catching up: a repeat is allowed, a hole is not.
        got = set(steps_of(messages))
        assert set(range(4, 10)) <= got
        assert min(got) == (4 if connection.vendor == "sqlite" else 1), "only where ids are not in order it steps back"
        assert any("While you were away" in text for text in texts_of(messages))


async def test_nothing_is_lost_while_rows_keep_coming_and_the_line_keeps_breaking(running, ada):
    opened = await write(scenes.open_round, running, 1)
    total, got, cursor = 120, [], ""

    async def writer():
        for step in range(1, total + 1):
            await write(scenes.train, opened, "mainz", range(step, step + 1))

    task = asyncio.create_task(writer())
    while total not in got:
        async with connected(running.key, ada, after=cursor) as socket:
            for _ in range(3):
                message = await next_message(socket)
                got += steps_of([message])
                cursor = message["cursor"]
                if total in got:
                    break
    await task
    assert sorted(set(got)) == list(range(1, total + 1))


async def test_points_say_their_attempt_so_that_a_retry_can_replace_them(running, ada):
    opened = await write(scenes.open_round, running, 1)
    await write(scenes.train, opened, "mainz", range(1, 3))
    await write(scenes.train, opened, "mainz", range(1, 2), attempt=2, value=0.9)
    async with connected(running.key, ada) as socket:
        messages = await messages_until(socket, lambda m: m["series"])
        points = [p for m in messages for s in m["series"] for p in s["points"]]
        assert [(p[0], p[2], p[5]) for p in points] == [(2, 1, 0.9)]


async def test_a_changed_site_run_is_sent_as_its_line_of_the_matrix(running, ada):
    opened = await write(scenes.open_round, running, 1)
    async with connected(running.key, ada) as socket:
        await next_message(socket)
        run = await write(scenes.run_of, opened, "ulm")

        def fail():
            SiteRun.objects.filter(pk=run.pk).update(state=SiteRunState.FAILED, reason="The disk is full.")
            Attempt.objects.filter(site_run=run).update(exit_code=30, state="failed")
            scenes.change(running)

        await write(fail)
        [*_, last] = await messages_until(
            socket, lambda m: any(f["id"] == "round-1" and "Failed" in f["html"] for f in m["fragments"])
        )
        assert "The disk is full." in next(f["html"] for f in last["fragments"] if f["id"] == "round-1")


async def test_the_end_is_told_with_the_state_and_a_sentence(running, ada):
    async with connected(running.key, ada) as socket:
        await next_message(socket)
        await write(scenes.change, running, state=ExperimentState.COMPLETED)
        [*_, last] = await messages_until(socket, lambda m: m["state"] == "completed")
        assert last["summary"].startswith("Completed")


async def test_a_page_far_behind_is_told_to_reload(running, ada, monkeypatch):
    monkeypatch.setattr(tail, "ROUNDS_MISSED", 9)
    for number in range(1, 12):
        await write(scenes.open_round, running, number)
    async with connected(running.key, ada, shown=1) as socket:
        assert await next_message(socket) == {"reload": True}


# --- many viewers, hard times ---------------------------------------------------------------------


async def test_fifty_viewers_cost_one_reader(running, ada, monkeypatch):
    looks = []
    original = tail.Reader.look
    monkeypatch.setattr(
        tail.Reader, "look", lambda self, watchers: (looks.append(len(watchers)), original(self, watchers))[1]
    )
    opened = await write(scenes.open_round, running, 1)
    cursor = await write(newest_cursor, running)
    sockets = []
    for _ in range(50):
        socket = WebsocketCommunicator(application, f"/ws/experiments/{running.key}/?after={cursor}&round=1")
        socket.scope["user"] = ada
        await socket.connect(timeout=WAIT)
        assert (await next_message(socket))["fragments"]
        sockets.append(socket)
    assert len(tail._tails) == 1
    looks.clear()
    await write(scenes.train, opened, "mainz", range(1, 4))
    for socket in sockets:
        assert 3 in steps_of(await messages_until(socket, lambda m: 3 in steps_of([m])))
    assert max(looks) == 50
    for socket in sockets:
        await socket.disconnect()
    assert tail._tails == {}


async def test_a_look_costs_the_same_for_one_viewer_and_for_fifty_of_one_person(
    running, django_assert_num_queries, ada
):
    def count(watchers):
        reader = tail.Reader(running.pk)
        reader.look(watchers)
        scenes.train(opened, "mainz", range(steps[0], steps[0] + 1))
        steps[0] += 1
        with django_assert_num_queries(5 if connection.vendor == "sqlite" else 7):
            reader.look(watchers)

    opened, steps = await write(scenes.open_round, running, 1), [1]
    await write(count, [Watcher(ada.pk)])
    await write(count, [Watcher(ada.pk)] * 50)


async def test_a_database_that_fails_for_a_moment_ends_no_tail(running, ada, monkeypatch):
    original, failures = tail.Reader.look, [DatabaseError("locked"), DatabaseError("gone")]

    def look(self, watchers):
        if failures:
            raise failures.pop()
        return original(self, watchers)

    monkeypatch.setattr(tail.Reader, "look", look)
    async with connected(running.key, ada) as socket:
        await next_message(socket)
        await write(journal.record, running, "note", "It goes on.")
        assert texts_of(await messages_until(socket, lambda m: texts_of([m])))
    assert failures == []


async def test_a_reader_that_stumbles_sends_its_viewers_away_and_the_next_starts_anew(running, ada, monkeypatch):
    original, failures = tail.Reader.look, []

    def look(self, watchers):
        if failures:
            raise failures.pop()
        return original(self, watchers)

    monkeypatch.setattr(tail.Reader, "look", look)
    async with connected(running.key, ada) as one, connected(running.key, ada) as other:
        for socket in (one, other):
            await next_message(socket)
        failures.append(ZeroDivisionError("a bug"))
        for socket in (one, other):
            assert await close_code(socket) == 1011
        async with connected(running.key, ada) as again:
            await next_message(again)
            await write(journal.record, running, "note", "It goes on.")
            assert texts_of(await messages_until(again, lambda m: texts_of([m])))


async def test_an_experiment_that_is_deleted_meanwhile_keeps_nobody_waiting(ada):
    async with asyncio.timeout(WAIT), tail.listen(10**9, Watcher(ada.pk)) as listener:
        assert await listener.get() == 1011


async def test_a_socket_that_reads_too_slowly_is_closed_and_not_kept_in_memory():
    listener = tail.Listener(Watcher(1))
    for number in range(tail.BACKLOG + 10):
        listener.put(str(number))
    received = [await listener.get() for _ in range(tail.BACKLOG + 1)]
    assert received[-1] == tail.TOO_SLOW


async def test_a_quiet_line_carries_a_sign_of_life(running, ada, monkeypatch):
    monkeypatch.setattr(tail, "BEAT_SECONDS", 0.03)
    async with connected(running.key, ada) as socket:
        while "beat" not in json.loads(await socket.receive_from(timeout=WAIT)):
            pass


async def test_what_a_page_says_is_ignored(running, ada):
    async with connected(running.key, ada) as socket:
        await socket.send_to(text_data="drop table")
        assert (await next_message(socket))["state"] == "running"


def test_looks_become_slower_when_nothing_happens():
    assert tail.pause(0, is_active=True) == tail.FASTEST
    assert tail.pause(60, is_active=True) == tail.SLOWEST
    assert tail.pause(60, is_active=False) == tail.AT_REST
