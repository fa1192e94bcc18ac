"""Errors and small checks that the parts of the contract share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping


class ContractError(ValueError):
    """A document does not follow the contract. ``problems``: dotted field name → sentence, where the fields are known."""

    def __init__(self, message: str = "", problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


MAX_SUBJECT = 40
"""Characters of a subject's name, at most."""


def is_pseudonym(value: object) -> bool:
    """Say whether it is a case's pseudonym. Anything else must not cross the wire: it could be a patient's name."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
