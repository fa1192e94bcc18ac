"""Copies of objects on this machine: one folder for each round, which is at the same time its shelf (decision 0060).

All of it may be lost at any time; what is missing is fetched from the store again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fedportal.connectors.objectstore import sha256_of_file
from fedportal.orchestrator.snapshot import AttemptView, ModelView, Snapshot
from trainer.contract import MAX_JSON_BYTES, ROOT, Stored, on_shelf, round_prefix, shelf_folder

if TYPE_CHECKING:
    from fedportal.orchestrator.sitework import Tools


def folder_of(s: Snapshot, round_number: int, tools: Tools) -> Path:
    return tools.spool / shelf_folder(s.key, round_number)


def spooled(s: Snapshot, attempt: AttemptView, name: str, tools: Tools) -> Path:
    return folder_of(s, attempt.round_number, tools) / f"{attempt.site.slug}-a{attempt.number}-{name}"


def global_in_spool(s: Snapshot, round_number: int, tools: Tools) -> Path:
    return folder_of(s, round_number, tools) / "global.safetensors"


def state_in_spool(s: Snapshot, round_number: int, tools: Tools) -> Path:
    return folder_of(s, round_number, tools) / "server-state.safetensors"


def model_file(s: Snapshot, model: ModelView, tools: Tools) -> Path:
    """Return a verified copy of a global model, fetched when it is not there."""
    path = global_in_spool(s, model.round_number, tools)
    fetch(model.key, path, Stored(model.sha256, model.size), tools)
    return path


def state_file(s: Snapshot, model: ModelView, tools: Tools) -> Path | None:
    """Return a verified copy of the server state beside a global model; ``None`` when it has none."""
    if not model.server_state_key:
        return None
    path = state_in_spool(s, model.round_number, tools)
    fetch(model.server_state_key, path, Stored(model.server_state_sha256, model.server_state_size), tools)
    return path


def fetch(key: str, path: Path, stored: Stored, tools: Tools) -> None:
    """Have an object in the spool, with the right size and SHA-256.

    Each process counts what it finds there once: after a power cut a file may have its size and not its content.
    """
    if path.exists() and path.stat().st_size == stored.size:
        if tools.counted.get(path) == stored.sha256:
            return
        if sha256_of_file(path) == stored.sha256:
            return trust(path, stored.sha256, tools)
    if not _taken(path.with_name(stored.sha256), path, stored):
        path.parent.mkdir(parents=True, exist_ok=True)
        tools.store.get_file(key, path, sha256=stored.sha256, size=stored.size)
    trust(path, stored.sha256, tools)


def trust(path: Path, sha256: str, tools: Tools) -> None:
    """Remember that this process knows what a file holds: it has counted it, or had it made."""
    tools.counted[path] = sha256


def lend(s: Snapshot, tools: Tools) -> None:
    """Put the global model on the round's shelf, for the sites of this machine."""
    shelf = folder_of(s, s.round.number, tools)
    with suppress(OSError):  # not in the spool, or lent already: the sites fetch what they do not find
        shelf.mkdir(parents=True, exist_ok=True)
        os.link(global_in_spool(s, s.model.round_number, tools), shelf / s.model.sha256)


def leave(s: Snapshot, attempt: AttemptView, name: str, document: bytes, tools: Tools) -> None:
    """Put a signed document on the round's shelf, for the run of an attempt on this machine."""
    path = folder_of(s, attempt.round_number, tools) / on_shelf(attempt.run, name)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(document)
        temporary.replace(path)


def read(s: Snapshot, attempt: AttemptView, name: str, tools: Tools) -> bytes | None:
    """Return a document that a run on this machine has left, ``None`` where it has not. Its signature is to be checked."""
    with (
        suppress(OSError),
        (folder_of(s, attempt.round_number, tools) / on_shelf(attempt.run, name)).open("rb") as file,
    ):
        return file.read(MAX_JSON_BYTES)
    return None


def _taken(left: Path, path: Path, stored: Stored) -> bool:
    """Take what a run on this machine has left on the shelf, if it is as announced."""
    try:
        if left.stat().st_size != stored.size or sha256_of_file(left) != stored.sha256:
            return False
        left.replace(path)
    except FileNotFoundError:
        return False
    return True


# --- afterwards -----------------------------------------------------------------------------------


def tidy_before(s: Snapshot, tools: Tools) -> None:
    """Remove what earlier rounds left: attempts' objects in the store, everything here but the incoming model."""
    before = s.round.number - 1
    slugs = {participant.site.slug for participant in s.participants}
    tools.store.delete_prefix(round_prefix(s.key, before), within=slugs)
    keep = {global_in_spool(s, before, tools), state_in_spool(s, before, tools)}
    for folder in (tools.spool / s.key).glob("r*"):
        if folder.name <= folder_of(s, before, tools).name:
            for path in set(folder.iterdir()) - keep:
                _remove(path, tools)
            if not any(folder.iterdir()):
                folder.rmdir()


def tidy_experiment(s: Snapshot, tools: Tools) -> None:
    """Remove all leftovers of an experiment that is over: attempts' objects, open uploads, the spool."""
    slugs = {participant.site.slug for participant in s.participants}
    rounds = set()
    for key in tools.store.list(f"{ROOT}/{s.key}/"):
        parts = key.split("/")
        if len(parts) > 4 and parts[3] in slugs:
            rounds.add("/".join(parts[:3]))
    # An upload that was opened and never completed is no object yet: the last rounds are tidied in any case.
    last = s.round.number if s.newest else 0
    rounds |= {round_prefix(s.key, number) for number in range(max(1, last - 1), last + 1)}
    for prefix in sorted(rounds):
        tools.store.delete_prefix(prefix, within=slugs)
    folder = tools.spool / s.key
    if folder.is_dir():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else _remove(path, tools)
        folder.rmdir()


def _remove(path: Path, tools: Tools) -> None:
    path.unlink(missing_ok=True)
    tools.counted.pop(path, None)
