"""Airflow 3.x: REST interface v2 with a token that is got with user name and password, and renewed."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fedportal.connectors.airflow_api import CHECK_LOGIN, Airflow, Dag, run_path
from fedportal.connectors.errors import SiteMisbehaved, SiteRefused
from fedportal.connectors.http import Answer, Http

EARLY = 60.0
"""Seconds before its end that a token is renewed."""
WITHOUT_EXPIRY = 600.0


class AirflowV2(Airflow):
    root = "api/v2"
    start_time = "run_after"
    start_fields = {"logical_date": None}
    log_request = {"headers": {"Accept": "application/x-ndjson"}}

    def __init__(self, http: Http, *, user: str, password: str) -> None:
        super().__init__(http)
        self._user, self._password = user, password
        self._lock = threading.Lock()
        self._token, self._until = "", 0.0

    def login(self) -> None:
        self._fresh_token()

    def health(self) -> str:
        status = self._call("GET", "monitor/health").fields()
        scheduler = str((status.get("scheduler") or {}).get("status"))
        return "" if scheduler == "healthy" else f"Airflow's scheduler is {scheduler}."

    def fail(self, dag_id: str, run_id: str, note: str) -> bool:
        body = {"state": "failed", "note": note}
        return self._call("PATCH", run_path(dag_id, run_id), json=body, missing=True, repeatable=True) is not None

    @staticmethod
    def _log_entries(text: str) -> Iterator[tuple[str, str, str]]:
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield str(entry.get("filename") or ""), str(entry.get("level") or ""), str(entry.get("event") or "")

    def _dag(self, document: Mapping[str, Any]) -> Dag:
        return Dag(
            dag_id=str(document.get("dag_id")),
            is_paused=bool(document.get("is_paused")),
            broken=bool(document.get("has_import_errors")) or bool(document.get("is_stale")),
            tags=tuple(str(tag["name"]) for tag in document.get("tags") or ()),
        )

    # --- the token -----------------------------------------------------------------------------------

    def _send(self, method: str, path: str, **options: Any) -> Answer:
        token = self._token if time.time() < self._until else self._fresh_token()
        headers = dict(options.pop("headers", None) or {})
        answer = self._http.request(method, path, headers={**headers, "Authorization": f"Bearer {token}"}, **options)
        # expired before its time, or the site was built anew: its own words for the second are a 403
        if answer.status == 401 or (answer.status == 403 and b"JWT" in answer.body):
            token = self._fresh_token(instead_of=token)
            answer = self._http.request(
                method, path, headers={**headers, "Authorization": f"Bearer {token}"}, **options
            )
        return answer

    def _fresh_token(self, *, instead_of: str = "") -> str:
        with self._lock:
            if instead_of and self._token != instead_of and time.time() < self._until:
                return self._token  # another thread was faster
            answer = self._http.post(
                "auth/token", json={"username": self._user, "password": self._password}, repeatable=True
            )
            if answer.status in (400, 401, 403, 422):
                raise SiteRefused("Airflow does not accept user name and password.", remedy=CHECK_LOGIN)
            token = str(self._require(answer).fields().get("access_token") or "")
            if not token:
                raise SiteMisbehaved(
                    "Airflow's login gives no token.", remedy="Compare the versions of Airflow and portal."
                )
            self._token, self._until = token, _expiry(token) - EARLY
            return token


def _expiry(token: str) -> float:
    """Return the end (seconds since the epoch) that a JSON Web Token names. Only for renewing it: not verified."""
    try:
        body = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["exp"])
    except (IndexError, ValueError, KeyError, TypeError, binascii.Error):
        return time.time() + WITHOUT_EXPIRY
