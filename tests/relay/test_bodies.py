"""What is too large is refused before it is kept anywhere, and of a stranger's file nothing is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest
from asgiref.sync import async_to_sync

from fedportal.asgi import application
from fedportal.relay.bodies import MOST, BodyLimit
from fedportal.relay.files import MAX_FILE
from tests.relay.rows import ROOT, polling_site, token_of

PIECE = bytes(2**20)
FILES = f"{ROOT}/minio-presigned-url"


class Sender:
    """A client that sends pieces for as long as it is listened to, and hears the answer."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.sent = 0
        self.status = 0

    async def receive(self) -> dict[str, Any]:
        piece = next(self._pieces, None)
        if piece is None:
            await asyncio.sleep(3600)  # as servers do it: nothing more is heard until the client goes
        self.sent += len(piece or b"")
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)


def post(path: str, sender: Sender, app=application, **headers: str) -> int:
    raw = [
        (name.replace("_", "-").encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()
    ]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": raw, "http_version": "1.1"}
    async_to_sync(app)(scope, sender.receive, sender.send)
    return sender.status


@pytest.mark.parametrize("path", ["/accounts/login/", "/api/experiments/", f"{ROOT}/sync", FILES])
def test_a_body_that_is_announced_as_too_large_is_not_read(path):
    sender = Sender(repeat(PIECE))
    assert (post(path, sender, content_length=str(MOST + 1)), sender.sent) == (413, 0)


@pytest.mark.parametrize("length", ["", "-1", "+5", "1_000", "0x10", "5, 5", "٥", "9" * 5000])
def test_a_length_that_is_no_number_is_refused(length):
    sender = Sender(repeat(PIECE))
    assert (post("/accounts/login/", sender, content_length=length), sender.sent) == (400, 0)


def test_one_that_does_not_say_how_large_it_is_is_read_no_further_than_that():
    sender = Sender(repeat(PIECE))
    assert post("/accounts/login/", sender) == 413
    assert sender.sent <= MOST + len(PIECE)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("token", ["", "x" * 40, "fp-k3x9mq2a-r1-mainz-a1.0000"])
def test_a_strangers_file_is_not_read_and_the_answer_says_why(settings, token):
    settings.FEDPORTAL_FILE_RELAY = True
    polling_site("mainz")
    sender = Sender(repeat(PIECE, 3))
    assert post(FILES, sender, content_length=str(2**32), federatedauthorization=token) == 401
    assert sender.sent <= 3 * len(PIECE)


@pytest.mark.django_db(transaction=True)
def test_a_sites_file_may_be_large_but_not_endless(settings):
    settings.FEDPORTAL_FILE_RELAY = True
    polling_site("mainz")
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(len((await receive())["body"]))
        await send({"type": "http.response.start", "status": 200})

    def send_file(size: int) -> int:
        token = token_of("mainz")
        return post(
            FILES, Sender(repeat(PIECE)), BodyLimit(app), content_length=str(size), federatedauthorization=token
        )

    assert (send_file(MAX_FILE), seen) == (200, [len(PIECE)])
    assert (send_file(MAX_FILE + 1), seen) == (413, [len(PIECE)])
