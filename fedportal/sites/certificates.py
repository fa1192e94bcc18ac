"""CA certificates that a person uploads or pastes: read strictly, described in words."""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from django.utils import timezone

MOST_BYTES = 128 * 1024
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class BadCertificate(ValueError):
    """The text holds no usable CA certificates. The message is written for people."""


def read(text: str) -> str:
    """Return the certificates of a text, and nothing else of it, as PEM. Raises :class:`BadCertificate`."""
    if len(text.encode()) > MOST_BYTES:
        raise BadCertificate(f"This is larger than {MOST_BYTES // 1024} kB. Provide only the authority's certificates.")
    kinds = {match[1] for match in _BLOCK.finditer(text)}
    if any("PRIVATE KEY" in kind for kind in kinds):
        raise BadCertificate("This contains a private key. Remove it, and replace that key: it is no longer private.")
    if "CERTIFICATE" not in kinds:
        raise BadCertificate("No certificate found. Use PEM: text that starts with “-----BEGIN CERTIFICATE-----”.")
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        raise BadCertificate("One of the certificates is damaged. Copy it again in full.") from error
    for certificate in found:
        _judge(certificate)
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in found)


def _judge(certificate: x509.Certificate) -> None:
    name = subject_of(certificate)
    if certificate.not_valid_after_utc <= timezone.now():
        raise BadCertificate(
            f"The certificate of {name} expired on {certificate.not_valid_after_utc:%-d %B %Y}. Get a new one."
        )
    if certificate.subject == certificate.issuer or _is_authority(certificate):
        return
    issuer = _common_name(certificate.issuer)
    raise BadCertificate(f"{name} is a server's certificate. Provide that of the authority that signed it: {issuer}.")


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False


def _common_name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()


def subject_of(certificate: x509.Certificate) -> str:
    return _common_name(certificate.subject)


def describe(pem: str) -> list[str]:
    """Say whose the stored certificates are and when they expire."""
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        return ["a certificate that cannot be read"]
    return [f"{subject_of(one)}, expires {one.not_valid_after_utc:%-d %B %Y}" for one in found]
