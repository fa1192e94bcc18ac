"""Carrying objects over a line that breaks, to and from a real store."""

from __future__ import annotations

import hashlib
import os
from datetime import timedelta
from pathlib import Path

import pytest

from fedportal.connectors import objectstore
from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.weed import Weed, free_port
from tests.trainer_process.line import Fault, Line
from trainer.contract import Exit, Fetch, Put
from trainer.job import Fault as TrainerFault
from trainer.transfer import CHUNK, Courier

pytestmark = pytest.mark.store
HOUR = timedelta(hours=1)
KEY = "fedportal/abcd/r00001/model"


@pytest.fixture
def store(weed: Weed, object_store: ObjectStore, line: Line) -> ObjectStore:
    """The test's store, with presigned URLs that lead through ``line``."""
    return weed.store(object_store.bucket, public_endpoint=f"127.0.0.1:{line.port}")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def courier(said: list[str]) -> Courier:
    return Courier(patience=10, read_timeout=5, say=said.append)


def published(store: ObjectStore, data: bytes) -> Fetch:
    return Fetch(store.presign_get(KEY, HOUR), store.put_bytes(KEY, data), len(data))


def test_a_broken_download_goes_on_where_it_broke(
    store: ObjectStore, line: Line, courier: Courier, tmp_path: Path
) -> None:
    data = os.urandom(3 * CHUNK)
    line.faults = [Fault("GET", "model", cut=CHUNK + 5), Fault("GET", "model", drop=True)]
    courier.fetch(published(store, data), tmp_path / "m", "the model")
    assert (tmp_path / "m").read_bytes() == data
    first, dropped, resumed = line.requests("GET", "model")
    assert (first, dropped) == ("", resumed)
    assert int(resumed.removeprefix("bytes=").removesuffix("-")) >= CHUNK
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_server_that_ignores_the_range_is_read_from_the_start(
    store: ObjectStore, line: Line, courier: Courier, tmp_path: Path
) -> None:
    data = os.urandom(3 * CHUNK)
    line.faults = [Fault("GET", "model", cut=2 * CHUNK), Fault("GET", "model", whole=True)]
    courier.fetch(published(store, data), tmp_path / "m", "the model")
    assert (tmp_path / "m").read_bytes() == data


@pytest.mark.parametrize("fault", [Fault("GET", "model", corrupt=True), Fault("GET", "model", short=1000)])
def test_a_damaged_download_is_fetched_again(
    store: ObjectStore, line: Line, courier: Courier, tmp_path: Path, said: list[str], fault: Fault
) -> None:
    fault.times = 2
    line.faults = [fault]
    data = os.urandom(5000)
    courier.fetch(published(store, data), tmp_path / "m", "the model")
    assert (tmp_path / "m").read_bytes() == data
    assert sum("damaged" in words for words in said) == 2


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 4999}, {"size": 5001}])
def test_an_object_other_than_announced_is_refused_and_leaves_no_file(
    store: ObjectStore, courier: Courier, tmp_path: Path, wrong: dict[str, object]
) -> None:
    good = published(store, os.urandom(5000))
    with pytest.raises(TrainerFault) as caught:
        courier.fetch(Fetch(**{**good.__dict__, **wrong}), tmp_path / "m", "the model")
    assert caught.value.exit is Exit.TRANSFER_FAILED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["GET", "PUT"])
def test_a_burst_of_server_errors_is_sat_out(
    store: ObjectStore, line: Line, courier: Courier, tmp_path: Path, verb: str
) -> None:
    data = os.urandom(5000)
    source = published(store, data)
    line.faults = [Fault(verb, "model", status=status) for status in (500, 503, 429, 502)]
    if verb == "GET":
        courier.fetch(source, tmp_path / "m", "the model")
        assert (tmp_path / "m").read_bytes() == data
    else:
        (tmp_path / "new").write_bytes(data[::-1])
        courier.put(Put(url=store.presign_put(KEY, HOUR)), tmp_path / "new", "the update")
        assert store.get_bytes(KEY) == data[::-1]
    assert len(line.requests(verb, "model")) == 5


@pytest.mark.parametrize("delivered", [True, False])
def test_an_upload_that_lost_its_answer_is_sent_again(
    store: ObjectStore, line: Line, courier: Courier, random_file: Path, delivered: bool
) -> None:
    line.faults = [Fault("PUT", "model", drop=True, delivered=delivered)]
    stored = courier.put(Put(url=store.presign_put(KEY, HOUR)), random_file, "the update")
    data = random_file.read_bytes()
    assert store.get_bytes(KEY) == data
    assert (stored.size, stored.sha256, stored.etags) == (len(data), hashlib.sha256(data).hexdigest(), ())


def test_a_large_upload_repeats_only_the_part_that_failed(
    store: ObjectStore, line: Line, courier: Courier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "SINGLE_PUT", 1000)
    monkeypatch.setattr(objectstore, "SITE_PART", 5 * 1024 * 1024)
    data = os.urandom(11 * 1024 * 1024)
    (tmp_path / "new").write_bytes(data)
    put = store.open_upload(KEY, len(data), HOUR)
    line.faults = [Fault("PUT", "partNumber=2", status=503, times=2)]
    stored = courier.put(put, tmp_path / "new", "the update")
    assert len(line.requests("PUT", "model")) == 3 + 2
    assert len(stored.etags) == 3
    store.close_upload(KEY, put, stored.etags)
    assert store.get_file(KEY, tmp_path / "back", sha256=stored.sha256, size=stored.size)


@pytest.mark.parametrize("data", [b"", b"x", b"x" * (2 * CHUNK + 1)])
def test_bytes_of_any_length_are_put(store: ObjectStore, courier: Courier, data: bytes) -> None:
    stored = courier.put(Put(url=store.presign_put(KEY, HOUR)), data, "the log")
    assert store.get_bytes(KEY) == data
    assert (stored.size, stored.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_an_update_larger_than_its_place_is_refused(courier: Courier, random_file: Path) -> None:
    with pytest.raises(TrainerFault, match="does not fit"):
        courier.put(Put(part_urls=("http://127.0.0.1:1/a",), part_size=1000), random_file, "the update")


def test_an_expired_address_is_refused_at_once(store: ObjectStore, line: Line, courier: Courier) -> None:
    url = store.presign_get(KEY, timedelta(seconds=1)).replace("X-Amz-Date=20", "X-Amz-Date=19")
    with pytest.raises(TrainerFault) as caught:
        courier.fetch_bytes(url, "the job")
    assert caught.value.exit is Exit.TRANSFER_FAILED
    assert len(line.seen) == 1
    assert "Signature" not in caught.value.message


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://example.org/x", "http://"])
def test_an_address_that_is_none_is_refused_at_once(courier: Courier, url: str) -> None:
    with pytest.raises(TrainerFault, match="not valid"):
        courier.fetch_bytes(url, "the job")


def test_a_redirect_is_not_followed(store: ObjectStore, line: Line, courier: Courier) -> None:
    line.faults = [Fault("GET", "model", status=302)]
    with pytest.raises(TrainerFault, match="302"):
        courier.fetch_bytes(store.presign_get(KEY, HOUR), "the job")


def test_a_store_that_stays_away_ends_patience_without_telling_the_address(said: list[str]) -> None:
    port = free_port()
    with pytest.raises(TrainerFault) as caught:
        Courier(patience=0.5, say=said.append).fetch_bytes(
            f"http://127.0.0.1:{port}/b/k?X-Amz-Signature=abc", "the job"
        )
    assert caught.value.exit is Exit.TRANSFER_FAILED
    assert len(said) >= 2
    import traceback

    told = "".join([*said, *traceback.format_exception(caught.value)])
    assert f"127.0.0.1:{port}" in told
    assert "Signature" not in told


def test_a_document_larger_than_allowed_is_not_read(store: ObjectStore, courier: Courier) -> None:
    published(store, b"x" * 101)
    url = store.presign_get(KEY, HOUR)
    with pytest.raises(TrainerFault, match="larger"):
        courier.fetch_bytes(url, "the job", max_bytes=100)
    assert len(courier.fetch_bytes(url, "the job", max_bytes=101)) == 101


def test_a_login_in_netrc_does_not_spoil_a_presigned_url(
    store: ObjectStore, courier: Courier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password something\n")
    monkeypatch.setenv("NETRC", str(netrc))
    published(store, b"weights")
    assert courier.fetch_bytes(store.presign_get(KEY, HOUR), "the job") == b"weights"
