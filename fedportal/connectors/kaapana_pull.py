"""Reach a Kaapana that nobody can reach: it polls the portal, as Kaapana's own federation does.

Nothing here talks to a hospital. The connector puts jobs into a queue, and the relay hands them out when the site asks
for them (``fedportal/relay``). What it knows of a run is what the site has reported.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from fedportal.connectors.base import CheckReport, DatasetReport, LogChunk, RunState, RunStatus
from fedportal.connectors.checking import Remark, code_step, dataset_report, dataset_step, take_steps
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.fields import Configured, Field, SiteContext, Unfit
from fedportal.connectors.job_queue import JobQueue, JobState, Look, QueuedJob, Sighting
from trainer.contract import CONTRACT_VERSION, LaunchTicket
from trainer.contract.code import code_digest

SILENT_AFTER = 60.0
"""Seconds without a poll after which a site counts as silent. Kaapana polls every 5 s (``REMOTE_SYNC_INTERVAL``)."""
MOST_SKEW = 300.0
"""Seconds that a site's clock may be off. Presigned addresses tell the time, too: S3 refuses from 15 minutes on."""
OLD_REPORT = 2 * 86_400.0
"""Seconds after which what a site's trainer has reported is remarked on; it is asked for every half day."""
CANCEL_PATIENCE = 8.0
"""Seconds in which a cancelled run is expected to be confirmed; one poll and a report take about five."""
LOOK_EVERY = 0.2
CHECK_DAG = "fp-check"
NO_FERNET = "deactivated"
"""Kaapana's word for files that are not encrypted with Fernet on top of TLS."""

_INSTANCE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?\Z")
_FERNET = re.compile(r"[A-Za-z0-9_-]{43}=\Z")
UPDATE = "Build the extension of the portal's version and install it at the site; docs/kaapana.md says how."
_DAG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")


class KaapanaPullConnector(Configured):
    """A Kaapana that polls the portal.

    ``project``: the site's project object, which its operators need in every conf. ``dag``: carries out all kinds of runs.
    """

    TITLE = "Kaapana behind a firewall (it polls the portal)"
    SUMMARY = (
        "The hospital's Kaapana asks the portal for work, as in Kaapana's own federation. Nothing is opened towards "
        "the hospital, and the portal holds no login of it."
    )
    FIELDS = (
        Field(
            "definition",
            "Definition of the site",
            "In the hospital's Kaapana, Instance overview: “copy definition” of the local instance, pasted here.",
            kind="json",
            parts=(
                Field("instance_name", "Instance name", "The name under which the site polls.", unique=True),
                Field("host", "Host", "The site's host name, for people only: the portal never calls it."),
                Field("port", "Port", "The site's port.", kind="number", default=443, least=1, most=65535),
                Field("token", "Token of the site", "Not used: the portal never calls the site.", kind="secret", required=False),
                Field("fernet_key", "Fernet key of the site", "“deactivated”, or the key it seals files with.", kind="secret", required=False),
                Field("ssl_check", "Verify TLS", "Not used: the portal never calls the site.", kind="flag", required=False, default=True),
            ),
        ),
        Field(
            "project",
            "Project",
            "The site's project as its /aii/projects/<name> shows it (JSON): Kaapana's operators need it in every run.",
            placeholder='{"id": "…", "name": "admin", "s3_bucket": "project-admin", …}',
        ),
        Field("portal_token", "Token of the portal", "What the site shows when it polls.", kind="secret", issued=True),
        Field("dag", "DAG", "The installed DAG that carries out runs.", required=False, default="fp-train", advanced=True),
    )  # fmt: skip
    IS_CALLED = False
    HANDOUT = (
        "In the hospital's Kaapana open Instance overview, Add remote instance, and paste this definition. It holds "
        "the token that only this site may use. Then allow the DAGs and datasets, and switch on “Automatically sync "
        "remotes”."
    )
    KIND: ClassVar[str] = "kaapana-pull"

    def __init__(
        self,
        queue: JobQueue,
        *,
        portal_url: str = "",
        project: Mapping[str, Any] | None = None,
        dag: str = "fp-train",
        patience: float = CANCEL_PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._portal_url = portal_url
        self._project = dict(project or {})
        self._dag = dag
        self._patience = patience
        self._clock = clock

    @classmethod
    def clean_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
        if not _INSTANCE.match(str(config.get("instance_name", ""))):
            raise Unfit("definition", "The instance name has at most 64 letters, digits, dots and hyphens.")
        fernet_key = secrets.get("fernet_key", "")
        if fernet_key not in ("", NO_FERNET) and not _FERNET.match(fernet_key):
            raise Unfit("definition", "The Fernet key is neither “deactivated” nor a key of 44 characters.")
        if not _DAG.match(str(config.get("dag") or "fp-train")):
            raise Unfit("dag", "A DAG has lower-case letters, digits and hyphens in its name.")
        read_project(config.get("project"))
        return dict(config)

    @classmethod
    def handout(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> dict[str, Any]:
        """Return the portal's definition in the shape that Kaapana copies and pastes."""
        parts = urlsplit(site.portal_url)
        return {
            "instance_name": portal_name(site.portal_url),
            "host": parts.hostname or "",
            "port": parts.port or 443,
            "token": secrets["portal_token"],
            "fernet_key": NO_FERNET,
            "ssl_check": True,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> Self:
        if site.queue is None:
            raise ValueError("a polling site needs the portal's queue of jobs")
        return cls(
            site.queue,
            portal_url=site.portal_url,
            project=read_project(config.get("project")),
            dag=str(config.get("dag") or "fp-train"),
        )

    # --- runs --------------------------------------------------------------------------------------

    def launch(self, ticket: LaunchTicket) -> bool:
        # The key stays here: what travels in a conf is stored and shown by schedulers.
        job = {"run": ticket.run, "spec_url": ticket.spec_url, "dataset": ticket.dataset, "contract": CONTRACT_VERSION}
        conf: dict[str, Any] = {"fedportal": job, "workflow_form": {"username": "fedportal"}}
        if self._project:
            conf["project_form"] = self._project
        return self._queue.put(ticket.run, dag_id=self._dag, conf=conf, dataset=ticket.dataset)

    def poll(self, run: str) -> RunStatus:
        job = self._queue.job(run)
        if job is None:
            return RunStatus(RunState.LOST, message="The portal has no job of this name for the site.")
        if job.state.is_over:
            return _ended(job)
        seen = self._queue.sighting()
        if seen.silent_for is None or seen.silent_for > SILENT_AFTER:
            raise SiteUnreachable(
                f"The site does not poll ({_last_poll(seen)}).",
                remedy=f"Kaapana must be on, sync automatically, and reach {self._portal_url} over HTTPS.",
            )
        if job.state is JobState.RUNNING:
            return RunStatus(RunState.RUNNING)
        return RunStatus(RunState.WAITING, message=_why_waiting(job.state, seen))

    def cancel(self, run: str) -> None:
        self._queue.cancel(run)
        end = self._clock() + self._patience
        while (job := self._queue.job(run)) is not None and not job.state.is_over:
            if self._clock() > end:
                raise SiteUnreachable(
                    "The site has not confirmed the end of the run yet.",
                    remedy="Abort it in Kaapana's workflow list if it goes on.",
                )
            time.sleep(LOOK_EVERY)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        return self._queue.log(run, offset=offset)

    # --- check -------------------------------------------------------------------------------------

    def check(self) -> CheckReport:
        """Report what the site's polls and its last run of ``fp-check`` told. Nothing is waited for: where there is no
        report yet, one is asked for, and its arrival brings the next check."""
        seen = self._queue.sighting()
        report: dict[str, Any] = {}
        datasets: list[DatasetReport] = []

        def trainer() -> str:
            look = self._queue.look(self._portal_url)
            report.update(look.report)
            return _trainer(look, seen)

        def described() -> str:
            datasets.extend(dataset_report(entry) for entry in report["datasets"])
            return dataset_step(datasets, remedy="Prepare one at the site (fp-offer).", series=seen.datasets)

        steps = take_steps(
            ("Poll", lambda: self._polls(seen)),
            ("Automatic sync", lambda: _syncs(seen)),
            ("Clock", lambda: _clock(seen)),
            ("DAG", lambda: self._allows(seen)),
            ("Trainer", trainer),
            ("Code", lambda: code_step(str(report.get("code") or ""), code_digest(), what="trainer", remedy=UPDATE)),
            ("Object store", lambda: _store(report)),
            ("Datasets", described),
        )
        versions = dict(report.get("versions") or {})
        return CheckReport(
            steps=steps,
            version=" · ".join(f"{name} {value}" for name, value in versions.items()),
            datasets=tuple(datasets),
            facts={
                "silent_for": None if seen.silent_for is None else round(seen.silent_for, 1),
                "allowed_dags": list(seen.dags),
                "allowed_datasets": dict(seen.datasets),
                "automatic_start": seen.starts_by_itself,
                "clock_skew": seen.skew,
                "protocol": seen.dialect,
                "agent": seen.agent,
                **{name: report[name] for name in ("cpus", "gpus", "free_bytes") if name in report},
            },
        )

    def _polls(self, seen: Sighting) -> str:
        if seen.silent_for is None:
            raise SiteRefused(
                "The site has never polled.",
                remedy="Paste the portal's definition into the site's Kaapana, and let it reach "
                f"{self._portal_url} over HTTPS.",
            )
        if seen.silent_for > SILENT_AFTER:
            raise SiteUnreachable(
                f"The site does not poll any more: {_last_poll(seen)}.",
                remedy="See whether Kaapana is up, syncs automatically, and has the portal's present definition.",
            )
        return f"{_last_poll(seen).capitalize()}."

    def _allows(self, seen: Sighting) -> str:
        missing = [dag for dag in (self._dag, CHECK_DAG) if dag not in seen.dags]
        if not missing:
            return f"The site allows {self._dag} and {CHECK_DAG}."
        others = f" (allowed: {', '.join(seen.dags)})" if seen.dags else ""
        raise SiteRefused(
            f"The site does not allow {' and '.join(missing)}{others}.",
            remedy="Install the fedportal extension, then tick its DAGs under Allowed DAGs of the local instance.",
        )


def portal_name(portal_url: str) -> str:
    """Return the instance name of the portal: what sites store it as, and what its answers say."""
    return (urlsplit(portal_url).hostname or "fedportal")[:64]


def read_project(text: Any) -> dict[str, Any]:
    """Return a project object that was given as JSON text; raise :class:`Unfit` for anything else. Empty: none."""
    if isinstance(text, Mapping):
        text = json.dumps(dict(text))
    if not str(text or "").strip():
        return {}
    try:
        project = json.loads(str(text))
    except ValueError as error:
        raise Unfit("project", "This is not JSON.") from error
    if not isinstance(project, dict) or not {"id", "name"} <= project.keys():
        raise Unfit("project", "A project object with at least id and name is expected.")
    return project


def _ended(job: QueuedJob) -> RunStatus:
    words = f" The site says: {job.message}" if job.message else ""
    if job.state is JobState.FINISHED:
        return RunStatus(RunState.SUCCEEDED, exit_code=0)
    if job.is_cancelled:
        return RunStatus(RunState.CANCELLED, message="The run was cancelled.")
    if job.state is JobState.DELETED:
        return RunStatus(RunState.LOST, message=f"The run was deleted at the site.{words}")
    if job.state is JobState.ABORTED:
        return RunStatus(RunState.FAILED, message=f"The run was aborted at the site.{words}")
    return RunStatus(RunState.FAILED, message=f"The run failed at the site; its Kaapana has the log.{words}")


def _why_waiting(state: JobState, seen: Sighting) -> str:
    if state is JobState.QUEUED:
        if not seen.polls_by_itself:
            return "It waits until somebody at the site presses “sync remotes”."
        return "It waits for the site's next poll."
    if state is JobState.PENDING and not seen.starts_by_itself:
        return "It waits for the steward's confirmation in the site's Kaapana (workflow list, start)."
    if state is JobState.PENDING:
        return "The site has it and is about to start it."
    return "It waits for a free place in the site's Airflow."


def _last_poll(seen: Sighting) -> str:
    if seen.silent_for is None:
        return "it never has"
    seconds = int(seen.silent_for)
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (unit != "days" and seconds >= size):
            return f"last poll {seconds // size} {unit} ago"
    return f"last poll {seconds} s ago"


def _syncs(seen: Sighting) -> str:
    if not seen.polls_by_itself:
        raise SiteRefused(
            "The site polls only when somebody presses “sync remotes”.",
            remedy="Switch on “Automatically sync remotes” of the local instance in Kaapana.",
        )
    starts = "starts runs by itself" if seen.starts_by_itself else "starts each run after a steward's confirmation"
    return f"The site polls by itself and {starts}."


def _clock(seen: Sighting) -> str:
    if seen.skew is None:
        return "The site sends no time with its polls."
    ahead = "ahead of" if seen.skew > 0 else "behind"
    words = f"The site's clock is {abs(seen.skew):.0f} s {ahead} the portal's."
    if abs(seen.skew) > MOST_SKEW:
        raise SiteRefused(
            words, remedy="Let the site set its clock by NTP: presigned addresses are not valid for a wrong one."
        )
    return words


def _trainer(look: Look, seen: Sighting) -> str:
    if not look.report:
        job = look.job
        if job is not None and job.state.is_over:
            raise SiteRefused(
                f"The site's trainer could not report: {_ended(job).message or 'its report cannot be read.'}",
                remedy="See the log of fp-check in the site's Kaapana; the trainer needs the site's key and the "
                "object store.",
            )
        why = _why_waiting(job.state, seen) if job is not None and job.state is not JobState.RUNNING else "It runs."
        raise SiteUnreachable(
            f"The site's trainer has not reported yet. {why}",
            remedy="A steward may have to confirm fp-check in Kaapana's workflow list; otherwise it is a matter of "
            "a minute.",
        )
    versions = dict(look.report["versions"])
    if str(versions.get("contract")) != str(CONTRACT_VERSION):
        raise SiteRefused(
            f"The trainer speaks contract {versions.get('contract')}, the portal {CONTRACT_VERSION}.",
            remedy="Update the fedportal extension at the site.",
        )
    if problems := look.report.get("problems"):
        raise SiteRefused(" ".join(map(str, problems)), remedy="Mend it at the site.")
    text = f"Trainer of contract {versions['contract']} with torch {versions.get('torch')}."
    if look.age > OLD_REPORT:
        raise Remark(
            f"{text} That was {look.age / 86_400:.0f} days ago.",
            remedy="See fp-check in Kaapana's workflow list: a steward may have to confirm it.",
        )
    return text


def _store(report: Mapping[str, Any]) -> str:
    trip = report.get("store")
    if not trip:
        return "The site's report reached the object store."
    if not trip["ok"]:
        raise SiteRefused(
            f"The site's trainer does not reach the object store: {trip['error']}.",
            remedy="Let the training pods reach it over HTTPS (egress label, proxy, certificate).",
        )
    megabits = [trip["bytes"] * 8e-6 / max(trip[way], 1e-6) for way in ("down_s", "up_s")]
    return f"Fetched and put {trip['bytes'] // 1024} KiB: {megabits[0]:.0f} Mbit/s down, {megabits[1]:.0f} up."
