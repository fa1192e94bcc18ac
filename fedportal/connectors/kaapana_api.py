"""The interfaces of a Kaapana that lie behind its one door: its workflows, its Airflow, its projects and datasets.

Everything passes a proxy that wants a token and answers a bad one with a redirect or a page. Kaapana's own workflow
interface (``/flow/kaapana/api``) starts and ends runs, but lets nobody name a run and shows neither a run's conf nor
its log. Those come from Airflow's own interface (``/flow/api/v1``), which wants a session: ``/flow/login/`` makes one
from the name that the proxy passes on. Where a site does not have that, the portal goes on without.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fedportal.connectors.errors import SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.http import Answer, Http
from fedportal.connectors.oidc import Provider

BLUEPRINT = "flow/kaapana/api"
AIRFLOW = "flow/api/v1"
BACKEND = "kaapana-backend"
MAX_CONF = 1024 * 1024 - 64 * 1024
"""Bytes of a run's conf. Kaapana hands it to its pods as a ConfigMap, whose limit of 1 MiB holds for all of it."""
MAX_RUNS = 64 * 1024 * 1024
"""Bytes of one page of runs: each comes with its conf."""
PAGE, PAGES = 25, 4
DENIED = frozenset({401, 403})
VERSIONS = "Compare the version of Kaapana with those that docs/kaapana.md names."
ADMIN = "Give its account the realm role “admin”."
ASK_AGAIN = 600.0
"""Seconds after which a site that did not open Airflow's own interface is asked again."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+~-]{0,249}\Z")


@dataclass(frozen=True)
class DagRun:
    """A run as Airflow tells it. ``conf`` and ``note`` only from Airflow's own interface."""

    run_id: str
    state: str
    conf: Mapping[str, Any] = field(default_factory=dict, repr=False)
    note: str = ""


@dataclass(frozen=True)
class Project:
    """A project of the site. ``form`` is the site's own object, whole: its operators take their namespace from it."""

    id: str
    name: str
    form: Mapping[str, Any] = field(repr=False)


class KaapanaApi:
    """One Kaapana. ``by_path``: projects are told by the path (≥ 0.7), not by a cookie (≤ 0.6).

    Methods raise :class:`~fedportal.connectors.errors.SiteError`. May be used by many threads.
    """

    def __init__(self, http: Http, provider: Provider, *, project: str, by_path: bool) -> None:
        self._http, self._provider = http, provider
        self._project_name, self._by_path = project, by_path
        self._project: Project | None = None
        self._session: bool | None = None
        self._session_asked = 0.0
        self._lock = threading.Lock()

    # --- runs, by Kaapana's workflow interface -------------------------------------------------------

    def trigger(self, dag: str, conf: Mapping[str, Any]) -> str:
        """Start a run and return the id that the site gives it. After :class:`SiteUnreachable` it may have started."""
        require_fit(conf)
        answer = self.ask("POST", f"{BLUEPRINT}/trigger/{_part(dag)}", json={"conf": dict(conf)})
        if answer.status == 404:
            raise _not_installed(dag)
        need(answer, f"start {dag}")
        try:
            run_id = answer.json()["message"][1]["run_id"]
        except (KeyError, IndexError, TypeError) as error:
            raise SiteMisbehaved("Kaapana does not say which run it has started.", remedy=VERSIONS) from error
        return _checked(run_id)

    def run_state(self, dag: str, run_id: str) -> str | None:
        """Return Airflow's state of a run (queued, running, success, failed), ``None`` for one that it does not know."""
        answer = self.ask("GET", f"{BLUEPRINT}/dagdetails/{_part(dag)}/{_part(run_id)}")
        if answer.status in (400, 404):
            return None
        need(answer, "ask for a run")
        return str(answer.fields().get("state") or "")

    def run_ids(self, dag: str) -> list[str]:
        """Return the ids of a DAG's runs, the oldest first."""
        answer = self.ask("GET", f"{BLUEPRINT}/dagids/{_part(dag)}")
        if answer.status in (400, 404):
            raise _not_installed(dag)
        need(answer, "list runs")
        return [str(run_id) for run_id in answer.fields().get("run_ids") or ()]

    def task_states(self, dag: str, run_id: str) -> dict[str, str]:
        """Return the state of each task of a run that has one."""
        answer = self.ask(
            "POST", f"{BLUEPRINT}/get_dagrun_tasks/{_part(dag)}/{_part(run_id)}", json={}, repeatable=True
        )
        need(answer, "list a run's tasks")
        states: dict[str, str] = {}
        for task, facts in answer.fields().items():
            if isinstance(facts, dict):
                states[str(task)] = str(facts.get("state") or "").lower()
        return states

    def abort(self, dag: str, run_id: str) -> None:
        need(
            self.ask("POST", f"{BLUEPRINT}/abort/{_part(dag)}/{_part(run_id)}", json={}, repeatable=True), "abort a run"
        )

    def dags(self) -> dict[str, dict[str, Any]]:
        """Return what the site says of its DAGs, by id. Slow: it parses all of them."""
        answer = self.ask("GET", f"{BLUEPRINT}/getdags", params={"active_only": "true"}, max_bytes=MAX_RUNS)
        need(answer, "list workflows")
        return {str(dag): facts for dag, facts in answer.fields().items() if isinstance(facts, dict)}

    # --- runs, by Airflow's own interface ------------------------------------------------------------

    def has_session(self) -> bool:
        """Say whether Airflow's own interface opens to the portal, signing in there at the first call and, where it does not, now and then."""
        with self._lock:
            again = self._session is False and time.monotonic() - self._session_asked > ASK_AGAIN
            if self._session is None or again:
                self._session_asked = time.monotonic()
                try:
                    self._sign_in()
                    self._session = self.ask("GET", f"{AIRFLOW}/dags", params={"limit": 1}).ok
                except (SiteRefused, SiteMisbehaved):
                    self._session = False
            return self._session

    def newest_runs(self, dag: str) -> Iterator[DagRun]:
        """Yield the newest runs of a DAG, the newest first, with their conf."""
        for page in range(PAGES):
            document = self._airflow(
                "GET",
                f"dags/{_part(dag)}/dagRuns",
                params={"order_by": "-execution_date", "limit": PAGE, "offset": page * PAGE},
                max_bytes=MAX_RUNS,
            ).fields()
            rows = document.get("dag_runs") or []
            yield from (_dag_run(row) for row in rows if isinstance(row, dict))
            if len(rows) < PAGE:
                return

    def run_with_note(self, dag: str, run_id: str) -> DagRun | None:
        answer = self._airflow("GET", f"dags/{_part(dag)}/dagRuns/{_part(run_id)}", missing=True)
        return None if answer.status == 404 else _dag_run(answer.fields())

    def set_note(self, dag: str, run_id: str, note: str) -> None:
        path = f"dags/{_part(dag)}/dagRuns/{_part(run_id)}/setNote"
        self._airflow("PATCH", path, json={"note": note}, missing=True, repeatable=True)

    def is_paused(self, dag: str) -> bool:
        answer = self._airflow("GET", f"dags/{_part(dag)}", missing=True)
        if not answer.ok:
            raise _not_installed(dag)
        return bool(answer.fields().get("is_paused"))

    def log(self, dag: str, run_id: str, task: str) -> str:
        """Return the log of a task's newest try, empty where there is none yet."""
        where = f"dags/{_part(dag)}/dagRuns/{_part(run_id)}/taskInstances/{_part(task)}"
        instance = self._airflow("GET", where, missing=True)
        tries = int(instance.fields().get("try_number") or 0) if instance.ok else 0
        if not tries:
            return ""
        text = {"Accept": "text/plain"}
        answer = self._airflow(
            "GET",
            f"{where}/logs/{tries}",
            params={"full_content": "true"},
            headers=text,
            missing=True,
            max_bytes=MAX_RUNS,
        )
        return answer.text if answer.ok else ""

    def _airflow(self, method: str, path: str, *, missing: bool = False, **options: Any) -> Answer:
        """Ask Airflow's own interface. ``missing``: 404 is an answer."""
        answer = self.ask(method, f"{AIRFLOW}/{path}", **options)
        if answer.status in DENIED:
            self._sign_in()  # a session ends earlier than a process
            answer = self.ask(method, f"{AIRFLOW}/{path}", **options)
        if not (missing and answer.status == 404):
            need(answer, "use Airflow's own interface")
        return answer

    def _sign_in(self) -> None:
        # It answers with a redirect, which is as good as any answer here: what counts is the cookie.
        token = self._provider.token()
        try:
            self._http.get("flow/login/", headers={"Authorization": f"Bearer {token.access}"}, pages=True)
        except SiteRefused:
            return

    # --- projects and datasets -----------------------------------------------------------------------

    def project(self) -> Project:
        """Return the project that the site has given the portal. Raises :class:`SiteRefused` where there is none."""
        if self._project is None:
            answer = self.ask("GET", f"aii/projects/{_part(self._project_name)}")
            if answer.status == 404:
                raise SiteRefused(
                    f"There is no project {self._project_name}.", remedy="Correct the name; Kaapana's own is “admin”."
                )
            need(answer, "read the project")
            form = answer.fields()
            try:
                self._project = Project(str(form["id"]), str(form["name"]), form)
            except KeyError as error:
                raise SiteMisbehaved(f"The project lacks {error}.", remedy=VERSIONS) from error
            if not form.get("kubernetes_namespace"):
                raise SiteMisbehaved("The project names no namespace for its runs.", remedy=VERSIONS)
        return self._project

    def series_of(self, dataset: str) -> list[str]:
        """Return the SeriesInstanceUIDs of a dataset; empty for one that Kaapana does not know."""
        answer = self.ask("GET", f"{BACKEND}/client/dataset", params={"name": dataset}, in_project=True)
        if answer.status in (404, 422):
            return []
        need(answer, "read the dataset", remedy="Make the portal's account a member of the project.")
        document = answer.json()
        found = document.get("identifiers") if isinstance(document, dict) else None
        return [str(uid) for uid in found] if isinstance(found, list) else []

    # --- the door ------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, *, in_project: bool = False, **options: Any) -> Answer:
        """Ask with a token; with a fresh one, once more, when the site answers that it wants a login.

        What the proxy has refused has not been carried out, so also a POST may be repeated then. A 404 of the proxy's own,
        which has nobody behind it at that moment, raises :class:`SiteUnreachable`: it is no word about a run.
        """
        headers = dict(options.pop("headers", {}))
        if in_project:
            path, more = self._scoped(path)
            headers.update(more)
        for fresh in (False, True):
            token = self._provider.token()
            headers["Authorization"] = f"Bearer {token.access}"
            try:
                answer = self._http.request(method, path, headers=headers, **options)
            except SiteRefused:
                if fresh:
                    raise
            else:
                if answer.status != 401 or fresh:
                    return _own(answer)
            self._provider.drop(token)
        raise AssertionError("unreachable")

    def _scoped(self, path: str) -> tuple[str, dict[str, str]]:
        """Say in which project a request is meant: the one place where the two generations differ."""
        project = self.project()
        if self._by_path:
            return f"project/{_part(project.id)}/{path}", {}
        value = quote(json.dumps({"name": project.name, "id": project.id}), safe="")
        jar = "; ".join(f"{cookie.name}={cookie.value}" for cookie in self._http.cookies)
        return path, {"Cookie": f"{jar}; Project={value}" if jar else f"Project={value}"}


def require_fit(conf: Mapping[str, Any]) -> None:
    """Raise :class:`SiteRefused` for a conf that is too large for Kaapana's pods."""
    if len(json.dumps(conf).encode()) > MAX_CONF:
        raise SiteRefused(
            "The list of the dataset's series is larger than Kaapana can hand to a run (1 MiB).",
            remedy="Split the dataset; about 15,000 series fit.",
        )


def trainer_lines(log: str) -> Iterator[dict[str, object]]:
    """Yield the JSON lines of the trainer in a task's log, which puts time and place before each line."""
    for line in log.splitlines():
        start = line.find('{"at": ')
        if start < 0:
            continue
        try:
            entry = json.loads(line[start:])
        except ValueError:
            continue
        if isinstance(entry, dict) and "message" in entry:
            yield entry


def _own(answer: Answer) -> Answer:
    """Return an answer of Kaapana's services, which say in JSON what they do not know."""
    if answer.status == 404 and "json" not in answer.headers.get("Content-Type", ""):
        raise SiteUnreachable(
            f"{answer.where} is answered with 404 by something that is not Kaapana.",
            remedy=f"Check that its Airflow and its backend run. {VERSIONS}",
        )
    return answer


def _part(text: str) -> str:
    return quote(text, safe="")


def _checked(run_id: Any) -> str:
    if not isinstance(run_id, str) or not _RUN_ID.match(run_id):
        raise SiteMisbehaved("Kaapana gives its run an id that makes no sense.", remedy=VERSIONS)
    return run_id


def _dag_run(row: Mapping[str, Any]) -> DagRun:
    conf = row.get("conf")
    return DagRun(
        run_id=str(row.get("dag_run_id") or ""),
        state=str(row.get("state") or ""),
        conf=conf if isinstance(conf, dict) else {},
        note=str(row.get("note") or ""),
    )


def _not_installed(dag: str) -> SiteRefused:
    return SiteRefused(f"The workflow {dag} is not installed.", remedy="Install the extension fp-train-workflow.")


def need(answer: Answer, act: str, *, remedy: str = ADMIN) -> None:
    """Raise what an answer that is no success means. ``remedy``: for an account that may not do this."""
    if answer.ok:
        return
    if answer.status in DENIED:
        raise SiteRefused(f"The portal may not {act} ({answer.status}).", remedy=remedy)
    raise SiteMisbehaved(f"Kaapana does not {act} ({answer.status}).", remedy=VERSIONS)
