"""A hospital that polls the portal: the part of a Kaapana's backend that does so, as a process of its own.

    python -m tests.relay.pulling_site --portal http://127.0.0.1:8000 --settings site.json

It makes the calls that kaapana-backend makes (``get_remote_updates``, ``update_external_job`` and, for later versions,
the single sync), in their order and with their shapes, and carries the jobs out: by the site's own trainer, or by
starting the extension's workflows on a Kaapana with a real Airflow (``tests/kaapana_double``). It knows of the portal
what the pasted definition says, and nothing else.

``site.json``: ``definition`` (the portal's), ``instance_name``, ``data_root``, ``work_dir``; then ``site_key`` (hex) and, if
there is one, ``socket`` (a warm trainer), or ``airflow`` (address of a Kaapana's Airflow, inside the platform); and as one
likes ``dialect`` (poll or sync), ``interval`` (seconds), ``confirms`` (start nothing while ``<work_dir>/confirmed`` does not
exist), ``skew`` (seconds that the clock is ahead),
``faults``: ``twice`` (every call is made twice), ``late`` (the report "running" comes after the end).
"""

from __future__ import annotations

import argparse
import html
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any, Protocol

import requests
from cryptography.fernet import Fernet

from fedportal.connectors.base import RunState
from fedportal.connectors.local import LocalConnector
from fedportal.connectors.trainer_process import COMMAND
from trainer.check import hand_in, report
from trainer.contract import CONTRACT_VERSION, LaunchTicket, attempt_key
from trainer.site_file import SiteFile

TIMEOUT = 5
"""Seconds, as in kaapana-backend."""
DAGS = {"fp-train": {"ui_forms": {}}, "fp-check": {"ui_forms": {}}}


class Runner(Protocol):
    """What carries jobs out: the site's Airflow, in Kaapana's words for its states."""

    def start(self, run: str, dag_id: str, conf: dict[str, Any]) -> str:
        """Start a job and return the site's own id of its run."""

    def state(self, run_id: str, dag_id: str) -> str: ...

    def abort(self, run_id: str, dag_id: str) -> None: ...


class TrainerRunner:
    """Runs the trainer as a process (``python -m trainer run``), or has the site's warm trainer do it."""

    def __init__(self, settings: dict[str, Any], *, command: Sequence[str] = COMMAND) -> None:
        folders = {name: settings[name] for name in ("data_root", "work_dir")}
        self._site = LocalConnector(**folders, threads=1, socket=settings.get("socket", ""), command=command)
        self._file = SiteFile(Path(folders["data_root"]), Path(folders["work_dir"]), settings["site_key"], threads=1)
        self._checks: dict[str, str] = {}

    def start(self, run: str, dag_id: str, conf: dict[str, Any]) -> str:
        job = conf["fedportal"]
        key = bytes.fromhex(self._file.key)
        if dag_id == "fp-check":
            hand_in(report(self._file, job), job, key)
            self._checks[run] = "success"
            return run
        if job["contract"] != CONTRACT_VERSION:
            raise ValueError(f"a job of contract {job['contract']}")
        ticket = LaunchTicket(job["run"], job["spec_url"], attempt_key(key, job["run"]), job["dataset"])
        self._site.launch(ticket)
        return run

    def state(self, run_id: str, dag_id: str) -> str:
        if run_id in self._checks:
            return self._checks[run_id]
        words = {
            RunState.WAITING: "queued",
            RunState.SUCCEEDED: "success",
            RunState.CANCELLED: "failed",
            RunState.LOST: "",
        }
        state = self._site.poll(run_id).state
        return words.get(state, state.value)

    def abort(self, run_id: str, dag_id: str) -> None:
        self._site.cancel(run_id)


class KaapanaRunner:
    """Starts the extension's workflows on the site's own Kaapana, from inside the platform, as kaapana-backend does."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._url = settings["airflow"] + "/kaapana/api"
        self._session = requests.Session()

    def start(self, run: str, dag_id: str, conf: dict[str, Any]) -> str:
        answer = self._session.post(f"{self._url}/trigger/{dag_id}", json={"conf": _escaped(conf)}, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["message"][1]["run_id"])

    def state(self, run_id: str, dag_id: str) -> str:
        answer = self._session.get(f"{self._url}/dagdetails/{dag_id}/{run_id}", timeout=30)
        return str(answer.json()["state"]) if answer.ok else ""

    def abort(self, run_id: str, dag_id: str) -> None:
        self._session.post(f"{self._url}/abort/{dag_id}/{run_id}", timeout=30)


def _escaped(value: Any) -> Any:
    """Return JSON as it comes out of Kaapana's backend, which takes every text for a part of a page."""
    if isinstance(value, dict):
        return {name: _escaped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    return html.escape(value) if isinstance(value, str) else value


@dataclass
class Job:
    """A row of the site's own table of jobs."""

    external_id: int
    run: str
    dag_id: str
    conf: dict[str, Any]
    run_id: str = ""
    """What the site's Airflow calls it, once it has been started."""
    status: str = "pending"
    told: str = ""
    """The status that the portal has been told last."""

    @property
    def is_over(self) -> bool:
        return self.status in ("finished", "failed", "deleted", "aborted")


class PullingSite:
    def __init__(self, portal: str, settings: dict[str, Any], runner: Runner | None = None) -> None:
        definition = settings["definition"]
        self.portal = portal
        self.name = settings["instance_name"]
        self.settings = settings
        self.faults = set(settings.get("faults", ()))
        self._table = Path(settings["work_dir"]) / "jobs.json"
        rows = json.loads(self._table.read_text()) if self._table.exists() else []
        self.jobs = {row["external_id"]: Job(**row) for row in rows}
        self._written = ""
        self._session = requests.Session()
        self._session.headers.update({"FederatedAuthorization": definition["token"], "User-Agent": "kaapana"})
        self._seal = Fernet(_own_key(Path(settings["work_dir"])))
        self.runner = runner or (KaapanaRunner(settings) if "airflow" in settings else TrainerRunner(settings))
        self._datasets = [
            {"name": path.parent.name, "username": "kaapana", "identifiers": [self._seal.encrypt(b"1.2.3").decode()]}
            for path in sorted(Path(settings["data_root"]).glob("*/dataset.json"))
        ]

    def look(self) -> None:
        """Poll once, start what came, and tell how everything gets on."""
        if self.settings.get("dialect") == "sync":
            self._sync()
        else:
            self._poll()
        self._work()
        rows = json.dumps([asdict(job) for job in self.jobs.values()])
        if rows != self._written:  # as Kaapana's database, the table outlives the process
            self._table.with_suffix(".new").write_text(rows)
            self._table.with_suffix(".new").replace(self._table)
            self._written = rows

    # --- calls ------------------------------------------------------------------------------------

    @property
    def advert(self) -> dict[str, Any]:
        return {
            "instance_name": self.name,
            "allowed_dags": DAGS,
            "allowed_datasets": self._datasets,
            "automatic_update": True,
            "automatic_workflow_execution": not self.settings.get("confirms"),
        }

    def call(self, path: str, body: Any, **params: str) -> requests.Response:
        headers = {"Date": formatdate(time.time() + self.settings.get("skew", 0), usegmt=True)}
        for _ in range(2 if "twice" in self.faults else 1):
            answer = self._session.put(
                f"{self.portal}/{path}",
                json=body,
                params=params,
                headers=headers,
                timeout=TIMEOUT,
                allow_redirects=False,
            )
        return answer

    def _poll(self) -> None:
        answer = self.call(
            "kaapana-backend/remote/sync-client-remote", self.advert, instance_name=self.name, status="queued"
        )
        answer.raise_for_status()
        document = answer.json()
        workflows = {
            w["workflow_id"]: w["involved_kaapana_instances"][1:-1].split(",") for w in document["incoming_workflows"]
        }
        if any(self.name not in instances for instances in workflows.values()):
            raise ValueError("a workflow for somebody else")
        for incoming in document["incoming_jobs"]:
            self._take(incoming)

    def _sync(self) -> None:
        untold = [job for job in self.jobs.values() if job.told != job.status]
        reports = [self._report(job) for job in untold]
        body = {"client_to_remote_instance": self.advert, "client_to_remote_jobs": reports}
        answer = self.call("kaapana-remote/remote/sync-client-remote", body)
        answer.raise_for_status()
        document = answer.json()
        for job in untold:
            job.told = job.status
        for incoming in document["remote_to_client_jobs"]:
            known = self.jobs.get(incoming["id"])
            if known is not None and incoming["status"] == "aborted" and not known.is_over:
                if known.run_id:
                    self.runner.abort(known.run_id, known.dag_id)
                known.status = "aborted"
            else:
                self._take(incoming)

    def _take(self, incoming: dict[str, Any]) -> None:
        if incoming["id"] in self.jobs:
            return  # Kaapana knows it by its number and the portal's name
        conf = incoming["conf_data"]
        if "data_form" in conf:  # decrypting raises for what this site did not seal itself
            sealed = conf["data_form"]["identifiers"]
            conf["data_form"]["identifiers"] = [self._seal.decrypt(uid.encode()).decode() for uid in sealed]
        run = conf["fedportal"]["run"]
        self.jobs[incoming["id"]] = job = Job(incoming["id"], run, incoming["dag_id"], conf)
        self._tell(job)

    def _tell(self, job: Job) -> None:
        if self.settings.get("dialect") == "sync":
            return  # with the next sync
        if "late" in self.faults and job.status == "running":
            return
        if job.told != job.status:
            self.call("kaapana-backend/remote/job", self._report(job))
            job.told = job.status
            if "late" in self.faults and job.is_over:
                self.call("kaapana-backend/remote/job", {**self._report(job), "status": "running"})

    def _report(self, job: Job) -> dict[str, Any]:
        return {"job_id": job.external_id, "run_id": job.run_id or None, "status": job.status, "description": None}

    # --- work -------------------------------------------------------------------------------------

    def _work(self) -> None:
        confirmed = not self.settings.get("confirms") or (Path(self.settings["work_dir"]) / "confirmed").exists()
        for job in list(self.jobs.values()):
            if job.is_over:
                self._tell(job)
            elif job.status == "pending" and confirmed:
                job.run_id = self.runner.start(job.run, job.dag_id, job.conf)
                job.status = "scheduled"
                self._tell(job)
            elif job.status in ("scheduled", "running"):
                # Kaapana renames Airflow's success, and calls deleted what Airflow does not know
                state = self.runner.state(job.run_id, job.dag_id)
                job.status = {"success": "finished", "": "deleted", "queued": "scheduled"}.get(state, state)
                self._tell(job)


def _own_key(folder: Path) -> bytes:
    """Return the key that the site seals identifiers with. It never leaves the site, and outlives its processes."""
    file = folder / "encryption_key"
    if not file.exists():
        file.write_bytes(Fernet.generate_key())
    return file.read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--portal", required=True)
    parser.add_argument("--settings", type=Path, required=True)
    options = parser.parse_args()
    settings = json.loads(options.settings.read_text())
    site = PullingSite(options.portal, settings)
    while True:
        try:
            site.look()
        except (requests.RequestException, ValueError) as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        time.sleep(float(settings.get("interval", 1.0)))


if __name__ == "__main__":
    main()
