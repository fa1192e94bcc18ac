"""A connector that declares a field of every kind, for tests of the forms; and certificates to paste into them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from fedportal.connectors.fields import Configured, Field, SiteContext, Unfit

KIND = "kaapana-pull"
"""The kind under which the tests register it; the database knows only the kinds that there will be."""


class ProbeConnector(Configured):
    TITLE = "Probe"
    SUMMARY = "When every kind of field is wanted."
    HANDOUT = "Paste this over there."
    FIELDS = (
        Field("base_url", "Address", "Where it answers.", kind="url"),
        Field("project", "Project", "Its name.", required=False, default="admin"),
        Field("password", "Password", "Of the account.", kind="secret"),
        Field("otp_seed", "Second factor", "Its seed.", kind="secret", required=False),
        Field("version", "Version", "Old or new.", kind="choice", choices=(("old", "≤ 0.6"), ("new", "≥ 0.7"))),
        Field(
            "timeout", "Time-out", "Of a call.", kind="number", default=30, least=1, most=300, unit="s", advanced=True
        ),
        Field("verify", "Verify", "The certificate.", kind="flag", default=True),
        Field("ca_certificate", "Authority", "Its own one.", kind="file", required=False),
        Field(
            "definition",
            "Definition",
            "As the site shows it.",
            kind="json",
            parts=(
                Field("instance_name", "Name", ""),
                Field("port", "Port", "", kind="number", least=1, most=65535),
                Field("token", "Token", "", kind="secret"),
                Field("ssl_check", "Checks certificates", "", kind="flag", default=False),
                Field("portal_token", "The portal's token", "", kind="secret", issued=True),
            ),
        ),
    )

    def __init__(self, *, address: str) -> None:
        """Like any connector it cannot be made of nothing, as templates would try."""

    @classmethod
    def clean_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
        if secrets["password"] == config["project"]:
            raise Unfit("password", "The password must not be the name of the project.")
        if config["instance_name"] == "portal":
            raise Unfit("instance_name", "This is the portal's own name.")
        if config["version"] == "old" and secrets.get("otp_seed"):
            raise Unfit("", "Old versions have no second factor.")
        return dict(config)

    @classmethod
    def handout(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> dict[str, Any]:
        return {
            "instance_name": "portal",
            "host": site.portal_url,
            "port": config.get("port"),
            "token": secrets["portal_token"],
        }


DEFINITION = '{"instance_name": "mainz-kaapana", "port": 443, "token": "tok-4711", "ssl_check": true, "host": "x"}'
TYPED = {
    "name": "Mainz",
    "slug": "mainz",
    "base_url": "https://kaapana.mainz.example/",
    "project": "tumours",
    "password": "pass-4711",
    "version": "new",
    "timeout": "20",
    "verify": "on",
    "definition": DEFINITION,
}


def certificate(
    name: str = "Mainz CA", *, authority: bool = True, signed_by: str = "", days: int = 365, with_key: bool = False
) -> str:
    """Return a certificate in PEM, ``days`` valid from now (or expired since), self-signed unless ``signed_by``."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, signed_by or name)])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=400))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    text = built.public_bytes(Encoding.PEM).decode()
    if with_key:
        text += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return text
