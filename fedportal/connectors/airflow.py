"""Reach a site by its Airflow: 2.x or 3.x, found out by asking.

A run of ours is a DAG run of the same name, so starting it again is answered with 409: a success. What this class
remembers saves questions only; after a restart it asks again.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from fedportal.connectors.airflow_api import Airflow, DagRun, TaskRun
from fedportal.connectors.airflow_check import AirflowCheck
from fedportal.connectors.airflow_v1 import AirflowV1
from fedportal.connectors.airflow_v2 import AirflowV2
from fedportal.connectors.base import CheckReport, LogChunk, RunState, RunStatus
from fedportal.connectors.checking import INSTALL
from fedportal.connectors.errors import SiteMisbehaved, SiteNotReady, SiteRefused, SiteUnreachable
from fedportal.connectors.fields import Configured, Field, SiteContext, Unfit
from fedportal.connectors.http import Http, why_refused
from trainer.contract import CONTRACT_VERSION, EXPLANATIONS, Exit, LaunchTicket

DAGS = ("fp-train", "fp-evaluate")
CANCELLED_NOTE = "Cancelled by the portal."
ENDED = '"exit_code"'
"""Stands in the trainer's last line, which it writes when the run's processes are gone."""
BEGUN = '"task begins"'
"""Stands in the trainer's first line. A task that was ended before it has nothing to end."""
SILENCE = 3.0
"""Seconds after which an ended task that has not said that it began is believed: its log, or its start, may come late."""
LOG_CHUNK = 256 * 1024
GRACE = 60.0
"""Seconds in which Airflow must take a cancel, and from then on seconds in which the run's processes must have ended:
tasks are told at their next heartbeat, which takes 1 to 6 s on a machine at rest and many times as long on a crowded one."""
LOOK_AGAIN = 0.5
PROBE_EVERY = 600.0
FRESH = 1.0
"""Seconds for which a list of the site's open runs answers for each of them."""
LISTED_FROM = 3
"""From so many open runs on, one list is cheaper than a question for each."""
FORGET_OPEN = 120.0
QUEUED_LONG = 10.0
"""Seconds after which we ask whether the scheduler is alive that does not start a run."""
KILLED = "The run failed at the site before the trainer could say why. Airflow's log of its task has more."
ENDED_THERE = "The run was ended at the site: its time was up, its Airflow was stopped, or somebody ended it."


class AirflowConnector(Configured):
    """One Airflow. ``url``: its base address with its whole path, without ``/api/…``."""

    TITLE = "Airflow"
    SUMMARY = (
        "The site runs Apache Airflow 2.11 or 3 and its web server can be reached from here. The portal starts DAG runs "
        "by the stable REST interface."
    )
    FIELDS = (
        Field(
            "url",
            "Address",
            "Address of Airflow's web server, with its path where it has one. Airflow 2 or 3 is found out.",
            kind="url",
            placeholder="https://airflow.hospital.example",
        ),
        Field("user", "User", "Name of the portal's user in this Airflow; the role Op has the rights that are needed."),
        Field("password", "Password", "Stored encrypted and never shown again.", kind="secret"),
        Field(
            "ca_certificate",
            "Certificate authority",
            "PEM text of the hospital's own authority, where its certificate is not from a public one.",
            kind="file",
            required=False,
            advanced=True,
        ),
    )

    def __init__(
        self,
        *,
        url: str,
        user: str,
        password: str,
        ca_certificate: str = "",
        site: SiteContext,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._url, self._user, self._password, self._ca_certificate = url.rstrip("/"), user, password, ca_certificate
        self._site, self._clock, self._sleep = site, clock, sleep
        self._lock = threading.Lock()
        self._api: Airflow | None = None
        self._probed_at = 0.0
        self._dag_of: dict[str, str] = {}
        self._ready: set[str] = set()
        self._asked: dict[str, float] = {}
        self._queued_since: dict[str, float] = {}
        self._listed: tuple[float, dict[str, DagRun]] = (float("-inf"), {})

    @classmethod
    def clean_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
        cleaned = {**config, "url": str(config["url"]).strip().rstrip("/")}
        for tail in ("/api/v1", "/api/v2", "/home"):
            cleaned["url"] = cleaned["url"].removesuffix(tail)
        if reason := why_refused(cleaned["url"]):
            raise Unfit("url", reason)
        return cleaned

    @classmethod
    def from_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> Self:
        return cls(
            url=config["url"],
            user=config["user"],
            password=secrets["password"],
            ca_certificate=str(config.get("ca_certificate") or ""),
            site=site,
        )

    # --- which Airflow -------------------------------------------------------------------------------

    def _airflow(self) -> Airflow:
        """Return the dialect that the site speaks, asked now and then: a site may be updated."""
        with self._lock:
            if self._api is None or self._clock() - self._probed_at > PROBE_EVERY:
                self._api, self._probed_at = self._probe(), self._clock()
            return self._api

    def _probe(self) -> Airflow:
        plain = Http(self._url, ca_certificate=self._ca_certificate)
        answer = plain.get("api/v2/version", pages=True)
        if answer.ok and not answer.is_html:
            return AirflowV2(plain, user=self._user, password=self._password)
        answer = plain.get("api/v1/version", pages=True)
        if answer.ok and not answer.is_html:
            login = (self._user, self._password)
            return AirflowV1(Http(self._url, ca_certificate=self._ca_certificate, auth=login, cookies=True))
        if self._api is not None:  # it was there: a proxy answers for it while it is away
            raise SiteUnreachable(
                "Airflow does not answer at its address any more.",
                remedy="Check that its web server runs, and the proxy before it.",
            )
        raise SiteMisbehaved(
            "There is no Airflow at this address.",
            remedy="Give the address of its web server with the whole path, e.g. https://hospital.example/flow.",
        )

    def _forget(self) -> None:
        with self._lock:
            self._probed_at = -math.inf

    # --- runs ----------------------------------------------------------------------------------------

    def launch(self, ticket: LaunchTicket) -> bool:
        airflow, dag_id = self._airflow(), f"fp-{ticket.kind}"
        if dag_id not in self._ready:
            self._require_ready(airflow, dag_id)
        conf = {"run": ticket.run, "spec_url": ticket.spec_url, "contract": CONTRACT_VERSION}
        self._dag_of[ticket.run] = dag_id
        started = airflow.trigger(dag_id, ticket.run, conf)
        if started is None:
            raise self._missing(airflow, dag_id)
        if not started and airflow.run(dag_id, ticket.run) is None:
            raise SiteMisbehaved(f"Airflow says that {ticket.run} exists already, and does not know it.")
        return started

    def poll(self, run: str) -> RunStatus:
        airflow = self._airflow()
        found = self._listed_as_open(airflow, run) or self._find(airflow, run)
        if found is None:
            return RunStatus(
                RunState.LOST, message="The run is not in the site's Airflow (any more): it was deleted there."
            )
        if found.state == "queued":
            return self._queued(airflow, run)
        self._queued_since.pop(run, None)
        if found.state == "running":
            return RunStatus(RunState.RUNNING)
        self._asked.pop(run, None)
        if found.note.startswith(CANCELLED_NOTE):
            return _cancelled()
        if found.state == "success":
            return RunStatus(RunState.SUCCEEDED, exit_code=int(Exit.OK), message=EXPLANATIONS[Exit.OK])
        return self._failed(airflow, run)

    def cancel(self, run: str) -> None:
        airflow = self._airflow()
        found = self._find(airflow, run)
        if found is None or (found.state not in ("queued", "running") and not found.note.startswith(CANCELLED_NOTE)):
            return
        # also when it was cancelled before: nobody knows whether that call waited until the processes were gone
        begin = self._clock()
        told = None if found.state in ("queued", "running") else begin
        end = begin + GRACE
        while True:
            is_late = self._clock() > end  # before the look: on a crowded machine one look takes longer than all of it
            try:
                if told is None:
                    airflow.fail(self._dag_of[run], run, CANCELLED_NOTE)
                    told = self._clock()
                    end, is_late = told + GRACE, False
                is_patient = self._clock() < told + SILENCE
                tasks = self._tasks(airflow, run)
                if not any(task.is_open for task in tasks):
                    log = self._log(airflow, run, tasks)
                    if ENDED in log or (BEGUN not in log and not is_patient):
                        return
                elif not is_patient:
                    # a task of Airflow 2 that was about to start overwrites what it was told, and runs
                    airflow.fail(self._dag_of[run], run, CANCELLED_NOTE)
                    told = self._clock()
            except SiteUnreachable:
                # it answers 500 when another of its processes wrote to the database first, and is told again
                if is_late:
                    raise
            if is_late:
                raise SiteMisbehaved(
                    f"Airflow was told to end {run}, and its processes go on.",
                    remedy="End the task in Airflow's web interface, or its process on the machine.",
                )
            self._sleep(LOOK_AGAIN)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        airflow = self._airflow()
        if run not in self._dag_of and self._find(airflow, run) is None:
            return LogChunk("", offset)
        data = self._log(airflow, run).encode()[offset : offset + LOG_CHUNK]
        while data and data[-1] & 0xC0 == 0x80 and not _is_whole(data):
            data = data[:-1]
        return LogChunk(data.decode(errors="replace"), offset + len(data))

    def check(self) -> CheckReport:
        self._forget()  # the site may have been updated from one generation to the next
        http = Http(self._url, ca_certificate=self._ca_certificate)
        return AirflowCheck(http, self._airflow, (*DAGS, "fp-check"), site=self._site).report()

    # --- how a run is found --------------------------------------------------------------------------

    def _find(self, airflow: Airflow, run: str) -> DagRun | None:
        known = self._dag_of.get(run)
        for dag_id in (known,) if known else DAGS:
            found = airflow.run(dag_id, run)
            if found is not None:
                self._dag_of[run] = dag_id
                return found
        return None

    def _listed_as_open(self, airflow: Airflow, run: str) -> DagRun | None:
        """Return the run out of a list of all open ones, where several are asked for at the same time."""
        with self._lock:
            now = self._clock()
            self._asked[run] = now
            self._asked = {name: at for name, at in self._asked.items() if now - at < FORGET_OPEN}
            if len(self._asked) < LISTED_FROM:
                return None
            if now - self._listed[0] > FRESH:
                self._listed = (now, {found.run_id: found for found in airflow.open_runs(DAGS)})
            return self._listed[1].get(run)

    def _queued(self, airflow: Airflow, run: str) -> RunStatus:
        since = self._queued_since.setdefault(run, self._clock())
        self._require_ready(airflow, self._dag_of.get(run, DAGS[0]))
        if self._clock() - since > QUEUED_LONG and (problem := airflow.health()):
            raise SiteNotReady(f"The run waits: {problem}", remedy="Start Airflow's scheduler again.")
        return RunStatus(RunState.WAITING, message="The site has queued it.")

    def _require_ready(self, airflow: Airflow, dag_id: str) -> None:
        """Raise what keeps a run of this DAG from starting: :class:`SiteRefused`, or a pause."""
        self._ready.discard(dag_id)
        dag = airflow.dag(dag_id)
        if dag is None or dag.broken:
            raise self._missing(airflow, dag_id)
        if dag.is_paused:
            # not a refusal: a pause is meant to end, and what waits for it goes on then
            raise SiteNotReady(
                f"The DAG {dag_id} is paused at the site. Switch it on in the site's Airflow.",
                remedy="Switch it on in the site's Airflow; what waits for it goes on then.",
            )
        contract = dag.tagged("contract-")
        if contract != str(CONTRACT_VERSION):
            raise SiteRefused(
                f"The site's trainer speaks contract {contract or 'unknown'}, the portal {CONTRACT_VERSION}.",
                remedy=f"Bring the older one up to date. {INSTALL}",
            )
        self._ready.add(dag_id)

    def _missing(self, airflow: Airflow, dag_id: str) -> SiteRefused:
        for file, reason in airflow.import_errors():
            if "fedportal" in file:
                return SiteRefused(f"The DAG {dag_id} is broken at the site: {reason}", remedy=f"Mend it. {INSTALL}")
        return SiteRefused(f"The site's Airflow has no DAG {dag_id}.", remedy=INSTALL)

    # --- how a run ended -----------------------------------------------------------------------------

    def _tasks(self, airflow: Airflow, run: str) -> list[TaskRun]:
        return airflow.tasks(self._dag_of.get(run, DAGS[0]), run)

    def _log(self, airflow: Airflow, run: str, tasks: Sequence[TaskRun] | None = None) -> str:
        dag_id = self._dag_of.get(run, DAGS[0])
        return "".join(
            airflow.log(dag_id, run, task.task_id, number)
            for task in (self._tasks(airflow, run) if tasks is None else tasks)
            for number in range(1, task.tries + 1)
        )

    def _failed(self, airflow: Airflow, run: str) -> RunStatus:
        self._ready.discard(self._dag_of.get(run, DAGS[0]))  # it may be the DAG's: the next start looks first
        lines = self._log(airflow, run).splitlines()
        for line in reversed(lines):
            try:
                entry = json.loads(line)
                code, message = int(entry["exit_code"]), str(entry["message"])
            except (ValueError, KeyError, TypeError):
                continue
            if code == Exit.CANCELLED:  # and not by us: the note would say so
                message = ENDED_THERE
            return RunStatus(RunState.FAILED, exit_code=code if code in set(Exit) else None, message=message)
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return RunStatus(RunState.FAILED, message=f"{KILLED} It ends with: {last[:300]}" if last else KILLED)


def _cancelled() -> RunStatus:
    return RunStatus(RunState.CANCELLED, exit_code=int(Exit.CANCELLED), message=EXPLANATIONS[Exit.CANCELLED])


def _is_whole(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.end != len(data)
    return True
