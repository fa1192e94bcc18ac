"""A comparison as CSV: every case's scores, and the table of means, gains and intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from fedportal.accounts.models import User
from fedportal.experiments.models import CaseScore, Subject
from fedportal.monitoring.access import visible_head
from fedportal.monitoring.comparison import MEASURES, Comparison, Scores, rounds_measured
from fedportal.monitoring.exports import as_csv, as_file
from fedportal.monitoring.families import Family, family_of
from fedportal.monitoring.figures import regions_of
from fedportal.monitoring.rows import BATCH
from fedportal.monitoring.statistics import Estimate
from fedportal.sites.counts import told_cases

CASE_FIELDS = ("id", "repeat", "seed", "site", "case", "model", "role", "round", "measure", "region", "value")
TABLE_FIELDS = (
    "measure", "region", "round", "model", "against", "site", "value", "low", "high", "percent", "percent_low",
    "percent_high", "cases",
)  # fmt: skip


@require_GET
def cases_csv(request: HttpRequest, key: str) -> HttpResponse:
    """Every number of every held-out case, by pseudonym. Sites with so few cases that even their number is withheld
    from this person are left out (docs/decisions/0090)."""
    head = visible_head(request.user, key)
    return as_file(
        as_csv(CASE_FIELDS, case_dicts(request.user, family_of(head))), "text/csv", f"fedportal-{key}-cases.csv"
    )


@require_GET
def table_csv(request: HttpRequest, key: str) -> HttpResponse:
    """Means (``against`` empty) and gains over another model, per measure, region, round and site; ``site`` empty: the
    mean over the sites. ``round`` empty: the end."""
    head = visible_head(request.user, key)
    rows = table_dicts(request.user, family_of(head))
    return as_file(as_csv(TABLE_FIELDS, rows), "text/csv", f"fedportal-{key}-comparison.csv")


def withheld_sites(user: User, family: Family) -> list[str]:
    """Return the sites with so few held-out cases that this person may not know how many."""
    rows = CaseScore.objects.filter(experiment__in=family.measuring).values("site").order_by()
    counts = {row["site"]: row["cases"] for row in rows.annotate(cases=Count("case", distinct=True))}
    return sorted(site for site, cases in counts.items() if told_cases(user, site, cases) is None)


def case_dicts(user: User, family: Family, *, after: int = 0, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """Stream the numbers of all cases that a person may see, those behind an id; ``round`` ``None``: the end."""
    runs = {member.pk: run for run in family.runs for member in run.members}
    subjects = {(one.experiment_id, one.name): one for one in Subject.objects.filter(experiment__in=family.evaluations)}
    rows = CaseScore.objects.filter(experiment__in=family.measuring, pk__gt=after)
    rows = rows.exclude(site__in=withheld_sites(user, family)).order_by("pk")[:limit]
    fields = ("pk", "experiment_id", "site", "subject", "case", "name", "region", "value")
    for number, pk, site, name, case, measure, region, value in rows.values_list(*fields).iterator(chunk_size=BATCH):
        subject = subjects.get((pk, name))
        yield {
            "id": number,
            "repeat": runs[pk].number,
            "seed": runs[pk].federated.plan.get("seed"),
            "site": site,
            "case": case,
            "model": name,
            "role": subject.role if subject else Subject.Role.GLOBAL.value,
            "round": subject.round_number if subject else None,
            "measure": measure,
            "region": region,
            "value": value,
        }


def table_dicts(user: User, family: Family) -> Iterator[dict[str, Any]]:
    for measure in MEASURES:
        for at in (*rounds_measured(family), None):
            scores = Scores(family, measure, at=at)
            for region in regions_of(family.head.plan):
                comparison = Comparison(family, scores, measure=measure, region=region)
                place = {"measure": measure.name, "region": region, "round": at}
                for row in _rows(user, comparison):
                    yield place | row


def _rows(user: User, comparison: Comparison) -> Iterator[dict[str, Any]]:
    cases = {gain.slug: told_cases(user, gain.slug, gain.cases) for gain in comparison.gains}
    for line in comparison.lines:
        for cell in line.cells:
            yield {"model": line.contender.key, "site": cell.site, "cases": cases.get(cell.site)} | _of(cell.estimate)
        yield {"model": line.contender.key} | _of(line.mean)
    for gain in comparison.gains:
        yield {"model": "global", "against": f"local-{gain.slug}", "site": gain.slug} | _of(gain.gain)
    for contrast in comparison.contrasts:
        share = {
            f"percent{end}": value
            for end, value in zip(("", "_low", "_high"), _three(contrast.percentage), strict=True)
        }
        yield {"model": "global", "against": contrast.other.key} | _of(contrast.gain) | share


def _of(estimate: Estimate) -> dict[str, float | None]:
    return dict(zip(("value", "low", "high"), _three(estimate), strict=True))


def _three(estimate: Estimate) -> tuple[float | None, float | None, float | None]:
    return estimate.value, estimate.low, estimate.high
