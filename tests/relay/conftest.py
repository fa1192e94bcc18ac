"""Every test meets a portal that has not looked for tokens yet; ``mainz`` is a Kaapana that polls it."""

import pytest

from fedportal.relay import services
from tests.relay.rows import Kaapana, polling_site


@pytest.fixture(autouse=True)
def nothing_learned():
    services._learning["next"] = 0.0


@pytest.fixture
def mainz():
    polling_site("mainz")
    return Kaapana("mainz")
