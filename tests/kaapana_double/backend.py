"""Kaapana's backend behind the front door, as members of a project use it: workflows, jobs, datasets, DAGs.

Its habits are those of release 0.6: what it is given is escaped as if it were HTML; a workflow gets an id in its name and
is answered before its job exists; a job is made in a thread, whose end nobody sees; states are asked of Airflow now and
then; a job whose run Airflow does not know is "deleted".
"""

from __future__ import annotations

import html
import http.client
import json
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

CLIENT = "/kaapana-backend/client/"
OVER = ("finished", "failed", "deleted")
Answer = tuple[int, Any]


@dataclass
class Backend:
    """``airflow``: host and port of the server whose runs the jobs are; ``None``: jobs stay as tests set them."""

    project: dict[str, Any]
    airflow: tuple[str, int] | None = None
    datasets: dict[str, list[str]] = field(default_factory=dict)
    software: set[str] = field(default_factory=lambda: {"fp-train", "fp-check", "fp-offer"})
    """DAGs that members of the project may start."""
    tags: list[str] = field(default_factory=lambda: ["fedportal", "fp-1"])
    workflows: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)
    id_first: bool = True
    """Whether a workflow's id stands before its name, as until 0.6, or behind it."""
    counts: bool = True
    """Whether a list of workflows comes with their number."""
    thread_takes: float = 0.3
    """Seconds between a workflow's answer and its job."""
    sync_every: float = 0.5
    """Seconds between two looks at Airflow; Kaapana's are ten."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._synced = 0.0
        self._numbers = iter(range(1, 1_000_000))

    def answer(self, method: str, path: str, query: str, body: bytes, user: str, *, is_admin: bool) -> Answer:
        asked = {name: html.escape(values[0]) for name, values in parse_qs(query).items()}
        given = _escaped(json.loads(body)) if body else {}
        match method, path.removeprefix(CLIENT):
            case "GET", "dataset":
                if asked["name"] not in self.datasets:
                    return 404, {"detail": "Dataset not found"}
                uids = self.datasets[asked["name"]]
                return 200, {"name": asked["name"], "username": "kaapana", "identifiers": uids}
            case "GET", "kaapana-instance":
                return 200, {"instance_name": "hospital", "remote": False, "token": "t" * 36, "fernet_key": "f" * 44}
            case "GET", "dags":
                if asked.get("only_dag_names", "true") == "true":
                    return 200, sorted(self.software)
                return 200, {dag: {"dag_id": dag, "ui_visible": True, "tags": self.tags} for dag in self.software}
            case "POST", "workflow":
                if not is_admin and given["dag_id"] not in self.software:
                    return 403, {"detail": "The workflow is not part of the project's software."}
                return 200, self.start(given, user)
            case "GET", "workflows":
                rows = [row for row in reversed(self.workflows) if asked.get("search", "") in row["workflow_name"]]
                page = rows[: int(asked.get("limit", 10))]
                return 200, [page, len(rows)] if self.counts else page
            case "GET", "jobs":
                self.sync()
                rows = [row for row in self.jobs if row["workflow"]["workflow_name"] == asked["workflow_name"]]
                return 200, rows[: int(asked.get("limit", 10))]
            case "PUT", "job":
                job = next((row for row in self.jobs if row["id"] == given["job_id"]), None)
                if job is None or given["status"] != "abort":
                    return 404, {"detail": "Job not found"}
                return self.abort(job, given["description"])
        return 404, {"detail": "Not Found"}

    def start(self, order: dict[str, Any], user: str) -> dict[str, Any]:
        id = secrets.token_hex(3)
        name = f"{id}-{order['workflow_name']}" if self.id_first else f"{order['workflow_name']}-{id}"
        workflow = {"workflow_id": id, "workflow_name": name, "username": user, "service_workflow": False}
        conf = order["conf_data"]
        conf["project_form"] = self.project
        own = {"username": user, "workflow_id": id, "workflow_name": name, "runner_instances": order["instance_names"]}
        conf.setdefault("workflow_form", {}).update(own)
        self.workflows.append(workflow)
        timer = threading.Timer(self.thread_takes, self.make_job, (workflow, order["dag_id"], conf))
        timer.daemon = True
        timer.start()
        return workflow

    def abort(self, job: dict[str, Any], description: str) -> Answer:
        if self.airflow is not None:
            self._ask("POST", f"abort/{job['dag_id']}/{job['run_id']}", {"state": "failed"})
        job.update(status="failed", description=description)
        return 200, job

    def sync(self) -> None:
        with self._lock:
            if self.airflow is None or time.monotonic() - self._synced < self.sync_every:
                return
            self._synced = time.monotonic()
            for job in self.jobs:
                if job["status"] not in OVER and job["run_id"]:
                    status, facts = self._ask("GET", f"dagdetails/{job['dag_id']}/{job['run_id']}")
                    state = str(facts["state"]) if status == 200 else "deleted"
                    job["status"] = "finished" if state == "success" else state

    def delete(self, run: str) -> None:
        """Delete a workflow with its job, as somebody at the site may."""
        self.jobs[:] = [row for row in self.jobs if run not in row["workflow"]["workflow_name"]]
        self.workflows[:] = [row for row in self.workflows if run not in row["workflow_name"]]

    def forget(self) -> None:
        """Forget everything, but not the numbers that were given."""
        for known in (self.datasets, self.workflows, self.jobs):
            known.clear()

    def make_job(self, workflow: dict[str, Any], dag: str, conf: dict[str, Any]) -> None:
        form = conf.get("data_form", {})
        if "dataset_name" in form:
            if form["dataset_name"] not in self.datasets:
                return  # the thread has died of it, and nobody was told
            form["identifiers"] = self.datasets[form["dataset_name"]]
        number = next(self._numbers)
        conf["client_job_id"] = number
        run_id = ""
        if self.airflow is not None:
            _status, answer = self._ask("POST", f"trigger/{dag}", {"conf": conf})
            run_id = answer["message"][1]["run_id"]
        self.jobs.append(
            {
                "id": number,
                "dag_id": dag,
                "run_id": run_id,
                "status": "queued",
                "description": None,
                "conf_data": conf,
                "workflow": workflow,
            }
        )

    def _ask(self, method: str, path: str, body: Any = None) -> Answer:
        assert self.airflow is not None
        connection = http.client.HTTPConnection(*self.airflow, timeout=60)
        try:
            connection.request(
                method, f"/flow/kaapana/api/{path}", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if answer.status == 200 else {}
        finally:
            connection.close()


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    return value
