"""The object store against a real S3 server."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import requests

from fedportal.connectors import objectstore
from fedportal.connectors.errors import ObjectDamaged, ObjectMissing, StoreError, StoreUnreachable
from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.weed import Weed, free_port
from tests.trainer_process.line import Fault, Line

pytestmark = pytest.mark.store
HOUR = timedelta(hours=1)
KEY = "fedportal/abcd/r00001/global.safetensors"


def test_bytes_come_back_with_size_and_hash(object_store: ObjectStore) -> None:
    digest = object_store.put_bytes(KEY, b"weights")
    assert digest == hashlib.sha256(b"weights").hexdigest()
    assert object_store.get_bytes(KEY) == b"weights"
    assert object_store.stat(KEY).size == 7


def test_a_file_travels_as_it_is_and_comes_back_the_same(
    object_store: ObjectStore, line: Line, weed: Weed, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    source.write_bytes(os.urandom(3_000_000))
    line.faults = [Fault("PUT", "global.safetensors", status=503), Fault("PUT", "global.safetensors", drop=True)]
    c = weed.credentials
    disturbed = ObjectStore(f"127.0.0.1:{line.port}", c.access_key, c.secret_key, object_store.bucket, secure=False)
    digest = disturbed.put_file(KEY, source)
    assert [fault.times for fault in line.faults] == [0, 0], "it is sent again from its beginning"
    assert object_store.stat(KEY).etag == hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
    assert object_store.get_file(KEY, tmp_path / "back", sha256=digest, size=source.stat().st_size) == digest
    line.faults = [Fault("PUT", "global.safetensors", status=403)]
    with pytest.raises(StoreError, match="refused"):
        disturbed.put_file(KEY, source)


def test_a_large_file_travels_in_parts_and_comes_back_the_same(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "SINGLE_PUT", objectstore.PART)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(objectstore.PART * 2 + 12_345))
    digest = object_store.put_file(KEY, source)
    assert object_store.stat(KEY).etag.endswith("-3")
    assert object_store.get_file(KEY, tmp_path / "back", sha256=digest, size=source.stat().st_size) == digest
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_an_object_that_is_not_there_is_missing(object_store: ObjectStore, tmp_path: Path) -> None:
    assert not object_store.exists(KEY)
    for read in (object_store.stat, object_store.get_bytes):
        with pytest.raises(ObjectMissing):
            read(KEY)
    with pytest.raises(ObjectMissing):
        object_store.get_file(KEY, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"size": 6}, {"size": 8}, {"max_bytes": 6}])
def test_an_object_other_than_announced_is_damaged_and_leaves_no_file(
    object_store: ObjectStore, tmp_path: Path, wrong: dict[str, object]
) -> None:
    object_store.put_bytes(KEY, b"weights")
    with pytest.raises(ObjectDamaged):
        object_store.get_file(KEY, tmp_path / "x", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_document_larger_than_allowed_is_not_read(object_store: ObjectStore) -> None:
    object_store.put_bytes(KEY, b"x" * 100)
    with pytest.raises(ObjectDamaged):
        object_store.get_bytes(KEY, max_bytes=99)
    assert len(object_store.get_bytes(KEY, max_bytes=100)) == 100


def test_list_and_delete_stay_inside_the_prefix(object_store: ObjectStore) -> None:
    for key in ("fedportal/abcd/r00001/a", "fedportal/abcd/r00001/b", "fedportal/abcde/r00001/a"):
        object_store.put_bytes(key, b"x")
    assert list(object_store.list("fedportal/abcd/")) == ["fedportal/abcd/r00001/a", "fedportal/abcd/r00001/b"]
    assert object_store.delete_prefix("fedportal/abcd") == 2
    assert list(object_store.list("fedportal/")) == ["fedportal/abcde/r00001/a"]
    assert object_store.delete_prefix("fedportal/abcd") == 0


def test_only_the_named_folders_below_a_prefix_are_deleted(object_store: ObjectStore) -> None:
    prefix = "fedportal/abcd/r00001"
    keys = [f"{prefix}/{name}" for name in ("bundle.zip", "graz", "graz/a1/spec.json", "grazer/a1/x", "ulm/a1/x")]
    for key in keys:
        object_store.put_bytes(key, b"x")
    for site in ("graz", "mainz"):
        object_store.open_upload(f"{prefix}/{site}/a1/update", objectstore.SINGLE_PUT + 1, HOUR)
    assert object_store.delete_prefix(prefix, within={"graz", "linz"}) == 1
    assert set(object_store.list(prefix)) == set(keys) - {f"{prefix}/graz/a1/spec.json"}
    uploads = object_store._client._list_multipart_uploads(object_store.bucket, prefix="fedportal/abcd/").uploads
    assert [upload.object_name for upload in uploads] == [f"{prefix}/mainz/a1/update"]


@pytest.mark.parametrize(
    "prefix", ["", "/", "fedportal", "fedportal/", "fedportal/../x", "other/abcd", "fedportal/abcd/../"]
)
def test_deleting_more_than_one_experiment_is_refused(object_store: ObjectStore, prefix: str) -> None:
    object_store.put_bytes(KEY, b"x")
    with pytest.raises(ValueError, match="refusing"):
        object_store.delete_prefix(prefix)
    assert object_store.exists(KEY)


def test_a_presigned_url_allows_one_verb_on_one_object(object_store: ObjectStore) -> None:
    object_store.put_bytes(KEY, b"weights")
    get = object_store.presign_get(KEY, HOUR)
    assert requests.get(get, timeout=5).content == b"weights"
    assert requests.put(get, data=b"other", timeout=5).status_code == 403
    assert requests.get(get.replace("global", "glob"), timeout=5).status_code == 403
    put = object_store.presign_put(KEY + ".2", HOUR)
    assert requests.put(put, data=b"update", timeout=5).status_code == 200
    assert object_store.get_bytes(KEY + ".2") == b"update"
    assert object_store.get_bytes(KEY) == b"weights"


def test_a_download_is_saved_under_the_name_that_was_signed(object_store: ObjectStore) -> None:
    object_store.put_bytes(KEY, b"weights")
    answer = requests.get(object_store.presign_get(KEY, HOUR, filename='Tumör "1".zip'), timeout=5)
    assert "attachment" in answer.headers["content-disposition"]
    assert "Tum%C3%B6r%20%221%22.zip" in answer.headers["content-disposition"]


def test_urls_are_signed_for_the_public_address_without_asking_it() -> None:
    store = ObjectStore(
        "127.0.0.1:1", "key", "secret", "bucket", secure=False, public_endpoint="https://store.example.org"
    )
    assert store.presign_get(KEY, HOUR).startswith(f"https://store.example.org/bucket/{KEY}?")
    assert store.open_upload(KEY, 1000, HOUR).url.startswith("https://store.example.org/bucket/")


def test_a_large_upload_gets_parts_and_is_closed_once_or_twice(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "SINGLE_PUT", 1000)
    monkeypatch.setattr(objectstore, "SITE_PART", 5 * 1024 * 1024)
    data = os.urandom(6 * 1024 * 1024)
    put = object_store.open_upload(KEY, 7 * 1024 * 1024, HOUR)
    assert (len(put.part_urls), put.part_size, put.url) == (2, 5 * 1024 * 1024, "")
    pieces = (data[: put.part_size], data[put.part_size :])
    etags = [
        requests.put(url, data=piece, timeout=30).headers["etag"]
        for url, piece in zip(put.part_urls, pieces, strict=True)
    ]
    assert not object_store.exists(KEY)
    object_store.close_upload(KEY, put, etags)
    object_store.close_upload(KEY, put, etags)
    assert object_store.get_bytes(KEY) == data
    with pytest.raises(ObjectDamaged):
        object_store.close_upload(KEY, put, [])


def test_parts_that_were_never_sent_are_the_senders_fault(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "SINGLE_PUT", 1000)
    put = object_store.open_upload(KEY, 5000, HOUR)
    with pytest.raises((ObjectDamaged, ObjectMissing)):  # SeaweedFS says NoSuchUpload, others InvalidPart
        object_store.close_upload(KEY, put, ["0" * 32])
    assert not object_store.exists(KEY)


def test_deleting_an_experiment_drops_its_open_uploads(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectstore, "SINGLE_PUT", 1000)
    put = object_store.open_upload(KEY, 5000, HOUR)
    etag = requests.put(put.part_urls[0], data=b"x" * 5000, timeout=5).headers["etag"]
    object_store.delete_prefix("fedportal/abcd")
    assert requests.put(put.part_urls[0], data=b"x" * 5000, timeout=5).status_code == 404
    with pytest.raises(ObjectMissing):
        object_store.close_upload(KEY, put, [etag])


def test_a_broken_download_goes_on_where_it_broke(
    weed: Weed, object_store: ObjectStore, line: Line, tmp_path: Path
) -> None:
    data = os.urandom(3 * objectstore.CHUNK)
    digest = object_store.put_bytes(KEY, data)
    c = weed.credentials
    through = ObjectStore(f"127.0.0.1:{line.port}", c.access_key, c.secret_key, object_store.bucket, secure=False)
    line.faults = [
        Fault("GET", "global", status=503),
        Fault("GET", "global", cut=objectstore.CHUNK + 5),
        Fault("GET", "global", cut=objectstore.CHUNK + 5),
    ]
    assert through.get_file(KEY, tmp_path / "m", sha256=digest, size=len(data)) == digest
    assert (tmp_path / "m").read_bytes() == data
    ranges = line.requests("GET", "global.safetensors")
    assert len(ranges) == 4
    assert ranges[-1] != ranges[-2] != ""


def test_a_store_that_always_breaks_off_is_unreachable(
    weed: Weed, object_store: ObjectStore, line: Line, tmp_path: Path
) -> None:
    object_store.put_bytes(KEY, os.urandom(3 * objectstore.CHUNK))
    c = weed.credentials
    through = ObjectStore(f"127.0.0.1:{line.port}", c.access_key, c.secret_key, object_store.bucket, secure=False)
    line.faults = [Fault("GET", "global", times=99, cut=5)]
    with pytest.raises(StoreUnreachable):
        through.get_file(KEY, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_not_taken_for_the_store(object_store: ObjectStore, tmp_path: Path) -> None:
    object_store.put_bytes(KEY, b"x" * 100_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            object_store.get_file(KEY, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_said_with_the_servers_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Weed(tmp_path / "weed", port=taken.getsockname()[1], dies_with_parent=True)
        with pytest.raises(StoreError, match=r"weed has ended: \S"):
            server.start(timeout=300)


def test_stores_that_start_at_once_take_no_port_from_each_other(tmp_path: Path) -> None:
    servers = [Weed(tmp_path / str(number), dies_with_parent=True) for number in range(8)]
    with ThreadPoolExecutor(len(servers)) as pool:
        try:
            list(pool.map(lambda server: server.start(timeout=600), servers))
            for number, server in enumerate(servers):
                server.store().put_bytes(KEY, b"%d" % number)
            assert [server.store().get_bytes(KEY) for server in servers] == [b"%d" % n for n in range(len(servers))]
            assert not any("alternative port" in (server.folder / "weed.log").read_text() for server in servers)
        finally:
            for server in servers:
                server.kill()


def test_a_store_that_hangs_is_unreachable_after_its_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        store = ObjectStore(f"127.0.0.1:{silent.getsockname()[1]}", "k", "s", "bucket", secure=False, timeout=0.2)
        with pytest.raises(StoreUnreachable):
            store.get_bytes(KEY)


def test_a_store_that_does_not_answer_is_unreachable() -> None:
    store = ObjectStore(f"127.0.0.1:{free_port()}", "key", "secret", "bucket", secure=False)
    with pytest.raises(StoreUnreachable) as caught:
        store.get_bytes(KEY)
    assert "127.0.0.1" in str(caught.value)


def test_no_signed_address_is_in_the_log_when_a_store_does_not_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = ObjectStore(f"127.0.0.1:{free_port()}", "key", "secret", "bucket", secure=False)
    (tmp_path / "model").write_bytes(b"weights")
    with pytest.raises(StoreUnreachable):
        store.put_file(KEY, tmp_path / "model")
    assert "Signature" not in caplog.text


def test_a_wrong_key_is_refused_for_good_and_told_nowhere(weed: Weed, object_store: ObjectStore) -> None:
    store = ObjectStore(weed.endpoint, weed.credentials.access_key, "not-the-secret", object_store.bucket, secure=False)
    with pytest.raises(StoreError) as caught:
        store.put_bytes(KEY, b"x")
    assert not isinstance(caught.value, StoreUnreachable | ObjectMissing)
    for text in (str(caught.value), repr(store)):
        assert "not-the-secret" not in text
        assert weed.credentials.access_key not in text


def test_the_store_goes_on_after_a_kill_with_its_objects(tmp_path: Path) -> None:
    server = Weed(tmp_path / "weed", dies_with_parent=True)
    try:
        server.start()
        server.store().put_bytes(KEY, b"weights")
        first = (server.pid, server.endpoint)
        server.start()
        assert (server.pid, server.endpoint) == first
        server.kill()
        assert server.pid is None
        again = Weed(tmp_path / "weed", dies_with_parent=True)
        again.start()
        assert again.endpoint == first[1]
        assert again.store().get_bytes(KEY) == b"weights"
        server = again
    finally:
        server.kill()


def test_the_store_refuses_strangers_on_its_inner_ports(weed: Weed, object_store: ObjectStore) -> None:
    object_store.put_bytes(KEY, b"weights")
    log = (weed.folder / "weed.log").read_text()
    filer = next(line.split()[-1] for line in log.splitlines() if "Filer UI" in line)
    answer = requests.get(f"{filer}/buckets/{object_store.bucket}/{KEY}", timeout=5)
    assert answer.status_code == 401
