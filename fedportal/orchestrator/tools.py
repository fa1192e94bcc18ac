"""Build the tools of the steps from the settings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from django.conf import settings

from fedportal.aggregation.process import AggregationProcess
from fedportal.connectors import registry
from fedportal.connectors.base import Connector
from fedportal.connectors.breaker import Breaker, Contact, Guarded
from fedportal.connectors.errors import ObjectMissing
from fedportal.connectors.fields import Letterbox, SiteContext
from fedportal.connectors.objectstore import ObjectStore
from fedportal.connectors.trainer_process import TrainerProcess
from fedportal.orchestrator.errands import Errands, Pace
from fedportal.orchestrator.sitework import Tools
from fedportal.orchestrator.snapshot import SiteView
from fedportal.relay.queue import SiteQueue
from fedportal.sites.connection import site_context
from fedportal.sites.services import keep_secret, kept_secret
from trainer.contract import ROOT, canonical_json

AGGREGATION_TIMEOUT = 1800.0
PROBE_BYTES = 1024 * 1024
PROBE_TIME = timedelta(minutes=10)
MAX_REPORT = 4 * 1024 * 1024


class Connectors:
    """One connector for each site as it is configured now, kept for its open connections and its breaker."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._built: dict[str, tuple[bytes, Connector]] = {}
        self._breakers: dict[str, Breaker] = {}

    def __call__(self, site: SiteView) -> Connector:
        mark = _mark(site)
        with self._lock:
            known = self._built.get(site.slug)
            if known is None or known[0] != mark:
                built = registry.build(site.connector, site.config, site.secrets, site=self._context(site))
                # what another address or password does is to be seen at once
                breaker = self._breakers[site.slug] = Breaker()
                is_called = registry.KINDS[site.connector].IS_CALLED
                known = self._built[site.slug] = (mark, Guarded(built, breaker) if is_called else built)
            return known[1]

    def contacts(self) -> dict[str, Contact]:
        """Return, by site, what has changed since the last time about being reached."""
        with self._lock:
            breakers = list(self._breakers.items())
        news = [(slug, breaker.news()) for slug, breaker in breakers]
        return {slug: contact for slug, contact in news if contact is not None}

    def _context(self, site: SiteView) -> SiteContext:
        return replace(
            site_context(site.slug),
            queue=SiteQueue(site.slug),
            probe=partial(_probe, self._store, site.slug),
            letterbox=partial(_letterbox, self._store, site.slug),
            keep=partial(keep_secret, site.slug),
            kept=partial(kept_secret, site.slug),
        )


def _mark(site: SiteView) -> bytes:
    """Return what a connector is built from. It goes on with what it renews by itself: a new one would know none of the
    site's runs."""
    kind = registry.KINDS.get(site.connector)
    renewed = {field.name for field in (kind.FIELDS if kind else ()) if field.renewed}
    secrets = {name: secret for name, secret in site.secrets.items() if name not in renewed}
    return canonical_json([site.connector, site.config, secrets])


def _probe(store: ObjectStore, slug: str) -> dict[str, str]:
    """Put an object for a site's check into the store; return the presigned addresses."""
    key = f"{ROOT}/checks/{slug}/probe.json"
    store.put_bytes(key, bytes(PROBE_BYTES))
    return {"get": store.presign_get(key, PROBE_TIME), "put": store.presign_put(key, PROBE_TIME)}


def _letterbox(store: ObjectStore, slug: str) -> Letterbox:
    key = f"{ROOT}/checks/{slug}/report.json"

    def read() -> bytes | None:
        try:
            return store.get_bytes(key, max_bytes=MAX_REPORT)
        except ObjectMissing:
            return None

    return Letterbox(store.presign_put(key, PROBE_TIME), read)


def from_settings() -> Tools:
    """Return tools for the portal's own store, spool and trainer."""
    trainer = TrainerProcess(Path(settings.FEDPORTAL_TRAINER_SOCKET))

    def run_trainer(argv: Sequence[str], timeout: float) -> tuple[int, str]:
        command, *rest = argv
        limit = ["--memory-mb", str(settings.FEDPORTAL_TRAINER_MEMORY >> 20)]
        result = trainer.run_command([command, *limit, *rest], timeout=timeout)
        return result.exit_code, result.log or result.output

    store = ObjectStore(**settings.OBJECT_STORE)
    connectors = Connectors(store)
    return Tools(
        store=store,
        aggregation=AggregationProcess(
            memory_limit_bytes=settings.FEDPORTAL_AGGREGATION_MEMORY, timeout=AGGREGATION_TIMEOUT
        ),
        connector=connectors,
        trainer=run_trainer,
        spool=Path(settings.FEDPORTAL_SPOOL),
        secret=settings.FEDPORTAL_ATTEMPT_SECRET,
        public_url=settings.FEDPORTAL_PUBLIC_URL,
        url_lifetime=timedelta(hours=settings.FEDPORTAL_URL_HOURS),
        errands=Errands(),
        pace=Pace(),
        contacts=connectors.contacts,
    )
