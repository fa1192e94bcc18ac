"""Look at a site with Airflow step by step: from its name to what its trainer says of itself."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence

from fedportal.connectors.airflow_api import CHECK_LOGIN, Airflow
from fedportal.connectors.base import CheckReport
from fedportal.connectors.checking import INSTALL, TrainerWords, certificate_step, code_step, name_step, take_steps
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.http import Http
from trainer.contract import CONTRACT_VERSION
from trainer.contract.code import code_digest

PATIENCE = 90.0
"""Seconds for the site's own check, which reads the headers of all its images."""
LOOK_AGAIN = 0.5


class AirflowCheck(TrainerWords):
    """One check. ``airflow`` returns the dialect of the site; ``dag_ids`` must be there."""

    def __init__(
        self, http: Http, airflow: Callable[[], Airflow], dag_ids: Sequence[str], *, site: SiteContext
    ) -> None:
        super().__init__(site)
        self._http, self._airflow, self._dag_ids = http, airflow, dag_ids
        self._version = ""

    def report(self) -> CheckReport:
        steps = take_steps(
            ("Name", lambda: name_step(self._http)),
            ("Certificate", lambda: certificate_step(self._http)),
            ("Version", self._which),
            ("Login", self._login),
            ("DAGs", self._dags),
            ("Scheduler", self._scheduler),
            ("Trainer", self._trainer),
            *self.heard_steps(),
        )
        return CheckReport(steps=steps, version=self._versions(), datasets=tuple(self.datasets), facts=self.facts())

    # --- the way there -------------------------------------------------------------------------------

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
        own = code_step(code, code_digest(dags=True), what="installation", remedy=INSTALL)
        return f"{', '.join(self._dag_ids)} are there, of contract {CONTRACT_VERSION}. {own}"

    def _scheduler(self) -> str:
        if problem := self._airflow().health():
            raise SiteRefused(problem, remedy="Start Airflow's scheduler again.")
        return "It is at work."

    # --- the trainer's own words ---------------------------------------------------------------------

    def _trainer(self) -> str:
        airflow = self._airflow()
        run = f"check-{secrets.token_hex(6)}"
        begun = time.monotonic()
        if airflow.trigger("fp-check", run, self.conf()) is None:
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
        return self.hear(json.loads(airflow.result("fp-check", run, "check") or "{}"), since=begun, remedy=INSTALL)

    # --- what is kept --------------------------------------------------------------------------------

    def _versions(self) -> str:
        parts = [f"airflow {self._version}"] if self._version else []
        parts += [f"{name} {value}" for name, value in self.versions.items()]
        return " · ".join(parts)
