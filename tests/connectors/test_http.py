"""How the portal speaks HTTP with sites: what it refuses, what it tries again, what it makes of errors."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedportal.connectors.errors import SiteMisbehaved, SiteRefused, SiteUnreachable
from fedportal.connectors.http import Http, why_refused
from tests.connectors.scripted_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_paths_lie_below_the_base_and_json_is_read(server: Server) -> None:
    server.script = [(200, {"Content-Type": "application/json"}, b'{"a": 1}')]
    assert Http(server.url + "/").get("/x", params={"q": "1"}).json() == {"a": 1}
    assert server.seen[0][1] == "/base/x?q=1"


def test_no_proxy_of_the_environment_stands_between(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    server.script = [(200, {}, b"{}")]
    assert Http(server.url).get("x").ok


def test_a_redirect_is_not_followed_but_means_login(server: Server) -> None:
    server.script = [(302, {"Location": "http://127.0.0.1:1/login"}, b"")]
    with pytest.raises(SiteRefused, match="login"):
        Http(server.url).get("x")
    assert len(server.seen) == 1


def test_a_page_where_data_were_expected_means_login(server: Server) -> None:
    server.script = [(200, {"Content-Type": "text/html; charset=utf-8"}, b"<html>")]
    with pytest.raises(SiteRefused, match="login"):
        Http(server.url).get("x")
    assert Http(server.url).get("x", pages=True).ok


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_no_refusal(server: Server, status: int) -> None:
    server.script = [(status, {}, b"")]
    with pytest.raises(SiteUnreachable, match=str(status)):
        Http(server.url).get("x")


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_only_what_may_be_repeated_is_repeated(server: Server, status: int) -> None:
    server.script = [(status, {}, b""), (200, {}, b"{}")]
    assert Http(server.url).get("x").ok
    server.script = [(status, {}, b""), (200, {}, b"{}")]
    with pytest.raises(SiteUnreachable):
        Http(server.url).post("x", json={})
    assert [method for method, *_ in server.seen] == ["GET", "GET", "POST"]


def test_a_connection_that_breaks_is_tried_once_more(server: Server) -> None:
    server.script = [(0, {}, b""), (200, {}, b"{}")]
    assert Http(server.url).get("x").ok
    server.script = [(0, {}, b"")]
    with pytest.raises(SiteUnreachable, match="broke off"):
        Http(server.url).get("x")


def test_an_answer_that_breaks_off_is_tried_once_more(server: Server) -> None:
    half = (200, {"Content-Length": "100"}, b'{"a": ')
    server.script = [half, (200, {}, b"{}")]
    assert Http(server.url).get("x").json() == {}
    server.script = [half]
    with pytest.raises(SiteUnreachable, match="broke off"):
        Http(server.url).get("x")


def test_an_answer_that_is_too_large_or_no_json_is_misbehaviour(server: Server) -> None:
    server.script = [(200, {}, b"x" * 5000)]
    with pytest.raises(SiteMisbehaved, match="larger"):
        Http(server.url).get("x", max_bytes=1000)
    with pytest.raises(SiteMisbehaved, match="not JSON"):
        Http(server.url).get("x").json()


def test_no_server_is_said_plainly() -> None:
    with pytest.raises(SiteUnreachable, match="refuses the connection"):
        Http("http://127.0.0.1:1").get("x")
    with pytest.raises(SiteUnreachable, match="resolved"):
        Http("https://does-not-exist.invalid").get("x")


def test_a_login_is_sent_and_no_other_is_looked_up(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login thief password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Http(server.url).get("x")
    Http(server.url, auth=("ada", "pw")).get("x")
    assert ["Authorization" in headers for *_, headers in server.seen] == [False, True]


def test_cookies_are_dropped_unless_wanted(server: Server) -> None:
    server.script = [(200, {"Set-Cookie": "a=b"}, b"{}")]
    for cookies in (False, True):
        http = Http(server.url, cookies=cookies)
        http.get("x")
        http.get("x")
    assert [headers.get("Cookie") for *_, headers in server.seen] == [None, None, None, "a=b"]


@pytest.mark.parametrize(
    "url",
    [
        "http://hospital.example",
        "ftp://hospital.example",
        "hospital.example",
        "https://ada:pw@hospital.example",
        "https://169.254.169.254/latest",
        "https://metadata.google.internal/x",
        "https://[fe80::1]/",
        "https://[::ffff:169.254.169.254]/",
        "https://0.0.0.0/",
        "https://100.100.100.200",
        "https://168.63.129.16",
        "https://[64:ff9b::a9fe:a9fe]/",  # the same behind NAT64
        "https://[2002:a9fe:a9fe::]/",  # and by 6to4
        "https://[fe80::1%25eth0]/",
        "https://169.254.169.254./",
        "file:///etc/passwd",
        "https:///etc/passwd",
        "https://hospital.example@169.254.169.254/",
        "https://host:port/",
    ],
)
def test_addresses_that_no_site_has_are_refused(url: str) -> None:
    assert why_refused(url)
    with pytest.raises(SiteRefused):
        Http(url).get("x")


@pytest.mark.parametrize(
    "url", ["https://hospital.example/flow", "https://10.1.2.3:8443", "http://127.0.0.1:8080", "http://localhost"]
)
def test_addresses_of_sites_are_allowed(url: str) -> None:
    assert not why_refused(url)


def test_plain_http_is_a_decision_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPORTAL_ALLOW_HTTP_SITES", "1")
    assert not why_refused("http://hospital.example")


def test_only_listed_hosts_are_called_where_an_operator_lists_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPORTAL_SITE_HOSTS", "*.Hospital.example, 10.1.2.3 10.9.9.*")
    for host in ("kaapana.hospital.example", "10.1.2.3:8443", "10.9.9.7", "KAAPANA.HOSPITAL.EXAMPLE."):
        assert not why_refused(f"https://{host}/flow")
    for host in ("hospital.example", "hospital.example.evil.example", "10.1.2.34", "127.0.0.1"):
        assert why_refused(f"https://{host}")
        with pytest.raises(SiteRefused, match="FEDPORTAL_SITE_HOSTS"):
            Http(f"https://{host}").get("x")
    monkeypatch.setenv("FEDPORTAL_SITE_HOSTS", "*")
    assert why_refused("https://169.254.169.254/latest")


def test_a_name_that_leads_to_a_forbidden_address_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedportal.connectors.http._is_forbidden", lambda host: host == "127.0.0.1")
    with pytest.raises(SiteRefused, match="no site has"):
        Http(f"http://localhost:{server.port}").get("x")
    with pytest.raises(SiteRefused, match="no site has"):
        Http(f"https://localhost:{server.port}").certificate_expiry()
    assert server.seen == []


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"])
def test_a_number_is_the_address_that_the_system_takes_it_for(host: str) -> None:
    """No text shows it; whom the connection has reached does."""
    (*_, (found, _port)) = socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)[0]
    assert found == "169.254.169.254"
    assert why_refused(f"https://{found}")


@pytest.mark.parametrize("path", ["x\r\nHost: evil.example", "x\nX-Injected: 1", "x y"])
def test_no_path_adds_a_line_to_a_request(server: Server, path: str) -> None:
    Http(server.url).get(path)
    ((_, _, headers),) = server.seen
    assert "X-Injected" not in headers
    assert headers["Host"] == f"127.0.0.1:{server.port}"


@pytest.fixture
def secure(server: Server, tmp_path: Path) -> Iterator[Callable[..., tuple[str, str]]]:
    """Make the server speak TLS: returns its address and the PEM text of its self-signed certificate."""
    started: list[Server] = []

    def make(*, name: str = "localhost", days: int = 10) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        end = datetime.now(UTC) + timedelta(days=days)
        certificate = (
            x509.CertificateBuilder(
                who, who, key.public_key(), x509.random_serial_number(), end - timedelta(days=30), end
            )
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / "server.pem").write_bytes(private + pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        secured = Server()
        secured.server.socket = context.wrap_socket(secured.server.socket, server_side=True)
        secured.start()
        started.append(secured)
        return f"https://localhost:{secured.port}", pem.decode()

    yield make
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def test_the_sites_own_authority_is_trusted_when_it_is_given(secure: Callable[..., tuple[str, str]]) -> None:
    url, pem = secure()
    with pytest.raises(SiteRefused, match="does not know"):
        Http(url).get("x")
    http = Http(url, ca_certificate=pem)
    assert http.get("x").ok
    expiry = http.certificate_expiry()
    assert expiry is not None
    assert 8 < (expiry - datetime.now(UTC)).days < 10


@pytest.mark.parametrize(
    ("change", "words"), [({"name": "elsewhere.example"}, "another name"), ({"days": -1}, "expired")]
)
def test_a_bad_certificate_is_told_apart(
    secure: Callable[..., tuple[str, str]], change: dict[str, object], words: str
) -> None:
    url, pem = secure(**change)
    http = Http(url, ca_certificate=pem)
    for look in (lambda: http.get("x"), http.certificate_expiry):
        with pytest.raises(SiteRefused, match=words):
            look()


def test_a_text_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(SiteRefused, match="cannot be read"):
        Http("https://hospital.example", ca_certificate="-----BEGIN CERTIFICATE-----\nnonsense")
