"""The curves of several experiments on the same axes: rounds, gradient steps, or time since each began to work.

Every point belongs to a model: that of round *n*, which the sites measured on their held-out cases in round *n* + 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from django.db.models import Avg, Min, Sum

from fedportal.experiments.models import MEAN, CaseScore, Experiment, Kind, Metric, Round, RoundKind, SiteRun, Subject
from fedportal.monitoring.families import Family
from fedportal.monitoring.figures import regions_of
from trainer.contract import Phase

EVERYWHERE = ""
"""Stands where the slug of a site can: the mean over the sites."""
POINTS = 240
"""Points that a line has at most; of longer runs every n-th model is drawn."""
HUES = {Kind.POOLED: 1, Kind.LOCAL_ONLY: 2, Kind.CYCLIC: 5}
ENSEMBLE_HUE = 4
OTHER_HUES = (3, 6, 7, 8)
DASHES = {Kind.POOLED: "dash", Kind.LOCAL_ONLY: "dot", Kind.CYCLIC: "dashdot"}


@dataclass(frozen=True)
class Curve:
    """A line. ``group``: what the legend switches together. ``hue`` 0 is the federated run. ``values``: site (or
    :data:`EVERYWHERE`) → a number for each point, ``None`` where that site measured nothing."""

    group: str
    label: str
    hue: int
    dash: str
    rounds: list[float]
    steps: list[int]
    seconds: list[float]
    values: dict[str, list[float | None]]
    is_marked: bool = False


@dataclass(frozen=True)
class Track:
    """What one experiment measured: model number → site → value, with when it was and after how many gradient steps."""

    values: dict[int, dict[str, float]]
    seconds: dict[int, float]
    steps: dict[int, int]


def curves(family: Family, others: Sequence[Family], *, measure: str, region: str) -> list[Curve]:
    """Return the lines of a family, then those of the federated runs of other experiments."""
    members = [*family.members, *(run.federated for other in others for run in other.runs)]
    tracks = _tracks(members, measure=measure, region=region)
    found: list[Curve] = []
    for run in family.runs:
        many = f", repeat {run.number}" if len(family.runs) > 1 else ""
        found.append(_federated(tracks[run.federated.pk], "federated", f"Federated{many}"))
        for pooled in run.of(Kind.POOLED):
            found.append(_pooled(tracks[pooled.pk], f"Pooled{many}"))
        if local := run.of(Kind.LOCAL_ONLY):
            found.append(_local([tracks[one.pk] for one in local], f"Local only{many}"))
        for cyclic in run.of(Kind.CYCLIC):
            found.append(_cyclic(tracks[cyclic.pk], len(family.sites), f"Cyclic{many}"))
    found += _ensemble(family, tracks, measure=measure, region=region)
    for place, other in enumerate(others):
        for run in other.runs:
            many = f", repeat {run.number}" if len(other.runs) > 1 else ""
            label = f"{other.head.title}{many}"
            hue = OTHER_HUES[place % len(OTHER_HUES)]
            found.append(_federated(tracks[run.federated.pk], other.head.key, label, hue=hue, dash="longdash"))
    return [curve for curve in found if curve.rounds]


def _federated(track: Track, group: str, label: str, *, hue: int = 0, dash: str = "solid") -> Curve:
    numbers = sorted(track.values)
    return _curve(group, label, hue, dash, track, {number: float(number) for number in numbers}, track.values)


def _pooled(track: Track, label: str) -> Curve:
    # its one site is the pool: what was measured there stands for all of them
    values = {number: {EVERYWHERE: _mean(of.values())} for number, of in track.values.items()}
    places = {number: float(number) for number in values}
    return _curve("pooled", label, HUES[Kind.POOLED], DASHES[Kind.POOLED], track, places, values)


def _local(tracks: Sequence[Track], label: str) -> Curve:
    """One line for all local-only models: each at its own site, and their mean where all of them were measured."""
    numbers = set.intersection(*(set(track.values) for track in tracks))
    values = {n: {site: value for track in tracks for site, value in track.values[n].items()} for n in numbers}
    seconds = {n: max(track.seconds[n] for track in tracks) for n in numbers}
    steps = {n: sum(track.steps.get(n, 0) for track in tracks) for n in numbers}
    track = Track(values, seconds, steps)
    places = {n: float(n) for n in numbers}
    return _curve("local", label, HUES[Kind.LOCAL_ONLY], DASHES[Kind.LOCAL_ONLY], track, places, values)


def _cyclic(track: Track, sites: int, label: str) -> Curve:
    """A round of cyclic transfer is one site's turn; once round all sites counts as a round here.

    Only the site whose turn it is measures: the mean is that of every site's newest measurement.
    """
    newest: dict[str, float] = {}
    values: dict[int, dict[str, float]] = {}
    for number in sorted(track.values):
        newest |= track.values[number]
        mean = {EVERYWHERE: _mean(newest.values())} if len(newest) == sites else {}
        values[number] = track.values[number] | mean
    places = {number: number / max(sites, 1) for number in values}
    return _curve("cyclic", label, HUES[Kind.CYCLIC], DASHES[Kind.CYCLIC], track, places, values)


def _ensemble(family: Family, tracks: Mapping[int, Track], *, measure: str, region: str) -> list[Curve]:
    """The ensemble trains nothing: its points are those rounds at which the cross-site evaluation measured it."""
    run_of = {evaluation.pk: run for run in family.runs for evaluation in run.of(Kind.CROSS_SITE)}
    subjects = Subject.objects.filter(experiment__in=run_of, role=Subject.Role.ENSEMBLE)
    rounds = {(one.experiment_id, one.name): one.round_number for one in subjects}
    regions = regions_of(family.head.plan)[1:] if region == MEAN else [region]
    means = CaseScore.objects.filter(
        experiment__in=run_of, subject__in={name for _, name in rounds}, name=measure, region__in=regions
    )
    by_site: dict[int, dict[int, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    found = means.values("experiment_id", "subject", "site", "region").order_by().annotate(mean=Avg("value"))
    for row in found:
        run = run_of[row["experiment_id"]]
        number = rounds[row["experiment_id"], row["subject"]]
        number = run.federated.rounds_planned if number is None else number
        if row["mean"] is not None:
            by_site[row["experiment_id"]][number][row["site"]].append(row["mean"])
    lines = []
    for pk, run in run_of.items():
        local = [tracks[one.pk] for one in run.of(Kind.LOCAL_ONLY)]
        values = {number: {site: _mean(of) for site, of in sites.items()} for number, sites in by_site[pk].items()}
        track = Track(
            values,
            {n: max((one.seconds[n] for one in local if n in one.seconds), default=0.0) for n in values},
            {n: sum(one.steps.get(n, 0) for one in local) for n in values},
        )
        many = f", repeat {run.number}" if len(family.runs) > 1 else ""
        places = {n: float(n) for n in values}
        line = _curve("ensemble", f"Ensemble{many}", ENSEMBLE_HUE, "longdashdot", track, places, values, is_marked=True)
        lines.append(line)
    return lines


def _curve(
    group: str,
    label: str,
    hue: int,
    dash: str,
    track: Track,
    places: Mapping[int, float],
    values: Mapping[int, Mapping[str, float]],
    **more: bool,
) -> Curve:
    numbers = sorted(values)
    every = -(-len(numbers) // POINTS) if numbers else 1
    numbers = [n for index, n in enumerate(numbers) if index % every == 0 or index == len(numbers) - 1]
    sites = sorted({site for of in values.values() for site in of} - {EVERYWHERE})
    shown: dict[str, list[float | None]] = {site: [_short(values[n].get(site)) for n in numbers] for site in sites}
    has_mean = any(EVERYWHERE in of for of in values.values())
    shown[EVERYWHERE] = [_short(values[n].get(EVERYWHERE) if has_mean else _mean(values[n].values())) for n in numbers]
    return Curve(
        group,
        label,
        hue,
        dash,
        [round(places[n], 3) for n in numbers],
        [track.steps.get(n, 0) for n in numbers],
        [round(track.seconds.get(n, 0.0), 1) for n in numbers],
        shown,
        **more,
    )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _tracks(members: Sequence[Experiment], *, measure: str, region: str) -> dict[int, Track]:
    """Read what some experiments measured of their models; three queries. Of a site's attempts the newest counts."""
    began = beginnings(members)
    newest: dict[tuple[int, int, str], tuple[int, float | None, datetime]] = {}
    metrics = Metric.objects.filter(
        experiment__in=members, phase=Phase.INCOMING, name=measure, region=region, site_run__isnull=False
    ).order_by()
    for pk, number, site, attempt, value, at in metrics.values_list(
        "experiment_id", "round_number", "site", "attempt", "value", "at"
    ).iterator(chunk_size=5000):
        known = newest.get((pk, number, site))
        if known is None or known[0] <= attempt:
            newest[pk, number, site] = attempt, value, at
    tracks = {member.pk: Track({}, {}, steps) for member, steps in zip(members, _steps(members), strict=True)}
    for (pk, number, site), (_, value, at) in newest.items():
        if value is None:
            continue
        track = tracks[pk]
        track.values.setdefault(number - 1, {})[site] = value
        seconds = max((at - began[pk]).total_seconds(), 0.0) if pk in began else 0.0
        track.seconds[number - 1] = max(seconds, track.seconds.get(number - 1, 0.0))
    return tracks


def beginnings(members: Sequence[Experiment]) -> dict[int, datetime]:
    """Return when each began to work: a baseline that waits for its turn has been started long before."""
    found = Round.objects.filter(experiment__in=members).values("experiment").order_by()
    first = {row["experiment"]: row["at"] for row in found.annotate(at=Min("dispatched_at")) if row["at"]}
    return {member.pk: member.started_at for member in members if member.started_at} | first


def _steps(members: Sequence[Experiment]) -> list[dict[int, int]]:
    """Return for each experiment: model number → gradient steps of all its sites until then."""
    done: dict[int, dict[int, int]] = defaultdict(dict)
    rows = SiteRun.objects.filter(round__experiment__in=members, round__kind=RoundKind.TRAIN).order_by()
    for row in rows.values("round__experiment", "round__number").annotate(steps=Sum("steps")):
        done[row["round__experiment"]][row["round__number"]] = row["steps"]
    found = []
    for member in members:
        of = done[member.pk]
        numbers = sorted(of)
        found.append({0: 0} | dict(zip(numbers, accumulate(of[number] for number in numbers), strict=True)))
    return found


def budgets(members: Sequence[Experiment]) -> dict[int, int]:
    """Return for each experiment (id) the gradient steps that it has done."""
    return {member.pk: max(steps.values()) for member, steps in zip(members, _steps(members), strict=True)}


def as_json(lines: Sequence[Curve]) -> list[dict[str, Any]]:
    return [vars(line) for line in lines]
