"""Errors and small checks that the parts of the contract share."""

from __future__ import annotations

import math


class ContractError(ValueError):
    """A document does not follow the contract."""


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
