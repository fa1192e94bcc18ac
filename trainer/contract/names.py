"""Names and object keys: computed by both sides, never remembered."""

from __future__ import annotations

import re

from trainer.contract.checks import ContractError

ROOT = "fedportal"
POOL_DATASET = "pooled"
"""Name of the only dataset of a site that stands for a pool of several."""
MAX_RUN_NAME = 40

_EXPERIMENT = re.compile(r"[a-z0-9]{4,10}\Z")
_SITE = re.compile(r"[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?\Z")
_RUN = re.compile(
    r"fp-(?P<experiment>[a-z0-9]{4,10})-r(?P<round>[0-9]{1,5})-"
    r"(?P<site>[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?)-a[1-9][0-9]?\Z"
)
_CHECK = re.compile(r"fp-check-(?P<site>[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?)-[0-9]+\Z")


def run_name(*, experiment: str, round: int, site: str, attempt: int) -> str:
    """Return ``fp-<experiment>-r<round>-<site>-a<attempt>``: lower-case DNS label, at most 40 characters."""
    if not _EXPERIMENT.match(experiment):
        raise ContractError(f"experiment key {experiment!r}: 4 to 10 lower-case letters or digits")
    if not _SITE.match(site):
        raise ContractError(f"site slug {site!r}: at most 15 lower-case letters, digits, hyphens")
    if not (0 <= round <= 99_999 and 1 <= attempt <= 99):
        raise ContractError(f"round {round} or attempt {attempt} out of range")
    name = f"fp-{experiment}-r{round}-{site}-a{attempt}"
    if len(name) > MAX_RUN_NAME:
        raise ContractError(f"run name {name!r} is longer than {MAX_RUN_NAME} characters")
    return name


def site_of(run: str) -> str:
    """Return the slug of the site that a run, of a round or of a check, belongs to. Raises :class:`ContractError` for no
    run name."""
    return (_CHECK.match(run) or _parts_of(run))["site"]


def check_name(site: str, number: int) -> str:
    """Return ``fp-check-<site>-<number>``, the name of a run of a site's check."""
    return f"fp-check-{site}-{number}"


def _parts_of(run: str) -> re.Match[str]:
    match = _RUN.match(run)
    if match is None or len(run) > MAX_RUN_NAME:
        raise ContractError(f"{run[:80]!r} is not the name of a run")
    return match


def round_prefix(experiment: str, round: int) -> str:
    return f"{ROOT}/{experiment}/r{round:05d}"


def global_model_key(experiment: str, round: int) -> str:
    """Key of the global model that round ``round`` publishes; round 0 is the initial model."""
    return f"{round_prefix(experiment, round)}/global.safetensors"


def server_state_key(experiment: str, round: int) -> str:
    """Key of what the aggregation keeps between rounds (server moments, averaged optimizer state)."""
    return f"{round_prefix(experiment, round)}/server-state.safetensors"


def shelf_folder(experiment: str, round: int) -> str:
    """Folder, below the portal's spool, in which objects of a round lie, for sites on its machine: weights by their
    SHA-256, signed documents by the name of their run."""
    return f"{experiment}/r{round:05d}"


def shelf_of(run: str) -> str:
    """The :func:`shelf_folder` that a run name belongs to. Raises :class:`ContractError` for no run name."""
    parts = _parts_of(run)
    return shelf_folder(parts["experiment"], int(parts["round"]))


def on_shelf(run: str, name: str) -> str:
    """Name on the shelf of a signed document of a run, :data:`SPEC_NAME` or :data:`MANIFEST_NAME`."""
    return f"{run}-{name}"


def attempt_prefix(*, experiment: str, round: int, site: str, attempt: int) -> str:
    """Prefix of all objects of one attempt. Another attempt never shares a key with it."""
    return f"{round_prefix(experiment, round)}/{site}/a{attempt}"


SPEC_NAME = "spec.json"
UPDATE_NAME = "update.safetensors"
OPTIMIZER_NAME = "optimizer.safetensors"
LOG_NAME = "log.txt"
MANIFEST_NAME = "manifest.json"
