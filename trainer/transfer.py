"""Carry objects between the site and the store by presigned URLs, over a line that may break.

A presigned URL is a secret: no message and no log line of this module holds one, only the host's name.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from trainer.contract import MAX_JSON_BYTES, Exit, Fetch, Put, Stored
from trainer.job import Fault
from trainer.relay import Form, Relay
from trainer.shelf import Shelf

CHUNK = 1024 * 1024
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP answers that another try may change."""
DAMAGED_TRIES = 3
LONGEST_PAUSE = 15.0

T = TypeVar("T")


class Passing(Exception):
    """A failure that another try may cure. The message is fit for the log: it names no URL."""


class _WideAdapter(HTTPAdapter):
    """Sends files in larger blocks than http.client's 16 KiB: at 76 MB that is 5,000 writes less."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, blocksize=256 * 1024)  # type: ignore[no-untyped-call]


def new_session() -> requests.Session:
    """Return a session that obeys the site's proxy and CA settings (HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE)."""
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, _WideAdapter(max_retries=0))
    # Without this, requests would add a login from ~/.netrc, which makes a presigned URL invalid.
    session.auth = _no_login
    return session


def rehearse() -> None:
    """Prepare a request and drop it: what a process does for the first time takes ten times as long."""
    request = requests.Request("PUT", "http://localhost/bucket/key?X-Amz-Date=0", data=b"x", json=None)
    new_session().prepare_request(request)
    requests.utils.get_environ_proxies("http://localhost/")


def _no_login(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


class Courier:
    """Fetches and puts objects for one run.

    ``patience``: seconds without any progress after which a passing failure becomes a
    :class:`~trainer.job.Fault` TRANSFER_FAILED. Hours of training are worth waiting for a store that restarts.
    ``say``: told about each failure that is tried again. ``relay``: the way through the portal, where there is no other.
    ``shelf``: where to look first, and to leave a copy of what was put.
    """

    def __init__(
        self,
        *,
        patience: float = 900.0,
        read_timeout: float = 60.0,
        say: Callable[[str], None] = lambda _: None,
        relay: Relay | None = None,
    ) -> None:
        self._relay = relay
        self.patience = patience
        self.shelf = Shelf()
        self._say = say
        self._session = new_session()
        self._options: dict[str, Any] = {"timeout": (10.0, read_timeout), "allow_redirects": False, "stream": True}

    def fetch_bytes(self, url: str, what: str, *, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """Return a small object. Raises :class:`Fault` TRANSFER_FAILED, also for one larger than ``max_bytes``."""

        def read() -> bytes:
            with self._ask("GET", url, what) as response:
                data = b"".join(_chunks(response, max_bytes))
            if len(data) > max_bytes:
                raise Fault(Exit.TRANSFER_FAILED, f"{_capital(what)} is larger than {max_bytes} bytes.")
            return data

        return self._patiently(read, what)

    def fetch(self, source: Fetch, path: Path, what: str) -> None:
        """Have an object at ``path``, from the shelf or fetched; a broken download goes on where it broke.

        The file appears only when its size and SHA-256 are those of ``source``; otherwise, after some fresh
        tries, raises :class:`Fault` TRANSFER_FAILED.
        """
        if self.shelf.take(source, path):
            return
        part = path.with_name(path.name + ".part")
        for _ in range(DAMAGED_TRIES):
            try:
                if self._fetch_once(source, part, what) == source.sha256:
                    part.replace(path)
                    return
            finally:
                part.unlink(missing_ok=True)
            self._say(f"{what} arrived damaged, fetching it again")
        raise Fault(Exit.TRANSFER_FAILED, f"{_capital(what)} arrives damaged: its SHA-256 is not the announced one.")

    def _fetch_once(self, source: Fetch, part: Path, what: str) -> str:
        """Write the object to ``part`` and return its SHA-256 (hex), or an empty text for a wrong size."""
        digest, done = hashlib.sha256(), 0
        with part.open("wb") as file:

            def go_on() -> bool:
                nonlocal digest, done
                headers = {"Range": f"bytes={done}-"} if done else {}
                with self._ask("GET", source.url, what, headers=headers) as response:
                    if done and not _continues(response, done):
                        digest, done = hashlib.sha256(), 0  # the server sends all of it again
                        file.seek(0)
                        file.truncate()
                    for chunk in _chunks(response, source.size - done):
                        digest.update(chunk)
                        file.write(chunk)
                        done += len(chunk)
                if done < source.size and response.status_code == 206:
                    raise Passing("the answer was shorter than asked for")
                return done == source.size

            whole = self._patiently(go_on, what, progress=lambda: done)
        return digest.hexdigest() if whole else ""

    def put(self, place: Put, content: Path | bytes, what: str) -> Stored:
        """Write an object to its place, in one PUT or in parts, and return its size, SHA-256 and the parts' ETags.

        Raises :class:`Fault` TRANSFER_FAILED when the store refuses, stays away, or the place is too small.
        """
        if isinstance(content, bytes):
            # As a stream of blocks: a body of one piece would have to be through within a single time-out
            self._patiently(lambda: self._put_once(place.url, _Slice(io.BytesIO(content), 0, len(content)), what), what)
            return Stored(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        size = content.stat().st_size
        etags: list[str] = []
        with content.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            for url, offset, length in _pieces(place, size, what):

                def send(url: str = url, offset: int = offset, length: int = length) -> str:
                    return self._put_once(url, _Slice(file, offset, length), what)

                etags.append(self._patiently(send, what))
        stored = Stored(sha256=digest, size=size, etags=tuple(etags) if place.part_urls else ())
        self.shelf.leave(content, stored)
        return stored

    def _put_once(self, url: str, body: _Slice, what: str) -> str:
        with self._ask("PUT", url, what, data=body if len(body) else b"") as response:
            response.raw.read(4096)  # an unread answer would cost the connection
            return response.headers.get("ETag", "").strip('"')

    def _ask(self, method: str, url: str, what: str, **options: Any) -> requests.Response:
        headers = {"Accept-Encoding": "identity", **options.pop("headers", {})}
        if self._relay is not None:
            headers |= self._relay.headers(url)
            url = self._relay.url
            if method == "PUT":
                method, form = "POST", Form(options["data"])
                headers["Content-Type"], options["data"] = form.content_type, form
        host = urlsplit(url).netloc
        try:
            response = self._session.request(method, url, headers=headers, **options, **self._options)
        except requests.RequestException as error:
            if isinstance(error, ValueError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
                reason = (
                    "its address is not valid" if isinstance(error, ValueError) else "its certificate is not trusted"
                )
                raise Fault(Exit.TRANSFER_FAILED, f"The store at {host} cannot be used: {reason}.") from None
            # from None: the words of requests repeat the address, and a traceback goes into the log
            raise Passing(f"{host} does not answer ({type(error).__name__})") from None
        if response.status_code in (200, 201, 204, 206):
            return response
        with response:
            code = _error_code(response)
        if response.status_code in PASSING:
            raise Passing(f"{host} answers {response.status_code} {code}".strip())
        raise Fault(Exit.TRANSFER_FAILED, f"The store at {host} refused {what} ({response.status_code} {code}).")

    def _patiently(self, act: Callable[[], T], what: str, *, progress: Callable[[], int] = lambda: 0) -> T:
        """Repeat ``act`` while it fails in passing, with growing pauses, until ``patience`` is used up."""
        pause, seen, since = 0.1, progress(), time.monotonic()
        while True:
            try:
                return act()
            except (Passing, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                if progress() > seen:
                    pause, seen, since = 0.1, progress(), time.monotonic()
                reason = str(error) if isinstance(error, Passing) else f"the line broke ({type(error).__name__})"
                if time.monotonic() - since + pause > self.patience:
                    raise Fault(Exit.TRANSFER_FAILED, f"{_capital(what)}: {reason}.") from None
                self._say(f"{what}: {reason}, trying again in {pause:.1f} s")
            time.sleep(pause * random.uniform(0.75, 1.25))
            pause = min(2 * pause, LONGEST_PAUSE)


class _Slice:
    """A part of an open file as the body of a request: has a length and can be read once."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._left, self._length = file, length, length
        file.seek(offset)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(CHUNK), b"")

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data


def _pieces(place: Put, size: int, what: str) -> Iterator[tuple[str, int, int]]:
    if not place.part_urls:
        yield place.url, 0, size
        return
    if size > place.part_size * len(place.part_urls):
        raise Fault(
            Exit.TRANSFER_FAILED, f"{_capital(what)} ({size} bytes) does not fit the place that was prepared for it."
        )
    for url, offset in zip(place.part_urls, range(0, size, place.part_size), strict=False):
        yield url, offset, min(place.part_size, size - offset)


def _chunks(response: requests.Response, limit: int) -> Iterator[bytes]:
    """Yield the body as it was sent; one byte more than ``limit`` is passed on, so that the caller sees it."""
    for chunk in response.raw.stream(CHUNK, decode_content=False):
        if len(chunk) > limit:
            yield chunk[: limit + 1]
            return
        limit -= len(chunk)
        yield chunk


def _continues(response: requests.Response, offset: int) -> bool:
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _error_code(response: requests.Response) -> str:
    """Return S3's word for the error (``AccessDenied``), never the rest: it may repeat parts of the address."""
    try:
        found = re.search(rb"<Code>([A-Za-z]{1,60})</Code>", response.raw.read(4096, decode_content=False))
    except urllib3.exceptions.HTTPError:
        return ""
    return found.group(1).decode() if found else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
