"""Limits the size of a request's body before any of it is stored.

Django's ASGI handler writes the whole body to disk before a view can check who sent it, even for strangers, and the
relay accepts files of gigabytes (docs/decisions/0107).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings

from fedportal.relay import files, services
from fedportal.relay.views import MAX_POLL, site_of_token
from fedportal.ui.errors import TOO_LARGE

LENGTH = re.compile(rb"[0-9]{1,19}")
NO_LENGTH = "The Content-Length header is not a number of bytes."

MOST = MAX_POLL + 2**20
"""Bytes of any body but a relayed file: nothing is larger than a poll."""
FILES = "/remote/minio-presigned-url"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class TooMuch(Exception):
    """The body is larger than allowed."""


class BodyLimit:
    """ASGI middleware that answers 413 to a body that is too large and 400 to an invalid length. It reads nothing of a
    stranger's file."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        most = MOST
        if settings.FEDPORTAL_FILE_RELAY and scope["path"].endswith(FILES):
            token = headers.get(b"federatedauthorization", b"").decode("latin-1")
            if not await database_sync_to_async(_is_known)(token):
                return await self._app(scope, _without_body(receive), send)  # the view refuses it
            most = files.MAX_FILE
        announced = headers.get(b"content-length", b"0")
        if not LENGTH.fullmatch(announced):
            return await _refuse(send, 400, NO_LENGTH)
        if int(announced) > most:
            return await _refuse(send, 413, TOO_LARGE)
        try:
            await self._app(scope, _counted(receive, most), send)
        except TooMuch:
            await _refuse(send, 413, TOO_LARGE)
        return None


def _is_known(token: str) -> bool:
    try:
        site_of_token(token)
    except services.WrongToken:
        return False
    return True


def _counted(receive: Receive, most: int) -> Receive:
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise TooMuch
        return message

    return counted


def _without_body(receive: Receive) -> Receive:
    is_told = False

    async def nothing() -> Message:
        nonlocal is_told
        if not is_told:
            is_told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await receive())["type"] != "http.disconnect":
            pass  # drop whatever still arrives
        return message

    return nothing


async def _refuse(send: Send, status: int, because: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": because.encode()})
