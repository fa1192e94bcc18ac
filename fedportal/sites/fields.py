"""Secrets at rest: a JSON value in a text column, encrypted with the portal's keys (MultiFernet)."""

import json
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import models


def _fernet() -> MultiFernet:
    if not settings.FEDPORTAL_KEYS:
        raise ImproperlyConfigured("Set FEDPORTAL_KEYS: site credentials are only ever stored encrypted.")
    return MultiFernet([Fernet(key) for key in settings.FEDPORTAL_KEYS])


class EncryptedJSONField(models.TextField):
    """A JSON value that reaches the database only encrypted. The first key encrypts, all keys decrypt."""

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        if not value:
            return {}
        try:
            return json.loads(_fernet().decrypt(value.encode()))
        except InvalidToken as error:
            raise ImproperlyConfigured(
                "None of the keys in FEDPORTAL_KEYS decrypts the stored credentials. Add the key they were encrypted with."
            ) from error

    def get_prep_value(self, value: Any) -> str:
        return _fernet().encrypt(json.dumps(value).encode()).decode() if value else ""

    def to_python(self, value: Any) -> Any:
        return value if isinstance(value, dict) else json.loads(value or "{}")

    def value_to_string(self, obj: models.Model) -> str:
        return ""  # dumpdata must not write credentials
