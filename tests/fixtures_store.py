"""A real S3 server for the tests: one ``weed`` per test session, a fresh bucket per test."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.weed import Weed


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """The server of the session. It ends with it, also when the session is killed."""
    server = Weed(tmp_path_factory.mktemp("weed"), dies_with_parent=True)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def object_store(weed: Weed, request: pytest.FixtureRequest) -> ObjectStore:
    """An object store with an empty bucket of its own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    store = weed.store(f"t-{name}-{secrets.token_hex(4)}")
    store.ensure_bucket()
    return store


@pytest.fixture
def random_file(tmp_path: Path) -> Path:
    """A file of half a megabyte, about the size of the demo's model."""
    path = tmp_path / "random.bin"
    path.write_bytes(os.urandom(500_000))
    return path
