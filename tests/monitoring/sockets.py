"""A page's end of the socket."""

import asyncio
import json
from contextlib import asynccontextmanager

from asgiref.sync import sync_to_async
from channels.routing import URLRouter
from channels.testing import WebsocketCommunicator

from fedportal.routing import websocket_urlpatterns

application = URLRouter(websocket_urlpatterns)
WAIT = 60
"""Seconds, for the slowest machine: nothing waits this long where all is well."""


@asynccontextmanager
async def connected(key, user, after="", shown="", session=None):
    socket = WebsocketCommunicator(application, f"/ws/experiments/{key}/?after={after}&round={shown}")
    socket.scope["user"] = user
    if session is not None:
        socket.scope["session"] = session
    accepted, _ = await socket.connect(timeout=WAIT)
    assert accepted
    try:
        yield socket
    finally:
        await socket.disconnect()


async def next_message(socket):
    async with asyncio.timeout(WAIT):  # signs of life come all the time: each alone would be waited for without end
        while True:
            message = json.loads(await socket.receive_from(timeout=WAIT))
            if "beat" not in message:
                return message


async def messages_until(socket, done):
    """Collect messages until ``done(message)``."""
    found = []
    async with asyncio.timeout(WAIT):
        while not found or not done(found[-1]):
            found.append(await next_message(socket))
    return found


def steps_of(messages, site="mainz"):
    return [p[2] for m in messages for s in m["series"] if s["site"] == site for p in s["points"]]


def texts_of(messages):
    return [f["html"] for m in messages for f in m["fragments"] if f["into"] == "feed"]


async def until_closed(socket):
    """Return what is said until the socket is closed, and the code."""
    said = []
    async with asyncio.timeout(WAIT):
        while (output := await socket.receive_output(timeout=WAIT))["type"] == "websocket.send":
            said.append(output["text"])
    return said, output.get("code")


async def close_code(socket):
    _, code = await until_closed(socket)
    return code


@sync_to_async
def write(function, *args, **kwargs):
    return function(*args, **kwargs)
