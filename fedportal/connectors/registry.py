"""Build the connector of a site from its kind and its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedportal.connectors.base import Connector
from fedportal.connectors.local import LocalConnector

KINDS: Mapping[str, Callable[..., Connector]] = {"local": LocalConnector}


def build(kind: str, config: Mapping[str, Any]) -> Connector:
    """Return the connector. Raises ``ValueError`` for an unknown kind or a configuration that does not fit it."""
    try:
        return KINDS[kind](**config)
    except KeyError as error:
        raise ValueError(f"there is no connector of kind {kind!r}; known: {', '.join(KINDS)}") from error
    except TypeError as error:
        raise ValueError(f"the configuration does not fit a connector of kind {kind!r}") from error
