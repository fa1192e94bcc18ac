import pytest

from fedportal.connectors import registry
from tests.sites.probe import KIND, ProbeConnector


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> type[ProbeConnector]:
    """Offer a connector that declares a field of every kind."""
    monkeypatch.setitem(registry.KINDS, KIND, ProbeConnector)
    return ProbeConnector
