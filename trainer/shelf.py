"""A folder in which portal and run, when they share a machine, leave objects for each other.

It saves reading an object back from the store through which it travels in any case; it never stands in for it. Weights
are named by their SHA-256 and believed only when that is right; a document is believed only when its signature is. What
is not there is fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from trainer.contract import MAX_JSON_BYTES, Fetch, Stored


class Shelf:
    """The shelf of one round; ``folder`` is ``None`` where the portal is elsewhere, and then nothing is ever there."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def take(self, wanted: Fetch, path: Path) -> bool:
        """Have the object at ``path``, without a copy. False: it is not there as announced, and neither is ``path``."""
        if self._folder is None:
            return False
        try:
            os.link(self._folder / wanted.sha256, path)
        except OSError:  # not there, or on another file system
            return False
        with path.open("rb") as file:
            if path.stat().st_size == wanted.size and hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256:
                return True
        path.unlink()
        return False

    def leave(self, path: Path, stored: Stored) -> None:
        """Leave an object that lies in the store now."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                os.link(path, self._folder / stored.sha256)

    def read(self, name: str) -> bytes | None:
        """Return a document, ``None`` where there is none. Its signature is still to be checked."""
        if self._folder is not None:
            with contextlib.suppress(OSError), (self._folder / name).open("rb") as file:
                return file.read(MAX_JSON_BYTES)
        return None

    def write(self, name: str, document: bytes) -> None:
        """Leave a signed document that lies in the store now; it appears whole."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                temporary = self._folder / f".{name}"
                temporary.write_bytes(document)
                temporary.replace(self._folder / name)
