"""Everything that was measured and everything that happened, as CSV and JSON; charts as Plotly figures.

Metrics and journal are streamed: an export of a million rows takes no more memory than one of a hundred.
"""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any

from asgiref.sync import sync_to_async
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.http import require_GET

from fedportal.accounts.models import User
from fedportal.experiments.models import Event, Experiment, Metric
from fedportal.monitoring.access import visible_experiment
from fedportal.monitoring.figures import CHARTS, collect, figure
from fedportal.monitoring.overview import site_styles
from fedportal.monitoring.rows import BATCH, page_rows
from fedportal.sites.counts import told_cases

METRIC_FIELDS = (
    "id", "at", "round_number", "site", "attempt", "phase", "name", "region", "step", "progress", "cases", "value",
)  # fmt: skip
EVENT_FIELDS = ("id", "at", "round_number", "site", "level", "kind", "text", "data")


class _Echo:
    """What ``csv`` writes into: it hands each line back instead of keeping it."""

    def write(self, line: str) -> str:
        return line


def as_csv(fields: tuple[str, ...], rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    writer = csv.DictWriter(_Echo(), fields)
    yield writer.writerow(dict.fromkeys(fields) | {field: field for field in fields})
    for row in rows:
        yield writer.writerow({name: _harmless(value) for name, value in row.items()})


def _harmless(value: Any) -> Any:
    """Return a value as CSV holds it. Text that a spreadsheet would run as a formula gets an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, str) and value[:1] in "=+-@\t\r":
        return f"'{value}" if value else ""
    return value.isoformat() if hasattr(value, "isoformat") else value


def _json(experiment: Experiment, name: str, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    head = {"experiment": experiment.key, "title": experiment.title}
    yield json.dumps(head)[:-1] + f', "{name}": ['
    for number, row in enumerate(rows):
        yield ("," if number else "") + "\n" + json.dumps(row, default=lambda value: value.isoformat())
    yield "\n]}\n"


def metric_dicts(experiment: Experiment, user: User) -> Iterator[dict[str, Any]]:
    """Stream every metric in the order in which it came in; ``at`` is the time of the measurement (UTC).

    ``cases`` is ``None`` where a person may not know so small a number.
    """
    rows = Metric.objects.filter(experiment=experiment).order_by("id")
    for row in rows.values(*METRIC_FIELDS).iterator(chunk_size=BATCH):
        yield row | {"cases": told_cases(user, row["site"], row["cases"])}


def event_dicts(experiment: Experiment) -> Iterator[dict[str, Any]]:
    rows = Event.objects.filter(experiment=experiment).order_by("id")
    return rows.values(*EVENT_FIELDS).iterator(chunk_size=BATCH)


class Streamed(StreamingHttpResponse):
    """Of an iterator over rows. Behind ASGI Django's own reads all of it into memory before the first byte goes out."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = iter(self.streaming_content)
        while some := await sync_to_async(lambda: b"".join(islice(parts, BATCH)))():
            yield some


def as_file(parts: Iterator[str], kind: str, name: str) -> StreamingHttpResponse:
    """Return a download of texts that are made while it is sent."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Streamed(parts, content_type=f"{kind}; charset=utf-8", headers=headers)


@require_GET
def metrics_csv(request: HttpRequest, key: str) -> HttpResponse:
    experiment = visible_experiment(request.user, key)
    return as_file(
        as_csv(METRIC_FIELDS, metric_dicts(experiment, request.user)), "text/csv", f"fedportal-{key}-metrics.csv"
    )


@require_GET
def metrics_json(request: HttpRequest, key: str) -> HttpResponse:
    experiment = visible_experiment(request.user, key)
    parts = _json(experiment, "metrics", metric_dicts(experiment, request.user))
    return as_file(parts, "application/json", f"fedportal-{key}-metrics.json")


@require_GET
def journal_csv(request: HttpRequest, key: str) -> HttpResponse:
    experiment = visible_experiment(request.user, key)
    return as_file(as_csv(EVENT_FIELDS, event_dicts(experiment)), "text/csv", f"fedportal-{key}-journal.csv")


@require_GET
def journal_json(request: HttpRequest, key: str) -> HttpResponse:
    experiment = visible_experiment(request.user, key)
    parts = _json(experiment, "events", event_dicts(experiment))
    return as_file(parts, "application/json", f"fedportal-{key}-journal.json")


@require_GET
def figure_json(request: HttpRequest, key: str, chart: str) -> HttpResponse:
    """A chart as a Plotly figure: ``plotly.io.from_json`` reads it, and any Plotly draws it."""
    experiment = visible_experiment(request.user, key)
    drawn = next((one for one in CHARTS if one.name == chart), None)
    if drawn is None:
        raise Http404("There is no such chart.")
    series = collect(page_rows(experiment)[0], start=experiment.started_at)
    document = figure(drawn, series, site_styles(experiment), title=experiment.title)
    response = JsonResponse(document)
    response.headers["Content-Disposition"] = f'attachment; filename="fedportal-{key}-{chart}.plotly.json"'
    return response
