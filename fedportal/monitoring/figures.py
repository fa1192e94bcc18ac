"""From metric rows to what a chart draws: series of points, styles of the sites, Plotly figures. Pure: no database.

The browser gets the same series (:func:`collect`) in the page and over the socket, so where a number stands on the
axis is decided here and nowhere else. A point is a list ``[attempt, round, step, x, seconds, value]``: ``x`` on the
axis of rounds, ``seconds`` since the start of the experiment, ``value`` ``None`` where undefined.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple

from trainer.contract import Phase


class Row(NamedTuple):
    """What of a metric row is drawn, in the order of :data:`fedportal.monitoring.rows.FIELDS`."""

    id: int
    site: str
    attempt: int
    round: int
    phase: str
    name: str
    region: str
    step: int
    progress: float
    value: float | None
    at: datetime


Point = list  # [attempt, round, step, x, seconds, value]: JSON has no tuples
ATTEMPT, ROUND, STEP, X, SECONDS, VALUE = range(6)


@dataclass(frozen=True)
class Chart:
    """A chart of the page. ``name`` is the metric's; ``low`` and ``high`` fix the axis where the measure has bounds."""

    name: str
    title: str
    axis: str
    unit: str = ""
    decimals: int = 3
    low: float | None = None
    high: float | None = None


CHARTS = (
    Chart("dice", "Dice", "Dice (0 none, 1 perfect overlap)", low=0, high=1),
    Chart("loss", "Loss", "Loss (lower is better)"),
    Chart("hd95", "Surface distance (HD95)", "HD95 (mm, lower is better)", unit="mm", decimals=1, low=0),
)
DRAWN = tuple(chart.name for chart in CHARTS)

DASHES = {
    "solid": "none",
    "dash": "6 3",
    "dot": "2 3",
    "dashdot": "6 3 2 3",
    "longdash": "10 4",
    "longdashdot": "10 3 2 3",
    "10px,3px,3px,3px,3px,3px": "8 2 2 2 2 2",
}
"""Plotly's dashes → the same for the legend's SVG (``stroke-dasharray``)."""
HUES = 8
"""``--site-1`` to ``--site-8`` of the CSS. Seven dashes and eight hues have no common factor: 56 sites look different."""


@dataclass(frozen=True)
class SiteStyle:
    """How a site's lines look: ``hue`` is the number of a CSS colour, ``dash`` Plotly's name of a line style."""

    slug: str
    name: str
    hue: int
    dash: str

    @property
    def strokes(self) -> str:
        """The dash as lengths for SVG (``stroke-dasharray``), for the legend."""
        return DASHES[self.dash]


def styles(sites: Iterable[tuple[str, str]]) -> list[SiteStyle]:
    """Give each site (slug, name) its look, in the order in which they come."""
    return [
        SiteStyle(slug, name, hue=index % HUES + 1, dash=list(DASHES)[index % len(DASHES)])
        for index, (slug, name) in enumerate(sites)
    ]


def position(row: Row) -> float:
    """Return where a row stands on the axis of rounds: 0 is the initial model, *n* the global model of round *n*.

    Measured in round *n*, an incoming or global value belongs to the model of round *n* - 1; training fills the way
    from there to *n*.
    """
    if row.phase in (Phase.INCOMING, Phase.GLOBAL):
        return row.round - 1
    return round(row.round - 1 + row.progress, 4)


def collect(rows: Iterable[Row], *, start: datetime | None) -> list[dict[str, Any]]:
    """Group rows into series ``{"site", "phase", "name", "region", "points"}``; ``start`` is the experiment's.

    A retry replaces: of a site's attempts in a round only the newest that measured anything is kept. The browser
    applies the same rule to what the socket brings, so the order in which rows arrive does not matter.
    """
    rows = list(rows)
    newest: dict[tuple[str, int], int] = {}
    for row in rows:
        place = row.site, row.round
        newest[place] = max(row.attempt, newest.get(place, 0))
    series: dict[tuple[str, str, str, str], list[Point]] = {}
    for row in rows:
        if row.attempt == newest[row.site, row.round]:
            series.setdefault((row.site, row.phase, row.name, row.region), []).append(_point(row, start))
    return [
        {"site": site, "phase": phase, "name": name, "region": region, "points": sorted(points, key=_order)}
        for (site, phase, name, region), points in series.items()
    ]


def _point(row: Row, start: datetime | None) -> Point:
    seconds = 0.0 if start is None else round((row.at - start).total_seconds(), 2)
    value = None if row.value is None else float(f"{row.value:.5g}")
    return [row.attempt, row.round, row.step, position(row), seconds, value]


def _order(point: Point) -> tuple[int, int]:
    return point[ROUND], point[STEP]


def regions_of(plan: dict[str, Any]) -> list[str]:
    """Return the regions of a plan (JSON) that curves can show, the mean first."""
    return ["mean", *(region["name"] for region in plan.get("task", {}).get("regions", ()))]


# --- figures --------------------------------------------------------------------------------------

COLOURS = ("#0072b2", "#c04d00", "#00805c", "#a8518a", "#956a00", "#1d7fb0", "#6b5bb0", "#6e6e6e")
"""The hues of the light theme (static/css/tokens.css), for figures that leave the page."""
PHASE_LABELS = {
    Phase.TRAIN: "training",
    Phase.INCOMING: "global model on the site's held-out cases",
    Phase.LOCAL: "after local training",
    Phase.GLOBAL: "global model, mean over all held-out cases",
}


def figure(chart: Chart, series: Sequence[dict[str, Any]], sites: Sequence[SiteStyle], *, title: str) -> dict[str, Any]:
    """Return a Plotly figure (``{"data", "layout"}``) of everything measured under the chart's name.

    For export: any Plotly opens it. The regions beside the mean and the local models start hidden in the legend.
    """
    look = {style.slug: style for style in sites}
    data = []
    for one in series:
        if one["name"] != chart.name:
            continue
        site = look.get(one["site"])
        label = PHASE_LABELS[Phase(one["phase"])]
        shown = one["region"] in ("", "mean") and one["phase"] != Phase.LOCAL
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if one["phase"] == Phase.TRAIN else "lines+markers",
                "name": " · ".join(filter(None, (site.name if site else "Global model", one["region"], label))),
                "x": [point[X] for point in one["points"]],
                "y": [point[VALUE] for point in one["points"]],
                "customdata": [point[SECONDS] for point in one["points"]],
                "hovertemplate": f"%{{y:.{chart.decimals}f}} {chart.unit}<br>round %{{x}}, %{{customdata}} s<extra>%{{fullData.name}}</extra>",
                "line": {
                    "color": COLOURS[site.hue - 1] if site else "#000000",
                    "dash": site.dash if site else "solid",
                    "width": 1.5 if site else 4,
                },
                "visible": True if shown else "legendonly",
            }
        )
    bounds = {} if chart.low is None or chart.high is None else {"range": [chart.low, chart.high]}
    layout = {
        "title": {"text": f"{title}: {chart.title}"},
        "xaxis": {"title": {"text": "Round"}},
        "yaxis": {"title": {"text": chart.axis}, **bounds},
        "template": "plotly_white",
    }
    return {"data": data, "layout": layout}


def sparkline(values: Sequence[float], *, width: int = 120, height: int = 28) -> str:
    """Return values between 0 and 1 as the points of an SVG polyline; empty for fewer than two."""
    if len(values) < 2:
        return ""
    step = width / (len(values) - 1)
    return " ".join(f"{i * step:.1f},{(1 - min(max(v, 0), 1)) * (height - 4) + 2:.1f}" for i, v in enumerate(values))


def page_data(
    series: Sequence[dict[str, Any]], sites: Sequence[SiteStyle], regions: Sequence[str], **more: Any
) -> dict[str, Any]:
    """Return what the page hands to ``live.js``: charts, looks of the sites, regions, the first series."""
    return {
        "charts": [asdict(chart) | {"save_label": f"Save {chart.title} as an image"} for chart in CHARTS],
        "sites": [asdict(style) for style in sites],
        "regions": list(regions),
        "series": list(series),
        **more,
    }


def as_json(document: Any) -> str:
    """Encode a message of the socket: no spaces, and NaN is a bug, not a value."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False)
