"""What all serializers of requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers


class StrictSerializer(serializers.Serializer):
    """Refuses unknown fields: a misspelt setting must not be silently ignored."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            writable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = {name: ["There is no such field, or it cannot be set."] for name in data.keys() - writable}
            if unknown:
                raise serializers.ValidationError(unknown)
        return super().to_internal_value(data)
