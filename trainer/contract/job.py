"""The job that the portal writes for one attempt, and the ticket that launches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, TypeVar

from trainer.contract.checks import CONTRACT_VERSION, MAX_SUBJECT, ContractError, is_pseudonym
from trainer.contract.names import run_name
from trainer.contract.plan import TrainingPlan, plan_from_json

T = TypeVar("T")


class Kind(StrEnum):
    TRAIN = "train"
    EVALUATE = "evaluate"


@dataclass(frozen=True)
class Fetch:
    """An object to read: presigned GET, with the size in bytes and SHA-256 that it must have."""

    url: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Put:
    """An object to write once. One presigned PUT, or one URL per part of ``part_size`` bytes (the last
    part may be shorter; unused part URLs stay unused). With parts, the ETags go into the manifest and
    the portal completes the upload."""

    url: str = ""
    part_urls: tuple[str, ...] = ()
    part_size: int = 0
    upload_id: str = ""


@dataclass(frozen=True)
class Subject:
    """A model that an evaluation measures beside the incoming one, case by case: one network, or several whose
    probabilities are averaged. ``name``: what its scores are filed under."""

    name: str
    models: tuple[Fetch, ...]


INCOMING_SUBJECT = "global"
"""Name of :attr:`JobSpec.model` among the subjects of an evaluation."""


@dataclass(frozen=True)
class JobSpec:
    """All that one attempt needs. Signed with the key of the attempt (see :func:`signed`).

    ``case_key`` (hex): key of the pseudonyms by which cases leave the site (:func:`case_pseudonym`); without it none
    does. ``held_out``: pseudonyms of cases that models are tested on; a training leaves them out, an evaluation counts
    those that were trained on here. ``subjects``: what an evaluation measures beside ``model``.
    """

    kind: Kind
    run: str
    experiment: str
    round: int
    site: str
    attempt: int
    dataset: str
    plan: TrainingPlan
    model: Fetch
    manifest: Put
    log: Put
    update: Put | None = None
    optimizer_in: Fetch | None = None
    optimizer_out: Put | None = None
    metrics_url: str = ""
    case_key: str = ""
    held_out: tuple[str, ...] = ()
    subjects: tuple[Subject, ...] = ()
    expires_at: float = 0.0
    contract: int = CONTRACT_VERSION

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        document["kind"] = self.kind.value
        document["plan"] = self.plan.to_json()
        return document


def spec_from_json(document: Mapping[str, Any]) -> JobSpec:
    """Read a job spec. Raises :class:`ContractError` when it is not of this contract."""
    values = dict(document)
    if values.get("contract") != CONTRACT_VERSION:
        raise ContractError(
            f"job of contract {values.get('contract')!r}, this trainer speaks {CONTRACT_VERSION}: update one of them"
        )
    try:
        spec = JobSpec(
            kind=Kind(values.pop("kind")),
            plan=plan_from_json(values.pop("plan")),
            model=_fetch(values.pop("model")),
            manifest=_put(values.pop("manifest")),
            log=_put(values.pop("log")),
            update=_optional(_put, values.pop("update", None)),
            optimizer_in=_optional(_fetch, values.pop("optimizer_in", None)),
            optimizer_out=_optional(_put, values.pop("optimizer_out", None)),
            held_out=tuple(values.pop("held_out", ())),
            subjects=tuple(_subject(subject) for subject in values.pop("subjects", ())),
            **values,
        )
        if spec.run != run_name(experiment=spec.experiment, round=spec.round, site=spec.site, attempt=spec.attempt):
            raise ContractError("job: its run name does not match its experiment, round, site and attempt")
        if spec.kind is Kind.TRAIN and spec.update is None:
            raise ContractError("job: a training needs a place for its update")
        _check_comparison(spec)
        return spec
    except ContractError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"job: {error}") from error


def _check_comparison(spec: JobSpec) -> None:
    names = [INCOMING_SUBJECT, *(subject.name for subject in spec.subjects)]
    if len(set(names)) != len(names) or not all(subject.models for subject in spec.subjects):
        raise ContractError("job: every subject needs a name of its own and a model")
    if not all(0 < len(name) <= MAX_SUBJECT for name in names):
        raise ContractError(f"job: the name of a subject has 1 to {MAX_SUBJECT} characters")
    if spec.subjects and spec.kind is not Kind.EVALUATE:
        raise ContractError("job: only an evaluation has subjects")
    if (spec.subjects or spec.held_out) and not spec.case_key:
        raise ContractError("job: cases are known by pseudonym only, and it has no key for them")
    if spec.case_key and not re.fullmatch(r"[0-9a-f]{64}", spec.case_key):
        raise ContractError("job: its key of the cases is not one")
    if not all(is_pseudonym(case) for case in spec.held_out):
        raise ContractError("job: a held-out case is not named by its pseudonym")


@dataclass(frozen=True)
class LaunchTicket:
    """What travels on the control path: where the spec lies, and the key that it is signed with (hex).

    A site that keeps its own key is sent no ``key``: it derives it (:func:`attempt_key`).
    The same key authenticates the attempt's metric records (``Authorization: Bearer <token>``, see
    :func:`metrics_token`) and signs its manifest. ``dataset`` is for sites whose scheduler lays the data out before
    the trainer starts, ``kind`` for those that have a DAG for each; the trainer itself believes only the signed spec.
    """

    run: str
    spec_url: str
    key: str = ""
    dataset: str = ""
    kind: Kind = Kind.TRAIN

    def to_json(self) -> dict[str, str]:
        return asdict(self)


def _put(values: Mapping[str, Any]) -> Put:
    return Put(**{**values, "part_urls": tuple(values.get("part_urls", ()))})


def _fetch(values: Mapping[str, Any]) -> Fetch:
    return Fetch(**values)


def _subject(values: Mapping[str, Any]) -> Subject:
    return Subject(name=str(values["name"]), models=tuple(_fetch(model) for model in values["models"]))


def _optional(read: Callable[[Mapping[str, Any]], T], values: Mapping[str, Any] | None) -> T | None:
    return None if values is None else read(values)
