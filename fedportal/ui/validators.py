"""Rules about text that people type."""

from __future__ import annotations

import unicodedata

from django.core.exceptions import ValidationError

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of all that follows. Right-to-left scripts do without them."""


def visible_line(text: str) -> None:
    """Refuse a name that is more than one line, that nobody can see, or that turns the writing around it.

    Scripts of any direction pass, and so do emoji with their joiners.
    """
    if any(c in _TURNING or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
        raise ValidationError("Write it in one line, without control characters.")
    if all(unicodedata.category(c)[0] in "CZ" for c in text):
        raise ValidationError("Use at least one character that can be seen.")
