"""Canonical JSON, signatures, and the keys derived from the portal's secret."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from trainer.contract.checks import ContractError, read_json

MAX_JSON_BYTES = 32 * 1024 * 1024
"""No spec or manifest is larger; a reader refuses more before it parses."""


def canonical_json(document: Any) -> bytes:
    """Encode so that equal documents have equal bytes. Raises ``ValueError`` for NaN and infinity."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def site_key(secret: bytes, slug: str) -> bytes:
    """Derive the key of a site from the portal's secret. The site keeps it (``FEDPORTAL_SITE_KEY``, as hex), so no
    secret travels where a scheduler stores and shows what it is given."""
    return hmac.new(secret, f"site:{slug}".encode(), hashlib.sha256).digest()


def attempt_key(site: bytes, run: str) -> str:
    """Derive the key of an attempt (hex) from the key of its site: nothing to store, nothing to lose."""
    return hmac.new(site, f"attempt:{run}".encode(), hashlib.sha256).hexdigest()


def metrics_token(key: str) -> str:
    """Token with which an attempt posts its metric records; derived, so that it is not the signing key."""
    return hmac.new(bytes.fromhex(key), b"metrics", hashlib.sha256).hexdigest()


def relay_token(key: str) -> str:
    """Token with which an attempt has its files passed on by the portal, where it reaches no object store."""
    return hmac.new(bytes.fromhex(key), b"relay", hashlib.sha256).hexdigest()


def case_key(secret: bytes, family: str) -> str:
    """Derive the key (hex) of the case pseudonyms of one experiment with its repeats and baselines (``family``: its key).

    The same case has the same pseudonym in all of them, at whichever site it lies, and another one everywhere else."""
    return hmac.new(secret, f"cases:{family}".encode(), hashlib.sha256).hexdigest()


def case_pseudonym(key: str, content: bytes) -> str:
    """Return the name (16 hex digits) under which a case leaves its site. ``content``: SHA-256 of its image's voxels."""
    return hmac.new(bytes.fromhex(key), content, hashlib.sha256).hexdigest()[:16]


def signed(document: Mapping[str, Any], key: str) -> bytes:
    """Return ``{"document": …, "hmac": …}`` as JSON bytes, authenticated under ``key`` (hex)."""
    body = dict(document)
    return canonical_json({"document": body, "hmac": _mac(body, key)})


def verified(data: bytes, key: str) -> dict[str, Any]:
    """Return the document of :func:`signed` bytes. Raises :class:`ContractError` when it was not signed with ``key``."""
    if len(data) > MAX_JSON_BYTES:
        raise ContractError(f"document of {len(data)} bytes is too large")
    try:
        envelope = read_json(data)
        document, mac = envelope["document"], envelope["hmac"]
        genuine = isinstance(document, dict) and isinstance(mac, str) and hmac.compare_digest(_mac(document, key), mac)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError("document is not signed JSON") from error
    if not genuine:
        raise ContractError("document has a wrong signature")
    return dict(document)


def _mac(document: Mapping[str, Any], key: str) -> str:
    return hmac.new(bytes.fromhex(key), canonical_json(document), hashlib.sha256).hexdigest()
