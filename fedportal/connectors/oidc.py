"""Sign in at an OpenID Connect provider (Keycloak) and keep an access token fresh.

Three grants: client credentials, password (Kaapana ≤ 0.6), and device authorization (≥ 0.7), for which a person
confirms a code once and the portal keeps the refresh token (:class:`DeviceLogin`).

The access token is the site's business to verify; the portal reads its claims only to say what is wrong before the
site answers with a login page: another issuer than the site believes in, an audience that its proxy does not accept.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from fedportal.connectors.errors import SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.http import Answer, Http

EARLY = 60.0
"""Seconds before its end that a token is replaced."""
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
SLOW_DOWN = 5.0
"""Seconds that the poll of a device login is slowed down by, when the provider asks for it (RFC 8628)."""


class Grant(StrEnum):
    CLIENT = "client"
    PASSWORD = "password"  # noqa: S105  the name of a grant
    DEVICE = "device"


@dataclass(frozen=True)
class Discovery:
    """What the provider says of itself. ``device``: empty where it offers no device login."""

    issuer: str
    token: str
    device: str


@dataclass(frozen=True)
class Credentials:
    """How the portal proves who it is. Not all are needed for each grant. Never printed."""

    grant: Grant
    client_id: str
    client_secret: str = field(default="", repr=False)
    username: str = ""
    password: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Token:
    """An access token. ``expires`` is on this machine's monotonic clock; ``claims`` are read, not verified."""

    access: str = field(repr=False)
    expires: float
    refresh: str = field(repr=False, default="")
    claims: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def audience(self) -> tuple[str, ...]:
        found = self.claims.get("aud") or ()
        return (found,) if isinstance(found, str) else tuple(str(a) for a in found)

    @property
    def roles(self) -> frozenset[str]:
        """Roles of the realm."""
        access = self.claims.get("realm_access")
        roles = access.get("roles") if isinstance(access, dict) else None
        return frozenset(str(role) for role in roles) if isinstance(roles, list) else frozenset()


@dataclass(frozen=True)
class DeviceLogin:
    """A device login under way. A person opens ``address`` and confirms ``user_code``; meanwhile poll it."""

    address: str
    user_code: str
    device_code: str = field(repr=False)
    interval: float
    expires_in: float


class Provider:
    """One realm. ``http`` is rooted at the site; ``realm`` is the realm's path below it, which is also the issuer's.

    Thread-safe: threads that need a token at once wait for the one that fetches it.
    ``keep`` is called with each new refresh token of a device login, so that it is stored before it is needed; ``kept``
    returns the one that is stored now: another process of the portal may have renewed it, a person may have signed in anew.
    """

    def __init__(
        self,
        http: Http,
        realm: str,
        credentials: Credentials,
        *,
        audience: str = "",
        keep: Callable[[str], None] | None = None,
        kept: Callable[[], str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http, self.realm, self._credentials = http, realm.strip("/"), credentials
        self._audience, self._keep, self._kept, self._clock = audience, keep, kept, clock
        self._refresh = credentials.refresh_token
        self._lock = threading.Lock()
        self._token: Token | None = None
        self._discovery: Discovery | None = None

    @property
    def issuer(self) -> str:
        """The issuer that the site's proxy accepts: its own address, as it is configured there, and the realm."""
        return f"{self._http.base_url}/{self.realm}"

    def discover(self) -> Discovery:
        """Ask the provider for its addresses. Raises :class:`SiteRefused` when it takes itself for somebody else."""
        if self._discovery is not None:
            return self._discovery
        path = f"{self.realm}/.well-known/openid-configuration"
        answer = self._http.get(path)
        if not answer.ok:
            raise SiteRefused(
                f"There is no realm at {self.realm} ({answer.status}).", remedy="Check address and name of the realm."
            )
        document = answer.fields()
        issuer = str(document.get("issuer") or "")
        if issuer.rstrip("/") != self.issuer:
            raise SiteRefused(
                f"The site calls itself {issuer or 'nothing'}, so its proxy refuses tokens for {self.issuer}.",
                remedy="Register the site under the very name and port that Kaapana is configured with.",
            )
        token = str(document.get("token_endpoint") or "")
        device = str(document.get("device_authorization_endpoint") or "")
        for address in filter(None, (token, device)):
            if not address.startswith(f"{self._http.base_url}/"):
                raise SiteRefused(
                    f"The site's provider sends logins elsewhere ({address.split('?')[0]}).",
                    remedy="The realm must be served under the site's own address.",
                )
        if not token:
            raise SiteMisbehaved("The provider names no token endpoint.", remedy="Check the name of the realm.")
        self._discovery = Discovery(issuer, token, device)
        return self._discovery

    def token(self) -> Token:
        """Return a token that is good for a minute at least, renewing or fetching one if need be."""
        with self._lock:
            if self._token is None or self._token.expires - EARLY <= self._clock():
                self._token = self._renewed()
            return self._token

    def drop(self, stale: Token) -> None:
        """Forget a token that the site has refused, unless another thread has replaced it already."""
        with self._lock:
            if self._token is stale:
                self._token = None

    # --- device login --------------------------------------------------------------------------------

    def start_device_login(self) -> DeviceLogin:
        """Begin a device login. Raises :class:`SiteRefused` where the realm does not offer it."""
        endpoint = self.discover().device
        if not endpoint:
            raise SiteRefused(
                "The realm offers no device login.",
                remedy="Switch on the device authorization grant for the client, or choose another way to sign in.",
            )
        answer = self._http.post(endpoint, data={**self._client(), "scope": "openid offline_access"})
        document = _good(answer, "The device login")
        try:
            return DeviceLogin(
                address=str(document.get("verification_uri_complete") or document["verification_uri"]),
                user_code=str(document["user_code"]),
                device_code=str(document["device_code"]),
                interval=float(document.get("interval") or 5.0),
                expires_in=float(document.get("expires_in") or 600.0),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SiteMisbehaved("The device login's answer makes no sense.", remedy="Compare the versions.") from error

    def poll_device_login(self, login: DeviceLogin) -> Token | float:
        """Return the token, its refresh token kept, or the seconds to wait until the next poll.

        Raises :class:`SiteRefused` when the person declined or the code has run out.
        """
        form = {**self._client(), "grant_type": DEVICE_GRANT, "device_code": login.device_code}
        answer = self._http.post(self.discover().token, data=form)
        if answer.ok:
            with self._lock:
                self._token = self._read(_good(answer, "The device login"))
                return self._token
        match _error(answer):
            case "authorization_pending":
                return login.interval
            case "slow_down":
                return login.interval + SLOW_DOWN
            case "expired_token":
                raise SiteRefused("The code has run out before it was confirmed.", remedy="Start the sign-in again.")
            case "access_denied":
                raise SiteRefused("The sign-in was declined.", remedy="Start it again and confirm the code.")
            case error:
                raise SiteRefused(f"The device login failed ({error}).", remedy="Check the client's settings.")

    # --- tokens --------------------------------------------------------------------------------------

    def _renewed(self) -> Token:
        endpoint = self.discover().token
        if self._kept is not None and self._credentials.grant is Grant.DEVICE:
            self._refresh = self._kept()
        if self._refresh:
            try:
                return self._read(self._ask(endpoint, {"grant_type": "refresh_token", "refresh_token": self._refresh}))
            except SiteRefused:
                self._refresh = ""  # run out or revoked: sign in from the start, where that takes no person
                if self._credentials.grant is Grant.DEVICE:
                    raise
        return self._read(self._ask(endpoint, self._form()))

    def _form(self) -> dict[str, str]:
        c = self._credentials
        match c.grant:
            case Grant.CLIENT:
                return {"grant_type": "client_credentials", "scope": "openid"}
            case Grant.PASSWORD:
                return {
                    "grant_type": "password",
                    "scope": "openid",
                    "username": c.username,
                    "password": c.password,
                }
        raise SiteRefused(
            "Nobody has signed the portal in at this site yet.", remedy="Do the device login on the site's page."
        )

    def _client(self) -> dict[str, str]:
        c = self._credentials
        return {"client_id": c.client_id, **({"client_secret": c.client_secret} if c.client_secret else {})}

    def _ask(self, endpoint: str, form: Mapping[str, str]) -> dict[str, Any]:
        # Asking twice for a token is harmless, but a refresh token may be good for one use only.
        repeatable = form["grant_type"] != "refresh_token"
        answer = self._http.post(endpoint, data={**self._client(), **form}, repeatable=repeatable)
        return _good(answer, "The sign-in")

    def _read(self, document: Mapping[str, Any]) -> Token:
        access = document.get("access_token")
        if not isinstance(access, str) or not access:
            raise SiteMisbehaved("The provider's answer holds no access token.", remedy="Check the name of the realm.")
        claims = read_claims(access)
        try:
            lives = float(document.get("expires_in") or 60.0)
        except (TypeError, ValueError):
            lives = 60.0
        refresh = str(document.get("refresh_token") or "")
        if refresh and refresh != self._refresh:
            self._refresh = refresh
            if self._keep is not None and self._credentials.grant is Grant.DEVICE:
                self._keep(refresh)
        # By the provider's own count and our own clock: theirs may be wrong.
        token = Token(access, self._clock() + lives, refresh, claims)
        self._check(token)
        return token

    def _check(self, token: Token) -> None:
        issuer = str(token.claims.get("iss") or "")
        if issuer != self.issuer:
            raise SiteRefused(
                f"The token is from {issuer or 'an unknown issuer'}; the site believes only {self.issuer}.",
                remedy="Register the site under the very name and port that Kaapana is configured with.",
            )
        if self._audience and self._audience not in token.audience:
            raise SiteRefused(
                f"The token is for {', '.join(token.audience) or 'nobody'}, the site wants {self._audience}.",
                remedy=f"Add an audience mapper for “{self._audience}” to the portal's client in Keycloak.",
            )


def read_claims(token: str) -> dict[str, Any]:
    """Return the claims of a JWT without verifying it. Raises :class:`SiteMisbehaved` for what is none."""
    try:
        _, body, _ = token.split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, RecursionError) as error:
        raise SiteMisbehaved("The provider's token is not a JWT.", remedy="Check the name of the realm.") from error
    if not isinstance(claims, dict):
        raise SiteMisbehaved("The provider's token holds no claims.", remedy="Check the name of the realm.")
    return claims


def clock_skew(answer: Answer, *, now: float | None = None) -> float | None:
    """Return by how many seconds the server's clock is ahead of ours, by its Date header; ``None`` without one."""
    try:
        there = parsedate_to_datetime(answer.headers["Date"])
    except (KeyError, TypeError, ValueError):
        return None
    if there.tzinfo is None:
        there = there.replace(tzinfo=UTC)
    return there.timestamp() - (time.time() if now is None else now)


_REMEDIES: Sequence[tuple[str, str, str]] = (
    ("invalid_client", "The client or its secret is not known there", "Check client id and client secret."),
    ("unauthorized_client", "The client may not sign in that way", "Switch on this grant for the client in Keycloak."),
    (
        "invalid_grant",
        "User, password or refresh token is wrong or has run out",
        "Check them, or do the device login again; a new user must first set an own password and have no required actions left.",
    ),
    ("invalid_scope", "The scope is refused", "Allow the scope “openid” for the client."),
)


def _good(answer: Answer, what: str) -> dict[str, Any]:
    if answer.ok:
        return answer.fields()
    error = _error(answer)
    for code, sentence, remedy in _REMEDIES:
        if error == code:
            raise SiteRefused(f"{what} failed: {sentence}.", remedy=remedy)
    if answer.status in (400, 401, 403):
        raise SiteRefused(f"{what} failed ({error or answer.status}).", remedy="Check the client's settings.")
    raise SiteUnreachable(f"{what} failed ({answer.status}).", remedy="Keycloak's log says why.")


def _error(answer: Answer) -> str:
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        return ""
    return str(value.get("error") or "")[:60] if isinstance(value, dict) else ""
