"""Look at a site with Airflow step by step: from its name to what its trainer says of itself."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from fedportal.connectors.airflow_api import CHECK_LOGIN, Airflow
from fedportal.connectors.base import CheckReport, DatasetReport
from fedportal.connectors.checking import dataset_report, take_steps
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.http import Http
from trainer.contract import CONTRACT_VERSION

PATIENCE = 90.0
"""Seconds for the site's own check, which reads the headers of all its images."""
LOOK_AGAIN = 0.5
SOON = 14
"""Days before its end that a certificate is worth a word."""
LEAST_FREE = 1024**3
SKEW = 60.0
"""Seconds that the clocks may differ: presigned addresses live by them."""
INSTALL = "Run `python -m trainer.install` at the site; docs/airflow.md says how."


class AirflowCheck:
    """One check. ``airflow`` returns the dialect of the site; ``dag_ids`` must be there."""

    def __init__(
        self, http: Http, airflow: Callable[[], Airflow], dag_ids: Sequence[str], *, site: SiteContext
    ) -> None:
        self._http, self._airflow, self._dag_ids, self._site = http, airflow, dag_ids, site
        self._found: dict[str, Any] = {}
        self._datasets: list[DatasetReport] = []
        self._version = ""
        self._started = 0.0

    def report(self) -> CheckReport:
        steps = take_steps(
            ("Name", self._name),
            ("Certificate", self._certificate),
            ("Version", self._which),
            ("Login", self._login),
            ("DAGs", self._dags),
            ("Scheduler", self._scheduler),
            ("Trainer", self._trainer),
            ("Key", self._key),
            ("Clock", self._clock),
            ("Disk", self._disk),
            ("Object store", self._store),
            ("Live metrics", self._portal),
            ("Datasets", self._find_datasets),
        )
        return CheckReport(steps=steps, version=self._versions(), datasets=tuple(self._datasets), facts=self._facts())

    # --- the way there -------------------------------------------------------------------------------

    def _name(self) -> str:
        return f"Found at {', '.join(self._http.resolve())}."

    def _certificate(self) -> str:
        expiry = self._http.certificate_expiry()
        if expiry is None:
            return "No TLS: right on one machine only."
        days = (expiry - datetime.now(UTC)).days
        return f"Valid until {expiry:%Y-%m-%d}" + (f", only {days} days more." if days < SOON else ".")

    def _which(self) -> str:
        self._version = self._airflow().version()
        return f"Airflow {self._version}."

    def _login(self) -> str:
        self._airflow().login()
        return "User and password are accepted."

    # --- Airflow -------------------------------------------------------------------------------------

    def _dags(self) -> str:
        known = {dag.dag_id: dag for dag in self._airflow().dags("fp-")}
        errors = [(file, reason) for file, reason in self._airflow().import_errors() if "fedportal" in file]
        missing = [dag_id for dag_id in self._dag_ids if dag_id not in known or known[dag_id].broken]
        if errors:
            raise SiteRefused(f"The DAG file cannot be read: {errors[0][1]}", remedy=f"Mend it. {INSTALL}")
        if missing:
            raise SiteRefused(f"Not there: {', '.join(missing)}.", remedy=INSTALL)
        paused = [dag_id for dag_id in self._dag_ids if known[dag_id].is_paused]
        if paused:
            raise SiteRefused(f"Paused: {', '.join(paused)}.", remedy="Switch them on in the site's Airflow.")
        contracts = {known[dag_id].tagged("contract-") for dag_id in self._dag_ids}
        if contracts != {str(CONTRACT_VERSION)}:
            raise SiteRefused(
                f"They speak contract {', '.join(sorted(contracts)) or 'unknown'}, the portal {CONTRACT_VERSION}.",
                remedy=f"Bring the older one up to date. {INSTALL}",
            )
        code = known[self._dag_ids[0]].tagged("code-")
        return f"{', '.join(self._dag_ids)} are there, of trainer {code} and contract {CONTRACT_VERSION}."

    def _scheduler(self) -> str:
        if problem := self._airflow().health():
            raise SiteRefused(problem, remedy="Start Airflow's scheduler again.")
        return "It is at work."

    # --- the trainer's own words ---------------------------------------------------------------------

    def _trainer(self) -> str:
        airflow = self._airflow()
        self._nonce, run = secrets.token_hex(8), f"check-{secrets.token_hex(6)}"
        conf: dict[str, Any] = {"nonce": self._nonce, "contract": CONTRACT_VERSION}
        if self._site.portal_url:
            conf["portal"] = f"{self._site.portal_url}/ui/healthz/"
        if self._site.probe is not None:
            conf["store"] = dict(self._site.probe())
        begun = time.monotonic()
        if airflow.trigger("fp-check", run, conf) is None:
            raise SiteRefused("The user may not start fp-check.", remedy=CHECK_LOGIN)
        state = ""
        while state not in ("success", "failed"):
            if time.monotonic() - begun > PATIENCE:
                raise SiteUnreachable(
                    f"fp-check did not end within {PATIENCE:.0f} seconds (it is {state or 'gone'}).",
                    remedy="Look at its run in the site's Airflow: are there workers, and is a slot free?",
                )
            time.sleep(LOOK_AGAIN)
            found = airflow.run("fp-check", run)
            state = found.state if found else ""
        if state == "failed":
            words = airflow.log("fp-check", run, "check", 1).strip().splitlines()
            raise SiteRefused(
                f"fp-check failed at the site: {words[-1][:300] if words else 'its log says why'}",
                remedy=f"Look at its log in the site's Airflow. {INSTALL}",
            )
        self._heard = time.time()
        self._found = dict(json.loads(airflow.result("fp-check", run, "check") or "{}"))
        versions = self._found["versions"]
        lacking = [name for name, value in versions.items() if value == "missing"]
        if lacking:
            raise SiteRefused(f"The trainer lacks {', '.join(lacking)}.", remedy=INSTALL)
        gpus = ", ".join(str(gpu["name"]) for gpu in self._found["gpus"]) or "no GPU"
        warm = "warm" if self._found["warm"] else "cold"
        took = time.monotonic() - begun
        return f"Contract {versions['contract']}, torch {versions['torch']}, {gpus}, {warm} start; answered in {took:.0f} s."

    def _key(self) -> str:
        if not self._site.key:
            return "Not compared."
        expected = hmac.new(self._site.key, f"check:{self._nonce}".encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, str(self._found.get("proof"))):
            raise SiteRefused(
                "The site has another key than the portal has for it.",
                remedy="Copy the key from the site's page here, and run the installation at the site again.",
            )
        return "The site has the right one."

    def _clock(self) -> str:
        skew = abs(self._heard - float(self._found["at"]))
        if skew > SKEW + PATIENCE:
            raise SiteRefused(f"The site's clock is {skew:.0f} seconds off.", remedy="Let the site's machine use NTP.")
        return "The clocks agree."

    def _disk(self) -> str:
        if problems := self._found["problems"]:
            raise SiteRefused(str(problems[0]), remedy="Correct the folder or its rights at the site.")
        free = int(self._found["free_bytes"])
        if free < LEAST_FREE:
            raise SiteRefused(f"Only {free / 1e9:.1f} GB are free.", remedy="Make room on the site's disk.")
        return f"{free / 1e9:.0f} GB are free."

    def _store(self) -> str:
        store = self._found.get("store")
        if store is None:
            return "Not tried."
        if not store["ok"]:
            raise SiteRefused(
                f"The site does not reach the object store ({store['error']}).",
                remedy="Allow https from the site's machine to the portal's object store; check proxy and certificate.",
            )
        size = int(store["bytes"]) / 1e6
        down, up = (size / max(1e-6, float(store[key])) for key in ("down_s", "up_s"))
        return f"{size:.1f} MB fetched with {down:.0f} MB/s and put back with {up:.0f} MB/s."

    def _portal(self) -> str:
        portal = self._found.get("portal")
        if portal is None:
            return "Not tried."
        if portal["ok"]:
            return "The site reaches the portal."
        # Not a failure: the records come with the manifest, too.
        return f"The site does not reach the portal ({portal['error']}): its curves appear at the end of each round."

    def _find_datasets(self) -> str:
        self._datasets = [dataset_report(report) for report in self._found["datasets"]]
        if not self._datasets:
            raise SiteRefused(
                "There is no dataset.", remedy="Put each dataset into a folder of its own with a dataset.json."
            )
        return f"{len(self._datasets)} found: {', '.join(report.name for report in self._datasets)}."

    # --- what is kept --------------------------------------------------------------------------------

    def _versions(self) -> str:
        parts = [f"airflow {self._version}"] if self._version else []
        parts += [f"{name} {value}" for name, value in (self._found.get("versions") or {}).items()]
        return " · ".join(parts)

    def _facts(self) -> dict[str, Any]:
        return {
            name: self._found[name]
            for name in ("cpus", "threads", "gpus", "free_bytes", "code", "store")
            if name in self._found
        }
