"""A Kaapana's Keycloak. Tokens are RS256 JWTs whose signature, issuer, audience and end are checked as the proxy does."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tests.kaapana_double.certificates import key_of

REALM = "/auth/realms/kaapana"
Answer = tuple[int, Any]


@dataclass
class Keycloak:
    """The realm of a site: who may sign in, and what its tokens say. ``url``: the site's; ``now``: its clock (epoch)."""

    url: str
    now: Callable[[], float]
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

    def __post_init__(self) -> None:
        self._key = key_of("realm")

    @property
    def realm(self) -> str:
        return f"{self.url}{REALM}"

    # --- what it answers -----------------------------------------------------------------------------

    def answer(self, path: str, body: bytes) -> Answer:
        """Return status and document of a request below :data:`REALM`."""
        protocol = f"{self.realm}/protocol/openid-connect"
        match path.removeprefix(REALM):
            case "/.well-known/openid-configuration":
                device = {"device_authorization_endpoint": f"{protocol}/auth/device"} if self.offers_device else {}
                return 200, {
                    "issuer": self.issuer or self.realm,
                    "token_endpoint": f"{protocol}/token",
                    "jwks_uri": f"{protocol}/certs",
                    **device,
                }
            case "/protocol/openid-connect/certs":
                return 200, self._keys()
            case "/protocol/openid-connect/token":
                return self._sign_in({name: values[0] for name, values in parse_qs(body.decode()).items()})
            case "/protocol/openid-connect/auth/device":
                return 200, {
                    "device_code": "device-code",
                    "user_code": "WDJB-MJHT",
                    "verification_uri": f"{self.realm}/device",
                    "verification_uri_complete": f"{self.realm}/device?user_code=WDJB-MJHT",
                    "interval": 1,
                    "expires_in": 600,
                }
        return 404, {}

    def _sign_in(self, form: dict[str, str]) -> Answer:
        grant = form.get("grant_type", "")
        self.grants.append(grant.rsplit(":", 1)[-1])
        if (form.get("client_id"), form.get("client_secret")) != (self.client_id, self.client_secret):
            return 401, {"error": "invalid_client"}
        if grant == "password" and self.users.get(form.get("username", "")) != form.get("password"):
            return 401, {"error": "invalid_grant", "error_description": "Invalid user credentials"}
        if grant == "refresh_token" and form.get("refresh_token") not in self.refresh_tokens:
            return 400, {"error": "invalid_grant", "error_description": "Token is not active"}
        if grant.endswith("device_code") and self.device_answers:
            return 400, {"error": self.device_answers.pop(0)}
        answer = {"access_token": self._token(), "expires_in": self.lives, "token_type": "Bearer"}
        if grant != "client_credentials":
            answer["refresh_token"] = secrets.token_hex(12)
            self.refresh_tokens.add(answer["refresh_token"])
        return 200, answer

    # --- its tokens ----------------------------------------------------------------------------------

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
        if claims["iss"] != self.realm or "kaapana" not in claims["aud"] or claims["exp"] < self.now():
            return None
        return claims

    def _token(self) -> str:
        body = {
            "iss": self.issuer or self.realm,
            "aud": self.audience,
            "exp": self.now() + self.lives,
            "iat": self.now(),
            "preferred_username": "portal",
            "realm_access": {"roles": self.roles},
            "kaapana.ai/backend": self.rights,
        }
        head = _b64(json.dumps({"alg": "RS256", "typ": "JWT", "kid": "1"}).encode())
        text = head + "." + _b64(json.dumps(body).encode())
        signature = self._key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{text}.{_b64(signature)}"

    def _keys(self) -> dict[str, Any]:
        numbers = self._key.public_key().public_numbers()
        size = (numbers.n.bit_length() + 7) // 8
        modulus, exponent = _b64(numbers.n.to_bytes(size, "big")), _b64(numbers.e.to_bytes(3, "big"))
        return {"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": modulus, "e": exponent}]}


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
