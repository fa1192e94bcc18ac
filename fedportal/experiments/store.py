"""The portal's object store, made from the settings in this one place."""

from __future__ import annotations

from functools import cache

from django.conf import settings

from fedportal.connectors.objectstore import ObjectStore


@cache
def object_store() -> ObjectStore:
    """Return the store of this process; it is thread-safe and opens no connection before it is used."""
    options = dict(settings.OBJECT_STORE)
    options["public_endpoint"] = options["public_endpoint"] or None
    return ObjectStore(
        options.pop("endpoint"), options.pop("access_key"), options.pop("secret_key"), options.pop("bucket"), **options
    )
