"""Kaapana's front door: proxy, Keycloak, projects and datasets, with their habits and with knobs for faults.

A bad token is answered by a redirect to the login, or by its page with status 200, never by 401 JSON. Tokens are RS256 JWTs
whose signature, issuer, audience and end are checked as the proxy checks them.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tests.kaapana_double.backend import Backend

REALM = "/auth/realms/kaapana"
LOGIN_PAGE = b"<!doctype html><html><title>Sign in to kaapana</title><form></form></html>"
SIZES = ("Content-Length", "Transfer-Encoding", "Connection")


@dataclass
class Keycloak:
    """The realm: who may sign in, and what its tokens say."""

    client_id: str = "fedportal"
    client_secret: str = "client-secret"
    users: dict[str, str] = field(default_factory=lambda: {"portal": "pass-word"})
    roles: list[str] = field(default_factory=lambda: ["admin", "user"])
    rights: list[str] = field(default_factory=list)
    """Claim of the projects whose backend the account may use: ``all_<id of the project>``."""
    audience: list[str] = field(default_factory=lambda: ["kaapana", "account"])
    lives: float = 3600.0
    offers_device: bool = True
    device_answers: list[str] = field(default_factory=list)
    """Errors that the poll of a device login gets, in order, before its token."""
    issuer: str = ""
    """What the realm calls itself, where that is not its address."""
    refresh_tokens: set[str] = field(default_factory=set)
    grants: list[str] = field(default_factory=list)
    """Grants that were asked for, in order."""


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
        self.keycloak, self.faults = Keycloak(), Faults()
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
        self._key = _key("realm")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.ca, scheme = "", "http"
        if tls is not None:
            self.ca, scheme = self._secure(tls), "https"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def datasets(self) -> dict[str, list[str]]:
        return self.backend.datasets

    def admit_members_only(self) -> None:
        """Let the portal's account be a member of the project and nothing more."""
        self.keycloak.roles, self.keycloak.rights = ["user"], [f"all_{self.project['id']}"]

    @property
    def issuer(self) -> str:
        return self.keycloak.issuer or f"{self.url}{REALM}"

    def now(self) -> float:
        return time.time() + self.faults.skew

    def token(self, **claims: Any) -> str:
        k = self.keycloak
        body = {
            "iss": self.issuer,
            "aud": k.audience,
            "exp": self.now() + k.lives,
            "iat": self.now(),
            "preferred_username": "portal",
            "realm_access": {"roles": k.roles},
            "kaapana.ai/backend": k.rights,
            **claims,
        }
        head = _b64(json.dumps({"alg": "RS256", "typ": "JWT", "kid": "1"}).encode())
        text = head + "." + _b64(json.dumps(body).encode())
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_b64(signature)}"

    def keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        size = (numbers.n.bit_length() + 7) // 8
        modulus, exponent = _b64(numbers.n.to_bytes(size, "big")), _b64(numbers.e.to_bytes(3, "big"))
        return {"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": modulus, "e": exponent}]}

    def admitted(self, header: str) -> dict[str, Any] | None:
        """Return the claims of a bearer token that the proxy accepts, else ``None``."""
        kind, _, token = header.partition(" ")
        try:
            text, _, signature = token.rpartition(".")
            if kind != "Bearer":
                return None
            self._key.public_key().verify(_unb64(signature), text.encode(), padding.PKCS1v15(), hashes.SHA256())
            claims: dict[str, Any] = json.loads(_unb64(text.split(".")[1]))
        except (ValueError, IndexError, InvalidSignature):
            return None
        if claims["iss"] != f"{self.url}{REALM}" or "kaapana" not in claims["aud"] or claims["exp"] < self.now():
            return None
        return claims

    def _secure(self, folder: Path) -> str:
        """Serve TLS with a certificate of an authority of our own, and return the authority's certificate (PEM)."""
        authority, certificate = _certificates(self._key)
        key = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "server.pem").write_bytes(key + certificate)
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
                return self.keycloak(path)
            claims = door.admitted(self.headers.get("Authorization", ""))
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

        # --- Keycloak --------------------------------------------------------------------------------

        def keycloak(self, path: str) -> None:
            k, base = door.keycloak, f"{door.url}{REALM}/protocol/openid-connect"
            match path.removeprefix(REALM):
                case "/.well-known/openid-configuration":
                    device = {"device_authorization_endpoint": f"{base}/auth/device"} if k.offers_device else {}
                    self.json(
                        200,
                        {
                            "issuer": door.issuer,
                            "token_endpoint": f"{base}/token",
                            "jwks_uri": f"{base}/certs",
                            **device,
                        },
                    )
                case "/protocol/openid-connect/certs":
                    self.json(200, door.keys())
                case "/protocol/openid-connect/token":
                    self.sign_in({name: values[0] for name, values in parse_qs(self.body.decode()).items()})
                case "/protocol/openid-connect/auth/device":
                    self.json(
                        200,
                        {
                            "device_code": "device-code",
                            "user_code": "WDJB-MJHT",
                            "verification_uri": f"{door.url}{REALM}/device",
                            "verification_uri_complete": f"{door.url}{REALM}/device?user_code=WDJB-MJHT",
                            "interval": 1,
                            "expires_in": 600,
                        },
                    )
                case _:
                    self.say(404, b"{}", "application/json")

        def sign_in(self, form: dict[str, str]) -> None:
            k = door.keycloak
            grant = form.get("grant_type", "")
            k.grants.append(grant.rsplit(":", 1)[-1])
            if (form.get("client_id"), form.get("client_secret")) != (k.client_id, k.client_secret):
                return self.json(401, {"error": "invalid_client"})
            if grant == "password" and k.users.get(form.get("username", "")) != form.get("password"):
                return self.json(401, {"error": "invalid_grant", "error_description": "Invalid user credentials"})
            if grant == "refresh_token" and form.get("refresh_token") not in k.refresh_tokens:
                return self.json(400, {"error": "invalid_grant", "error_description": "Token is not active"})
            if grant.endswith("device_code") and k.device_answers:
                return self.json(400, {"error": k.device_answers.pop(0)})
            answer = {"access_token": door.token(), "expires_in": k.lives, "token_type": "Bearer"}
            if grant != "client_credentials":
                refresh = secrets.token_hex(12)
                k.refresh_tokens.add(refresh)
                answer["refresh_token"] = refresh
            self.json(200, answer)

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


@cache
def _key(_whose: str) -> rsa.RSAPrivateKey:
    """Make a key once: that takes longer than many a test."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def _certificates(key: rsa.RSAPrivateKey) -> tuple[str, bytes]:
    authority_key = _key("authority")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Hospital CA")])
    now = datetime.now(UTC)

    def builder(subject: str, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(name)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=40))
        )

    authority = (
        builder("Hospital CA", authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        builder("127.0.0.1", key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return authority.public_bytes(pem).decode(), server.public_bytes(pem)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
