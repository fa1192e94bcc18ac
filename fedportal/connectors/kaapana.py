"""Reach a Kaapana through its one public door, HTTPS 443, with a token of its Keycloak.

Behind the door are two ways to start runs. The workflow interface in front of its Airflow shows runs and their logs
while they go on, and lets only administrators through (``kaapana_airflow``). Kaapana's backend starts workflows for the
members of a project, and shows no logs (``kaapana_workflows``). An operator chooses when the site is registered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self
from urllib.parse import urlsplit

from fedportal.connectors.base import CheckReport, LogChunk, RunStatus
from fedportal.connectors.fields import Configured, SiteContext, Unfit
from fedportal.connectors.http import Http
from fedportal.connectors.kaapana_airflow import AirflowRuns
from fedportal.connectors.kaapana_api import KaapanaApi
from fedportal.connectors.kaapana_backend import KaapanaBackend
from fedportal.connectors.kaapana_check import AirflowCheck, KaapanaCheck, WorkflowCheck
from fedportal.connectors.kaapana_fields import FIELDS
from fedportal.connectors.kaapana_workflows import WorkflowRuns
from fedportal.connectors.oidc import Credentials, DeviceLogin, Grant, Provider, Token
from trainer.contract import LaunchTicket


class KaapanaConnector(Configured):
    """A Kaapana that the portal can reach.

    ``by_workflow``: runs are workflows of the project, not runs of its Airflow. ``sleep`` and ``clock`` are what tests
    replace.
    """

    TITLE = "Kaapana, reached by the portal"
    SUMMARY = (
        "For a Kaapana whose HTTPS port 443 the portal can reach. It signs in at the site's Keycloak and starts the "
        "extension's workflows."
    )
    FIELDS = FIELDS

    def __init__(
        self,
        base_url: str,
        credentials: Credentials,
        *,
        project: str = "admin",
        by_path: bool = False,
        by_workflow: bool = False,
        realm: str = "auth/realms/kaapana",
        audience: str = "kaapana",
        ca_certificate: str = "",
        verify: bool = True,
        site: SiteContext | None = None,
        keep: Callable[[str], None] | None = None,
        kept: Callable[[], str] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.http = Http(base_url, ca_certificate=ca_certificate, verify=verify, cookies=True)
        self.provider = Provider(self.http, realm, credentials, audience=audience, keep=keep, kept=kept)
        self.api = KaapanaApi(self.http, self.provider, project=project, by_path=by_path)
        self.site = site or SiteContext("")
        self.backend = KaapanaBackend(self.api)
        self._sleep, self._clock = sleep, clock
        self._by_workflow = by_workflow
        self._runs: AirflowRuns | WorkflowRuns = (
            WorkflowRuns(self.backend, sleep=sleep, clock=clock)
            if by_workflow
            else AirflowRuns(self.api, sleep=sleep, clock=clock)
        )

    @classmethod
    def clean_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
        grant = str(config.get("grant") or "")
        if grant == Grant.PASSWORD and not (config.get("username") and secrets.get("password")):
            raise Unfit("username", "This way to sign in needs user and password.")
        if grant == Grant.CLIENT and not secrets.get("client_secret"):
            raise Unfit("client_secret", "A client that signs in by itself needs its secret.")
        if grant == Grant.PASSWORD and config.get("generation") == "0.7":
            raise Unfit("grant", "Kaapana 0.7 has no sign-in with user and password any more; choose device login.")
        if urlsplit(str(config.get("base_url") or "")).path.strip("/"):
            raise Unfit("base_url", "Only scheme, name and port; Kaapana lies at the root of its server.")
        return dict(config)

    @classmethod
    def needs_sign_in(cls, config: Mapping[str, Any]) -> bool:
        return config.get("grant") == Grant.DEVICE

    @classmethod
    def from_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> Self:
        credentials = Credentials(
            grant=Grant(config["grant"]),
            client_id=str(config.get("client_id") or "kaapana"),
            client_secret=str(secrets.get("client_secret") or ""),
            username=str(config.get("username") or ""),
            password=str(secrets.get("password") or ""),
            refresh_token=str(secrets.get("refresh_token") or ""),
        )
        return cls(
            str(config["base_url"]),
            credentials,
            project=str(config.get("project") or "admin"),
            by_path=str(config.get("generation") or "0.6") != "0.6",
            by_workflow=config.get("control") == "workflow",
            realm=str(config.get("realm") or "auth/realms/kaapana"),
            audience=str(config.get("audience") or "kaapana"),
            ca_certificate=str(config.get("ca_certificate") or ""),
            verify=bool(config.get("verify", True)),
            site=site,
            keep=partial(site.keep, "refresh_token") if site.keep else None,
            kept=partial(site.kept, "refresh_token") if site.kept else None,
        )

    # --- device login --------------------------------------------------------------------------------

    def start_device_login(self) -> DeviceLogin:
        """Begin to sign in by a code. Show its address and code to a person, then poll at its interval."""
        return self.provider.start_device_login()

    def poll_device_login(self, login: DeviceLogin) -> Token | float:
        """Return the token, its refresh token kept as the secret ``refresh_token``, or the seconds to wait."""
        return self.provider.poll_device_login(login)

    # --- runs ----------------------------------------------------------------------------------------

    def launch(self, ticket: LaunchTicket) -> bool:
        return self._runs.launch(ticket.run, partial(self._conf, ticket))

    def poll(self, run: str) -> RunStatus:
        return self._runs.poll(run)

    def cancel(self, run: str) -> None:
        self._runs.cancel(run)

    def logs(self, run: str, *, offset: int = 0) -> LogChunk:
        return self._runs.logs(run, offset=offset)

    def check(self) -> CheckReport:
        options: dict[str, Any] = {"site": self.site, "sleep": self._sleep, "clock": self._clock}
        check: KaapanaCheck = (
            WorkflowCheck(self.http, self.provider, self.api, backend=self.backend, **options)
            if self._by_workflow
            else AirflowCheck(self.http, self.provider, self.api, **options)
        )
        return check.report()

    def _conf(self, ticket: LaunchTicket) -> dict[str, Any]:
        """Return what the run is told. Kaapana writes a conf into logs: no key is in it, and no credential."""
        conf: dict[str, Any] = {
            "project_form": dict(self.api.project().form),
            "workflow_form": {"username": "fedportal"},
            "fedportal": {"run": ticket.run, "spec_url": ticket.spec_url, "dataset": ticket.dataset},
        }
        # None for a dataset that was laid into the site's folder and never was a dataset of Kaapana's.
        if ticket.dataset and (series := self.api.series_of(ticket.dataset)):
            conf["data_form"] = {"dataset_name": ticket.dataset, "identifiers": series}
        return conf
