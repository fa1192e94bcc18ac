"""Tags and filters of every template (built in, no ``{% load %}``): icons, badges, times, sizes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django import template
from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, json_script
from django.utils.safestring import SafeString, mark_safe

from fedportal.ui.icons import ICONS, OF_COLOUR
from fedportal.ui.theme import THEMES, theme_of

register = template.Library()


@register.simple_tag
def icon(name: str, label: str = "") -> SafeString:
    """Draw an icon. It is hidden from screen readers unless it has a ``label``."""
    drawing = mark_safe(ICONS[name])  # noqa: S308  our own constants
    if label:
        return format_html('<svg class="icon" viewBox="0 0 24 24" role="img" aria-label="{}">{}</svg>', label, drawing)
    return format_html('<svg class="icon" viewBox="0 0 24 24" aria-hidden="true">{}</svg>', drawing)


@register.simple_tag
def badge(colour: str, label: str, icon_name: str = "") -> SafeString:
    """Draw a state: a tinted icon and word. ``colour`` is one of quiet, busy, good, warn, bad."""
    return format_html('<span class="badge badge--{}">{}{}</span>', colour, icon(icon_name or OF_COLOUR[colour]), label)


@register.simple_tag
def state_badge(state: Any) -> SafeString:
    """Draw anything that has a ``label`` and a ``colour``: the state of an experiment, a round, a site run; a health."""
    return badge(state.colour, state.label, getattr(state, "icon", ""))


def _moment(value: datetime | str | None) -> datetime | None:
    return parse_datetime(value) if isinstance(value, str) else value


@register.simple_tag
def ago(value: datetime | str | None, otherwise: str = "never") -> SafeString | str:
    """Say how long ago (or in how long) a moment is: “4 min ago”, “in 2 h”; the exact time is in the title."""
    moment = _moment(value)
    if moment is None:
        return otherwise
    seconds = (timezone.now() - moment).total_seconds()
    words = f"{_coarse(seconds)} ago" if seconds > 0 else f"in {_coarse(-seconds + 1)}"
    if abs(seconds) < 10:
        words = "just now"
    return format_html(
        '<time datetime="{}" title="{}">{}</time>', moment.isoformat(), f"{moment:%-d %B %Y, %H:%M:%S} UTC", words
    )


def _coarse(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    for size, unit, until in ((60, "min", 3600), (3600, "h", 48 * 3600), (86400, "days", 60 * 86400)):
        if seconds < until:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds // (30 * 86400):.0f} months"


@register.simple_tag(name="bytes")
def bytes_(count: float | None) -> str:
    """Write a size as people do: “820 B”, “1.2 MB”, “76 MB” (powers of 1000)."""
    if count is None:
        return "–"
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while abs(size) >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    unit = units[0]
    return f"{size:.1f} {unit}" if unit != "B" and size < 10 else f"{size:.0f} {unit}"


@register.simple_tag
def duration(value: timedelta | float | None) -> str:
    """Write a span of time: “12 ms”, “0.4 s”, “38 s”, “3 min 12 s”, “2 h 05 min”, “3 days 4 h”."""
    if value is None:
        return "–"
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if 0 < seconds < 0.05:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} days {whole % 86400 // 3600} h"


@register.simple_tag(takes_context=True)
def theme(context: template.Context) -> str:
    """Return auto, light or dark, as chosen in this browser (for ``<html data-theme>``)."""
    return theme_of(context.get("request"))


@register.simple_tag
def themes() -> dict[str, str]:
    return THEMES


@register.simple_tag
def version() -> str:
    return settings.VERSION


@register.simple_tag(takes_context=True)
def here(context: template.Context, *prefixes: str) -> SafeString:
    """Mark the link of the current section: ``aria-current="page"``, ``"true"`` or nothing.

    ``"/"`` only matches the front page itself.
    """
    request = context.get("request")
    path = request.path if request else ""
    if path in prefixes:
        return SafeString('aria-current="page"')
    if any(path.startswith(prefix) for prefix in prefixes if prefix != "/"):
        return SafeString('aria-current="true"')
    return SafeString("")


class _Compact(DjangoJSONEncoder):
    item_separator, key_separator = ",", ":"


@register.filter
def page_data(data: Any, element_id: str) -> SafeString:
    """Pass data to a page's script like Django's ``json_script``, but without a space between every two numbers."""
    return json_script(data, element_id, encoder=_Compact)


@register.filter
def get(mapping: dict, key: Any) -> Any:
    """Look up a key that is a variable: ``{{ counts|get:site.slug }}``."""
    return mapping.get(key)
