"""What the portal asks of an Airflow, the same for both generations; the dialects are ``airflow_v1`` and ``airflow_v2``."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from fedportal.connectors.errors import SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.http import Answer, Http

CHECK_LOGIN = "Check user and password at the site; the role Op has all rights that are needed."
OPEN = ("queued", "running")
ASKED_AT_ONCE = 100
CLOCKS_APART = timedelta(minutes=15)
"""How far into the past a start is dated. A scheduler takes a run whose time is not after its database's, and SQLite and
MySQL tell theirs in whole seconds: a run of "now" waits for the next one. So much more than a second, because the time is
the portal's: one ahead of the site's would be waited for. The check refuses clocks that are a minute apart."""
MAX_LOG = 64 * 1024 * 1024
"""Bytes of a task's log. How a failed run ended stands in its last line, so a long one must be readable, too."""


@dataclass(frozen=True)
class Dag:
    """A DAG as the site's scheduler knows it. ``broken``: its file cannot be read any more."""

    dag_id: str
    is_paused: bool
    broken: bool
    tags: tuple[str, ...]

    def tagged(self, prefix: str) -> str:
        """Return what stands behind ``prefix`` in one of the tags, or an empty text."""
        return next((tag[len(prefix) :] for tag in self.tags if tag.startswith(prefix)), "")


@dataclass(frozen=True)
class DagRun:
    """A run. ``state``: queued, running, success or failed. ``note``: what somebody wrote to it."""

    run_id: str
    state: str
    note: str


@dataclass(frozen=True)
class TaskRun:
    """The newest try of a run's task. ``state`` is empty before it is scheduled."""

    task_id: str
    state: str
    tries: int

    @property
    def is_open(self) -> bool:
        """Whether it runs or is yet to run."""
        return self.state in ("running", "queued", "scheduled", "restarting")


class Airflow(ABC):
    """One Airflow's stable REST interface. May be used by many threads.

    All methods raise ``SiteUnreachable``, :class:`SiteRefused` (login, rights) or :class:`SiteMisbehaved`; where
    something may be missing they return ``None``.
    """

    root: str
    """Path of the interface below the base address."""
    start_time: str
    """The field in which a start says from when on the scheduler may take the run."""
    start_fields: Mapping[str, Any] = {}
    """What the start of a run has to say beside its id, conf and time."""
    log_request: Mapping[str, Any]
    """How a log is asked for in the form that :meth:`_log_entries` reads: options of :meth:`Http.request`."""

    def __init__(self, http: Http) -> None:
        self._http = http

    # --- dialect -------------------------------------------------------------------------------------

    @abstractmethod
    def login(self) -> None:
        """Log in, where that is a step of its own."""

    @abstractmethod
    def health(self) -> str:
        """Return the sentence that says what is wrong with the scheduler, or an empty one."""

    @abstractmethod
    def fail(self, dag_id: str, run_id: str, note: str) -> bool:
        """Mark a run as failed, so that its tasks are ended, and say why in its note. False: there is no such run."""

    @staticmethod
    @abstractmethod
    def _log_entries(text: str) -> Iterator[tuple[str, str, str]]:
        """Read source, level and text of each entry of a log."""

    @abstractmethod
    def _dag(self, document: Mapping[str, Any]) -> Dag: ...

    # --- the same in both ----------------------------------------------------------------------------

    def version(self) -> str:
        """Return Airflow's version, for which no login is needed."""
        return str(self._require(self._http.get(f"{self.root}/version")).fields().get("version") or "")

    def dag(self, dag_id: str) -> Dag | None:
        answer = self._call("GET", f"dags/{dag_id}", missing=True)
        return None if answer is None else self._dag(answer.fields())

    def dags(self, prefix: str) -> list[Dag]:
        """Return the DAGs whose ids begin with ``prefix``."""
        answer = self._call("GET", "dags", params={"limit": 100, "dag_id_pattern": f"{prefix}%"})
        return [self._dag(document) for document in _rows(answer, "dags") if str(document["dag_id"]).startswith(prefix)]

    def import_errors(self) -> list[tuple[str, str]]:
        """Return file name and last line of each DAG file that cannot be read."""
        answer = self._call("GET", "importErrors", params={"limit": 100})
        found = []
        for row in _rows(answer, "import_errors"):
            lines = str(row.get("stack_trace") or "").strip().splitlines()
            found.append((str(row.get("filename") or ""), lines[-1].strip() if lines else ""))
        return found

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> bool | None:
        """Start a run of that id. False: there is one already. None: there is no such DAG."""
        due = {self.start_time: (datetime.now(UTC) - CLOCKS_APART).isoformat()}
        body = {"dag_run_id": run_id, "conf": dict(conf), **due, **self.start_fields}
        # by its id it may be repeated: the second would be answered with 409
        answer = self._send("POST", f"{self.root}/dags/{dag_id}/dagRuns", json=body, repeatable=True)
        if _is_missing(answer):
            return None
        return answer.status != 409 and self._require(answer).ok

    def run(self, dag_id: str, run_id: str) -> DagRun | None:
        answer = self._call("GET", f"{run_path(dag_id, run_id)}", missing=True)
        return None if answer is None else _dag_run(answer.fields())

    def open_runs(self, dag_ids: Sequence[str]) -> list[DagRun]:
        """Return the queued and running runs of some DAGs, the newest :data:`ASKED_AT_ONCE`, by one request."""
        body = {"dag_ids": list(dag_ids), "states": list(OPEN), "page_limit": ASKED_AT_ONCE}
        answer = self._call("POST", "dags/~/dagRuns/list", json=body, repeatable=True)
        return [_dag_run(row) for row in _rows(answer, "dag_runs")]

    def tasks(self, dag_id: str, run_id: str) -> list[TaskRun]:
        answer = self._call("GET", f"{run_path(dag_id, run_id)}/taskInstances", missing=True)
        if answer is None:
            return []
        return [
            TaskRun(str(row["task_id"]), str(row.get("state") or ""), int(row.get("try_number") or 0))
            for row in _rows(answer, "task_instances")
        ]

    def log(self, dag_id: str, run_id: str, task_id: str, number: int) -> str:
        """Return what the trainer printed in one try of a task, and errors of Airflow itself."""
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/logs/{number}"
        whole = {"params": {"full_content": "true"}, "max_bytes": MAX_LOG}
        answer = self._call("GET", path, missing=True, **whole, **self.log_request)
        return "" if answer is None else trainer_lines(self._log_entries(answer.text))

    def result(self, dag_id: str, run_id: str, task_id: str) -> str | None:
        """Return what a task returned, as text."""
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/return_value"
        answer = self._call("GET", path, missing=True)
        return None if answer is None else str(answer.fields().get("value") or "")

    # --- inside --------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, *, missing: bool = False, **options: Any) -> Any:
        """Return the answer; ``None`` for 404 where ``missing`` allows it."""
        answer = self._send(method, f"{self.root}/{path}", **options)
        return None if missing and _is_missing(answer) else self._require(answer)

    def _send(self, method: str, path: str, **options: Any) -> Answer:
        return self._http.request(method, path, **options)

    def _require(self, answer: Answer) -> Answer:
        if answer.status in (401, 403):
            raise SiteRefused(f"Airflow refuses {answer.where} ({answer.status}).", remedy=CHECK_LOGIN)
        if not answer.ok:
            raise SiteMisbehaved(
                f"Airflow answers {answer.where} with {answer.status}: {_detail(answer)}",
                remedy="Compare the versions of Airflow and portal.",
            )
        return answer


TRAINER_OUTPUT = "Output:"
DAG_FILE = "fedportal_dags.py"
TRAINER_OVER = re.compile(r"Command exited with return code -?\d+\Z")
LOUD = frozenset({"error", "critical"})


def trainer_lines(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return what the trainer printed, out of the log of its task, and Airflow's own errors between.

    ``entries``: source (module file), level and text of each entry of the log.
    """
    found: list[str] = []
    printing = False
    for source, level, text in entries:
        if source == "subprocess.py":
            if printing and TRAINER_OVER.match(text):
                printing = False
            elif printing:
                found.append(text)
            elif text == TRAINER_OUTPUT:
                printing = True
        elif level.lower() in LOUD or source == DAG_FILE:
            found.append(text)
    return "".join(f"{line}\n" for line in found)


def run_path(dag_id: str, run_id: str) -> str:
    return f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _dag_run(row: Mapping[str, Any]) -> DagRun:
    return DagRun(str(row.get("dag_run_id") or ""), str(row.get("state") or ""), str(row.get("note") or ""))


def _rows(answer: Answer, name: str) -> list[dict[str, Any]]:
    rows = answer.fields().get(name)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SiteMisbehaved(
            f"The answer to {answer.where} has no {name}.", remedy="Compare the versions of Airflow and portal."
        )
    return rows


def _is_missing(answer: Answer) -> bool:
    """Say whether Airflow does not know what it was asked for. Raises :class:`SiteUnreachable` for a 404 that is not its
    own: a proxy's while it is away, or another generation's since. That is no word about a run."""
    if answer.status != 404:
        return False
    try:
        is_airflows_own = "detail" in answer.fields()
    except SiteMisbehaved:
        is_airflows_own = False
    if not is_airflows_own:
        raise SiteUnreachable(
            f"{answer.where} is answered with 404 by something that is not Airflow.",
            remedy="Check that Airflow's web server runs, and the proxy before it.",
        )
    return True


def _detail(answer: Answer) -> str:
    try:
        document = answer.fields()
    except SiteMisbehaved:
        return "no explanation"
    detail = document.get("detail") or document.get("title") or "no explanation"
    return str(detail)[:300]
