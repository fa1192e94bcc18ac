"""What a cross-site evaluation measured: every model at every site, as means over the site's held-out cases."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean

from django.db.models import Avg

from fedportal.experiments.models import CaseScore, Experiment, Subject
from fedportal.monitoring.figures import SiteStyle


@dataclass(frozen=True)
class Cell:
    """Means over regions: Dice, and HD95 in mm. ``None``: not measured, or nowhere defined."""

    dice: float | None = None
    hd95: float | None = None


@dataclass(frozen=True)
class Line:
    """A model. ``cells``: one for each site; ``mean``: over the sites, each counting the same; empty where one is missing."""

    name: str
    cells: tuple[Cell, ...]
    mean: Cell


def case_table(experiment: Experiment, sites: list[SiteStyle]) -> list[Line]:
    """Read the lines of an evaluation, in the order of its subjects; two queries. Empty: nothing was measured yet."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    rows = CaseScore.objects.filter(experiment=experiment, value__isnull=False).order_by()
    for subject, site, name, _, mean in rows.values_list("subject", "site", "name", "region").annotate(Avg("value")):
        found[subject, site, name].append(mean)
    if not found:
        return []
    names = {site.slug: site.name for site in sites}
    labels = {"global": Subject.Role.GLOBAL.label}
    labels |= {subject.name: _label(subject, names) for subject in Subject.objects.filter(experiment=experiment)}
    lines = []
    for subject, label in labels.items():
        cells = tuple(
            Cell(_mean(found[subject, site.slug, "dice"]), _mean(found[subject, site.slug, "hd95"])) for site in sites
        )
        mean = Cell(_over_sites([cell.dice for cell in cells]), _over_sites([cell.hd95 for cell in cells]))
        lines.append(Line(label, cells, mean))
    return lines


def _label(subject: Subject, names: dict[str, str]) -> str:
    label = Subject.Role(subject.role).label
    if subject.site:
        label = f"{label}: {names.get(subject.site, subject.site)}"
    return label if subject.round_number is None else f"{label}, round {subject.round_number}"


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _over_sites(values: list[float | None]) -> float | None:
    """Return the mean; ``None`` where a site is missing, since a model may fail at the hardest one."""
    return None if None in values else _mean(values)
