"""Fixtures of a Kaapana: the door alone (fast), and the whole double with its Airflow (once per session)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta

import nibabel
import numpy as np
import pytest

from fedportal.connectors.fields import Letterbox, SiteContext
from fedportal.connectors.kaapana import KaapanaConnector
from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.oidc import Credentials, Grant
from tests.kaapana_double.door import Door
from tests.kaapana_double.double import KaapanaDouble, dies_with_parent
from tests.trainer_process.bench import Bench, Ear

SITE_KEY = b"s" * 32
"""The key that the bench signs with."""


def credentials(grant: Grant = Grant.CLIENT, **changes: str) -> Credentials:
    values = {"client_id": "fedportal", "client_secret": "client-secret", "username": "portal", "password": "pass-word"}
    return Credentials(grant, **{**values, **changes})


def connector(door: Door, **options) -> KaapanaConnector:
    options.setdefault("site", SiteContext("mainz", key=SITE_KEY))
    return KaapanaConnector(
        door.url, options.pop("credentials", credentials()), ca_certificate=door.ca, by_path=door.by_path, **options
    )


def letterbox(store: ObjectStore) -> Letterbox:
    return Letterbox(store.presign_put("report", timedelta(hours=1)), lambda: store.get_bytes("report"))


@pytest.fixture
def door() -> Iterator[Door]:
    """A front door with nothing behind ``/flow``."""
    door = Door()
    yield door
    door.close()


@pytest.fixture(scope="session")
def running_double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KaapanaDouble]:
    double = KaapanaDouble(
        tmp_path_factory.mktemp("kaapana"), site_key=SITE_KEY.hex(), tls=True, preexec=dies_with_parent
    )
    if not double.airflow.is_installed:
        pytest.fail("Airflow 2 is not installed: run `make airflow`.")
    yield double.start()
    double.stop()


@pytest.fixture
def kaapana(running_double: KaapanaDouble) -> Iterator[KaapanaDouble]:
    """The double as it was at first: nothing runs, no faults, the realm in order."""
    yield running_double
    running_double.door.mend()
    running_double.clear()


@pytest.fixture
def bench(object_store: ObjectStore, ear: Ear) -> Bench:
    """The portal's part of some attempts of an experiment of the test's own: the double remembers those before."""
    return Bench(object_store, metrics_url=ear.url, experiment=secrets.token_hex(3))


@pytest.fixture
def pacs(kaapana: KaapanaDouble) -> Callable[[int], list[str]]:
    """Put series into the double's archive as Kaapana's operators would leave them, and return their identifiers."""

    def fill(count: int) -> list[str]:
        random = np.random.default_rng(7)
        uids = [f"1.2.826.{number}" for number in range(count)]
        for uid in uids:
            folder = kaapana.pacs / uid
            for name in ("get-input", "get-ref-series-ct", "dcm-converter-ct", "mask2nifti"):
                (folder / name).mkdir(parents=True)
            image = nibabel.Nifti1Image(random.normal(size=(8, 9, 10)).astype(np.float32), np.eye(4))
            nibabel.save(image, folder / "dcm-converter-ct" / f"{uid}.99.nii.gz")
            mask = nibabel.Nifti1Image((random.random((8, 9, 10)) > 0.5).astype(np.uint8), np.eye(4))
            nibabel.save(mask, folder / "mask2nifti" / "seg--7--Edema.nii.gz")
        return uids

    return fill
