"""What a site says of itself when the portal checks it: the duty of ``fp-check``."""

from __future__ import annotations

import hashlib
import hmac
import html
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.contract import Put, attempt_key, signed
from trainer.contract.code import code_digest
from trainer.exchange import versions
from trainer.inspect import inspect
from trainer.job import Fault
from trainer.relay import Relay
from trainer.transfer import Courier, new_session

if TYPE_CHECKING:
    from trainer.site_file import SiteFile

TIMEOUT = (5.0, 30.0)


def report(site: SiteFile, conf: dict[str, Any]) -> dict[str, Any]:
    """Return versions, machine, datasets, and what ``conf`` asks to be tried, as JSON values.

    ``nonce``: answered with a proof that the site has the right key. ``portal``: an address that is asked for.
    ``store``: ``{"get", "put"}``, presigned addresses of one small object, fetched and put back with the time it took.
    """
    from trainer.task import ping

    problems: list[str] = []
    try:
        datasets = inspect(site.data_root)
    except OSError as error:
        datasets = []
        problems.append(f"The data folder cannot be read ({error.strerror}).")
    free = None
    try:
        site.work_dir.mkdir(parents=True, exist_ok=True)
        probe = site.work_dir / f".check-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
        free = shutil.disk_usage(site.work_dir).free
    except OSError as error:
        problems.append(f"The working folder cannot be written ({error.strerror}).")
    found: dict[str, Any] = {
        "at": time.time(),
        "code": code_digest(),
        "versions": dict(versions()),
        "warm": ping(site.socket),
        "cpus": os.cpu_count(),
        "threads": site.threads,
        "gpus": gpus(),
        "free_bytes": free,
        "datasets": datasets,
        "problems": problems,
    }
    if nonce := str(conf.get("nonce") or ""):
        found["proof"] = hmac.new(bytes.fromhex(site.key), f"check:{nonce}".encode(), hashlib.sha256).hexdigest()
    if portal := str(conf.get("portal") or ""):
        found["portal"] = _ask_portal(portal)
    if isinstance(conf.get("store"), dict):
        # Where the site has polled for them, Kaapana has escaped addresses as if they were HTML.
        addresses = {way: html.unescape(str(conf["store"].get(way) or "")) for way in ("get", "put")}
        run = str(conf.get("run") or "")
        relay = Relay.from_environment(run, attempt_key(bytes.fromhex(site.key), run)) if run else None
        found["store"] = _round_trip(addresses, relay)
    return found


def hand_in(document: dict[str, Any], conf: Mapping[str, Any], key: bytes) -> bool:
    """Put a report, signed, where ``conf`` says (``run``, ``report_url``): a site that polls cannot be asked for it.

    ``key``: the site's. Returns whether it was wanted. Raises :class:`~trainer.job.Fault` when it cannot be put.
    """
    run, url = str(conf.get("run") or ""), html.unescape(str(conf.get("report_url") or ""))
    if not run or not url:
        return False
    own = attempt_key(key, run)
    courier = Courier(patience=60.0, relay=Relay.from_environment(run, own))
    courier.put(Put(url=url), signed(document, own), "the report")
    return True


def gpus() -> list[dict[str, Any]]:
    """Return name, memory and free memory (MB) of each GPU, without importing torch. ``None``: the GPU does not tell."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in output.splitlines():
        name, *memory = (part.strip() for part in line.rsplit(",", 2))
        if len(memory) == 2:
            # a GPU in parts, or one that shares the machine's memory, has "[N/A]" there
            total, free = (int(part) if part.isdecimal() else None for part in memory)
            found.append({"name": name, "memory_mb": total, "free_mb": free})
    return found


def _ask_portal(url: str) -> dict[str, Any]:
    try:
        answer = new_session().get(url, timeout=TIMEOUT, allow_redirects=False)
    except Exception as error:  # whatever it is, the portal shall read it
        return {"ok": False, "error": type(error).__name__}
    return {"ok": answer.status_code < 400, "error": "" if answer.status_code < 400 else f"HTTP {answer.status_code}"}


def _round_trip(addresses: Mapping[str, str], relay: Relay | None) -> dict[str, Any]:
    courier = Courier(patience=0.0, read_timeout=TIMEOUT[1], relay=relay)
    try:
        start = time.monotonic()
        data = courier.fetch_bytes(addresses["get"], "a small object")
        down = time.monotonic() - start
        start = time.monotonic()
        courier.put(Put(url=addresses["put"]), data, "a small object")
        up = time.monotonic() - start
    except Fault as fault:
        return {"ok": False, "error": fault.detail.rstrip(".")}
    digest = hashlib.sha256(data).hexdigest()
    return {"ok": True, "error": "", "bytes": len(data), "sha256": digest, "down_s": down, "up_s": up}
