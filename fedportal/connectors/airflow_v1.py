"""Airflow 2.x: REST interface v1 with a user name and a password in every request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedportal.connectors.airflow_api import Airflow, Dag, run_path

_LINE = re.compile(r"\[[^\]]+\] \{(?P<source>[^}:]+):\d+\} (?P<level>[A-Z]+) - (?P<text>.*)")


class AirflowV1(Airflow):
    """``http`` carries the login. Checking a password costs the site 0.2 s of a processor, so its session cookie,
    which Airflow gives with the first answer, is used from then on; the password goes along and counts when it ends.
    """

    root = "api/v1"
    start_time = "logical_date"
    log_request = {"headers": {"Accept": "text/plain"}, "pages": True}

    def login(self) -> None:
        self._call("GET", "dags", params={"limit": 1})

    def health(self) -> str:
        status = self._call("GET", "health").fields()
        scheduler = str((status.get("scheduler") or {}).get("status"))
        return "" if scheduler == "healthy" else f"Airflow's scheduler is {scheduler}."

    def fail(self, dag_id: str, run_id: str, note: str) -> bool:
        path = run_path(dag_id, run_id)
        # the note first: when its connection breaks between the two, nothing is ended without its reason
        if self._call("PATCH", f"{path}/setNote", json={"note": note}, missing=True, repeatable=True) is None:
            return False
        self._call("PATCH", path, json={"state": "failed"}, repeatable=True)
        return True

    @staticmethod
    def _log_entries(text: str) -> Iterator[tuple[str, str, str]]:
        source = level = ""
        for line in text.splitlines():
            match = _LINE.match(line)
            if match:
                source, level = match["source"], match["level"]
                yield source, level, match["text"]
            elif source == "subprocess.py":  # a line of the trainer that was none to Airflow, e.g. of a traceback
                yield source, level, line

    def _dag(self, document: Mapping[str, Any]) -> Dag:
        return Dag(
            dag_id=str(document.get("dag_id")),
            is_paused=bool(document.get("is_paused")),
            broken=bool(document.get("has_import_errors")) or document.get("is_active") is False,
            tags=tuple(str(tag["name"]) for tag in document.get("tags") or ()),
        )
