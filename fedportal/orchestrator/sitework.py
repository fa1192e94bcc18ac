"""One site's part: put its job into the store, start it, fetch and judge what it delivers, end it.

Functions of a snapshot and an attempt that run in threads of their own (see :mod:`fedportal.orchestrator.errands`).
They touch no rows, and each may be done again at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from fedportal.aggregation.admission import Admission
from fedportal.aggregation.errors import AggregationFailed
from fedportal.aggregation.process import AggregationProcess
from fedportal.connectors.base import CheckReport, Connector, LogChunk, RunState, RunStatus
from fedportal.connectors.breaker import Contact
from fedportal.connectors.errors import ObjectDamaged, ObjectMissing
from fedportal.connectors.objectstore import ObjectStore
from fedportal.orchestrator import spool
from fedportal.orchestrator.errands import Errands, Pace
from fedportal.orchestrator.snapshot import AttemptView, SiteView, Snapshot
from trainer.contract import (
    INCOMING_SUBJECT,
    LOG_NAME,
    MANIFEST_NAME,
    OPTIMIZER_NAME,
    SPEC_NAME,
    UPDATE_NAME,
    ContractError,
    Fetch,
    JobSpec,
    Kind,
    LaunchTicket,
    Manifest,
    Put,
    Subject,
    attempt_key,
    case_key,
    manifest_from_json,
    round_prefix,
    signed,
    site_key,
    verified,
)

logger = logging.getLogger(__name__)

AT_HAND = frozenset({"local"})
"""Connectors whose ``poll`` looks at a file of this machine."""
PEEK = 3.0
"""Seconds after which the store is asked about a run of this machine that still works."""
ROOM = 2**20
"""Bytes that an update may be larger than the model it came from (its header may be written differently)."""
OPTIMIZER_ROOM = 3
"""Optimizer state is at most so many times as large as the model: two or three moments of each weight."""


class Trainer(Protocol):
    """Runs a subcommand of ``python -m trainer``; returns exit code and last lines of output."""

    def __call__(self, argv: Sequence[str], timeout: float) -> tuple[int, str]: ...


@dataclass
class Tools:
    """What steps work with. ``spool`` holds copies of objects and may be emptied at any time; ``counted`` has the
    SHA-256 of those that this process has verified. ``contacts`` returns what is new about reaching the sites."""

    store: ObjectStore
    aggregation: AggregationProcess
    connector: Callable[[SiteView], Connector]
    trainer: Trainer
    spool: Path
    secret: bytes
    public_url: str
    url_lifetime: timedelta
    errands: Errands
    pace: Pace
    contacts: Callable[[], Mapping[str, Contact]] = dict
    counted: dict[Path, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """What an attempt delivered. ``refused``: it must not be used, and the same would come again. ``damaged``: it
    did not arrive as announced; another attempt may do better. Both empty: it is good, as far as it goes."""

    manifest: Manifest | None = None
    admission: Admission | None = None
    refused: str = ""
    damaged: str = ""


@dataclass(frozen=True)
class Answer:
    """A site's answer about a run. ``has_delivered``: its manifest is there, whatever the site says."""

    status: RunStatus
    has_delivered: bool = False


def _kind(s: Snapshot) -> Kind:
    return Kind.EVALUATE if s.round.is_evaluation else Kind.TRAIN


def _key(attempt: AttemptView, tools: Tools) -> str:
    return attempt_key(site_key(tools.secret, attempt.site.slug), attempt.run)


def check(site: SiteView, tools: Tools) -> CheckReport:
    return tools.connector(site).check()


# --- before the start -----------------------------------------------------------------------------


def publish(s: Snapshot, attempt: AttemptView, dataset: str, tools: Tools) -> dict[str, Any]:
    """Put the signed job of an attempt into the store; return what is needed to complete its uploads later."""
    prefix, lifetime, store = s.prefix(attempt), _lifetime(s, tools), tools.store

    def fetch(key: str, sha256: str, size: int) -> Fetch:
        return Fetch(url=store.presign_get(key, lifetime), sha256=sha256, size=size)

    update = optimizer_out = optimizer_in = None
    if not s.round.is_evaluation:
        update = store.open_upload(f"{prefix}/{UPDATE_NAME}", s.model.size + ROOM, lifetime)
        if s.plan.optimizer.treatment == "aggregate":
            hint = OPTIMIZER_ROOM * s.model.size + ROOM
            optimizer_out = store.open_upload(f"{prefix}/{OPTIMIZER_NAME}", hint, lifetime)
            if s.model.server_state_key:
                optimizer_in = fetch(s.model.server_state_key, s.model.server_state_sha256, s.model.server_state_size)
    spec = JobSpec(
        kind=_kind(s),
        run=attempt.run,
        experiment=s.key,
        round=s.round.number,
        site=attempt.site.slug,
        attempt=attempt.number,
        dataset=dataset,
        plan=s.plan,
        model=fetch(s.model.key, s.model.sha256, s.model.size),
        manifest=Put(url=store.presign_put(f"{prefix}/{MANIFEST_NAME}", lifetime)),
        log=Put(url=store.presign_put(f"{prefix}/{LOG_NAME}", lifetime)),
        update=update,
        optimizer_in=optimizer_in,
        optimizer_out=optimizer_out,
        metrics_url=f"{tools.public_url}/api/runs/{attempt.run}/metrics",
        case_key=case_key(tools.secret, s.family or s.key),
        held_out=s.held_out,
        subjects=tuple(
            Subject(subject.name, tuple(fetch(model.key, model.sha256, model.size) for model in subject.models))
            for subject in s.subjects
        ),
        expires_at=(s.now + lifetime).timestamp(),
    )
    data = signed(spec.to_json(), _key(attempt, tools))
    store.put_bytes(f"{prefix}/{SPEC_NAME}", data, content_type="application/json")
    if attempt.site.connector in AT_HAND:
        spool.leave(s, attempt, SPEC_NAME, data, tools)
    return {"published": True, UPDATE_NAME: _remembered(update), OPTIMIZER_NAME: _remembered(optimizer_out)}


def _lifetime(s: Snapshot, tools: Tools) -> timedelta:
    """Return how long presigned addresses of a round work: a run may begin late in it, after somebody's confirmation."""
    return max(tools.url_lifetime, s.deadline + timedelta(hours=1))


def _remembered(put: Put | None) -> dict[str, Any]:
    """What completing an upload needs. The presigned URLs are capabilities and stay out of the database."""
    if put is None or not put.upload_id:
        return {}
    return {"upload_id": put.upload_id, "part_size": put.part_size, "parts": len(put.part_urls)}


def _recalled(remembered: dict[str, Any]) -> Put:
    if not remembered:
        return Put()
    return Put(
        part_urls=("",) * int(remembered["parts"]),
        part_size=int(remembered["part_size"]),
        upload_id=str(remembered["upload_id"]),
    )


def launch(s: Snapshot, attempt: AttemptView, before: Sequence[AttemptView], tools: Tools) -> bool:
    """End what may still run of earlier attempts, then start this one. False: it was running already."""
    connector = tools.connector(attempt.site)
    for old in before:
        connector.cancel(old.run)
    spec_url = tools.store.presign_get(f"{s.prefix(attempt)}/{SPEC_NAME}", _lifetime(s, tools))
    dataset = next(p.dataset for p in s.participants if p.site.id == attempt.site.id)
    if attempt.site.connector in AT_HAND:
        spool.lend(s, tools)
    return connector.launch(LaunchTicket(attempt.run, spec_url, _key(attempt, tools), dataset, _kind(s)))


# --- while it runs --------------------------------------------------------------------------------


def ask(s: Snapshot, attempt: AttemptView, tools: Tools) -> Answer:
    """Ask the site how the run is. When it says that it is over, look once more for the manifest: the commit counts."""
    status = tools.connector(attempt.site).poll(attempt.run)
    if not status.state.is_over:
        return Answer(status)
    is_left = _left_manifest(s, attempt, tools) is not None
    return Answer(status, is_left or tools.store.exists(f"{s.prefix(attempt)}/{MANIFEST_NAME}"))


def arrived(s: Snapshot, attempts: Sequence[AttemptView], tools: Tools) -> frozenset[str]:
    """Return the names of those runs whose manifests are in the store. One question for all of them.

    A run of this machine that is over has put its manifest or never will. One that works is asked about now and then
    only: it may stand still after its manifest, which is the commit.
    """
    states = {attempt.run: _state_at_hand(attempt, tools) for attempt in attempts}
    asked = [a for a in attempts if states[a.run] is None or (not states[a.run].is_over and _is_to_be_asked(a, tools))]
    runs = {f"{s.prefix(attempt)}/{MANIFEST_NAME}": attempt.run for attempt in asked}
    found = tools.store.list(f"{round_prefix(s.key, s.round.number)}/") if runs else ()
    over = {run for run, state in states.items() if state is not None and state.is_over}
    return frozenset(over | {runs[key] for key in found if key in runs})


def _is_to_be_asked(attempt: AttemptView, tools: Tools) -> bool:
    key = ("manifest", attempt.run)
    is_due, is_known = tools.pace.is_due(key), tools.pace.is_known(key)
    if is_due:
        tools.pace.heard(key, first=PEEK, longest=4 * PEEK)
    return is_due and is_known


def has_sign(s: Snapshot, tools: Tools, known: set[str]) -> bool:
    """Say whether a run has ended at a site that can be asked for nothing. ``known`` remembers those told before."""
    ended = []
    for run in s.site_runs:
        if run.is_over or run.current is None or run.attempt.run in known:
            continue
        state = _state_at_hand(run.attempt, tools)
        # The snapshot may be from just before the start: then a run that is not there yet is no news.
        if state is not None and state.is_over and (run.is_at_site or state is not RunState.LOST):
            ended.append(run.attempt.run)
    known.update(ended)
    tools.pace.forget(*(("poll", name) for name in ended))
    return bool(ended)


def _state_at_hand(attempt: AttemptView, tools: Tools) -> RunState | None:
    """Return the state of a run at a site that can be asked for nothing; ``None`` where that is not so."""
    if attempt.site.connector not in AT_HAND:
        return None
    try:
        return tools.connector(attempt.site).poll(attempt.run).state
    except Exception:  # a hint, no more: the next regular question tells what is wrong
        return None


def read_log(attempt: AttemptView, tools: Tools) -> LogChunk:
    return tools.connector(attempt.site).logs(attempt.run, offset=attempt.log_offset)


def cancel(attempt: AttemptView, tools: Tools) -> None:
    tools.connector(attempt.site).cancel(attempt.run)


# --- what it delivers -----------------------------------------------------------------------------


def fetch_delivery(s: Snapshot, attempt: AttemptView, tools: Tools) -> Delivery | None:
    """Fetch manifest and update of an attempt and judge them. ``None``: there is no manifest yet."""
    try:
        manifest = manifest_of(s, attempt, tools)
    except ObjectMissing:
        return None
    except (ObjectDamaged, ContractError) as error:
        return Delivery(refused=f"The manifest cannot be used: {error}.")
    kind = _kind(s)
    theirs = (manifest.run, manifest.experiment, manifest.round, manifest.site, manifest.attempt, manifest.kind)
    if theirs != (attempt.run, s.key, s.round.number, attempt.site.slug, attempt.number, kind):
        return Delivery(refused=f"The manifest is that of another run ({manifest.run}).")
    if manifest.exit_code != 0:
        return Delivery(manifest)
    if s.round.is_evaluation:
        return Delivery(manifest, refused=_why_not_these_cases(s, manifest))
    return _judge(s, attempt, manifest, tools)


def manifest_of(s: Snapshot, attempt: AttemptView, tools: Tools) -> Manifest:
    """Return an attempt's manifest, verified, from the shelf or else from the store.

    Raises :class:`ObjectMissing`, :class:`ObjectDamaged` or ``ContractError``.
    """
    document = _left_manifest(s, attempt, tools)
    if document is None:
        document = verified(tools.store.get_bytes(f"{s.prefix(attempt)}/{MANIFEST_NAME}"), _key(attempt, tools))
    return manifest_from_json(document)


def _left_manifest(s: Snapshot, attempt: AttemptView, tools: Tools) -> dict[str, Any] | None:
    """Return the manifest that a run on this machine has left on the shelf, if it is genuine."""
    left = spool.read(s, attempt, MANIFEST_NAME, tools) if attempt.site.connector in AT_HAND else None
    if left is not None:
        with suppress(ContractError):
            return verified(left, _key(attempt, tools))
    return None


def _why_not_these_cases(s: Snapshot, manifest: Manifest) -> str:
    """Return why the scores of an evaluation's cases cannot be used; empty when they can.

    A comparison needs every model at every case. The final evaluation of a run does without cases, where a trainer tells none.
    """
    subjects = {INCOMING_SUBJECT, *(subject.name for subject in s.subjects)}
    regions = {region.name for region in s.plan.task.regions}
    told = [(score.subject, score.case, score.name) for score in manifest.cases]
    strange = {subject for subject, _, _ in told} - subjects
    strange |= {case for _, case, _ in told} - set(manifest.held_out)
    strange |= {region for score in manifest.cases for region in score.values} - regions
    if strange:
        return f"It measured what it was not asked for: {', '.join(sorted(strange))[:200]}."
    if len(set(told)) != len(told):
        return "It measured a case twice."
    if s.kind != "cross_site":
        return ""
    names = {name for _, _, name in told} | {"dice"}
    wanted = {(subject, case, name) for subject in subjects for case in manifest.held_out for name in names}
    if not manifest.held_out or wanted - set(told):
        return "It did not measure every model at every case. Its trainer may be older than the portal: update it."
    if s.tested and not set(s.tested) & set(manifest.held_out):
        return "None of the cases that it holds out now was held out when the models were trained."
    return ""


def _judge(s: Snapshot, attempt: AttemptView, manifest: Manifest, tools: Tools) -> Delivery:
    if manifest.update is None:
        return Delivery(manifest, refused="The training delivered no update.")
    if manifest.update.size > s.model.size + ROOM:
        return Delivery(manifest, refused=f"The update has {manifest.update.size} bytes, the model {s.model.size}.")
    if manifest.train_cases < 1:
        return Delivery(manifest, refused="The site says that it trained on no case.")
    if manifest.cases:
        return Delivery(manifest, refused="It tells the scores of single cases, which nobody asked for.")
    wanted = [(UPDATE_NAME, manifest.update)]
    if s.plan.optimizer.treatment == "aggregate":
        if manifest.optimizer is None or manifest.optimizer.size > OPTIMIZER_ROOM * s.model.size + ROOM:
            return Delivery(manifest, refused="The training delivered no usable optimizer state.")
        wanted.append((OPTIMIZER_NAME, manifest.optimizer))
    try:
        for name, stored in wanted:
            key = f"{s.prefix(attempt)}/{name}"
            tools.store.close_upload(key, _recalled(dict(attempt.upload.get(name) or {})), stored.etags)
            spool.fetch(key, spool.spooled(s, attempt, name, tools), stored, tools)
        reference = spool.model_file(s, s.model, tools)
    except (ObjectDamaged, ObjectMissing) as error:
        return Delivery(manifest, damaged=f"The update did not arrive whole: {error}.")
    try:
        return Delivery(manifest, *_verdict(s, attempt, reference, tools))
    except AggregationFailed as error:
        # Whatever it is in this update that kills the judge must not end the whole experiment.
        return Delivery(manifest, damaged=f"The update could not be judged: {error.reason}")


def _verdict(s: Snapshot, attempt: AttemptView, reference: Path, tools: Tools) -> tuple[Admission, str]:
    """Judge a fetched update; return the admission and why it is refused (empty: it is not)."""
    update = spool.spooled(s, attempt, UPDATE_NAME, tools)
    admission = tools.aggregation.admit(update, reference, max_relative_norm=s.max_relative_norm)
    refused = "" if admission.admitted else admission.reason
    if not refused and s.plan.optimizer.treatment == "aggregate":
        refused = _judge_optimizer(s, attempt, reference, tools)
    return admission, refused


def _judge_optimizer(s: Snapshot, attempt: AttemptView, reference: Path, tools: Tools) -> str:
    """Return why an optimizer state must not be averaged. Which entries it has follows from the model (decision 0108)."""
    state = spool.spooled(s, attempt, OPTIMIZER_NAME, tools)
    verdict = tools.aggregation.admit_state(state, reference, s.plan.optimizer.entries)
    return "" if verdict.admitted else f"The optimizer state cannot be used: {verdict.reason}"
