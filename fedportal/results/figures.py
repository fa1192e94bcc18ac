"""The figures of the report as SVG files, with text as text and the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Json = Mapping[str, Any]

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedportal",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
BLACK, BLUE, ORANGE, GREEN, PURPLE, RED, SKY = (
    "#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a00000", "#56b4e9",
)  # fmt: skip
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""
LINES: Mapping[str, tuple[str, str, str]] = {
    "federated": ("Federated", BLACK, "-"),
    "pooled": ("Pooled", BLUE, "--"),
    "local": ("Local only, each at home", ORANGE, ":"),
    "cyclic": ("Cyclic", GREEN, "-."),
    "ensemble": ("Ensemble, at the end", PURPLE, "None"),
}
ENTRY_STYLES = (
    (BLACK, "-"), (BLUE, "--"), (GREEN, "-."), (ORANGE, "-"), (PURPLE, "--"), (SKY, "-"), (RED, ":"), (ORANGE, "-."),
)  # fmt: skip


def draw(results: Json, folder: Path) -> list[Path]:
    """Write the figures of every setting that has numbers; return the files. Old figures there are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    files = []
    with mpl.rc_context(STYLE):
        for setting in results["settings"]:
            if not setting["entries"]:
                continue
            files.append(_save(_baselines(setting), folder / f"{setting['name']}-baselines.svg"))
            if len(setting["entries"]) > 1:
                files.append(_save(_strategies(setting), folder / f"{setting['name']}-strategies.svg"))
            files.append(_save(_means(setting), folder / f"{setting['name']}-means.svg"))
    return files


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    return file


def _baselines(setting: Json) -> Figure:
    """The federated run and its baselines over rounds: a thin line for each seed, a thick one for their mean."""
    figure, axes = _figure()
    for group, (label, colour, dash) in LINES.items():
        curves = [curve for curve in setting["entries"][0]["curves"] if curve["group"] == group]
        _lines(axes, curves, label, colour, dash)
    return _finished(figure, axes, f"{setting['title']}: {setting['entries'][0]['title']} and its baselines")


def _strategies(setting: Json) -> Figure:
    """The federated runs of all experiments of a setting over rounds: the mean over seeds."""
    figure, axes = _figure()
    for place, entry in enumerate(setting["entries"]):
        colour, dash = ENTRY_STYLES[place % len(ENTRY_STYLES)]
        curves = [curve for curve in entry["curves"] if curve["group"] == "federated"]
        _lines(axes, curves, entry["title"], colour, dash, single=False)
    return _finished(figure, axes, f"{setting['title']}: treatments and strategies")


def _means(setting: Json) -> Figure:
    """The final models' mean Dice with intervals, first what stands beside the first experiment, then the others."""
    rows = [
        (model["label"], model["dice"], BLUE) for model in setting["entries"][0]["models"] if model["key"] != "global"
    ]
    rows += [(entry["title"], one["dice"], BLACK) for entry in setting["entries"] for one in _global(entry)]
    rows = [(label, dice, colour) for label, dice, colour in rows if dice["value"] is not None][::-1]
    figure = Figure(figsize=(7, 0.8 + 0.28 * len(rows)))
    axes = figure.add_subplot()
    for place, (_, dice, colour) in enumerate(rows):
        if dice["low"] is not None:
            axes.plot([dice["low"], dice["high"]], [place, place], color=colour, linewidth=1.5)
        axes.plot(dice["value"], place, "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Dice on the held-out cases, mean over the hospitals, with 95 % interval")
    axes.set_title(setting["title"], loc="left")
    return figure


def _global(entry: Json) -> Iterable[Json]:
    return (model for model in entry["models"] if model["key"] == "global")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 3.6))
    return figure, figure.add_subplot()


def _lines(axes: Axes, curves: Sequence[Json], label: str, colour: str, dash: str, *, single: bool = True) -> None:
    found = [_points(curve) for curve in curves]
    found = [points for points in found if points]
    if not found:
        return
    marker = "D" if dash == "None" else ""
    if single and len(found) > 1:
        for points in found:
            axes.plot(list(points), list(points.values()), dash, color=colour, linewidth=0.6, alpha=0.4)
    everywhere = sorted(set.intersection(*(set(points) for points in found)))
    means = [sum(points[x] for points in found) / len(found) for x in everywhere]
    axes.plot(everywhere, means, dash, marker=marker, color=colour, linewidth=1.8, markersize=5, label=label)


def _points(curve: Json) -> dict[float, float]:
    return {x: y for x, y in zip(curve["rounds"], curve["dice"], strict=True) if y is not None}


def _finished(figure: Figure, axes: Axes, title: str) -> Figure:
    axes.set_xlabel("Round")
    axes.set_ylabel("Dice, mean over the hospitals")
    axes.set_ylim(0, 1)
    axes.set_title(title, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    return figure
