"""What comes back from an attempt: metric records while it works, the manifest when it is done."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from trainer.contract.checks import (
    CONTRACT_VERSION,
    MAX_REGION_NAME,
    MAX_SUBJECT,
    ContractError,
    is_count,
    is_number,
    is_pseudonym,
)
from trainer.contract.job import Kind


class Phase(StrEnum):
    """When a number was measured: while training, on the incoming global model (before training), on
    the local model (after training), or as the portal's mean over sites (``global``)."""

    TRAIN = "train"
    INCOMING = "incoming"
    LOCAL = "local"
    GLOBAL = "global"


LATEST = 253_402_300_799
"""Seconds since the epoch of the last moment that calendars know (end of the year 9999)."""
MOST_CASES = 10**7
"""Cases that a site trains on or measures, at most: the portal's sums are exact up to there."""
LARGEST = 3.5e38
"""No trainer's number is larger (float32): with larger ones a mean over the sites would overflow."""
ROUNDING = 1e-6
"""So much more than 1 may a Dice be: it is a quotient of float32 sums."""
MAX_PARTS = 10_000
"""Parts that an object comes in, at most (S3)."""


@dataclass(frozen=True)
class MetricRecord:
    """One number. ``name``: loss, dice, hd95 (mm), learning_rate, seconds. ``region``: a region of the task,
    ``mean`` over regions, or empty. ``step``: optimizer steps done in this round (0 before the first).
    ``progress``: share of this round's training done, 0 to 1. ``value`` is ``None`` where undefined (an empty mask
    has no Hausdorff distance); ``cases`` is how many cases it is the mean of. ``at``: seconds since the epoch."""

    phase: Phase
    name: str
    value: float | None
    region: str = ""
    step: int = 0
    progress: float = 0.0
    cases: int = 0
    at: float = 0.0

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["phase"] = self.phase.value
        return document


def metric_from_json(document: Mapping[str, Any]) -> MetricRecord:
    """Read one record; refuses what a page could not draw (unknown phase, NaN, long names)."""
    try:
        record = MetricRecord(**{**document, "phase": Phase(document["phase"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"metric: {error}") from error
    ok = (
        record.phase is not Phase.GLOBAL
        and isinstance(record.name, str)
        and re.fullmatch(r"[a-z0-9_]{1,32}", record.name)
        and isinstance(record.region, str)
        and _is_region(record.region)
        and is_count(record.step, 10**9)
        and is_count(record.cases, MOST_CASES)
        and is_number(record.progress)
        and 0 <= record.progress <= 1
        and is_number(record.at)
        and 0 <= record.at <= LATEST
        and _is_measured(record.name, record.value)
    )
    if not ok:
        raise ContractError(f"metric: not a drawable record: {str(dict(document))[:200]}")
    return record


def _is_region(name: object) -> bool:
    return isinstance(name, str) and len(name) <= MAX_REGION_NAME and name.isprintable()


def _is_measured(name: str, value: object) -> bool:
    """Say whether a number can have been measured: a Dice is a share, a distance is not negative."""
    if value is None:
        return True
    least, most = {"dice": (0.0, 1.0 + ROUNDING), "hd95": (0.0, LARGEST)}.get(name, (-LARGEST, LARGEST))
    return is_number(value) and least <= value <= most  # type: ignore[operator]


def records_in_log(text: str) -> list[MetricRecord]:
    """Return the records that a piece of a trainer's log holds: it writes there what it cannot post.

    A line that the piece cuts, and what is no record, are passed over: the manifest has all of them.
    """
    found: list[MetricRecord] = []
    for line in text.splitlines():
        if '"records": [' not in line:
            continue
        try:
            records = json.loads(line)["records"]
            found += [metric_from_json(record) for record in records]
        except (ValueError, KeyError, TypeError, RecursionError):  # a ContractError is a ValueError
            continue
    return found


@dataclass(frozen=True)
class Stored:
    """An object that was written: size in bytes, SHA-256 hex, and the parts' ETags where it came in parts."""

    sha256: str
    size: int
    etags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseScore:
    """One number per region of one held-out case. ``subject``: the model (see :class:`Subject`). ``case``: pseudonym.
    ``name``: dice or hd95 (mm). ``values``: region → number, ``None`` where undefined."""

    subject: str
    case: str
    name: str
    values: Mapping[str, float | None]


@dataclass(frozen=True)
class Manifest:
    """Written last by an attempt; its existence is the commit. ``seconds`` has the duration of each step:
    pull, load, validate_incoming, train, validate_local, push (wall clock; *push*: how long the update was waited for after
    the rest). ``held_out``: pseudonyms of the site's
    validation cases; ``cases``: what an evaluation measured of each of them. Both empty without a key for them.
    ``copies``: of an evaluation, how many of the cases that were trained on at the site are among the job's ``held_out``."""

    run: str
    experiment: str
    round: int
    site: str
    attempt: int
    kind: Kind
    exit_code: int
    message: str
    train_cases: int = 0
    validation_cases: int = 0
    steps: int = 0
    update: Stored | None = None
    optimizer: Stored | None = None
    metrics: tuple[MetricRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    held_out: tuple[str, ...] = ()
    cases: tuple[CaseScore, ...] = ()
    copies: int = 0
    contract: int = CONTRACT_VERSION

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["kind"] = self.kind.value
        document["metrics"] = [record.to_json() for record in self.metrics]
        return document


def manifest_from_json(document: Mapping[str, Any]) -> Manifest:
    """Read a manifest. Raises :class:`ContractError` for anything that is not one."""
    values = dict(document)
    if values.get("contract") != CONTRACT_VERSION:
        raise ContractError(f"manifest of contract {values.get('contract')!r}, this portal speaks {CONTRACT_VERSION}")
    try:
        manifest = Manifest(
            kind=Kind(values.pop("kind")),
            update=_stored(values.pop("update", None)),
            optimizer=_stored(values.pop("optimizer", None)),
            metrics=tuple(metric_from_json(record) for record in values.pop("metrics", ())),
            held_out=tuple(_pseudonym(case) for case in values.pop("held_out", ())),
            cases=tuple(_case_score(score) for score in values.pop("cases", ())),
            **values,
        )
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"manifest: {error}") from error
    counts = (manifest.steps, manifest.round, manifest.attempt, manifest.exit_code)
    cases = (manifest.train_cases, manifest.validation_cases, manifest.copies)
    texts = (manifest.run, manifest.experiment, manifest.site, manifest.message)
    is_counted = all(map(is_count, counts)) and all(is_count(number, MOST_CASES) for number in cases)
    if not is_counted or not all(isinstance(text, str) for text in texts):
        raise ContractError("manifest: a count or a name is not of its type")
    seconds = manifest.seconds
    if not isinstance(seconds, Mapping) or not all(is_number(s) and 0 <= s <= LATEST for s in seconds.values()):
        raise ContractError("manifest: seconds are not durations")
    return manifest


def _case_score(document: Mapping[str, Any]) -> CaseScore:
    score = CaseScore(**document)
    ok = (
        isinstance(score.subject, str)
        and 0 < len(score.subject) <= MAX_SUBJECT
        and score.name in ("dice", "hd95")
        and isinstance(score.values, Mapping)
        and all(_is_region(region) and _is_measured(score.name, value) for region, value in score.values.items())
    )
    if not ok or _pseudonym(score.case) != score.case:
        raise ContractError(f"manifest: not a score of a case: {str(dict(document))[:200]}")
    return score


def _pseudonym(case: Any) -> str:
    if not is_pseudonym(case):
        raise ContractError("manifest: a case is not named by its pseudonym")
    return str(case)


def _stored(values: Mapping[str, Any] | None) -> Stored | None:
    if values is None:
        return None
    stored = Stored(**{**values, "etags": tuple(values.get("etags", ()))})
    if not (is_count(stored.size, 2**63 - 1) and stored.size > 0 and re.fullmatch(r"[0-9a-f]{64}", str(stored.sha256))):
        raise ContractError("manifest: size or SHA-256 of an object is not valid")
    if len(stored.etags) > MAX_PARTS or not all(map(_is_etag, stored.etags)):
        raise ContractError("manifest: the parts of an object are not valid")
    return stored


def _is_etag(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[!-~]{1,200}", value) is not None
