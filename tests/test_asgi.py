"""The portal as its server calls it."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from django.db.backends.signals import connection_created

from fedportal.asgi import application

ASKED = {
    "type": "http",
    "method": "GET",
    "path": "/api/me/",
    "query_string": b"",
    "headers": [(b"host", b"localhost"), (b"authorization", b"Token " + b"0" * 64)],
    "http_version": "1.1",
}


async def ask() -> int:
    """Send a request that has to look into the database; return the answer's status."""
    said: list[dict[str, Any]] = []
    heard = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(heard, None) or await asyncio.sleep(3600)  # nothing more is heard until the client goes

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await application(ASKED, receive, send)
    return int(said[0]["status"])


@pytest.mark.django_db(transaction=True)
async def test_a_request_leaves_no_connection_to_the_database_behind():
    opened: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        opened.append(connection)

    connection_created.connect(note)
    gc.disable()  # it closes what nobody holds, some time
    try:
        assert [await ask() for _ in range(3)] == [401] * 3
    finally:
        gc.enable()
        connection_created.disconnect(note)
    assert len(opened) >= 3
    assert not any(one.connection for one in opened)
