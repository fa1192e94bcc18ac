"""HTTP as the portal speaks it with sites: no redirects, bounded answers, clear errors, no way to forbidden hosts."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from fedportal.connectors.errors import SiteError, SiteMisbehaved, SiteRefused, SiteUnreachable

CONNECT, READ = 5.0, 30.0
"""Seconds until a connection must stand, and between two pieces of an answer."""
WHOLE = 60.0
"""Seconds for a whole answer, however slowly it drips."""
MAX_BODY = 8 * 1024 * 1024
PASSING = frozenset({500, 502, 503, 504})
"""Answers of a proxy whose server is away for a moment, and of a server whose database was (Airflow answers 500 when
another process wrote first, or when two locks met)."""
REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
PAUSE = 0.2

METADATA_NAMES = frozenset({"metadata.google.internal", "metadata.goog", "metadata"})
METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
"""Addresses beside the link-local ones under which clouds give out credentials."""
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Auth = tuple[str, str] | Callable[[requests.PreparedRequest], requests.PreparedRequest]


@dataclass(frozen=True)
class Answer:
    """An answer below 500 that is no redirect. ``where``: method and path, for messages; a query may hold secrets."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    where: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_html(self) -> bool:
        return "html" in self.headers.get("Content-Type", "")

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Return the parsed body. Raises :class:`SiteMisbehaved` for what is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise SiteMisbehaved(
                f"The answer to {self.where} ({self.status}) is not JSON.",
                remedy="Check that the address is that of the product itself, with its whole path.",
            ) from error

    def fields(self) -> dict[str, Any]:
        """Return the parsed body, which must be an object."""
        value = self.json()
        if not isinstance(value, dict):
            raise SiteMisbehaved(f"The answer to {self.where} is not a JSON object.", remedy="Compare the versions.")
        return value


class Http:
    """One server below ``base_url``. ``ca_certificate``: PEM text of an authority to trust beside the system's.

    ``auth`` is sent with every request. Cookies are dropped unless ``cookies`` is set. May be used by many threads.
    Every request raises :class:`SiteUnreachable` (no answer, 408, 429, 5xx) or :class:`SiteRefused` (forbidden host,
    certificate, and redirects or pages where data were expected: both mean that a login did not pass).
    """

    def __init__(
        self,
        base_url: str,
        *,
        ca_certificate: str = "",
        verify: bool = True,
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        cookies: bool = False,
        timeout: tuple[float, float] = (CONNECT, READ),
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.verifies, self._timeout = verify, timeout
        self._ca_certificate = ca_certificate
        self._session = requests.Session()
        adapter = _Adapter(_context(ca_certificate, verify))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        # Nothing of the environment: behind a proxy neither a site's own authority nor the look at who answers would
        # hold, and ~/.netrc would add a login.
        self._session.trust_env = False
        self._session.auth = auth
        self._session.headers.update({"User-Agent": "fedportal", "Accept": "application/json", **(headers or {})})
        if not cookies:
            self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    @property
    def cookies(self) -> requests.cookies.RequestsCookieJar:
        return self._session.cookies

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> Answer:
        return self.request("POST", path, **options)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        data: Any = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
        max_bytes: int = MAX_BODY,
        pages: bool = False,
    ) -> Answer:
        """Return the answer. A request that is ``repeatable`` (by its method, if not said) is tried a second time when
        the connection breaks or the answer is one that passes. ``pages``: HTML is a valid answer.
        """
        url = path if path.startswith(("http://", "https://")) else f"{self.base_url}/{path.lstrip('/')}"
        if reason := why_refused(url):
            raise SiteRefused(reason, remedy="Correct the address of the site.")
        where = f"{method} {urlsplit(url).path}"
        tries = 2 if (method in REPEATABLE if repeatable is None else repeatable) else 1
        for attempt in range(1, tries + 1):
            try:
                answer = self._send(method, url, where, max_bytes, params=params, data=data, json=json, headers=headers)
            except SiteUnreachable:
                if attempt == tries:
                    raise
            else:
                if answer.status not in PASSING or attempt == tries:
                    return _judged(answer, pages=pages)
            time.sleep(PAUSE)
        raise AssertionError("unreachable")

    def _send(self, method: str, url: str, where: str, max_bytes: int, **options: Any) -> Answer:
        host = urlsplit(url).netloc
        try:
            with self._session.request(
                method, url, timeout=self._timeout, allow_redirects=False, stream=True, verify=self.verifies, **options
            ) as response:
                return Answer(
                    response.status_code, CaseInsensitiveDict(response.headers), _body(response, max_bytes), where
                )
        except Forbidden as error:
            raise SiteRefused(str(error), remedy="Correct the address of the site.") from error
        except requests.exceptions.SSLError as error:
            raise _certificate_refused(error, host) from error
        except requests.exceptions.ConnectTimeout as error:
            raise SiteUnreachable(
                f"{host} does not answer within {self._timeout[0]:.0f} seconds.",
                remedy="Check the address, the firewalls in between, and that the server runs.",
            ) from error
        except requests.exceptions.Timeout as error:
            raise SiteUnreachable(f"{host} accepts the connection but gives no answer in time.") from error
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _unreachable(error, host) from error
        except requests.exceptions.RequestException as error:
            raise SiteMisbehaved(f"{host} does not speak HTTP as expected ({type(error).__name__}).") from error

    # --- looks for a check ---------------------------------------------------------------------------

    def resolve(self) -> list[str]:
        """Return the addresses of the server's name. Raises :class:`SiteUnreachable` when there is none."""
        parts = urlsplit(self.base_url)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or _PORTS.get(parts.scheme), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SiteUnreachable(
                f"The name {parts.hostname} cannot be resolved.", remedy="Check the spelling, and the portal's DNS."
            ) from error
        return sorted({str(address[0]) for *_, address in found})

    def certificate_expiry(self) -> datetime | None:
        """Return until when the server's certificate is valid; ``None`` without TLS. Verifies it on the way."""
        parts = urlsplit(self.base_url)
        if parts.scheme != "https" or parts.hostname is None:
            return None
        try:
            with (
                socket.create_connection((parts.hostname, parts.port or 443), timeout=self._timeout[0]) as connection,
                _context(self._ca_certificate, True).wrap_socket(
                    _check_peer(connection, parts.hostname), server_hostname=parts.hostname
                ) as secured,
            ):
                end = (secured.getpeercert() or {}).get("notAfter", "")
        except Forbidden as error:
            raise SiteRefused(str(error), remedy="Correct the address of the site.") from error
        except ssl.SSLError as error:
            raise _certificate_refused(error, parts.netloc) from error
        except OSError as error:
            raise _unreachable(error, parts.netloc) from error
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(end)), tz=UTC)


def why_refused(url: str) -> str:
    """Return why the portal does not speak to an address, empty when it does. Looks at the text only.

    What a name resolves to is checked when the connection stands, so no name server can talk the portal round.
    """
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").rstrip(".").lower(), parts.port
    except ValueError:
        return "The address is not a URL."
    if parts.scheme not in _PORTS or not host:
        return "The address must begin with https:// and name a server."
    if parts.username is not None or parts.password is not None:
        return "The address must not hold a user name or password; they have fields of their own."
    if host in METADATA_NAMES or _is_forbidden(host):
        return f"{host} is an address that no site has."
    if not _is_listed(host):
        return (
            f"{host} is not among the hosts that this portal may call. An operator lists them (FEDPORTAL_SITE_HOSTS)."
        )
    if parts.scheme == "http" and not _is_loopback(host) and not _http_is_allowed():
        return "Sites are reached by https:// only."
    return ""


class Forbidden(Exception):
    """A name led to an address that no site has."""


_PORTS = {"http": 80, "https": 443}


def _http_is_allowed() -> bool:
    return os.environ.get("FEDPORTAL_ALLOW_HTTP_SITES", "").lower() in ("1", "true", "yes", "on")


def _is_listed(host: str) -> bool:
    """Say whether a host is one that the portal's operator allows; all are, where none is listed."""
    listed = os.environ.get("FEDPORTAL_SITE_HOSTS", "").lower().replace(",", " ").split()
    return not listed or any(fnmatchcase(host, pattern) for pattern in listed)


def _is_forbidden(host: str) -> bool:
    """Say whether a text is an address of the local link, of a cloud's metadata, or of nobody."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if address.version == 6:
        behind_nat64 = ipaddress.ip_address(int(address) & 0xFFFF_FFFF) if address in NAT64 else None
        address = address.ipv4_mapped or address.sixtofour or behind_nat64 or address
    return address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_peer(connection: socket.socket, host: str) -> socket.socket:
    if _is_forbidden(str(connection.getpeername()[0])):
        connection.close()
        raise Forbidden(f"{host} leads to an address that no site has.")
    return connection


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _check_peer(super()._new_conn(), self.host)


class _SecureConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _check_peer(super()._new_conn(), self.host)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Adapter(HTTPAdapter):
    """Connects with our own TLS context and looks whom it has reached."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_connections=2, pool_maxsize=8)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs, ssl_context=self._context)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def _context(ca_certificate: str, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_certificate.strip():
        try:
            context.load_verify_locations(cadata=ca_certificate)
        except (ssl.SSLError, ValueError) as error:
            raise SiteRefused(
                "The certificate of the site's authority cannot be read.",
                remedy="Give it as PEM text, from BEGIN CERTIFICATE to END CERTIFICATE.",
            ) from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _body(response: requests.Response, max_bytes: int) -> bytes:
    end = time.monotonic() + WHOLE
    data = bytearray()
    for piece in response.iter_content(65536):
        data += piece
        if len(data) > max_bytes:
            raise SiteMisbehaved(f"The answer is larger than {max_bytes:,} bytes.")
        if time.monotonic() > end:
            raise requests.exceptions.ReadTimeout
    return bytes(data)


def _judged(answer: Answer, *, pages: bool) -> Answer:
    if 300 <= answer.status < 400:
        raise SiteRefused(
            f"The site answers {answer.where} with a redirect ({answer.status}): it wants a login first.",
            remedy="Check user and password, and that the address is the final one (https, whole path).",
        )
    if answer.status in (408, 429) or answer.status >= 500:
        raise SiteUnreachable(
            f"The site answers {answer.where} with {answer.status}.", remedy="Its server's log says why."
        )
    if answer.ok and answer.is_html and not pages:
        raise SiteRefused(
            f"The site answers {answer.where} with a page instead of data: it wants a login first.",
            remedy="Check user and password, and that the address is that of the interface.",
        )
    return answer


def _unreachable(error: Exception, host: str) -> SiteError:
    text = str(error)
    if isinstance(error, socket.gaierror) or "NameResolutionError" in text or "getaddrinfo" in text:
        return SiteUnreachable(
            f"The name of {host} cannot be resolved.", remedy="Check the spelling, and the portal's DNS."
        )
    if "refused" in text.lower():
        return SiteUnreachable(f"{host} refuses the connection.", remedy="Check the port, and that the server runs.")
    return SiteUnreachable(f"The connection to {host} broke off.", remedy="Check firewalls and proxies in between.")


def _certificate_refused(error: Exception, host: str) -> SiteRefused:
    text = str(error).lower()
    if "expired" in text:
        return SiteRefused(f"The certificate of {host} has expired.", remedy="The site's IT has to renew it.")
    if "hostname mismatch" in text or "doesn't match" in text or "ip address mismatch" in text:
        return SiteRefused(
            f"The certificate of {host} is for another name.", remedy="Use the name that the certificate holds."
        )
    if "self-signed" in text or "self signed" in text or "unable to get" in text:
        return SiteRefused(
            f"The certificate of {host} is from an authority that the portal does not know.",
            remedy="Add the certificate of the site's own authority (PEM).",
        )
    return SiteRefused(
        f"No secure connection to {host} comes about.", remedy="Check that the port speaks TLS (https), 1.2 or newer."
    )
