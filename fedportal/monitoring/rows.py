"""Reading the journal after a cursor. Every query here is bounded, whatever an experiment has gathered.

Rows are read in the order of their ids. SQLite has one writer at a time, so an id is never seen before a lower one.
On PostgreSQL a transaction may commit a lower id later: readers therefore step back by :data:`OVERLAP` ids and meet
some rows twice, which is harmless because points and events are known by their identity.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

from django.db import connection
from django.db.models import Avg, Count, F, Max, Q, QuerySet
from django.db.models.functions import Floor

from fedportal.experiments.models import Event, Experiment, Metric
from fedportal.monitoring.figures import DRAWN, Row
from trainer.contract import Phase

R = TypeVar("R", Event, Row)
FIELDS = ("id", "site", "attempt", "round_number", "phase", "name", "region", "step", "progress", "value", "at")
BATCH = 2000
OVERLAP = 1000
"""How many ids a reader steps back on PostgreSQL: far more than are handed out while one insert commits."""
LATE_SECONDS = 10.0
"""How long after a row was seen one with a lower id may still appear there."""
POINTS_IN_PAGE = 20_000
"""Training points, and validation points, that a page carries at most (about 1 MB); beyond, the page shows means
over parts of a round, or every n-th round. The exports have every number."""


@dataclass(frozen=True)
class Cursor:
    """How far somebody has read: the highest ids of an event and of a metric. Written ``<event>.<metric>``."""

    event: int = 0
    metric: int = 0

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor. Anything else than one is the beginning: reading all again repeats, but loses nothing."""
        found = re.fullmatch(r"([0-9]{1,18})\.([0-9]{1,18})", text)
        return cls(int(found[1]), int(found[2])) if found else cls()

    def __str__(self) -> str:
        return f"{self.event}.{self.metric}"

    def stepped_back(self) -> Cursor:
        """Return where to read from, so that a row that became visible late is not missed."""
        if connection.vendor == "sqlite":
            return self
        return Cursor(max(0, self.event - OVERLAP), max(0, self.metric - OVERLAP))


def newest_cursor(experiment: Experiment) -> Cursor:
    """Return the cursor behind the newest rows. Take it before reading: what comes in between is then read twice."""
    events = Event.objects.filter(experiment=experiment).aggregate(top=Max("id"))["top"]
    metrics = Metric.objects.filter(experiment=experiment).aggregate(top=Max("id"))["top"]
    return Cursor(events or 0, metrics or 0)


class Follower(Generic[R]):
    """Reads the rows of one table of one experiment that came after those it has seen; each row once.

    ``in_order``: ids become visible in their order. Else the ids of the last seconds are looked through again.
    """

    def __init__(self, rows: QuerySet, read: Callable[[QuerySet], list[R]], *, in_order: bool | None = None) -> None:
        self._rows, self._read = rows, read
        self._in_order = connection.vendor == "sqlite" if in_order is None else in_order
        self.last = rows.aggregate(top=Max("id"))["top"] or 0
        self._low = self.last if self._in_order else max(0, self.last - OVERLAP)
        self._seen = set() if self._in_order else set(self._ids())
        self._marks: deque[tuple[float, int]] = deque()

    def next(self) -> list[R]:
        """Return what is new, at most :data:`BATCH` rows and what had been overtaken."""
        rows = self._read(self._rows.filter(id__gt=self.last).order_by("id")[:BATCH])
        if not self._in_order:
            late = set(self._ids()) - self._seen
            rows = (self._read(self._rows.filter(id__in=late).order_by("id")) if late else []) + rows
            self._remember(rows)
        self.last = max([self.last, *(row.id for row in rows)])
        return rows

    def _ids(self) -> Iterable[int]:
        return self._rows.filter(id__gt=self._low, id__lte=self.last).order_by().values_list("id", flat=True)

    def _remember(self, rows: Sequence[R]) -> None:
        self._seen.update(row.id for row in rows)
        now = time.monotonic()
        self._marks.append((now, self.last))
        while self._marks and self._marks[0][0] < now - LATE_SECONDS:
            self._low = self._marks.popleft()[1]
        self._seen = {id_ for id_ in self._seen if id_ > self._low}


def follow_events(experiment_id: int) -> Follower[Event]:
    return Follower(Event.objects.filter(experiment_id=experiment_id), list)


def follow_metrics(experiment_id: int) -> Follower[Row]:
    return Follower(drawn(experiment_id), as_rows)


def missed(experiment_id: int, cursor: Cursor) -> Iterator[tuple[list[Event], list[Row], Cursor]]:
    """Yield all that came after a cursor, in pieces of at most :data:`BATCH` rows of a kind, each with its cursor."""
    at = cursor.stepped_back()
    events, metrics = Event.objects.filter(experiment_id=experiment_id), drawn(experiment_id)
    while True:
        some = list(events.filter(id__gt=at.event).order_by("id")[:BATCH])
        rows = as_rows(metrics.filter(id__gt=at.metric).order_by("id")[:BATCH])
        if not some and not rows:
            return
        at = Cursor(some[-1].pk if some else at.event, rows[-1].id if rows else at.metric)
        yield some, rows, Cursor(max(at.event, cursor.event), max(at.metric, cursor.metric))


def drawn(experiment_id: int) -> QuerySet[Metric]:
    return Metric.objects.filter(experiment_id=experiment_id, name__in=DRAWN)


def page_rows(experiment: Experiment) -> tuple[list[Row], bool]:
    """Return the rows that the page draws first, and whether they were thinned out (:data:`POINTS_IN_PAGE`)."""
    rows = drawn(experiment.pk)
    is_train = Q(phase=Phase.TRAIN)
    counts = rows.aggregate(train=Count("id", filter=is_train), measured=Count("id", filter=~is_train))
    every = ceil(counts["measured"] / POINTS_IN_PAGE) or 1
    measured = rows.exclude(is_train)
    if every > 1:
        measured = measured.alias(nth=F("round_number") % every).filter(nth=0)
    found = as_rows(measured.order_by("id"))
    if counts["train"] <= POINTS_IN_PAGE:
        return found + as_rows(rows.filter(is_train).order_by("id")), every > 1
    return found + _means_of_training(rows.filter(is_train)), True


def _means_of_training(rows: QuerySet[Metric]) -> list[Row]:
    """Return mean values of training over equal parts of each round, about :data:`POINTS_IN_PAGE` in all."""
    places = rows.values("site", "round_number").distinct().count()
    parts = max(1, POINTS_IN_PAGE // max(1, places))
    means = (
        # progress runs from above 0 to 1: the last step belongs to the last part
        rows.annotate(part=Floor((F("progress") - 1e-9) * parts))
        .values("site", "attempt", "round_number", "phase", "name", "region", "part")
        .annotate(top=Max("id"), last=Max("step"), far=Max("progress"), mean=Avg("value"), when=Max("at"))
        .order_by("round_number", "part")
    )
    fields = ("top", *FIELDS[1:7], "last", "far", "mean", "when")
    return [Row(*values) for values in means.values_list(*fields)]


def as_rows(metrics: QuerySet[Metric]) -> list[Row]:
    return [Row(*values) for values in metrics.values_list(*FIELDS)]
