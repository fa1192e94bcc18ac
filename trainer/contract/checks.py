"""Errors and small checks that the parts of the contract share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

CONTRACT_VERSION = 1
"""Raised by a change that an older peer cannot read."""


class ContractError(ValueError):
    """A document does not follow the contract. ``problems``: dotted field name → sentence, where the fields are known."""

    def __init__(self, message: str = "", problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


MAX_SUBJECT = 40
"""Characters of a subject's name, at most."""
MAX_REGION_NAME = 40
"""Characters of a region's name, at most: longer ones are refused in metric records."""


def is_pseudonym(value: object) -> bool:
    """Say whether it is a case's pseudonym. Anything else must not cross the wire: it could be a patient's name."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value) is not None


def is_count(value: object, most: int = 2**31 - 1) -> bool:
    """Say whether it is a number of things, as many as a database's column holds."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def is_number(value: object) -> bool:
    """Say whether it is a finite number; JSON also writes whole ones that no float holds."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


MOST_PARTS = 500_000
"""Lists and objects in a document, at most: 32 MiB of empty ones would take 800 MiB to hold."""


def read_json(data: bytes, *, nan: bool = False) -> Any:
    """Parse JSON from somebody else. Raises :class:`ContractError` for what is none, and for what no database keeps and
    no answer can repeat: NaN, NUL, halves of surrogate pairs, nesting without end, numbers of thousands of digits, parts
    without end. ``nan``: let NaN and infinity pass, for a reader who can name the place."""
    if data.count(b"[") + data.count(b"{") > MOST_PARTS:
        raise ContractError("it has too many lists and objects")
    try:
        text = data.decode()  # json.loads would guess UTF-16, too
        document = json.loads(text, parse_constant=float if nan else _no_constant)
    except RecursionError as error:
        raise ContractError("it is nested too deeply") from error
    except ValueError as error:
        raise ContractError("it is not JSON") from error
    if ("\\u0000" in text or "\\ud" in text.lower()) and not _is_text(document):
        raise ContractError("it holds a character that no text has (NUL, half of a surrogate pair)")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _is_text(value: Any) -> bool:
    """Say whether all texts in a document, names of fields too, can be stored and sent."""
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, dict):
        return all(_is_text(part) for pair in value.items() for part in pair)
    return not isinstance(value, list) or all(map(_is_text, value))


def storable(value: Any) -> Any:
    """Return a document whose texts a database keeps and an answer can repeat: a sign stands for each NUL and half of a
    surrogate pair. For words of others that must not be lost, such as logs and error messages."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {storable(name): storable(part) for name, part in value.items()}
    return [storable(part) for part in value] if isinstance(value, list | tuple) else value
