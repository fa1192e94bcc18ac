import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from fedportal.connectors import registry
from fedportal.orchestrator import health
from fedportal.orchestrator.beside import keep_looking
from fedportal.orchestrator.tools import Connectors
from tests.sites.probe import KIND, ProbeConnector


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[ProbeConnector]:
    """Offer a connector that declares a field of every kind."""
    monkeypatch.setitem(registry.KINDS, KIND, ProbeConnector)
    return ProbeConnector


@contextmanager
def checks_at_work(store: Any) -> Iterator[None]:
    """Let the orchestrator's loop of checks be at work, with real connectors."""
    closing = threading.Event()
    tools = SimpleNamespace(connector=Connectors(store))
    loop = threading.Thread(target=keep_looking, args=(closing, partial(health.check_due, tools)))
    loop.start()
    try:
        yield
    finally:
        closing.set()
        loop.join()
        for thread in threading.enumerate():
            if thread.name.startswith("check "):
                thread.join()
