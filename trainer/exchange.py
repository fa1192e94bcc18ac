"""One attempt at a site: pull → work → push.

The spec is fetched and its signature verified, the global model fetched and verified, the work done, the update
put (already while the work measures it), then the log, and *last of all* the manifest: its existence is the commit.
When anything fails after the spec was readable, a manifest still tells the portal what and why.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.contract import (
    CONTRACT_VERSION,
    MANIFEST_NAME,
    SPEC_NAME,
    ContractError,
    Exit,
    JobSpec,
    Kind,
    Manifest,
    Stored,
    attempt_key,
    metrics_token,
    on_shelf,
    shelf_of,
    signed,
    spec_from_json,
    verified,
)
from trainer.delivery import Delivery
from trainer.failures import is_disk_full, is_out_of_memory
from trainer.job import Deliver, Fault, Member, Outcome, Report, Site
from trainer.relay import Relay
from trainer.reporting import Log, Reporter
from trainer.shelf import Shelf
from trainer.transfer import Courier

SITE_KEY = "FEDPORTAL_SITE_KEY"
"""The variable in which a site keeps its key (hex)."""

FAREWELL_PATIENCE = 30.0
"""Seconds for telling the portal about a failure; the site's exit.json tells it anyway."""

MOST_LOG = 8 * 1024 * 1024
"""Bytes of the log that travel, its last ones; all of it stays at the site."""

_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_RUN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")


@dataclass(frozen=True)
class Job:
    """How a run is started: the launch ticket, and what the site's administrator decided."""

    run: str
    spec_url: str
    key: str
    site: Site
    shelf: Path | None = None
    """The round's folder in which the portal, on this machine, leaves objects and looks for them; ``None``: it is
    elsewhere."""

    @property
    def folder(self) -> Path:
        return self.site.run_dir(self.run)


def job_from_json(document: Any) -> Job:
    """Read the job as the launcher passes it. Raises :class:`Fault` BAD_JOB for anything else."""
    try:
        run, key = str(document["run"]), str(document.get("key") or "")
        if not _RUN.match(run):
            raise ValueError("run is not a lower-case DNS label")
        key = key or attempt_key(_site_key(), run)
        bytes.fromhex(key)
        return Job(
            run=run,
            spec_url=str(document["spec_url"]),
            key=key,
            site=Site(
                data_root=Path(document["data_root"]),
                work_dir=Path(document["work_dir"]),
                threads=int(document.get("threads") or 0),
                pool=tuple(Member.from_json(member) for member in document.get("pool") or ()),
            ),
            shelf=Path(document["shelf"]) / shelf_of(run) if document.get("shelf") else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Fault(Exit.BAD_JOB, f"The launcher's job is not valid: {error}.") from error


def _site_key() -> bytes:
    """Return the key that this site keeps itself, for jobs that come without one."""
    text = os.environ.get(SITE_KEY, "").strip()
    if not text:
        raise ValueError(f"it has no key, and {SITE_KEY} is not set at this site")
    return bytes.fromhex(text)


@dataclass(frozen=True)
class Inputs:
    """What the work gets: the verified spec, the fetched files, the site, the run's folder, whom to tell, how to deliver.

    ``subjects``: the models of each subject of an evaluation, by the subject's name."""

    spec: JobSpec
    site: Site
    folder: Path
    model: Path
    optimizer: Path | None
    report: Report
    deliver: Deliver
    subjects: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


Work = Callable[[Inputs], Outcome]


def train_or_evaluate(inputs: Inputs) -> Outcome:
    """Do the work that the spec names."""
    # Imported here: torch and MONAI cost seconds, which a job that cannot start should not.
    spec = inputs.spec
    if spec.kind is Kind.EVALUATE:
        from trainer.evaluate import evaluate

        return evaluate(spec, site=inputs.site, model=inputs.model, subjects=inputs.subjects, report=inputs.report)
    from trainer.train import train

    return train(
        spec,
        site=inputs.site,
        run_dir=inputs.folder,
        model=inputs.model,
        optimizer=inputs.optimizer,
        report=inputs.report,
        deliver=inputs.deliver,
    )


@dataclass
class _Ledger:
    """What a run has done so far; becomes the manifest."""

    outcome: Outcome = field(default_factory=Outcome)
    update: Stored | None = None
    optimizer: Stored | None = None
    seconds: dict[str, float] = field(default_factory=dict)


def exchange(
    job: Job, *, log: Log, settle: Callable[[Exit, str], None], work: Work = train_or_evaluate, patience: float = 900.0
) -> Exit:
    """Carry out the job and return its exit code.

    ``settle`` is told code and message once the manifest is in the store and before the portal is woken.
    """
    courier = Courier(
        patience=patience,
        say=lambda message: log.say(message, level="warning"),
        relay=Relay.from_environment(job.run, job.key),
    )
    courier.shelf = Shelf(job.shelf)
    try:
        spec = _read_spec(job, courier)
    except Exception as error:
        # Nothing in an unverified spec may be used, not even its address for a manifest.
        code, message = _explained(error, log)
        settle(code, message)
        return code
    report = Reporter(
        spec.run,
        log=log,
        url=spec.metrics_url,
        token=metrics_token(job.key),
        unwanted=end_this_process,
    )
    ledger = _Ledger()
    try:
        _pull_work_push(spec, job, ledger, courier, report, work)
        code, message = Exit.OK, "Finished."
        log.say("the result is in the object store")
    except Exception as error:
        code, message = _explained(error, log)
        courier.patience = min(courier.patience, FAREWELL_PATIENCE)
    try:
        if job.shelf is None:  # a portal on this machine reads the log where it is
            _push_log(spec, job, courier)
        manifest = signed(_manifest(spec, ledger, report, code, message).to_json(), job.key)
        courier.put(spec.manifest, manifest, "the manifest")
        courier.shelf.write(on_shelf(spec.run, MANIFEST_NAME), manifest)
        # a portal on this machine sees the end of the run itself, and finds in the manifest what it was not told
        needs_telling = job.shelf is None
    except Exception as error:
        lost, reason = _explained(error, log)
        needs_telling = True
        if code is Exit.OK:  # without its manifest the result never happened; an earlier reason stays the reason
            code, message = lost, reason
    settle(code, message)
    if needs_telling:
        report.finish()
    return code


def end_this_process() -> None:
    """End this run as its scheduler would, with SIGTERM (see :mod:`trainer.run`)."""
    os.kill(os.getpid(), signal.SIGTERM)


def _read_spec(job: Job, courier: Courier) -> JobSpec:
    try:
        spec = spec_from_json(_read_document(job, courier))
    except ContractError as error:
        raise Fault(Exit.BAD_JOB, f"({error})") from error
    if spec.run != job.run:
        raise Fault(Exit.BAD_JOB, f"The job is that of {spec.run}, not of {job.run}.")
    return spec


def _read_document(job: Job, courier: Courier) -> dict[str, Any]:
    """Return the job, verified, from the shelf or else from the store."""
    lent = courier.shelf.read(on_shelf(job.run, SPEC_NAME))
    if lent is not None:
        with contextlib.suppress(ContractError):
            return verified(lent, job.key)
    try:
        return verified(courier.fetch_bytes(job.spec_url, "the job"), job.key)
    except ContractError as error:
        raise Fault(Exit.BAD_SIGNATURE) from error


def _pull_work_push(spec: JobSpec, job: Job, ledger: _Ledger, courier: Courier, report: Reporter, work: Work) -> None:
    if not _DATASET.match(spec.dataset):
        raise Fault(Exit.NO_DATASET, "Its name is not that of a folder.")
    folder = job.folder
    start = time.monotonic()
    report.say("fetching the global model", round=spec.round, bytes=spec.model.size)
    model = folder / "model.safetensors"
    courier.fetch(spec.model, model, "the global model")
    optimizer = None
    if spec.optimizer_in is not None:
        optimizer = folder / "optimizer-in.safetensors"
        courier.fetch(spec.optimizer_in, optimizer, "the optimizer's state")
    subjects = _fetch_subjects(spec, model, courier)
    ledger.seconds["pull"] = time.monotonic() - start

    delivery = Delivery(spec, courier, report)
    outcome = work(Inputs(spec, job.site, folder, model, optimizer, report, delivery.begin, subjects))
    ledger.outcome = outcome

    start = time.monotonic()
    if spec.kind is Kind.TRAIN:
        if outcome.update is None:
            raise Fault(Exit.UNEXPECTED, "The training returned no update.")
        ledger.update, ledger.optimizer = delivery.end(outcome.update, outcome.optimizer)
    ledger.seconds["push"] = time.monotonic() - start


def _fetch_subjects(spec: JobSpec, model: Path, courier: Courier) -> dict[str, tuple[Path, ...]]:
    """Fetch the models of the subjects into ``model``'s folder, each object once: many are part of an ensemble, too."""
    here = {spec.model.sha256: model}
    for source in (source for subject in spec.subjects for source in subject.models):
        if source.sha256 not in here:
            path = model.with_name(f"subject-{len(here)}.safetensors")
            courier.fetch(source, path, "a model to compare with")
            here[source.sha256] = path
    return {subject.name: tuple(here[source.sha256] for source in subject.models) for subject in spec.subjects}


def _push_log(spec: JobSpec, job: Job, courier: Courier) -> None:
    with (job.folder / "log.txt").open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_LOG))
        courier.put(spec.log, file.read(), "the log")


def _manifest(spec: JobSpec, ledger: _Ledger, report: Reporter, code: Exit, message: str) -> Manifest:
    outcome = ledger.outcome
    return Manifest(
        run=spec.run,
        experiment=spec.experiment,
        round=spec.round,
        site=spec.site,
        attempt=spec.attempt,
        kind=spec.kind,
        exit_code=int(code),
        message=message,
        train_cases=outcome.train_cases,
        validation_cases=outcome.validation_cases,
        steps=outcome.steps,
        # A failed run has no update, whatever part of it reached the store.
        update=ledger.update if code is Exit.OK else None,
        optimizer=ledger.optimizer if code is Exit.OK else None,
        metrics=report.for_manifest(),
        seconds={**{name: float(value) for name, value in outcome.seconds.items()}, **ledger.seconds},
        versions=versions(),
        held_out=outcome.held_out,
        cases=outcome.cases,
        copies=outcome.copies,
    )


@cache
def versions() -> Mapping[str, str]:
    """Return what this trainer is made of."""
    found = {"contract": str(CONTRACT_VERSION), "python": platform.python_version()}
    for package in ("torch", "monai"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def _explained(error: Exception, log: Log) -> tuple[Exit, str]:
    """Return code and sentence for what went wrong; the traceback goes into the log, for those who look."""
    fault = _as_fault(error)
    text = "".join(traceback.format_exception(error))
    log.say(fault.message, level="error", exit_code=int(fault.exit), traceback=text)
    return fault.exit, fault.message


def _as_fault(error: Exception) -> Fault:
    if isinstance(error, Fault):
        return error
    causes = _causes(error)
    if any(is_disk_full(cause) for cause in causes):
        return Fault(Exit.DISK_FULL)
    if any(is_out_of_memory(cause) for cause in causes):
        return Fault(Exit.OUT_OF_MEMORY)
    return Fault(Exit.UNEXPECTED, f"({type(error).__name__})")


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
