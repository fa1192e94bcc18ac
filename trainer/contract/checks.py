"""Errors and small checks that the parts of the contract share."""

from __future__ import annotations

import math
from collections.abc import Mapping


class ContractError(ValueError):
    """A document does not follow the contract. ``problems``: dotted field name → sentence, where the fields are known."""

    def __init__(self, message: str = "", problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
