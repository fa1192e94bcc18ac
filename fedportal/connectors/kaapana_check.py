"""Look at a Kaapana step by step: from its name to what its trainer says of itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from fedportal.connectors.base import CheckReport
from fedportal.connectors.checking import TrainerWords, certificate_step, name_step, take_steps
from fedportal.connectors.errors import SiteRefused, SiteUnreachable
from fedportal.connectors.fields import Letterbox, SiteContext
from fedportal.connectors.http import Http
from fedportal.connectors.job_queue import JobState
from fedportal.connectors.kaapana_api import KaapanaApi, trainer_lines
from fedportal.connectors.kaapana_backend import KaapanaBackend
from fedportal.connectors.oidc import Provider, clock_skew
from trainer.contract import ContractError, attempt_key, verified

VERSION = "fp-1"
"""Tag of the extension's DAGs that this portal knows."""
CHECK = "fp-check"
DAGS = ("fp-train", CHECK)
PATIENCE = 180.0
"""Seconds for the site's own check: a pod has to be scheduled, and perhaps its image to be fetched."""
LOOK_AGAIN = 1.0
SKEW = 30.0
"""Seconds that the site's clock may differ before its proxy takes our tokens for ended ones."""
INSTALL = "Install the extension fp-train-workflow at the site; docs/kaapana.md says how."
ADD_SOFTWARE = "Install the extension fp-train-workflow at the site, and add both to the software of the project."
COMPLETE = "Give the extension the site's key, or install that of the portal's version; docs/kaapana.md says how."


class KaapanaCheck(TrainerWords):
    """What both ways to start runs have in common."""

    names_series = True
    sees_gpus = False
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

    def report(self) -> CheckReport:
        steps = take_steps(
            ("Name", lambda: name_step(self._http)),
            ("Certificate", lambda: certificate_step(self._http)),
            ("Realm", self._realm),
            ("Login", self._login),
            *self.control_steps(),
            ("Trainer", self._trainer),
            *self.heard_steps(),
        )
        versions = " · ".join(f"{name} {value}" for name, value in self.versions.items())
        return CheckReport(steps=steps, version=versions, datasets=tuple(self.datasets), facts=self.facts())

    def control_steps(self) -> Sequence[tuple[str, Callable[[], str]]]:
        """Return the steps from the login to the workflows."""
        raise NotImplementedError

    def _trainer(self) -> str:
        raise NotImplementedError

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

    def _project(self) -> str:
        project = self._api.project()
        return f"{project.name}, in namespace {project.form['kubernetes_namespace']}."

    def _letterbox(self) -> Letterbox:
        if self._site.letterbox is None:
            raise SiteUnreachable("There is nowhere to leave a report.", remedy="The orchestrator makes checks.")
        return self._site.letterbox()

    def _letter(self, letterbox: Letterbox, run: str) -> dict[str, Any]:
        """Return what the trainer has left. Raises :class:`SiteRefused` where that is nothing, or not the site's."""
        try:
            return verified(letterbox.read() or b"", attempt_key(self._site.key, run))
        except ContractError as error:
            raise SiteRefused(
                "fp-check ended well, but its report cannot be used: the site has another key than the portal, or its "
                "pod does not reach the object store.",
                remedy="Copy the key from the site's page here into the Secret “fedportal”; see the log of fp-check.",
            ) from error

    def _wait(self, state: Callable[[], str | None], *, over: Collection[str], begun: float) -> str:
        """Return the state in which fp-check ended; raise :class:`SiteUnreachable` when it does not in time."""
        now = state()
        while now not in over:
            if self._now() - begun > PATIENCE:
                raise SiteUnreachable(
                    f"fp-check did not end within {PATIENCE:.0f} seconds (it is {now or 'gone'}).",
                    remedy="Look at its run in Kaapana: can its image be fetched, does its Secret “fedportal” exist?",
                )
            self._sleep(LOOK_AGAIN)
            now = state()
        return str(now)


class AirflowCheck(KaapanaCheck):
    """The check of a site whose runs are started through its Airflow. The trainer's answer stands in a log; where the
    portal cannot read logs, the trainer leaves it in the object store."""

    _has_session = False

    def control_steps(self) -> Sequence[tuple[str, Callable[[], str]]]:
        return (
            ("Rights", self._rights),
            ("Project", self._project),
            ("Workflows", self._workflows),
            ("Airflow", self._airflow),
        )

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "airflow_session": self._has_session}

    def _rights(self) -> str:
        # The proxy lets only this role through to the workflows, whatever the projects' rights say.
        if "admin" not in self._provider.token().roles:
            raise SiteRefused(
                "The portal's account has not the realm role “admin”.",
                remedy="Give it this role in Keycloak; or make it a member of the project and let runs be started as "
                "workflows of the project (Control); or have the site poll the portal (connector kaapana-pull).",
            )
        return "The account has the realm role admin."

    def _workflows(self) -> str:
        known = self._api.dags()
        _require(known, install=INSTALL)
        return f"{', '.join(DAGS)} are there."

    def _airflow(self) -> str:
        self._has_session = self._api.has_session()
        if self._has_session:
            return "Airflow's own interface opens: logs can be read, and runs are found again after a restart."
        return "Airflow's own interface does not open: no logs, and after a restart of the portal runs are begun anew."

    def _trainer(self) -> str:
        begun = self._now()
        letterbox = None if self._has_session else self._letterbox()
        job = {**self.conf(), **({"report_url": letterbox.address} if letterbox else {})}
        conf = {"project_form": dict(self._api.project().form), "fedportal": job}
        run_id = self._api.trigger(CHECK, conf)
        ended = self._wait(lambda: self._api.run_state(CHECK, run_id), over=("success", "failed"), begun=begun)
        if letterbox is not None:
            if ended == "failed":
                raise SiteRefused("fp-check failed at the site.", remedy=f"See its log in Kaapana. {COMPLETE}")
            return self.hear(self._letter(letterbox, job["run"]), since=begun, remedy=INSTALL)
        for entry in reversed(list(trainer_lines(self._api.log(CHECK, run_id, "check")))):
            report = entry.get("report")
            if isinstance(report, dict):
                return self.hear(report, since=begun, remedy=INSTALL)
            if entry.get("level") == "error":
                raise SiteRefused(f"fp-check failed: {entry['message']}", remedy=COMPLETE)
        raise SiteRefused(
            "fp-check ended without a word.", remedy="Look at its log in Kaapana: did its pod start at all?"
        )


class WorkflowCheck(KaapanaCheck):
    """The check of a site whose runs are workflows of a project; the trainer leaves its answer in the object store."""

    def __init__(
        self, http: Http, provider: Provider, api: KaapanaApi, *, backend: KaapanaBackend, **options: Any
    ) -> None:
        super().__init__(http, provider, api, **options)
        self._backend = backend

    def control_steps(self) -> Sequence[tuple[str, Callable[[], str]]]:
        return (
            ("Project", self._project),
            ("Rights", self._rights),
            ("Workflows", self._workflows),
            ("Logs", lambda: "Not shown while a run goes on: the log of a run comes with its end."),
        )

    def _rights(self) -> str:
        return f"The account may use the workflows of the project, at {self._backend.instance()}."

    def _workflows(self) -> str:
        _require(self._backend.dags(), install=ADD_SOFTWARE)
        return f"{', '.join(DAGS)} are in the project's software."

    def _trainer(self) -> str:
        begun = self._now()
        letterbox = self._letterbox()
        job = {**self.conf(), "report_url": letterbox.address}
        name = job["run"]
        conf = {
            "project_form": dict(self._api.project().form),
            "workflow_form": {"username": "fedportal"},
            "fedportal": job,
        }
        workflow = self._backend.start(CHECK, name, conf)

        def state() -> str | None:
            found = self._backend.job(workflow)
            return found.status if found else None

        over = (JobState.FINISHED, JobState.FAILED, JobState.ABORTED, JobState.DELETED)
        if self._wait(state, over=over, begun=begun) != JobState.FINISHED:
            raise SiteRefused(
                "fp-check failed at the site.", remedy=f"See its log in Kaapana (workflow list). {COMPLETE}"
            )
        return self.hear(self._letter(letterbox, name), since=begun, remedy=INSTALL)


def _require(known: Mapping[str, Mapping[str, Any]], *, install: str) -> None:
    """Raise :class:`SiteRefused` where a workflow of the extension is missing, paused, or of another version."""
    if missing := [dag for dag in DAGS if dag not in known]:
        raise SiteRefused(f"Not there: {', '.join(missing)}.", remedy=install)
    if paused := [dag for dag in DAGS if known[dag].get("is_paused")]:
        raise SiteRefused(f"Paused: {', '.join(paused)}.", remedy="Switch them on in the site's Airflow.")
    # Kaapana shows tags in several shapes; the name is in all of them.
    if VERSION not in json.dumps(known[DAGS[0]].get("tags", VERSION)):
        raise SiteRefused("The extension is of another version than the portal.", remedy=INSTALL)
