"""The demo's data, generated once."""

from __future__ import annotations

import pytest

from trainer.contract import Exit
from trainer.phantoms import main


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """Folder with the three sites of the demo, as ``make demo`` generates them."""
    out = tmp_path_factory.mktemp("demo")
    assert main(["--out", str(out)]) == Exit.OK
    return out
