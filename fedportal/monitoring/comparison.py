"""What came out: every model of a family on every site's held-out cases, in numbers with intervals.

The definitions of a site's value and of the overall mean are those of :mod:`fedportal.monitoring.statistics`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedportal.experiments.models import MEAN, CaseScore, Kind, Subject
from fedportal.monitoring.families import Family
from fedportal.monitoring.figures import CHARTS, Chart, regions_of
from fedportal.monitoring.statistics import Array, Bootstrap, Estimate

Role = Subject.Role
MEASURES = tuple(chart for chart in CHARTS if chart.name in ("dice", "hd95"))
SHADES = 9
"""Steps of the heat map's colour, 1 the worst, 9 the best."""


@dataclass(frozen=True)
class Contender:
    """A model, or an average of models, that was measured. ``key``: global, best, pooled, local-mainz …"""

    key: str
    role: Role
    site: str = ""
    label: str = ""


@dataclass(frozen=True)
class Cell:
    """A model at a site. ``shade``: 1 to 9, the better the higher. ``is_own``: the site's own model at home.
    ``undefined``: in how many of its cases the number is undefined for a region that was asked for."""

    site: str
    estimate: Estimate
    shade: int = 0
    is_own: bool = False
    undefined: int = 0


@dataclass(frozen=True)
class Line:
    """A row of the cross-site matrix. ``mean`` is over the sites; empty where the model was not measured at all of them."""

    contender: Contender
    cells: tuple[Cell, ...]
    mean: Estimate
    mean_shade: int = 0


@dataclass(frozen=True)
class Gain:
    """What a site gets from joining. ``gain`` is positive where the federated model is the better one."""

    slug: str
    name: str
    hue: int
    federated: Estimate
    own: Estimate
    gain: Estimate
    cases: int
    is_worst: bool = False


@dataclass(frozen=True)
class Contrast:
    """The federated model against another, over all sites where both were measured; ``missing``: names of the others.
    ``gain`` is positive where federated is better; ``percentage``: what it reached of the other's Dice; empty for other
    measures."""

    other: Contender
    gain: Estimate
    percentage: Estimate
    missing: tuple[str, ...] = ()


class Scores:
    """The case scores of a family in one measure, in an order that does not depend on how they arrived.

    ``at``: the round that the models are of; ``None``: the end. ``values[contender][place]``: array [run, case, region]
    of the site at that place, NaN where undefined or missing.
    """

    def __init__(self, family: Family, measure: Chart, *, at: int | None = None) -> None:
        self.sites, self.at = family.sites, at
        self.regions = regions_of(family.head.plan)[1:]
        named_by = _subjects(family, at)
        self.contenders = sorted(set(named_by.values()), key=_order)
        rows = _rows(family, measure.name, {name: one.key for name, one in named_by.items()})
        named: dict[str, set[str]] = defaultdict(set)
        for _, site, _, case, _ in rows:
            named[site].add(case)
        self.cases = {site.slug: sorted(named[site.slug]) for site in self.sites}
        place_of = {slug: {case: place for place, case in enumerate(cases)} for slug, cases in self.cases.items()}
        region_of = {region: place for place, region in enumerate(self.regions)}
        shapes = [(len(family.runs), len(self.cases[site.slug]), len(self.regions)) for site in self.sites]
        self.values = {one.key: [np.full(shape, np.nan) for shape in shapes] for one in self.contenders}
        self.undefined = {one.key: [np.zeros(shape, bool) for shape in shapes] for one in self.contenders}
        site_of = {site.slug: place for place, site in enumerate(self.sites)}
        for (run, site, subject, case, region), value in rows.items():
            if site not in site_of or region not in region_of:
                continue
            spot = run, place_of[site][case], region_of[region]
            if value is None:
                self.undefined[subject][site_of[site]][spot] = True
            else:
                self.values[subject][site_of[site]][spot] = value
        self.contenders = [one for one in self.contenders if any(self._measured(one.key))]

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The resamples, drawn once for all regions."""
        return Bootstrap([len(self.cases[site.slug]) for site in self.sites])

    def _measured(self, key: str) -> list[bool]:
        both = zip(self.values[key], self.undefined[key], strict=True)
        return [bool(np.isfinite(values).any() or gaps.any()) for values, gaps in both]


def rounds_measured(family: Family) -> list[int]:
    """Return the rounds before the end whose models were measured, too."""
    found = Subject.objects.filter(experiment__in=family.evaluations, round_number__isnull=False)
    return list(found.order_by("round_number").values_list("round_number", flat=True).distinct())


def _subjects(family: Family, at: int | None) -> dict[str, Contender]:
    """Return the name that scores are filed under → the contender that was measured."""
    # the model that an evaluation is of needs no row of its own
    found = {"global": Contender("global", Role.GLOBAL, label="Federated")} if at is None else {}
    for row in Subject.objects.filter(experiment__in=family.evaluations, round_number=at).order_by("pk"):
        role = Role(row.role)
        label = f"Local only: {family.site_names.get(row.site, row.site)}" if role == Role.LOCAL else role.label
        found[row.name] = Contender(f"local-{row.site}" if role == Role.LOCAL else role.value, role, row.site, label)
    return found


def _order(one: Contender) -> tuple[int, str, str]:
    order = [Role.GLOBAL, Role.BEST, Role.POOLED, Role.ENSEMBLE, Role.CYCLIC, Role.LOCAL]
    return order.index(one.role), one.label, one.key


Key = tuple[int, str, str, str, str]


def _rows(family: Family, measure: str, keys: Mapping[str, str]) -> dict[Key, float | None]:
    """Return (run, site, contender, case, region) → value. ``keys``: name that scores are filed under → the contender's.

    The federated model has been measured twice, by the run's own final evaluation and by the one of all models. The own
    one counts: where sites keep layers of their own (FedBN), only that one has them, and the other counts not at all.
    """
    run_of, finals = {}, []
    for place, run in enumerate(family.runs):
        finals.append(run.federated.pk)
        run_of[run.federated.pk] = place
        run_of.update({member.pk: place for member in run.of(Kind.CROSS_SITE)})
    found = CaseScore.objects.filter(name=measure, experiment__in=run_of, subject__in=keys)
    found = found.order_by("experiment_id")  # of two evaluations of all models the later one counts
    others = found.exclude(experiment__in=finals)
    if family.keeps_layers:
        others = others.exclude(subject="global")
    fields = ("experiment_id", "site", "subject", "case", "region", "value")
    rows: dict[Key, float | None] = {}
    for part in (others, found.filter(experiment__in=finals, subject="global")):
        for experiment, site, subject, case, region, value in part.values_list(*fields).iterator(chunk_size=5000):
            rows[run_of[experiment], site, keys[subject], case, region] = value
    return rows


class Comparison:
    """The numbers of the page for one measure and one region (``mean``: over all)."""

    def __init__(self, family: Family, scores: Scores, *, measure: Chart, region: str = MEAN) -> None:
        self.family, self.measure, self.region = family, measure, region
        self.contenders, self.sites, self.at = scores.contenders, scores.sites, scores.at
        chosen = [place for place, name in enumerate(scores.regions) if region in (MEAN, name)]
        self._values = {key: [one[:, :, chosen] for one in arrays] for key, arrays in scores.values.items()}
        self._undefined = {key: [one[:, :, chosen] for one in arrays] for key, arrays in scores.undefined.items()}
        self._counts = [len(scores.cases[site.slug]) for site in self.sites]
        self._bootstrap = scores.bootstrap

    @property
    def higher_is_better(self) -> bool:
        return self.measure.name == "dice"

    def _of(self, role: Role, site: str = "") -> Contender | None:
        return next((one for one in self.contenders if one.role == role and one.site == site), None)

    @cached_property
    def repeats(self) -> int:
        """How many of the runs the federated numbers are the mean of."""
        values = self._values.get("global", ())
        return sum(any(np.isfinite(one[run]).any() for one in values) for run in range(len(self.family.runs)))

    @cached_property
    def federated(self) -> Contender | None:
        return self._of(Role.GLOBAL)

    @cached_property
    def lines(self) -> list[Line]:
        """The cross-site matrix, a row for each model."""
        places = range(len(self.sites))
        found = [
            (one, [self._bootstrap.mean(self._values[one.key], sites=[place]) for place in places])
            for one in self.contenders
        ]
        known = [each.value for _, estimates in found for each in estimates if each.value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)

        def shade(estimate: Estimate) -> int:
            if estimate.value is None:
                return 0
            share = (estimate.value - low) / (high - low) if high > low else 0.5
            return 1 + round((share if self.higher_is_better else 1 - share) * (SHADES - 1))

        lines = []
        for one, estimates in found:
            is_whole = all(each.value is not None for each in estimates)
            mean = self._bootstrap.mean(self._values[one.key]) if is_whole else Estimate()
            cells = tuple(
                Cell(
                    site.slug,
                    each,
                    shade(each),
                    is_own=one.role == Role.LOCAL and one.site == site.slug,
                    undefined=int(undefined.any(axis=(0, 2)).sum()),
                )
                for site, each, undefined in zip(self.sites, estimates, self._undefined[one.key], strict=True)
            )
            lines.append(Line(one, cells, mean, shade(mean)))
        return lines

    @cached_property
    def best_local(self) -> Contender | None:
        """The local-only model with the best mean over all sites."""
        lines = [line for line in self.lines if line.contender.role == Role.LOCAL and line.mean.value is not None]
        choose = max if self.higher_is_better else min
        return choose(lines, key=lambda line: line.mean.value or 0.0).contender if lines else None

    def contrast(self, other: Contender) -> Contrast:
        ours, theirs = self._values["global"], self._values[other.key]
        percentage = self._bootstrap.percentage(ours, theirs) if self.higher_is_better else Estimate()
        both = zip(self.sites, ours, theirs, strict=True)
        missing = tuple(site.name for site, a, b in both if not (np.isfinite(a).any() and np.isfinite(b).any()))
        return Contrast(other, self._gain(ours, theirs), percentage, missing)

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """The federated model against the best local-only model and against every other kind."""
        if self.federated is None:
            return []
        others = [one for one in self.contenders if one.role not in (Role.GLOBAL, Role.LOCAL)]
        return [self.contrast(one) for one in (*others, self.best_local) if one is not None]

    @cached_property
    def gains(self) -> list[Gain]:
        """The per-site panel: the federated model against each site's own, on that site's cases."""
        if self.federated is None:
            return []
        found = []
        for place, site in enumerate(self.sites):
            federated = self._bootstrap.mean(self._values["global"], sites=[place])
            own, gain, local = Estimate(), Estimate(), self._of(Role.LOCAL, site.slug)
            if local is not None:
                own = self._bootstrap.mean(self._values[local.key], sites=[place])
                gain = self._gain(self._values["global"], self._values[local.key], sites=[place])
            found.append((site, federated, own, gain, self._counts[place]))
        values = [federated.value for _, federated, *_ in found if federated.value is not None]
        worst = (min if self.higher_is_better else max)(values, default=None)
        return [
            Gain(
                site.slug,
                site.name,
                site.hue,
                federated,
                own,
                gain,
                cases,
                len(values) > 1 and federated.value == worst,
            )
            for site, federated, own, gain, cases in found
        ]

    def _gain(self, ours: Sequence[Array], theirs: Sequence[Array], *, sites: Sequence[int] | None = None) -> Estimate:
        sides = (ours, theirs) if self.higher_is_better else (theirs, ours)
        return self._bootstrap.difference(*sides, sites=sites)


def spread(values: Sequence[float | None]) -> float | None:
    """Return the largest minus the smallest value; ``None`` for fewer than two."""
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) > 1 else None
