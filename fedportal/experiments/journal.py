"""Writing the append-only record: events, metrics, log text. Reading it is the business of ``monitoring``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from django.utils import timezone

from fedportal.experiments.models import Attempt, Event, Experiment, LogPiece, Metric, SiteRun
from trainer.contract import MetricRecord
from trainer.contract.checks import storable

BATCH = 500
MAX_TEXT = 4000


def record(
    experiment: Experiment,
    kind: str,
    text: str,
    *,
    level: str = Event.Level.INFO,
    round_number: int | None = None,
    site: str = "",
    **data: Any,
) -> Event:
    """Append one event. ``text`` is a plain sentence for a researcher; call it in the transaction of the change."""
    return Event.objects.create(
        experiment=experiment,
        kind=kind,
        text=text[:MAX_TEXT],
        level=level,
        round_number=round_number,
        site=site,
        data=data,
    )


def ingest(site_run: SiteRun, attempt: int, records: Iterable[MetricRecord]) -> int:
    """Store an attempt's metric records; those already there are left alone. Return how many came in.

    Idempotent by (site run, attempt, phase, name, region, step), so a record may be sent any number of times:
    live, again after an outage, and once more in the manifest.
    """
    rows = [
        Metric(
            experiment_id=site_run.round.experiment_id,
            site_run=site_run,
            site=site_run.participation.site.slug,
            attempt=attempt,
            round_number=site_run.round.number,
            phase=r.phase.value,
            name=r.name,
            region=r.region,
            step=r.step,
            progress=r.progress,
            cases=r.cases,
            value=r.value,
            at=datetime.fromtimestamp(r.at, tz=UTC) if r.at else timezone.now(),
        )
        for r in records
    ]
    Metric.objects.bulk_create(rows, ignore_conflicts=True, batch_size=BATCH)
    return len(rows)


def append_log(attempt: Attempt, offset: int, text: str) -> None:
    """Store a piece of an attempt's log; a piece that is already there is left alone."""
    piece = LogPiece(attempt=attempt, offset=offset, text=storable(text))
    LogPiece.objects.bulk_create([piece], ignore_conflicts=True)
