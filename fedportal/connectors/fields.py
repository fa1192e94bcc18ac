"""What a connector needs to know, declared once: forms, API and admin are made from these declarations.

A connector class derives from :class:`Configured` and is added to ``registry.KINDS``; nothing else has to change.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedportal.connectors.base import Connector

if TYPE_CHECKING:
    from fedportal.connectors.job_queue import JobQueue

Kind = Literal["text", "url", "secret", "choice", "number", "flag", "file", "json"]


@dataclass(frozen=True)
class Field:
    """One value that a person gives.

    ``kind``: ``secret`` values are stored encrypted and never shown, all others lie in the site's ``config``; ``file``
    is certificates in PEM that are uploaded or pasted (``config`` keeps the text); ``number`` is an integer from
    ``least`` to ``most``; ``url`` has passed the host policy. ``json`` is a pasted JSON object with ``parts``: it is
    taken apart, and each part is checked and stored under its own name as if it had been typed into a field.
    ``choices`` are pairs of value and label. ``advanced`` fields are folded away.

    ``issued`` secrets are made by the portal (32 random bytes, URL-safe text) when the site is registered and on
    request anew; nobody types them. See :meth:`Configured.handout`. What is ``unique`` no other site may have. ``renewed``
    secrets the connector replaces by itself (``SiteContext.keep``), and asks for when it needs them (``SiteContext.kept``).
    """

    name: str
    label: str
    help: str
    kind: Kind = "text"
    required: bool = True
    default: Any = ""
    choices: tuple[tuple[str, str], ...] = ()
    advanced: bool = False
    placeholder: str = ""
    least: int | None = None
    most: int | None = None
    unit: str = ""
    parts: tuple[Field, ...] = ()
    issued: bool = False
    unique: bool = False
    renewed: bool = False


@dataclass(frozen=True)
class Letterbox:
    """Where a site leaves one document for the portal: a presigned ``address`` to put it to, and what lies there now
    (``None``: nothing)."""

    address: str = field(repr=False)
    read: Callable[[], bytes | None]


@dataclass(frozen=True)
class SiteContext:
    """What a connector may know of the portal and of its site beside its own configuration.

    ``portal_url``: where the site reaches the portal. ``trainer_socket``: the portal's own warm trainer, for sites on
    the portal's machine; ``shelf``: the folder where they and it leave objects for each other. ``key``: the site's key.
    ``probe`` puts a small object into the object store and returns presigned addresses to ``get`` it and to ``put`` it
    back, for a check; ``letterbox`` returns where the check's report is left by a site whose logs cannot be read.
    ``queue``: the portal's jobs for a site that polls. ``keep(name, secret)`` stores a secret that the site has renewed,
    ``kept(name)`` returns what is stored now. Only the orchestrator hands the last five out.
    """

    slug: str
    portal_url: str = ""
    trainer_socket: str = ""
    shelf: str = ""
    key: bytes = field(default=b"", repr=False)
    probe: Callable[[], Mapping[str, str]] | None = None
    letterbox: Callable[[], Letterbox] | None = None
    queue: JobQueue | None = None
    keep: Callable[[str, str], None] | None = None
    kept: Callable[[str], str] | None = None


class Unfit(ValueError):
    """A value that a connector cannot use. ``field`` names it; empty where several do not fit together."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class Configured:
    """Base of connector classes: how they present themselves and how they are built from stored values."""

    TITLE: ClassVar[str]
    SUMMARY: ClassVar[str]
    """When to choose this connector, in a sentence or two."""
    FIELDS: ClassVar[tuple[Field, ...]]
    NEEDS_SITE_KEY: ClassVar[bool] = True
    """Whether the site keeps its key (``FEDPORTAL_SITE_KEY``); operators then find it on the site's page."""
    IS_CALLED: ClassVar[bool] = True
    """Whether the portal calls the site, which may then be out of reach."""
    HANDOUT: ClassVar[str] = ""
    """What people at the site do with the handout, in a sentence or two; empty where there is none."""

    @classmethod
    def clean_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str]) -> dict[str, Any]:
        """Return the configuration as it shall be stored; raise :class:`Unfit` for values that cannot work.

        Called by forms and API with values that fit ``FIELDS`` one by one; without any look at the network or disk.
        ``secrets`` are all that will be stored.
        """
        return dict(config)

    @classmethod
    def needs_sign_in(cls, config: Mapping[str, Any]) -> bool:
        """Say whether a person has to sign the portal in at the site (``start_device_login``, ``poll_device_login``)."""
        return False

    @classmethod
    def handout(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> dict[str, Any]:
        """Return the JSON object that people paste at the site. It holds secrets: operators see it, on request."""
        return {}

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any], secrets: Mapping[str, str], *, site: SiteContext) -> Connector:
        """Return the connector. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for values that do not fit."""
