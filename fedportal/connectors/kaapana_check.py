"""Look at a Kaapana step by step: from its name to what its trainer says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

from fedportal.connectors.base import CheckReport
from fedportal.connectors.checking import TrainerWords, certificate_step, name_step, take_steps
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.fields import SiteContext
from fedportal.connectors.http import Http
from fedportal.connectors.kaapana_api import KaapanaApi
from fedportal.connectors.oidc import Provider, clock_skew

VERSION = "fp-1"
"""Tag of the extension's DAGs that this portal knows."""
DAGS = ("fp-train", "fp-check")
PATIENCE = 180.0
"""Seconds for the site's own check: a pod has to be scheduled, and perhaps its image to be fetched."""
LOOK_AGAIN = 1.0
SKEW = 30.0
"""Seconds that the site's clock may differ before its proxy takes our tokens for ended ones."""
INSTALL = "Install the extension fp-train-workflow at the site; docs/kaapana.md says how."
COMPLETE = "Give the extension the site's key, or install that of the portal's version; docs/kaapana.md says how."


class KaapanaCheck(TrainerWords):
    names_series = True
    update = INSTALL
    offer = "Offer one at the site: start the workflow fp-offer in Kaapana with a dataset."

    def __init__(
        self,
        http: Http,
        provider: Provider,
        api: KaapanaApi,
        *,
        site: SiteContext,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(site)
        self._http, self._provider, self._api = http, provider, api
        self._sleep, self._now = sleep, clock
        self._has_session = False

    def report(self) -> CheckReport:
        steps = take_steps(
            ("Name", lambda: name_step(self._http)),
            ("Certificate", lambda: certificate_step(self._http)),
            ("Realm", self._realm),
            ("Login", self._login),
            ("Rights", self._rights),
            ("Project", self._project),
            ("Workflows", self._workflows),
            ("Airflow", self._airflow),
            ("Trainer", self._trainer),
            *self.heard_steps(),
        )
        versions = " · ".join(f"{name} {value}" for name, value in self.versions.items())
        facts = {**self.facts(), "airflow_session": self._has_session}
        return CheckReport(steps=steps, version=versions, datasets=tuple(self.datasets), facts=facts)

    # --- the door ------------------------------------------------------------------------------------

    def _realm(self) -> str:
        found = self._provider.discover()
        skew = clock_skew(self._http.get(f"{self._provider.realm}/.well-known/openid-configuration"))
        if skew is not None and abs(skew) > SKEW:
            raise SiteRefused(
                f"The site's clock is {abs(skew):.0f} seconds off.", remedy="Let the site's machine use NTP."
            )
        device = "; it offers device login" if found.device else ""
        return f"The site calls itself {found.issuer}{device}."

    def _login(self) -> str:
        token = self._provider.token()
        return f"The token is for {', '.join(token.audience)}."

    def _rights(self) -> str:
        # The proxy lets only this role through to the workflows, whatever the projects' rights say.
        if "admin" not in self._provider.token().roles:
            raise SiteRefused(
                "The portal's account has not the realm role “admin”.",
                remedy="Give it this role in Keycloak; or have the site poll the portal instead (connector kaapana-pull).",
            )
        return "The account has the realm role admin."

    def _project(self) -> str:
        project = self._api.project()
        return f"{project.name}, in namespace {project.form['kubernetes_namespace']}."

    # --- what is installed ---------------------------------------------------------------------------

    def _workflows(self) -> str:
        known = self._api.dags()
        if missing := [dag for dag in DAGS if dag not in known]:
            raise SiteRefused(f"Not there: {', '.join(missing)}.", remedy=INSTALL)
        if paused := [dag for dag in DAGS if known[dag].get("is_paused")]:
            raise SiteRefused(f"Paused: {', '.join(paused)}.", remedy="Switch them on in the site's Airflow.")
        # Kaapana shows tags in several shapes; the name is in all of them.
        if VERSION not in json.dumps(known["fp-train"].get("tags", VERSION)):
            raise SiteRefused("The extension is of another version than the portal.", remedy=INSTALL)
        return f"{', '.join(DAGS)} are there."

    def _airflow(self) -> str:
        self._has_session = self._api.has_session()
        if self._has_session:
            return "Airflow's own interface opens: logs can be read, and runs are found again after a restart."
        return "Airflow's own interface does not open: no logs, and after a restart of the portal runs are begun anew."

    def _trainer(self) -> str:
        begun = self._now()
        run_id = self._api.trigger(
            "fp-check", {"project_form": dict(self._api.project().form), "fedportal": self.conf()}
        )
        state = None
        while state not in ("success", "failed"):
            if self._now() - begun > PATIENCE:
                raise SiteUnreachable(
                    f"fp-check did not end within {PATIENCE:.0f} seconds (it is {state or 'gone'}).",
                    remedy="Look at its run in Kaapana: can its image be fetched, does its Secret “fedportal” exist?",
                )
            self._sleep(LOOK_AGAIN)
            state = self._api.run_state("fp-check", run_id)
        if not self._has_session:
            if state == "failed":
                raise SiteRefused("fp-check failed at the site.", remedy="Look at its log in Kaapana.")
            raise SiteRefused(
                "The site's check went well, but its answer stands in a log that the portal cannot read.",
                remedy="Let the portal's user sign in at Airflow (/flow/login), or have the site poll the portal.",
            )
        for entry in reversed(list(trainer_lines(self._api.log("fp-check", run_id, "check")))):
            report = entry.get("report")
            if isinstance(report, dict):
                return self.hear(report, since=begun, remedy=INSTALL)
            if entry.get("level") == "error":
                raise SiteRefused(f"fp-check failed: {entry['message']}", remedy=COMPLETE)
        raise SiteRefused(
            "fp-check ended without a word.", remedy="Look at its log in Kaapana: did its pod start at all?"
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
