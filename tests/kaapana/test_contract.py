"""The Kaapana connector under the contract of all connectors, against a real Airflow behind Kaapana's front door."""

from __future__ import annotations

import pytest

from fedportal.connectors.kaapana import KaapanaConnector
from tests.connectors.contract import ConnectorContract
from tests.kaapana.conftest import connector
from tests.kaapana_double.double import KaapanaDouble

pytestmark = [pytest.mark.store, pytest.mark.slow]


class TestContract(ConnectorContract):
    seconds = 90.0

    @pytest.fixture
    def site(self, kaapana: KaapanaDouble) -> KaapanaConnector:
        return connector(kaapana.door)
