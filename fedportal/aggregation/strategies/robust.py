"""Strategies that one wrong site cannot carry away. Every site has one voice, however many cases it has.

They need all sites' values of an element at once: a thread holds one chunk of every site, and no more. Floating
buffers are merged in the same way, for a single running variance could otherwise spoil the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedportal.aggregation.dtypes import Float64s
from fedportal.aggregation.strategies.base import Option, OptionValue, SiteValues, Strategy, number

PAPER = "Yin et al., ICML 2018, arXiv:1803.01498"
WHY_NO_AVERAGED_MOMENTS = "a mean of their memories could be carried away by a single site"


class Median(Strategy):
    """The median of the sites' values, element by element; of an even number the mean of the two in the middle."""

    name = "median"
    title = "Coordinate-wise median"
    about = "For every weight the value in the middle. Fewer than half of the sites cannot carry it away; cases do not count."
    paper = PAPER
    min_sites = 3
    why_min_sites = "of two values the median is their mean"
    merges_buffers = True
    why_no_averaged_moments = WHY_NO_AVERAGED_MOMENTS

    def combine(self, values: SiteValues, out: Float64s, options: Mapping[str, OptionValue]) -> None:
        rows = _sorted(values)
        _mean(rows[(len(rows) - 1) // 2 : len(rows) // 2 + 1], out)


class TrimmedMean(Strategy):
    """The mean of what is left, element by element, without the k smallest and the k largest values.

    k = max(1, ⌊β·n⌋): with few sites ⌊β·n⌋ alone would trim nothing, in silence. β below a half and three sites
    leave at least one value.
    """

    name = "trimmed_mean"
    title = "Trimmed mean"
    about = "For every weight the mean without the most extreme values, at least one on each side; cases do not count."
    paper = PAPER
    min_sites = 3
    why_min_sites = "one value is cut off on each side, and one has to be left"
    merges_buffers = True
    why_no_averaged_moments = WHY_NO_AVERAGED_MOMENTS
    options = (
        Option(
            name="trim",
            title="Share trimmed on each side",
            default=0.2,
            least=0.01,
            most=0.49,
            help="Of all sites; at least one site is cut off on each side.",
        ),
    )

    def combine(self, values: SiteValues, out: Float64s, options: Mapping[str, OptionValue]) -> None:
        rows = _sorted(values)
        trimmed = trimmed_on_each_side(len(rows), number(options, "trim"))
        _mean(rows[trimmed : len(rows) - trimmed], out)


def trimmed_on_each_side(sites: int, share: float) -> int:
    """Return k. The small surplus: 0.29 of 100 is 28.999999999999996 in floating point."""
    return max(1, math.floor(share * sites + 1e-9))


def _sorted(values: SiteValues) -> NDArray[np.float64]:
    """Return the sites' values, one row a rank."""
    rows = np.empty((len(values.weights), values.scratch.size))
    for site in range(len(rows)):
        rows[site] = values.read(site)
    rows.sort(axis=0)
    return rows


def _mean(rows: NDArray[np.float64], out: Float64s) -> None:
    """Write the mean of sorted rows; held between the first and the last, where float64 could round beyond."""
    np.copyto(out, rows[0])
    for row in rows[1:]:
        out += row
    out /= len(rows)
    np.clip(out, rows[0], rows[-1], out=out)
