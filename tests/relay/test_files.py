"""The relay for files: through the portal into its store and back, for sites that reach nothing else."""

from __future__ import annotations

import io
import os
import secrets
import tracemalloc
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings
from django.test import Client

from fedportal.connectors.errors import ObjectMissing
from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.weed import Weed
from fedportal.experiments.models import Participation
from fedportal.relay import files
from tests.factories import make_dataset, make_experiment, make_site
from tests.relay.rows import ROOT, polling_site, token_of
from trainer.contract import attempt_key, global_model_key, relay_token, site_key

pytestmark = [pytest.mark.django_db, pytest.mark.store]
HOUR = timedelta(hours=1)
ADDRESS = f"{ROOT}/minio-presigned-url"
BOUNDARY = "3f1c0b2a9d"


@pytest.fixture(autouse=True)
def relaying(settings):
    settings.FEDPORTAL_FILE_RELAY = True


@pytest.fixture
def store(weed: Weed, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The portal's store, whose presigned addresses are for a host that only others could reach."""
    hidden = weed.store(object_store.bucket, public_endpoint="https://store.hospital.example")
    monkeypatch.setattr(files, "object_store", lambda: hidden)
    return hidden


@pytest.fixture
def mainz():
    return polling_site("mainz")


@pytest.fixture
def experiment(mainz):
    experiment = make_experiment(sites=0)
    Participation.objects.create(experiment=experiment, site=mainz, dataset=make_dataset(mainz))
    return experiment


def own(experiment, name: str = "update.safetensors", *, site: str = "mainz") -> str:
    return f"fedportal/{experiment.key}/r00001/{site}/a1/{name}"


def target(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def form(data: bytes, *, name: str = "file", boundary: str = BOUNDARY) -> bytes:
    """A form with one file, as ``requests`` writes it for Kaapana's operators."""
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="x.tar"\r\n\r\n'
    return head.encode() + data + f"\r\n--{boundary}--\r\n".encode()


def post(path: str, body: bytes, *, slug: str = "mainz", **headers: str):
    headers = {"FederatedAuthorization": token_of(slug), "presigned-url": path, **headers}
    return Client().generic(
        "POST", ADDRESS, body, content_type=f"multipart/form-data; boundary={BOUNDARY}", headers=headers
    )


def get(path: str, *, slug: str = "mainz", **headers: str):
    return Client().get(ADDRESS, headers={"FederatedAuthorization": token_of(slug), "presigned-url": path, **headers})


@async_to_sync
async def content(response) -> bytes:
    return b"".join([piece async for piece in response.streaming_content])


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5, 2000, 300_000, 1_500_000])
def test_a_file_comes_back_as_it_went(store, experiment, size):
    data, key = os.urandom(size), own(experiment)
    answer = post(target(store.presign_put(key, HOUR)), form(data))
    assert answer.status_code == 200, answer.content
    assert store.get_bytes(key) == data
    assert answer.headers["ETag"] == f'"{store.stat(key).etag}"'
    back = get(target(store.presign_get(key, HOUR)))
    assert back.status_code == 200
    assert back.headers["Content-Length"] == str(size)
    assert content(back) == data


def test_what_looks_like_the_end_of_the_form_may_be_in_the_file(store, experiment):
    data = f"a\r\n--{BOUNDARY}--\r\nb\r\n--{BOUNDARY}\r\n".encode() * 3
    assert post(target(store.presign_put(own(experiment), HOUR)), form(data)).status_code == 200
    assert store.get_bytes(own(experiment)) == data


def test_a_broken_download_goes_on_where_it_broke(store, experiment):
    store.put_bytes(own(experiment), b"0123456789")
    back = get(target(store.presign_get(own(experiment), HOUR)), Range="bytes=4-")
    assert (back.status_code, content(back)) == (206, b"456789")
    assert back.headers["Content-Range"] == "bytes 4-9/10"


def test_the_global_model_is_read_by_those_who_take_part(store, experiment):
    key = global_model_key(experiment.key, 0)
    store.put_bytes(key, b"model")
    assert content(get(target(store.presign_get(key, HOUR)))) == b"model"
    polling_site("ulm")
    assert get(target(store.presign_get(key, HOUR)), slug="ulm").status_code == 403


def test_a_model_that_others_trained_is_read_by_those_who_evaluate_it(store, experiment):
    elsewhere = make_experiment(sites=0)
    keys = [global_model_key(elsewhere.key, number) for number in (3, 4)]
    for number, key in enumerate(keys, start=3):
        store.put_bytes(key, b"model")
        elsewhere.models.create(round_number=number, key=key, sha256="0" * 64, size=5)
    paths = [target(store.presign_get(key, HOUR)) for key in keys]
    assert [get(path).status_code for path in paths] == [403, 403]
    subject = experiment.subjects.create(name="local-ulm", role="local", site="ulm")
    subject.global_models.add(elsewhere.models.get(round_number=4))
    assert get(paths[0]).status_code == 403
    assert content(get(paths[1])) == b"model"
    polling_site("ulm")
    assert get(paths[1], slug="ulm").status_code == 403


@pytest.mark.parametrize("pieces", [1, 7, 1024, 10**9])
def test_pieces_of_any_size_make_the_same_file(store, experiment, mainz, pieces):
    data = os.urandom(20_000)

    class Dribble(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            return super().read(min(size, pieces))

    body = form(data)
    files.upload(
        mainz,
        target(store.presign_put(own(experiment), HOUR)),
        Dribble(body),
        content_type=f'multipart/form-data; boundary="{BOUNDARY}"',
        length=len(body),
    )
    assert store.get_bytes(own(experiment)) == data


def test_a_large_file_never_lies_in_memory(store, experiment, mainz):
    size, piece = 48 * 2**20, os.urandom(2**20)
    head, tail = form(b"").split(b"\r\n\r\n")[0] + b"\r\n\r\n", f"\r\n--{BOUNDARY}--\r\n".encode()

    class Endless:
        """A body that is made while it is read."""

        def __init__(self) -> None:
            self._pieces = self._make()
            self._rest = b""

        def _make(self):
            yield head
            for _ in range(size // len(piece)):
                yield piece
            yield tail

        def read(self, wanted: int) -> bytes:
            if not self._rest:
                self._rest = next(self._pieces, b"")
            given, self._rest = self._rest[:wanted], self._rest[wanted:]
            return given

    tracemalloc.start()
    files.upload(
        mainz,
        target(store.presign_put(own(experiment), HOUR)),
        Endless(),
        content_type=f"multipart/form-data; boundary={BOUNDARY}",
        length=len(head) + size + len(tail),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert store.stat(own(experiment)).size == size
    assert peak < 8 * 2**20


# --- cut, expired, forged -------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [1, 10, 100_000])
def test_an_upload_that_breaks_off_leaves_nothing(store, experiment, mainz, missing):
    body = form(os.urandom(400_000))
    with pytest.raises(files.CutOff):
        files.upload(
            mainz,
            target(store.presign_put(own(experiment), HOUR)),
            io.BytesIO(body[:-missing]),
            content_type=f"multipart/form-data; boundary={BOUNDARY}",
            length=len(body),
        )
    with pytest.raises(ObjectMissing):
        store.stat(own(experiment))


def test_a_form_with_something_behind_the_file_is_refused(store, experiment):
    more = (
        form(b"data")[: -len("--\r\n")]
        + f'\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n--{BOUNDARY}--\r\n'.encode()
    )
    # the second field looks like a part of the file: it is one file, whole, and its SHA-256 is not the announced one
    answer = post(target(store.presign_put(own(experiment), HOUR)), more)
    assert answer.status_code == 200
    assert store.get_bytes(own(experiment)).startswith(b"data\r\n--")
    assert post(target(store.presign_put(own(experiment), HOUR)), form(b"data") + b"more").status_code == 400


@pytest.mark.parametrize(
    "body", [b"", b"no form", form(b"x", name="other"), form(b"x", boundary="another"), b"--" * 9000]
)
def test_what_is_no_form_with_a_file_is_refused(store, experiment, body):
    answer = post(target(store.presign_put(own(experiment), HOUR)), body)
    assert answer.status_code == 422
    with pytest.raises(ObjectMissing):
        store.stat(own(experiment))


def test_an_expired_address_is_refused_by_the_store(store, experiment):
    import time

    store.put_bytes(own(experiment), b"data")
    read = target(store.presign_get(own(experiment), timedelta(seconds=1)))
    write = target(store.presign_put(own(experiment), timedelta(seconds=1)))
    time.sleep(2.1)
    assert get(read).status_code == 403
    assert post(write, form(b"other")).status_code == 403
    assert store.get_bytes(own(experiment)) == b"data"


def test_a_changed_address_is_refused_by_the_store(store, experiment):
    store.put_bytes(own(experiment), b"data")
    store.put_bytes(own(experiment, "log.txt"), b"log")
    path = target(store.presign_get(own(experiment), HOUR))
    assert get(path.replace("update.safetensors", "log.txt")).status_code == 403
    assert post(path, form(b"read is not write")).status_code == 403
    assert store.get_bytes(own(experiment)) == b"data"


def test_a_missing_object_is_said_to_be_missing(store, experiment):
    answer = get(target(store.presign_get(own(experiment), HOUR)))
    assert answer.status_code == 404
    assert "X-Amz" not in answer.content.decode()


def test_an_upload_that_announces_too_much_is_refused_before_it_is_read(store, experiment, mainz):

    class Unread:
        def read(self, size: int) -> bytes:
            raise AssertionError("the body was read")

    with pytest.raises(files.TooLarge):
        files.upload(
            mainz,
            target(store.presign_put(own(experiment), HOUR)),
            Unread(),
            content_type=f"multipart/form-data; boundary={BOUNDARY}",
            length=files.MAX_FILE + 1,
        )


def _others(store: ObjectStore, experiment) -> dict[str, str]:
    key = own(experiment)
    good = target(store.presign_get(key, HOUR))
    return {
        "another site's": target(store.presign_get(own(experiment, site="ulm"), HOUR)),
        "another site's that begins alike": target(store.presign_get(own(experiment, site="mainz2"), HOUR)),
        "another bucket": good.replace(f"/{store.bucket}/", "/other/"),
        "another host": f"@evil.example{good}",
        "another host, doubled": f"//evil.example{good}",
        "a whole address": f"http://evil.example{good}",
        "up and away": good.replace("/mainz/", "/ulm/../mainz/"),
        "escaped": good.replace("/mainz/", "/%6dainz/"),
        "not signed": f"/{store.bucket}/{key}",
        "a list of the bucket": f"/{store.bucket}?list-type=2&X-Amz-Signature=0",
        "a fragment": good + "#x",
        "a space": good + " x",
        "empty": "",
    }


@pytest.mark.parametrize(
    "what",
    ["another site's", "another site's that begins alike", "another bucket", "another host", "another host, doubled",
     "a whole address", "up and away", "escaped", "not signed", "a list of the bucket", "a fragment", "a space", "empty"],
)  # fmt: skip
def test_only_own_objects_of_the_portals_store_are_relayed(store, experiment, what, monkeypatch):
    path = _others(store, experiment)[what]

    def carried(*_: object, **__: object) -> None:
        raise AssertionError("the store was asked")

    monkeypatch.setattr(ObjectStore, "carry", carried)
    assert get(path).status_code == 403
    assert post(path, form(b"x")).status_code == 403


def test_models_are_not_written_by_sites(store, experiment):
    key = global_model_key(experiment.key, 0)
    assert post(target(store.presign_put(key, HOUR)), form(b"mine")).status_code == 403


def test_a_store_that_is_away_is_said_to_be_away(experiment, monkeypatch):
    gone = ObjectStore("127.0.0.1:9", "k", secrets.token_hex(8), "bucket", secure=False, timeout=2)
    monkeypatch.setattr(files, "object_store", lambda: gone)
    path = target(gone.presign_get(own(experiment), HOUR))
    assert get(path).status_code == 503
    assert post(path, form(b"x")).status_code == 503


def test_a_process_that_relays_no_files_says_so(store, experiment, settings):
    settings.FEDPORTAL_FILE_RELAY = False
    path = target(store.presign_get(own(experiment), HOUR))
    assert get(path).status_code == 404
    assert post(path, form(b"x")).status_code == 404


# --- runs that show a token of their own ----------------------------------------------------------


def run_token(experiment, *, site: str = "mainz", run: str = "", secret: bytes = b"") -> str:
    run = run or f"fp-{experiment.key}-r1-{site}-a1"
    return f"{run}.{relay_token(attempt_key(site_key(secret or settings.FEDPORTAL_ATTEMPT_SECRET, site), run))}"


def test_a_run_has_its_files_passed_on_with_a_token_of_its_own(store, experiment):
    token = {"FederatedAuthorization": run_token(experiment)}
    data = os.urandom(1000)
    assert post(target(store.presign_put(own(experiment), HOUR)), form(data), **token).status_code == 200
    assert content(get(target(store.presign_get(own(experiment), HOUR)), **token)) == data


def test_a_run_of_any_kind_of_site_may_use_the_relay(store, experiment):
    site = make_site("ulm")
    key = own(experiment, site=site.slug)
    token = {"FederatedAuthorization": run_token(experiment, site="ulm")}
    assert post(target(store.presign_put(key, HOUR)), form(b"x"), **token).status_code == 200
    assert post(target(store.presign_put(own(experiment), HOUR)), form(b"x"), **token).status_code == 403


def test_a_check_has_a_token_too(store, experiment):
    token = {"FederatedAuthorization": run_token(experiment, run="fp-check-mainz-12")}
    key = "fedportal/checks/mainz/fp-check-mainz-12.json"
    assert post(target(store.presign_put(key, HOUR)), form(b"{}"), **token).status_code == 200


@pytest.mark.parametrize(
    "token",
    ["{run}.", "{run}.00", ".", "fp-check-ulm-1.{mac}", "fp-abcd2345-r1-ulm-a1.{mac}", "nothing.{mac}", "{run}.é"],
)
def test_a_token_of_a_run_cannot_be_made_up(store, experiment, token):
    run, _, mac = run_token(experiment).partition(".")
    headers = {"FederatedAuthorization": token.format(run=run, mac=mac)}
    assert get(target(store.presign_get(own(experiment), HOUR)), **headers).status_code == 401
    headers = {"FederatedAuthorization": run_token(experiment, secret=b"x" * 32)}
    assert get(target(store.presign_get(own(experiment), HOUR)), **headers).status_code == 401


def test_a_token_of_a_run_opens_nothing_else(store, experiment):
    headers = {"FederatedAuthorization": run_token(experiment)}
    assert Client().get(f"{ROOT}/jobs", headers=headers).status_code == 401
    assert Client().put(f"{ROOT}/job", b"{}", "application/json", headers=headers).status_code == 401
