"""Light, dark or the system's theme: kept in a cookie that the server reads, so that no page flashes."""

from __future__ import annotations

from django.http import HttpRequest

COOKIE = "theme"
THEMES = {"auto": "System", "light": "Light", "dark": "Dark"}


def theme_of(request: HttpRequest | None) -> str:
    """Return the theme chosen in this browser; anything unknown counts as ``auto``."""
    chosen = request.COOKIES.get(COOKIE, "auto") if request else "auto"
    return chosen if chosen in THEMES else "auto"
