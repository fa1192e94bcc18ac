"""The colours of both themes against WCAG 2.2 AA: 4.5:1 for text (1.4.3), 3:1 for what is drawn (1.4.11)."""

import re
from pathlib import Path

import pytest
from django.conf import settings

SOURCE = (Path(settings.BASE_DIR) / "static/css/tokens.css").read_text()
PAIRS = dict(re.findall(r"--([a-z0-9-]+): light-dark\((#[0-9a-f]{6}, #[0-9a-f]{6})\);", SOURCE))
THEMES = {"light": 0, "dark": 1}
TEXT = [(text, ground) for text in ("text", "muted", "brand") for ground in ("page", "surface", "sunken", "raised")]
TEXT += [(tone, f"{tone}-soft") for tone in ("quiet", "busy", "good", "warn", "bad")]
TEXT += [("text", f"{tone}-soft") for tone in ("busy", "good", "warn", "bad", "accent")]
TEXT += [("on-accent", "brand"), ("on-accent", "accent-strong"), ("accent-strong", "accent-soft"), ("bad", "surface")]
TEXT += [("chart-text", "chart-surface"), ("muted", "accent-soft"), ("brand", "accent-soft")]
DRAWN = [("line-strong", ground) for ground in ("page", "surface", "sunken", "raised")]
DRAWN += [(f"site-{number}", "chart-surface") for number in range(1, 9)]
DRAWN += [("chart-global", "chart-surface"), ("chart-axis", "chart-surface")]


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str, theme: str) -> float:
    colours = [PAIRS[name].split(", ")[THEMES[theme]] for name in (first, second)]
    darker, lighter = sorted(luminance(colour) for colour in colours)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("text", "ground"), TEXT)
def test_text_can_be_read(text, ground, theme):
    assert contrast(text, ground, theme) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("line", "ground"), DRAWN)
def test_borders_of_controls_and_curves_can_be_seen(line, ground, theme):
    assert contrast(line, ground, theme) >= 3
