"""Fixtures for tests that run trainer processes: jobs in a real store, a portal's ear, a line that breaks,
and the two ways to start a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedportal.connectors.local import LocalConnector
from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.trainer_process import TrainerProcess
from fedportal.connectors.weed import Weed
from tests.trainer_process.bench import SCRIPTED, Bench, Ear
from tests.trainer_process.line import Line


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A portal's metrics endpoint."""
    ear = Ear()
    yield ear
    ear.close()


@pytest.fixture
def bench(object_store: ObjectStore, ear: Ear) -> Bench:
    """The portal's part of some attempts, in a bucket of its own."""
    return Bench(object_store, metrics_url=ear.url)


@pytest.fixture
def line(weed: Weed) -> Iterator[Line]:
    """A line to the store that can be disturbed."""
    line = Line(weed.credentials.port)
    yield line
    line.close()


@pytest.fixture
def disturbed(weed: Weed, object_store: ObjectStore, line: Line, ear: Ear) -> Bench:
    """A bench whose presigned URLs lead through ``line``."""
    store = weed.store(object_store.bucket, public_endpoint=f"127.0.0.1:{line.port}")
    return Bench(store, metrics_url=ear.url)


@pytest.fixture(scope="session")
def scripted_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a warm server of the scripted trainer."""
    socket = tmp_path_factory.mktemp("warm") / "s"
    process = TrainerProcess(socket, command=SCRIPTED)
    process.start_server(timeout=30)
    yield socket
    process.stop_server()


@pytest.fixture(params=["warm", "cold"])
def local_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalConnector]:
    """A local site with the scripted trainer, once with the warm server and once without. Its runs end with the test."""
    socket = request.getfixturevalue("scripted_server") if request.param == "warm" else ""
    (tmp_path / "data").mkdir()
    site = LocalConnector(
        data_root=tmp_path / "data", work_dir=tmp_path / "work", threads=1, socket=socket, command=SCRIPTED
    )
    yield site
    for folder in (tmp_path / "work" / "runs").glob("*"):
        site.cancel(folder.name)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Where ``local_site`` keeps a run."""
    return lambda run: tmp_path / "work" / "runs" / run
