"""Means over hospitals with bootstrap intervals over their cases, and over seeds. Pure: numpy, no database.

What is estimated, and how sure the estimate is (docs/decisions/0089):

* A site's value is the mean over its held-out cases of each region, then the mean over the regions; the overall value
  is the mean over the sites, each counting the same. Undefined values (NaN) count nowhere.
* Cases are resampled within each site, the same cases for both sides of a comparison (stratified, paired). The sites
  themselves stay: the answer is about these hospitals. Where there are several runs, which differ by their seed alone,
  runs are resampled as well, across all cases (two-level).
* Of *n* cases *n* - 1 are drawn (Rao and Wu 1988), and the percentiles are widened from the normal to Student's
  distribution (Hesterberg 2015): with the few cases of a hospital a plain percentile interval is much too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
DRAWS = 4000
"""Resamples: another seed moves a bound by about a fortieth of the interval's width."""
SEED = 2021
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval. ``value`` is ``None`` where nothing was measured, the bounds where there are too
    few cases for an interval: fewer than two at a site."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        return self.low is not None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


class Bootstrap:
    """The resamples of some sites' cases and of the runs, drawn once, the same for every number that is asked for.

    Values are given as one array [run, case, region] for each site, in the order of ``cases``, NaN where undefined. The
    same data in the same order give the same bits; who orders cases and runs by their names is independent of how they
    arrived.
    """

    def __init__(self, cases: Sequence[int], *, draws: int = DRAWS, seed: int = SEED) -> None:
        self._cases = [_resamples(count, draws, (seed, place)) for place, count in enumerate(cases)]
        self._runs = cache(lambda runs: _resamples(runs, draws, (seed, len(cases), runs)))

    def mean(self, values: Sequence[Array], *, sites: Sequence[int] | None = None) -> Estimate:
        """Return the mean over sites (``sites``: only these)."""
        return self._estimate([values], lambda one: one[0], sites)

    def difference(self, ours: Sequence[Array], theirs: Sequence[Array], **options: Sequence[int] | None) -> Estimate:
        """Return ours minus theirs, over the values that both have."""
        return self._estimate(_paired(ours, theirs), lambda both: both[0] - both[1], options.get("sites"))

    def percentage(self, ours: Sequence[Array], theirs: Sequence[Array], **options: Sequence[int] | None) -> Estimate:
        """Return ours in percent of theirs, over the values that both have."""
        return self._estimate(_paired(ours, theirs), _percentage, options.get("sites"))

    def _estimate(
        self, sides: list[Sequence[Array]], combine: Callable[[Array], Array], sites: Sequence[int] | None
    ) -> Estimate:
        measured = [
            place
            for place in (range(len(self._cases)) if sites is None else sites)
            if all(np.isfinite(side[place]).any() for side in sides)
        ]
        if not measured:
            return Estimate()
        each_once = [np.ones((1, side.shape[1])) for side in sides[0]]
        by_run = np.stack([_over_sites(side, each_once, measured)[0] for side in sides])  # [side, run]
        known = np.isfinite(by_run).all(axis=0)  # a repeat that failed is none that could be drawn
        by_run = by_run[:, known]
        value = float(combine(by_run.mean(axis=1)))
        if not np.isfinite(value):
            return Estimate()
        counts = [int(np.isfinite(sides[0][place]).any(axis=(0, 2)).sum()) for place in measured]
        if min(counts) < 2:
            return Estimate(value)
        runs = self._runs(by_run.shape[1])
        replicates = np.stack([_weighted(_over_sites(side, self._cases, measured)[:, known], runs) for side in sides])
        found = combine(replicates)
        found = found[np.isfinite(found)]
        free = _degrees(found, combine(by_run), sum(counts) - len(counts))
        low, high = np.quantile(found, _tails(free))
        return Estimate(value, float(low), float(high))


def _resamples(count: int, draws: int, seed: tuple[int, ...]) -> Array:
    """Return how often each of ``count`` things is drawn [draw, thing]: one less of them than there are."""
    if count < 2:
        return np.ones((draws, count))
    generator = np.random.default_rng(seed)
    return generator.multinomial(count - 1, np.full(count, 1 / count), size=draws).astype(np.float64)


def _paired(ours: Sequence[Array], theirs: Sequence[Array]) -> list[Sequence[Array]]:
    """Return both sides with NaN wherever one of them has it."""
    gaps = [np.isnan(a) | np.isnan(b) for a, b in zip(ours, theirs, strict=True)]
    return [[np.where(gap, np.nan, one) for gap, one in zip(gaps, side, strict=True)] for side in (ours, theirs)]


def _percentage(both: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(both[1] > 0, 100 * both[0] / both[1], np.nan)


def _over_sites(values: Sequence[Array], weights: Sequence[Array], sites: Sequence[int]) -> Array:
    """Return the mean over sites [draw, run]."""
    return _mean(np.stack([_site(values[place], weights[place]) for place in sites]), axis=0)


def _site(values: Array, weights: Array) -> Array:
    """Return a site's value for each draw and run: [run, case, region] and [draw, case] → [draw, run]."""
    defined = np.isfinite(values)
    totals = np.tensordot(weights, np.where(defined, values, 0.0), axes=(1, 1))  # [draw, run, region]
    if defined.all():  # the usual case, at half the work
        return (totals / weights.sum(axis=1)[:, None, None]).mean(axis=2)
    counts = np.tensordot(weights, defined.astype(np.float64), axes=(1, 1))
    with np.errstate(invalid="ignore"):
        return _mean(totals / counts, axis=2)


def _weighted(values: Array, weights: Array) -> Array:
    """Return the mean over runs [..., run] → [...], each counting as often as it was drawn."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return (np.where(defined, values, 0.0) * weights).sum(axis=-1) / (defined * weights).sum(axis=-1)


def _mean(values: Array, *, axis: int) -> Array:
    """Return the mean of what is defined, NaN where nothing is (``numpy.nanmean`` without its warning)."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0.0).sum(axis=axis) / defined.sum(axis=axis)


def _degrees(replicates: Array, by_run: Array, cases: int) -> float:
    """Return the degrees of freedom: those of the cases, or of cases and runs together (Satterthwaite 1946)."""
    by_run = by_run[np.isfinite(by_run)]
    if len(by_run) < 2:
        return float(cases)
    total = replicates.var()
    of_runs = min(by_run.var(ddof=1) / len(by_run), total)
    spread = of_runs**2 / (len(by_run) - 1) + (total - of_runs) ** 2 / cases
    return float(total**2 / spread) if spread > 0 else float(cases)


def _tails(degrees: float) -> tuple[float, float]:
    from scipy.special import ndtr, stdtrit  # here: no other page needs it

    tail = float(ndtr(stdtrit(degrees, (1 - LEVEL) / 2)))
    return tail, 1 - tail
