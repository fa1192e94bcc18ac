"""Relay files between the object store and sites that can reach nothing but the portal.

Kaapana's sites name an object by the path and query of a presigned address. The portal forwards the request to its own
store only, for objects of that site only, and piece by piece: it never holds a whole file. The store itself checks the
signature and expiry, and its answer is passed on unchanged.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from asgiref.sync import sync_to_async
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from urllib3 import BaseHTTPResponse

from fedportal.experiments.models import Participation, Subject
from fedportal.experiments.store import object_store
from fedportal.relay.protocol import Malformed
from fedportal.sites.models import Site
from fedportal.ui.errors import DomainError
from trainer.contract import ROOT

CHUNK = 256 * 1024
MAX_FILE = 5 * 1024**3
"""The most bytes that S3 accepts in one PUT."""
MAX_HEAD = 8 * 1024
PASSED_ON = ("Content-Type", "ETag", "Last-Modified", "Content-Range", "Accept-Ranges")
"""Headers of the store's answer that a site gets, besides the length."""

_OWN = re.compile(
    rf"{ROOT}/(?P<experiment>[a-z0-9]{{4,10}})/r[0-9]{{5}}/(?P<site>[a-z][a-z0-9-]*)/a[0-9]{{1,2}}/[a-z.-]+\Z"
)
_SHARED = re.compile(rf"{ROOT}/(?P<experiment>[a-z0-9]{{4,10}})/r[0-9]{{5}}/(?:global|server-state)\.safetensors\Z")
_CHECK = re.compile(rf"{ROOT}/checks/(?P<site>[a-z][a-z0-9-]*)/[a-z0-9-]+\.json\Z")
_RANGE = re.compile(r"bytes=[0-9]{1,15}-[0-9]{0,15}\Z")
_BOUNDARY = re.compile(r'multipart/form-data;\s*boundary="?([0-9A-Za-z\'()+_,./:=?-]{1,70})"?\s*\Z', re.IGNORECASE)


class NotTheirs(DomainError):
    """The site may not read or write this object."""

    status = HTTPStatus.FORBIDDEN


class TooLarge(DomainError):
    """The file is larger than the object store accepts."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class CutOff(DomainError):
    """The file arrived incomplete, so nothing was stored. Send it again."""

    status = HTTPStatus.BAD_REQUEST


class Refused(DomainError):
    """The object store refused the file: the address is not valid for it, or has expired."""

    status = HTTPStatus.FORBIDDEN

    def __init__(self, status: int) -> None:
        super().__init__()
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.status = HTTPStatus.BAD_GATEWAY


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def download(site: Site, target: str, wanted: str) -> HttpResponse:
    """Answer with the object that a presigned path names; ``wanted`` is the Range header, to resume a download."""
    require_theirs(site, target, may_read=True)
    headers = {"Range": wanted} if _RANGE.match(wanted) else {}
    found = object_store().carry("GET", target, headers=headers)
    if found.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return _refused(found)
    response = StreamingHttpResponse(_pieces(found), status=found.status)
    for name in PASSED_ON:
        if name in found.headers:
            response.headers[name] = found.headers[name]
    response.headers["Content-Length"] = found.headers["Content-Length"]
    return response


def upload(site: Site, target: str, body: Readable, *, content_type: str, length: int) -> str:
    """Store the file of a multipart form under a presigned path; return the object's ETag.

    Kaapana sends one part, named ``file``. Its size follows from the length of the whole body, so the store knows it in
    advance, and an interrupted upload leaves nothing behind.
    """
    require_theirs(site, target, may_read=False)
    if length > MAX_FILE:
        raise TooLarge
    found = _BOUNDARY.match(content_type)
    if found is None:
        raise Malformed("Content-Type: expected a form with one file")
    tail = f"\r\n--{found[1]}--\r\n".encode()
    head, rest = _read_head(body, f"--{found[1]}\r\n".encode())
    size = length - head - len(tail)
    if size < 0:
        raise CutOff
    answer = object_store().carry(
        "PUT", target, headers={"Content-Length": str(size)}, body=_content(body, rest, size, tail)
    )
    answer.release_conn()
    if answer.status not in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT):
        raise Refused(answer.status)
    return str(answer.headers.get("ETag", "")).strip('"')


def require_theirs(site: Site, target: str, *, may_read: bool) -> None:
    """Refuse a path that is not in the portal's store, or does not belong to this site.

    With ``may_read``, the site may also read global models of experiments that it takes part in or evaluates.
    """
    parts = urlsplit(target)
    bucket, _, key = parts.path.removeprefix("/").partition("/")
    clean = target.startswith("/") and not target.startswith("//") and target.isascii() and target.isprintable()
    signed = "X-Amz-Signature" in parse_qs(parts.query)
    if not clean or parts.netloc or parts.fragment or " " in target or bucket != object_store().bucket or not signed:
        raise NotTheirs
    for pattern in (_OWN, _CHECK):
        if (found := pattern.match(key)) and found["site"] == site.slug:
            return
    shared = _SHARED.match(key)
    if may_read and shared and (_takes_part(site, shared["experiment"]) or _is_evaluated_at(site, key)):
        return
    raise NotTheirs


def _takes_part(site: Site, experiment: str) -> bool:
    return Participation.objects.filter(site=site, experiment__key=experiment).exists()


def _is_evaluated_at(site: Site, key: str) -> bool:
    return Subject.objects.filter(experiment__participations__site=site, global_models__key=key).exists()


def _read_head(body: Readable, opening: bytes) -> tuple[int, bytes]:
    """Read the part's own headers; return their length and the beginning of the file that was read with them."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = body.read(1024)
        data += piece
        if not piece or len(data) > MAX_HEAD:
            raise Malformed("body: expected a form with one file")
    head, _, rest = data.partition(b"\r\n\r\n")
    if not head.startswith(opening) or b'name="file"' not in head:
        raise Malformed("body: expected a form with one file, named file")
    return len(head) + 4, rest


def _content(body: Readable, begun: bytes, size: int, tail: bytes) -> Iterator[bytes]:
    """Yield the file, but hold back its last bytes until the form has ended properly: of an upload that is cut off or
    malformed, some bytes never reach the store, which then drops it."""
    held, left = begun, size + len(tail) - len(begun)
    while left > 0:
        piece = body.read(min(CHUNK, left))
        if not piece:
            raise CutOff
        left -= len(piece)
        held += piece
        if left > 0 and len(held) > len(tail):
            yield held[: -len(tail)]
            held = held[-len(tail) :]
    if left < 0 or not held.endswith(tail):
        raise CutOff
    yield held[: -len(tail)]


async def _pieces(found: BaseHTTPResponse) -> AsyncIterator[bytes]:
    """Yield the store's answer piece by piece; threads read it, so that the event loop is not blocked."""
    read = sync_to_async(lambda: found.read(CHUNK, decode_content=False), thread_sensitive=False)
    try:
        while piece := await read():
            yield piece
    finally:
        found.close()


def _refused(found: BaseHTTPResponse) -> HttpResponse:
    """Pass on the store's status but not its text, which repeats parts of the presigned address."""
    found.close()
    known: dict[int, str] = {403: "The address is not valid for this object, or has expired.", 404: "No such object."}
    detail: Any = known.get(found.status, "The object store could not provide the object.")
    status = found.status if found.status in (403, 404, 416) else HTTPStatus.BAD_GATEWAY
    return JsonResponse({"detail": detail}, status=status)
