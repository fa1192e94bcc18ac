"""One real Airflow of each generation, started when the first test asks for it, never both at a time."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from fedportal.connectors.objectstore import ObjectStore
from tests.airflow.hospital import Hospital
from tests.trainer_process.bench import Bench, Ear


@pytest.fixture(scope="session", params=[2, 3], ids=["airflow-2", "airflow-3"])
def running_hospital(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    hospital = Hospital(request.param, tmp_path_factory.mktemp(f"hospital{request.param}"))
    if not hospital.server.is_installed:
        pytest.fail("Airflow is not installed: run `make airflow`.")
    try:
        yield hospital.start()
    finally:
        hospital.stop()


@pytest.fixture
def hospital(running_hospital: Hospital) -> Iterator[Hospital]:
    """The hospital without any run of ours."""
    yield running_hospital
    running_hospital.forget_runs()


@pytest.fixture
def bench(object_store: ObjectStore, ear: Ear) -> Bench:
    """The portal's part of some attempts of an experiment of the test's own: Airflow's executor remembers for a while
    the runs that were deleted, and would keep a new one of the same name waiting."""
    return Bench(object_store, metrics_url=ear.url, experiment=secrets.token_hex(3))
