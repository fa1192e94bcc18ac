"""Kaapana's own backend (``/kaapana-backend/client``), which members of a project may use: workflows, their jobs, DAGs.

A workflow is started under a name; the backend adds an id of its own to it, before or behind, and answers before the
workflow's job exists. It escapes the values that it is given as if they were HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedportal.connectors.errors import SiteMisbehaved
from fedportal.connectors.http import Answer
from fedportal.connectors.kaapana_api import MAX_RUNS, VERSIONS, KaapanaApi, need, require_fit

CLIENT = "kaapana-backend/client"
NEWEST = 100
"""Workflows that are looked through for one of a name, where the backend does not search by itself."""
MEMBER = "Make the portal's account a member of the project, and add fp-train and fp-check to the project's software."


@dataclass(frozen=True)
class Workflow:
    """A workflow of the site. ``full_name``: as its jobs are asked for by."""

    id: str
    full_name: str

    def is_called(self, name: str) -> bool:
        return self.full_name in (name, f"{self.id}-{name}", f"{name}-{self.id}")


@dataclass(frozen=True)
class Job:
    """The one job of a workflow. ``status``: queued, pending, scheduled, running, finished, failed, deleted, aborted."""

    id: int
    status: str
    description: str = ""


class KaapanaBackend:
    """One project's workflows. Methods raise :class:`~fedportal.connectors.errors.SiteError`."""

    def __init__(self, api: KaapanaApi) -> None:
        self._api = api
        self._instance = ""

    def start(self, dag: str, name: str, conf: Mapping[str, Any]) -> Workflow:
        """Start a workflow. After :class:`SiteUnreachable` or :class:`SiteMisbehaved` it may have started."""
        require_fit(conf)
        order = {
            "workflow_name": name,
            "dag_id": dag,
            "instance_names": [self.instance()],
            "conf_data": dict(conf),
            "remote": False,
            "federated": False,
        }
        answer = self._ask("POST", "workflow", f"start {dag}", json=order)
        return _workflow(answer.fields())

    def find(self, name: str) -> Workflow | None:
        """Return the workflow that was started under a name, ``None`` where there is none."""
        answer = self._ask("GET", "workflows", "list workflows", params={"search": name, "limit": NEWEST})
        rows = answer.json()
        if isinstance(rows, list) and len(rows) == 2 and isinstance(rows[0], list):
            rows = rows[0]  # with their number, in newer releases
        if not isinstance(rows, list):
            raise SiteMisbehaved("Kaapana's list of workflows is none.", remedy=VERSIONS)
        known = (_workflow(row) for row in rows if isinstance(row, dict))
        return next((workflow for workflow in known if workflow.is_called(name)), None)

    def job(self, workflow: Workflow) -> Job | None:
        """Return the job of a workflow, ``None`` while it has none, and when it was deleted."""
        answer = self._ask("GET", "jobs", "list jobs", params={"workflow_name": workflow.full_name, "limit": 1})
        rows = answer.json()
        if not rows:
            return None
        try:
            row = rows[0]
            return Job(int(row["id"]), str(row["status"]), str(row.get("description") or ""))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SiteMisbehaved("Kaapana describes a job in a way that makes no sense.", remedy=VERSIONS) from error

    def abort(self, job: Job, note: str) -> None:
        order = {"job_id": job.id, "status": "abort", "description": note}
        self._ask("PUT", "job", "abort a job", json=order)

    def dags(self) -> dict[str, Mapping[str, Any]]:
        """Return what the project's members may start, by id; the facts are empty where the site tells names only."""
        found = self._ask("GET", "dags", "list the project's workflows", params={"only_dag_names": "false"}).json()
        if isinstance(found, dict):
            return {str(dag): facts if isinstance(facts, dict) else {} for dag, facts in found.items()}
        return {str(dag): {} for dag in found or ()}

    def instance(self) -> str:
        """Return the name under which the site knows itself. (The answer holds its keys, too; they are dropped.)"""
        if not self._instance:
            answer = self._ask("GET", "kaapana-instance", "use the project's workflows")
            self._instance = str(answer.fields().get("instance_name") or "")
            if not self._instance:
                raise SiteMisbehaved("Kaapana does not say the name of its instance.", remedy=VERSIONS)
        return self._instance

    def _ask(self, method: str, path: str, act: str, **options: Any) -> Answer:
        answer = self._api.ask(method, f"{CLIENT}/{path}", in_project=True, max_bytes=MAX_RUNS, **options)
        need(answer, act, remedy=MEMBER)
        return answer


def _workflow(row: Mapping[str, Any]) -> Workflow:
    try:
        return Workflow(str(row["workflow_id"]), str(row["workflow_name"]))
    except KeyError as error:
        raise SiteMisbehaved(f"Kaapana describes a workflow without {error}.", remedy=VERSIONS) from error
