"""The connectors there are, and how one is built for a site. A new connector is one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedportal.connectors.airflow import AirflowConnector
from fedportal.connectors.base import Connector
from fedportal.connectors.fields import Configured, SiteContext
from fedportal.connectors.kaapana import KaapanaConnector
from fedportal.connectors.kaapana_pull import KaapanaPullConnector
from fedportal.connectors.local import LocalConnector

KINDS: Mapping[str, type[Configured]] = {
    "local": LocalConnector,
    "airflow": AirflowConnector,
    "kaapana": KaapanaConnector,
    "kaapana-pull": KaapanaPullConnector,
}


def build(kind: str, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> Connector:
    """Return the connector. Raises ``ValueError`` for an unknown kind or a configuration that does not fit it."""
    if kind not in KINDS:
        raise ValueError(f"there is no connector of kind {kind!r}; known: {', '.join(KINDS)}")
    try:
        return KINDS[kind].from_config(config, secrets, site=site)
    except KeyError as error:
        raise ValueError(f"the configuration of a connector of kind {kind!r} lacks {error}") from error
    except TypeError as error:
        raise ValueError(f"the configuration does not fit a connector of kind {kind!r}") from error
