"""Reach the object store through the portal, at sites whose trainers may speak to nothing else.

``FEDPORTAL_RELAY`` (the portal's address, set by the site's administrator) switches it on. The relay is that of
Kaapana: path and query of the presigned address travel in a header, and an upload is a form with one file. The run
shows that it is one by a token under its own key.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import urlsplit

from trainer.contract import relay_token

VARIABLE = "FEDPORTAL_RELAY"
PATH = "/kaapana-backend/remote/minio-presigned-url"


class Body(Protocol):
    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class Relay:
    """``address``: the portal's. ``run`` and ``key`` (hex): those of the attempt, or of another job of the site."""

    def __init__(self, address: str, run: str, key: str) -> None:
        self.url = address.rstrip("/") + PATH
        self._token = f"{run}.{relay_token(key)}"

    @classmethod
    def from_environment(cls, run: str, key: str) -> Relay | None:
        address = os.environ.get(VARIABLE, "").strip()
        return cls(address, run, key) if address else None

    def headers(self, presigned: str) -> dict[str, str]:
        parts = urlsplit(presigned)
        return {"FederatedAuthorization": self._token, "presigned-url": f"{parts.path}?{parts.query}"}


class Form:
    """A form with one file, as the body of a request: has a length and is read piece by piece, once."""

    def __init__(self, file: Body) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        opening = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
        self._head, self._tail = opening.encode(), f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        self._length = len(self._head) + len(file) + len(self._tail)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        if len(self._file):
            yield from self._file
        yield self._tail
