"""What the sites' pages and forms know about connectors: which exist, what they ask for, how stored settings are shown."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.conf import settings

from fedportal.connectors import registry
from fedportal.connectors.fields import Configured, Field, SiteContext
from fedportal.sites.certificates import describe
from fedportal.sites.models import Site
from trainer.contract import site_key


def connectors() -> dict[str, type[Configured]]:
    """Return the connectors that can be chosen now, by kind."""
    return dict(registry.KINDS)


@dataclass(frozen=True)
class Card:
    """A connector as people choose it. (Templates call classes, so they get this instead.)"""

    kind: str
    title: str
    summary: str


def card(kind: str) -> Card:
    connector = registry.KINDS[kind]
    return Card(kind, connector.TITLE, connector.SUMMARY)


def cards() -> list[Card]:
    return [card(kind) for kind in registry.KINDS]


def connector_of(site: Site) -> type[Configured] | None:
    """Return the class of a site's connector; ``None`` if this portal does not (or no longer) have it."""
    return registry.KINDS.get(site.connector)


def site_context(slug: str) -> SiteContext:
    return SiteContext(
        slug=slug,
        portal_url=settings.FEDPORTAL_PUBLIC_URL,
        trainer_socket=str(settings.FEDPORTAL_TRAINER_SOCKET),
        shelf=str(settings.FEDPORTAL_SPOOL),
        key=site_key(settings.FEDPORTAL_ATTEMPT_SECRET, slug),
    )


def stored_fields(connector: type[Configured]) -> Iterator[Field]:
    """Yield the fields whose values are stored: for pasted JSON, its parts."""
    for field in connector.FIELDS:
        yield from field.parts or (field,)


def issued(kind: str) -> dict[str, str]:
    """Return new values for the secrets that the portal issues to a site with this kind of connector."""
    if kind not in registry.KINDS:
        return {}
    return {field.name: secrets.token_urlsafe(32) for field in stored_fields(registry.KINDS[kind]) if field.issued}


def needs_key(site: Site) -> bool:
    """Say whether the site keeps a key in its own environment."""
    connector = connector_of(site)
    return connector is not None and connector.NEEDS_SITE_KEY


def needs_sign_in(site: Site) -> bool:
    """Say whether a person has to sign the portal in at the site."""
    connector = connector_of(site)
    return connector is not None and connector.needs_sign_in(site.config)


def key_of(site: Site) -> str:
    """Return the key that the site keeps in its own environment (hex)."""
    return site_key(settings.FEDPORTAL_ATTEMPT_SECRET, site.slug).hex()


def handout_of(site: Site) -> dict[str, Any]:
    """Return the JSON object that people paste at the site; empty if its connector has none. It contains secrets."""
    connector = connector_of(site)
    return connector.handout(site.config, site.secrets, site=site_context(site.slug)) if connector else {}


def described(site: Site) -> list[tuple[str, str]]:
    """Return label and value of the connector's settings for operators: no secrets, certificates in words."""
    connector = connector_of(site)
    if connector is None:
        return [(name, str(value)) for name, value in site.config.items()]
    known = {field.name: field for field in stored_fields(connector)}
    return [
        (known[name].label if name in known else name, _words(known.get(name), value))
        for name, value in site.config.items()
        if value not in ("", None)
    ]


def _words(field: Field | None, value: Any) -> str:
    if field is not None and field.kind == "file":
        return "; ".join(describe(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if field is not None and field.choices:
        return dict(field.choices).get(value, str(value))
    return f"{value} {field.unit}" if field is not None and field.unit and field.unit != field.name else str(value)
