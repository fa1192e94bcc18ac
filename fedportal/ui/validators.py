"""Rules for text that people type."""

from __future__ import annotations

import unicodedata

from django.core.exceptions import ValidationError

_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of all text after them. Right-to-left scripts do not need them."""


def visible_line(text: str) -> None:
    """Refuse a name with several lines, with nothing visible, or with characters that reverse the text around it.

    Text in any script passes, and so do emoji with their joiners.
    """
    if any(c in _TURNING or unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text):
        raise ValidationError("Use a single line without control characters.")
    if all(unicodedata.category(c)[0] in "CZ" for c in text):
        raise ValidationError("Use at least one visible character.")
