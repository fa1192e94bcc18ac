"""Kaapana's front door: the proxy and what lies behind it, with their habits and with knobs for faults.

A bad token is answered by a redirect to the login, or by its page with status 200, never by 401 JSON.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.kaapana_double.backend import Backend
from tests.kaapana_double.certificates import certify, key_of
from tests.kaapana_double.keycloak import REALM, Keycloak

LOGIN_PAGE = b"<!doctype html><html><title>Sign in to kaapana</title><form></form></html>"
SIZES = ("Content-Length", "Transfer-Encoding", "Connection")


@dataclass
class Faults:
    """What goes wrong. Each acts on requests whose ``<path> <method>`` has ``where`` in it, ``times`` times."""

    login_answer: str = "redirect"
    """How a bad token is answered: ``redirect`` (302) or ``page`` (HTML with 200)."""
    plans: list[tuple[str, str, int]] = field(default_factory=list)
    """(kind, where, times): ``slow-<seconds>``, a status, ``cut`` (before), ``cut-after`` (carried out, answer lost)."""
    skew: float = 0.0
    """Seconds that the door's clock is ahead."""
    has_airflow_login: bool = True
    """Whether ``/flow/login`` and ``/flow/api/v1`` open."""

    def add(self, kind: str, where: str, times: int = 1) -> None:
        self.plans.append((kind, where, times))

    def take(self, request: str) -> str:
        for number, (kind, where, times) in enumerate(self.plans):
            if where in request and times > 0:
                self.plans[number] = (kind, where, times - 1)
                return kind
        return ""


class Door:
    """``airflow``: host and port of the server behind ``/flow``. ``by_path``: projects as from 0.7 on."""

    def __init__(self, airflow: tuple[str, int] | None = None, *, by_path: bool = False, tls: Path | None = None):
        self.airflow, self.by_path = airflow or ("127.0.0.1", 9), by_path
        self.faults = Faults()
        self.project = {
            "id": "5f6f2c30-6b56-4a43-8d5f-6a1d0ac7f5a1",
            "name": "admin",
            "description": "Initial project",
            "external_id": None,
            "s3_bucket": "project-admin",
            "kubernetes_namespace": "project-admin",
            "opensearch_index": "project_admin",
        }
        self.backend = Backend(self.project, airflow)
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.ca, scheme = "", "http"
        if tls is not None:
            self.ca, scheme = self._secure(tls), "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.keycloak = Keycloak(self.url, self.now)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def mend(self) -> None:
        """Be as at first: no faults, the realm in order, nothing known of runs and datasets."""
        self.keycloak, self.faults = Keycloak(self.url, self.now), Faults()
        self.backend.forget()
        self.requests.clear()

    @property
    def datasets(self) -> dict[str, list[str]]:
        return self.backend.datasets

    def admit_members_only(self) -> None:
        """Let the portal's account be a member of the project and nothing more."""
        self.keycloak.roles, self.keycloak.rights = ["user"], [f"all_{self.project['id']}"]

    def now(self) -> float:
        return time.time() + self.faults.skew

    def _secure(self, folder: Path) -> str:
        """Serve TLS with a certificate of an authority of our own, and return the authority's certificate (PEM)."""
        authority = certify(key_of("realm"), folder / "server.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return authority


def _handler(door: Door) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            door.requests.append(f"{self.command} {path}")
            fault = door.faults.take(f"{path} {self.command}")
            self.lost = False
            if fault == "cut":
                return self.cut()
            if fault.startswith("slow-"):
                time.sleep(float(fault.removeprefix("slow-")))
            elif fault.isdigit():
                return self.say(int(fault), b"upstream is away", "text/plain")
            self.lost = fault == "cut-after"
            if path.startswith("/auth/"):
                return self.json(*door.keycloak.answer(path, self.body))
            claims = door.keycloak.admitted(self.headers.get("Authorization", ""))
            if claims is None:
                return self.login()
            self.behind(path, claims)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

        def behind(self, path: str, claims: dict[str, Any]) -> None:
            if path.startswith("/flow/"):
                if "admin" not in claims["realm_access"]["roles"]:
                    return self.say(403, b"Forbidden", "text/plain")
                if not door.faults.has_airflow_login and path.startswith(("/flow/login", "/flow/api/v1")):
                    return self.login()
                return self.flow(claims)
            if path == "/aii/projects":
                return self.json(200, [door.project])
            if path.startswith("/aii/projects/"):
                known = unquote(path.rsplit("/", 1)[1]) == door.project["name"]
                return self.json(200, door.project) if known else self.json(404, {"detail": "Project not found"})
            inner = self.in_project(path)
            if isinstance(inner, int):
                return self.say(inner, b"Internal Server Error" if inner == 500 else b"{}", "text/plain")
            if inner.startswith("/kaapana-backend/"):
                is_admin = "admin" in claims["realm_access"]["roles"]
                if not is_admin and f"all_{door.project['id']}" not in claims["kaapana.ai/backend"]:
                    return self.say(403, b"Forbidden", "text/plain")
                query, user = urlsplit(self.path).query, claims["preferred_username"]
                return self.json(*door.backend.answer(self.command, inner, query, self.body, user, is_admin=is_admin))
            self.say(404, b"<html>404</html>", "text/html")

        def in_project(self, path: str) -> str | int:
            """Return the path inside the project, or the status with which a request without one is answered."""
            if door.by_path:
                prefix = f"/project/{door.project['id']}"
                return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else 400
            cookies = dict(part.strip().partition("=")[::2] for part in self.headers.get("Cookie", "").split(";"))
            try:
                wanted = json.loads(unquote(cookies["Project"]))
            except (KeyError, ValueError):
                return 500
            return path if wanted == {"name": door.project["name"], "id": door.project["id"]} else 403

        # --- Airflow ---------------------------------------------------------------------------------

        def flow(self, claims: dict[str, Any]) -> None:
            """Pass a request on, as the proxy does: with who it is, and with the caller's own headers."""
            headers = {name: value for name, value in self.headers.items() if name not in SIZES}
            headers["X-Forwarded-Preferred-Username"] = claims["preferred_username"]
            headers["X-Forwarded-Access-Token"] = self.headers["Authorization"].removeprefix("Bearer ")
            connection = http.client.HTTPConnection(*door.airflow, timeout=60)
            try:
                connection.request(self.command, self.path, body=self.body or None, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
            except OSError:
                return self.say(502, b"Bad Gateway", "text/plain")
            finally:
                connection.close()
            if self.lost:
                return self.cut()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name not in (*SIZES, "Server", "Date"):
                    self.send_header(name, value)
            self.finish_with(body)

        # --- answers ---------------------------------------------------------------------------------

        def login(self) -> None:
            if door.faults.login_answer == "page":
                return self.say(200, LOGIN_PAGE, "text/html; charset=utf-8")
            self.send_response(302)
            self.send_header("Location", f"{door.url}{REALM}/protocol/openid-connect/auth?client_id=kaapana")
            self.finish_with(b"")

        def json(self, status: int, value: Any) -> None:
            self.say(status, json.dumps(value).encode(), "application/json")

        def say(self, status: int, body: bytes, kind: str) -> None:
            if self.lost:
                return self.cut()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.finish_with(body)

        def finish_with(self, body: bytes) -> None:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(door.now() if timestamp is None else timestamp)

        def cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
