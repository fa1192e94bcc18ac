"""The object store (any S3: MinIO, SeaweedFS, Ceph) through which weights travel.

Pure and thread-safe. Sites never see its keys: they get presigned URLs, one object and one verb each, signed
for the host name that the *site* uses. Every object that comes back is checked by us (size and SHA-256), since
an S3 ETag is no hash of a multipart object and not every server checks what it stores.
"""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import quote, urlsplit

import certifi
import urllib3
from minio import Minio
from minio.datatypes import Part
from minio.deleteobjects import DeleteObject
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from fedportal.connectors.errors import ObjectDamaged, ObjectMissing, StoreError, StoreUnreachable
from trainer.contract import ROOT, Put

CHUNK = 1024 * 1024
PART = 8 * 1024 * 1024
"""Part size of our own large uploads: three travel at once, so memory stays below four of them."""
SITE_PART = 32 * 1024 * 1024
"""Part size for sites: what a broken line costs at most to send again."""
SINGLE_PUT = 128 * 1024 * 1024
"""Up to here an object travels in one PUT, which saves the requests around a multipart upload."""
BLOCK = 256 * 1024
"""Bytes that are handed to the line at a time: http.client's 16 KiB are 5,000 system calls for a model of 77 MB."""
MAX_PARTS = 10_000
MAX_PRESIGNED = timedelta(days=7)
WHOLE_PUT_TIME = timedelta(hours=1)
RESUMES = 5

_TRANSIENT = frozenset(
    {"InternalError", "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite", "RequestTimeout", "OperationAborted"}
)  # fmt: skip
_MISSING = frozenset({"NoSuchKey", "NoSuchUpload"})
_UNFIT = frozenset({"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "EntityTooLarge", "MalformedXML"})
"""What a store says to parts that were never sent, or not as they are announced."""
_OWN_PREFIX = re.compile(rf"{ROOT}/[a-z0-9]{{4,10}}(?:/[a-z0-9-]+)*/?\Z")


@dataclass(frozen=True)
class Stat:
    """What the store knows of an object: size in bytes, ETag without quotes."""

    size: int
    etag: str


class ObjectStore:
    """One bucket of an S3 store.

    ``endpoint`` is ``host[:port]`` or a URL; ``public_endpoint`` the same for the address that sites and browsers
    use (default: the same one). ``timeout``: seconds that the store may be silent. ``region`` must be the store's, so that nothing has to be asked before signing.
    Raises :class:`StoreUnreachable` (try again later), :class:`ObjectMissing`, :class:`ObjectDamaged`, else
    :class:`StoreError`. No message and no ``repr`` holds a key or a signed URL.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        bucket: str,
        *,
        region: str = "us-east-1",
        secure: bool = True,
        public_endpoint: str | None = None,
        ca_file: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.bucket = bucket
        self.endpoint, self._secure = _address(endpoint, secure)
        self._pool = urllib3.PoolManager(
            # urllib3 gives the body of a fresh connection's first request no more than the time to connect
            timeout=urllib3.Timeout(connect=min(15.0, timeout), read=timeout),
            maxsize=32,
            blocksize=BLOCK,
            cert_reqs="CERT_REQUIRED",
            ca_certs=ca_file or certifi.where(),
            # A restarted store answers 500 for some seconds until its volumes are back: that is sat out. One that
            # is down or hangs is reported soon: the caller's own retry is durable, ours is not.
            retries=urllib3.Retry(
                total=5, connect=1, read=1, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504)
            ),
        )
        self._client = Minio(
            self.endpoint, access_key, secret_key, secure=self._secure, region=region, http_client=self._pool
        )
        self._public, public_secure = _address(public_endpoint or endpoint, self._secure)
        self._signer = Minio(self._public, access_key, secret_key, secure=public_secure, region=region)

    def __repr__(self) -> str:
        return f"ObjectStore({self.endpoint!r}, bucket={self.bucket!r})"

    # --- the portal's own reading and writing ------------------------------------------------------

    def put_bytes(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> str:
        """Write an object at once and return the SHA-256 (hex) of its bytes."""
        digest = hashlib.sha256(data).hexdigest()
        with self._errors(key):
            self._client.put_object(
                self.bucket,
                key,
                io.BytesIO(data),
                len(data),
                content_type,
                part_size=max(PART, len(data)),
            )
        return digest

    def put_file(
        self, key: str, path: Path, *, sha256: str = "", content_type: str = "application/octet-stream"
    ) -> str:
        """Stream a file into an object and return its SHA-256 (hex), counted here unless the caller knows it."""
        digest, size = sha256 or sha256_of_file(path), path.stat().st_size
        with self._errors(key), path.open("rb") as file:
            if size > SINGLE_PUT:
                self._client.put_object(self.bucket, key, file, size, content_type, part_size=PART)
            else:
                self._put_whole(key, file, size, content_type)
        return digest

    def _put_whole(self, key: str, file: IO[bytes], size: int, content_type: str) -> None:
        """Stream a file as it is. The SDK would read it part by part and count a hash of each for its signature."""
        url = self._client.get_presigned_url("PUT", self.bucket, key, WHOLE_PUT_TIME)
        headers = {"Content-Length": str(size), "Content-Type": content_type}
        answer = self._pool.request("PUT", url, body=file, headers=headers, redirect=False)
        if answer.status != 200:
            found = re.search(rb"<Code>(\w+)</Code>", answer.data)
            code = found.group(1).decode() if found else str(answer.status)
            self._raise(code, key, StoreError(f"the answer was {answer.status}"))

    def get_bytes(self, key: str, *, max_bytes: int = 32 * 1024 * 1024) -> bytes:
        """Read a small object. Raises :class:`ObjectDamaged` when it is larger than ``max_bytes``."""
        with self._errors(key), self._reading(key, 0) as response:
            data: bytes = response.read(max_bytes + 1)
            if len(data) > max_bytes:
                raise ObjectDamaged(f"{key} is larger than {max_bytes} bytes")
        return data

    def get_file(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        size: int | None = None,
        max_bytes: int | None = None,
    ) -> str:
        """Stream an object into a file and return its SHA-256 (hex). The file appears whole and verified, or not.

        A connection that breaks is resumed where it broke. Raises :class:`ObjectDamaged` when size or SHA-256 are
        not the given ones, or when there are more than ``max_bytes``.
        """
        limit = min(x for x in (size, max_bytes, 2**63) if x is not None)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        digest, done = hashlib.sha256(), 0
        try:
            with part.open("xb") as file:
                for resumes_left in reversed(range(RESUMES)):
                    try:
                        with self._errors(key), self._reading(key, done) as response:
                            for chunk in response.stream(CHUNK):
                                done += len(chunk)
                                if done > limit:
                                    raise ObjectDamaged(f"{key} is larger than the {limit} bytes that were announced")
                                digest.update(chunk)
                                file.write(chunk)
                        break
                    except StoreUnreachable:
                        if not (done and resumes_left):
                            raise
            if size is not None and done != size:
                raise ObjectDamaged(f"{key} has {done} bytes instead of {size}")
            if sha256 is not None and digest.hexdigest() != sha256:
                raise ObjectDamaged(f"{key} does not have the SHA-256 that was announced")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return digest.hexdigest()

    def stat(self, key: str) -> Stat:
        with self._errors(key):
            found = self._client.stat_object(self.bucket, key)
            return Stat(size=int(found.size or 0), etag=str(found.etag or "").strip('"'))

    def exists(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectMissing:
            return False
        return True

    def delete_prefix(self, prefix: str, *, within: Collection[str] | None = None) -> int:
        """Delete all objects and unfinished uploads below one experiment's prefix; return how many objects.

        ``within``: only those in the folders of these names that lie directly below the prefix.
        Raises ``ValueError`` for a prefix that does not lie inside one experiment: a slip never empties a bucket.
        """
        if not _OWN_PREFIX.match(prefix):
            raise ValueError(f"refusing to delete {prefix!r}: not the prefix of one experiment")
        prefix = prefix.rstrip("/") + "/"

        def is_meant(key: str) -> bool:
            name, slash, _ = key.removeprefix(prefix).partition("/")
            return within is None or (bool(slash) and name in within)

        keys = [key for key in self.list(prefix) if is_meant(key)]
        with self._errors(prefix):
            errors = list(self._client.remove_objects(self.bucket, [DeleteObject(key) for key in keys]))
            if errors:
                raise StoreError(f"{len(errors)} objects below {prefix} could not be deleted ({errors[0].code})")
            # There is no public call for open uploads in the SDK (pinned below version 8).
            for upload in self._client._list_multipart_uploads(self.bucket, prefix=prefix).uploads:
                if is_meant(str(upload.object_name)):
                    self._client._abort_multipart_upload(self.bucket, upload.object_name, str(upload.upload_id))
        return len(keys)

    def ensure_bucket(self) -> None:
        """Make the bucket where it is missing (demo, tests; in production the operator does it)."""
        with self._errors(self.bucket):
            if not self._client.bucket_exists(self.bucket):
                self._client.make_bucket(self.bucket)

    def probe(self) -> None:
        """Write, read and delete a small object: raises a :class:`StoreError` when the store does not work."""
        key = f"{ROOT}/.probe-{secrets.token_hex(4)}"
        self.put_bytes(key, b"probe")
        if self.get_bytes(key) != b"probe":
            raise ObjectDamaged("the object store does not give back what it was given")
        with self._errors(key):
            self._client.remove_object(self.bucket, key)

    # --- presigned URLs ----------------------------------------------------------------------------

    def presign_get(self, key: str, expires: timedelta, *, filename: str | None = None) -> str:
        """Sign a download, without asking the store. ``filename``: what the browser shall save it as."""
        headers: dict[str, Any] | None = None
        if filename is not None:
            plain = re.sub(r'[^\w .()+-]|"', "_", filename, flags=re.ASCII)
            disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
            headers = {"response-content-disposition": disposition}
        return self._signed("GET", key, expires, response_headers=headers)

    def presign_put(self, key: str, expires: timedelta) -> str:
        """Sign the upload of one object in one PUT, without asking the store."""
        return self._signed("PUT", key, expires)

    def open_upload(self, key: str, size_hint: int, expires: timedelta) -> Put:
        """Prepare the upload of an object of about ``size_hint`` bytes (a tenth more is allowed for).

        Small ones get one presigned PUT and cost no request; large ones a multipart upload with presigned parts.
        """
        if size_hint <= SINGLE_PUT:
            return Put(url=self.presign_put(key, expires))
        room = size_hint + size_hint // 10
        part_size = max(SITE_PART, ceil(room / MAX_PARTS))
        with self._errors(key):
            upload_id = self._client._create_multipart_upload(self.bucket, key, {})
        urls = tuple(
            self._signed("PUT", key, expires, extra_query_params={"uploadId": upload_id, "partNumber": str(number)})
            for number in range(1, ceil(room / part_size) + 1)
        )
        return Put(part_urls=urls, part_size=part_size, upload_id=upload_id)

    def close_upload(self, key: str, put: Put, etags: Sequence[str]) -> None:
        """Make the object of an upload visible; may be repeated. A single PUT needs no closing.

        Raises :class:`ObjectMissing` when the upload was aborted, :class:`ObjectDamaged` for ETags that do not fit.
        """
        if not put.upload_id:
            return
        if not 0 < len(etags) <= len(put.part_urls):
            raise ObjectDamaged(f"{key} was announced in {len(etags)} parts, {len(put.part_urls)} were prepared")
        parts = [Part(number, etag.strip('"')) for number, etag in enumerate(etags, start=1)]
        try:
            with self._errors(key):
                self._client._complete_multipart_upload(self.bucket, key, put.upload_id, parts)
        except ObjectMissing:
            self.stat(key)  # completed by an earlier call, or raises ObjectMissing

    def carry(
        self, method: str, target: str, *, headers: dict[str, str], body: Iterator[bytes] | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a presigned request for somebody who cannot reach the store; the answer's body is not read yet.

        ``target``: path and query as they were signed. The request goes to our endpoint, with the host that it was
        signed for, and is not repeated: the store says whether it is valid.
        """
        scheme = "https" if self._secure else "http"
        with self._errors(target.partition("?")[0]):
            return self._pool.request(
                method,
                f"{scheme}://{self.endpoint}{target}",
                headers={"Host": self._public, "Accept-Encoding": "identity", **headers},
                body=body,
                preload_content=False,
                redirect=False,
                retries=False,
            )

    # --- inside ------------------------------------------------------------------------------------

    def _signed(self, method: str, key: str, expires: timedelta, **options: Any) -> str:
        with self._errors(key):
            return str(self._signer.get_presigned_url(method, self.bucket, key, min(expires, MAX_PRESIGNED), **options))

    @contextmanager
    def _reading(self, key: str, offset: int) -> Iterator[urllib3.BaseHTTPResponse]:
        response = self._client.get_object(self.bucket, key, offset=offset)
        try:
            yield response
        except BaseException:
            response.close()  # half-read: the connection is of no more use
            raise
        finally:
            response.release_conn()

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except S3Error as error:
            self._raise(str(error.code), key, error)
        except (urllib3.exceptions.HTTPError, InvalidResponseError, ServerError) as error:
            # An OSError is not caught: urllib3 wraps those of the line, so a bare one is a local file's (a full disk)
            raise StoreUnreachable(
                f"the object store at {self.endpoint} does not answer ({type(error).__name__})"
            ) from error
        except MinioException as error:
            raise StoreError(f"the object store at {self.endpoint} failed with {type(error).__name__}") from error

    def _raise(self, code: str, key: str, error: Exception) -> NoReturn:
        if code in _MISSING:
            raise ObjectMissing(f"there is no object {key}") from error
        if code in _UNFIT:
            raise ObjectDamaged(f"the parts of {key} are not those that were announced ({code})") from error
        if code in _TRANSIENT:
            raise StoreUnreachable(f"the object store at {self.endpoint} is not ready ({code})") from error
        raise StoreError(f"the object store at {self.endpoint} refused {key} ({code})") from error

    # Last in the class: below its definition, ``list`` is this method.
    def list(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a prefix, in order."""
        with self._errors(prefix):
            for found in self._client.list_objects(self.bucket, prefix=prefix, recursive=True):
                yield str(found.object_name)


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _address(endpoint: str, secure: bool) -> tuple[str, bool]:
    if "://" not in endpoint:
        return endpoint, secure
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or parts.path.strip("/") or "@" in parts.netloc:
        raise ValueError(f"{endpoint!r} is not the address of an object store")
    return parts.netloc, parts.scheme == "https"
