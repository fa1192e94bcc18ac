"""Every test meets a portal that has not looked for tokens yet."""

import pytest

from fedportal.relay import services


@pytest.fixture(autouse=True)
def nothing_learned():
    services._learning["next"] = 0.0
