"""Following journals for the sockets: one reader per experiment and process, fanned out to all who watch.

The rows are the only truth and nothing here needs to be kept. A reader asks the database what came after the ids it
has seen, four times a second while something happens and slower when not; no broker is needed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from channels.db import database_sync_to_async
from django.db import DatabaseError

from fedportal.experiments.models import Event, Experiment, Kind
from fedportal.monitoring import fragments
from fedportal.monitoring.figures import Row, as_json, collect
from fedportal.monitoring.fragments import Fragment
from fedportal.monitoring.overview import Overview, overview, site_styles
from fedportal.monitoring.relatives import Relatives, relatives_of
from fedportal.monitoring.rows import Cursor, follow_events, follow_metrics, missed
from fedportal.monitoring.watchers import GONE, TRY_AGAIN, Watcher, refused

logger = logging.getLogger(__name__)

FASTEST, SLOWEST, AT_REST = 0.25, 1.0, 3.0
"""Seconds between two looks: while rows come, while it runs but nothing comes, and when it does not run."""
CALM_SECONDS = 5.0
"""So long after the last news the looks become slower."""
RENDER_SECONDS = 1.0
"""How often head and newest rounds are rendered anew while it runs: a forecast changes without a row."""
REVIEW_SECONDS = 5.0
"""How often the right to watch is checked when there is nothing to send; with every message it is checked anyway."""
BEAT_SECONDS = 10.0
"""With nothing to send for so long, a sign of life goes out: a page that hears none connects again."""
BACKLOG = 64
"""Messages that may wait for one socket; a slower one is closed and comes back from its cursor."""
ROUNDS_RENDERED = 8
ROUNDS_MISSED = 100
"""A page that is further behind is told to reload."""
TOO_SLOW = 4408


BEAT = as_json({"beat": True})


class Listener:
    """One socket's queue of encoded messages; a number in it is the code to close with."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher = watcher
        self._queue: asyncio.Queue[str | int] = asyncio.Queue()

    def put(self, message: str | int) -> None:
        self._queue.put_nowait(message if self._queue.qsize() < BACKLOG else TOO_SLOW)

    async def get(self) -> str | int:
        return await self._queue.get()


class Reader:
    """What has been read of an experiment. Queries the database: make and call it in a thread."""

    def __init__(self, experiment_id: int) -> None:
        self.experiment_id = experiment_id
        experiment = Experiment.objects.get(pk=experiment_id)
        self.looks = site_styles(experiment)
        self.is_active = True
        self._kind = experiment.kind
        self._relatives: Relatives | None = None
        self._events = follow_events(experiment_id)
        self._metrics = follow_metrics(experiment_id)
        self._version = -1
        self._sent: dict[str, str] = {}
        self._rendered_at = self._reviewed_at = 0.0

    def look(self, watchers: Iterable[Watcher]) -> tuple[str | None, dict[Watcher, int]]:
        """Return what is new as an encoded message (``None``: nothing), and who of ``watchers`` may not have it any more,
        each with the code to close with. With nothing new they are asked about every few seconds only.
        """
        experiment = Experiment.objects.filter(pk=self.experiment_id).first()
        if experiment is None:
            return None, dict.fromkeys(watchers, GONE)
        events, metrics = self._events.next(), self._metrics.next()
        state = self._changed(experiment, renew=bool(events))
        self.is_active = experiment.is_active or bool(self._relatives and self._relatives.is_active)
        message = None
        if events or metrics or state:
            cursor = Cursor(self._events.last, self._metrics.last)
            message = compose(experiment, cursor, events=events, metrics=metrics, state=state)
        return message, self._refused(watchers, at_once=message is not None)

    def _changed(self, experiment: Experiment, *, renew: bool) -> dict[str, Any]:
        """Render what may have changed and return what has: all after a step or an event, else once a second the head."""
        now = time.monotonic()
        stepped = renew or experiment.version != self._version
        if not stepped and not (self.is_active and now - self._rendered_at >= RENDER_SECONDS):
            return {}
        self._version, self._rendered_at = experiment.version, now
        view = overview(experiment, count=ROUNDS_RENDERED, looks=self.looks)
        pieces = state_of(view, rounds=2) if stepped else [fragments.head(view)]
        if self._kind == Kind.FEDERATED and (stepped or (self._relatives and not self._relatives.is_alone)):
            self._relatives = relatives_of(experiment)
            pieces.append(fragments.relatives(self._relatives))
        changed = [piece for piece in pieces if self._sent.get(piece["id"]) != piece["html"]]
        self._sent.update((piece["id"], piece["html"]) for piece in changed)
        return {"fragments": changed, "summary": view.summary} if changed else {}

    def _refused(self, watchers: Iterable[Watcher], *, at_once: bool) -> dict[Watcher, int]:
        now = time.monotonic()
        if not at_once and now - self._reviewed_at < REVIEW_SECONDS:
            return {}
        self._reviewed_at = now
        return refused(self.experiment_id, watchers)


def state_of(view: Overview, *, rounds: int) -> list[Fragment]:
    """Return head, models (of an evaluation: what it measured) and the newest ``rounds`` lines of the matrix, oldest first."""
    rows = [fragments.round_row(view, row) for row in reversed(view.rows[:rounds])]
    is_evaluation = view.experiment.kind == Kind.CROSS_SITE
    return [fragments.head(view), *rows, fragments.scores(view) if is_evaluation else fragments.models(view)]


def compose(
    experiment: Experiment,
    cursor: Cursor,
    *,
    events: Sequence[Event] = (),
    metrics: Sequence[Row] = (),
    state: dict[str, Any] | None = None,
) -> str:
    """Encode one message of the socket.

    ``cursor``: what the page has with this message. ``series``: points as in the page's first figure.
    ``fragments``: HTML to put into its place. ``summary``: the sentence for screen readers, where it may have changed.
    """
    state = state or {}
    news = [fragments.event(event, experiment=experiment) for event in events]
    message: dict[str, Any] = {
        **state,
        "cursor": str(cursor),
        "state": experiment.state,
        "series": collect(metrics, start=experiment.started_at),
        "fragments": [*state.get("fragments", ()), *news],
    }
    return as_json(message)


def catch_up(experiment_id: int, cursor: Cursor, *, shown_round: int) -> Iterator[str]:
    """Yield messages with all that somebody missed: the state now, then every row after the cursor.

    ``shown_round``: the newest round that the page shows. A page that is too far behind gets ``{"reload": true}``.
    """
    experiment = Experiment.objects.get(pk=experiment_id)
    behind = max(ROUNDS_RENDERED, _newest_round(experiment) - shown_round + 2)
    if behind > ROUNDS_MISSED:
        yield as_json({"reload": True})
        return
    view = overview(experiment, count=behind)
    shown = max(2, view.rows[0].number - shown_round + 2) if view.rows else 0
    pieces = state_of(view, rounds=shown)
    if experiment.kind == Kind.FEDERATED:  # what stands beside it goes on by itself
        pieces.append(fragments.relatives(relatives_of(experiment)))
    state = {"fragments": pieces, "summary": view.summary}
    yield compose(experiment, cursor, state=state)
    for events, metrics, reached in missed(experiment_id, cursor):
        yield compose(experiment, reached, events=events, metrics=metrics)


def _newest_round(experiment: Experiment) -> int:
    return experiment.rounds.order_by("-number").values_list("number", flat=True).first() or 0


class Tail:
    """The task that reads for all listeners of one experiment; it ends with the last of them."""

    def __init__(self, experiment_id: int) -> None:
        self.experiment_id = experiment_id
        self.listeners: set[Listener] = set()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None

    async def add(self, listener: Listener) -> None:
        """Let a listener in. From here on it misses nothing: what came before is for :func:`catch_up`."""
        self.listeners.add(listener)
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await asyncio.shield(self._ready)

    async def remove(self, listener: Listener) -> None:
        self.listeners.discard(listener)
        if self.listeners:
            return
        self._leave()  # before anything is awaited
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _leave(self) -> None:
        """Have whoever comes from here on start a tail of its own."""
        for place in [place for place, tail in _tails.items() if tail is self]:
            del _tails[place]

    async def _run(self) -> None:
        try:
            await self._follow()
        except Exception:  # the experiment is gone, or its page cannot be rendered: nobody shall wait for ever
            logger.exception("The journal of experiment %s is not followed any more", self.experiment_id)
            self._leave()
            for listener in self.listeners:
                listener.put(TRY_AGAIN)
            if not self._ready.done():
                self._ready.set_result(None)

    async def _follow(self) -> None:
        reader = await self._begin()
        self._ready.set_result(None)
        last_news = last_sent = time.monotonic()
        while True:
            try:
                watchers = [listener.watcher for listener in self.listeners]
                message, gone = await database_sync_to_async(reader.look)(watchers)
            except DatabaseError:
                logger.exception("Cannot read the journal of experiment %s at the moment", self.experiment_id)
                message, gone = None, {}
            now = time.monotonic()
            if message is not None:
                last_news = last_sent = now
            elif now - last_sent >= BEAT_SECONDS:
                message, last_sent = BEAT, now
            self._send(message, gone)
            await asyncio.sleep(pause(now - last_news, is_active=reader.is_active))

    async def _begin(self) -> Reader:
        while True:
            try:
                return await database_sync_to_async(Reader)(self.experiment_id)
            except DatabaseError:
                logger.exception("Cannot open the journal of experiment %s at the moment", self.experiment_id)
                await asyncio.sleep(SLOWEST)

    def _send(self, message: str | None, gone: dict[Watcher, int]) -> None:
        for listener in list(self.listeners):
            if (code := gone.get(listener.watcher)) is not None:
                listener.put(code)
            elif message is not None:
                listener.put(message)


def pause(calm: float, *, is_active: bool) -> float:
    """Return the seconds until the next look, ``calm`` seconds after the last news."""
    if calm < CALM_SECONDS:
        return FASTEST
    return SLOWEST if is_active else AT_REST


_tails: dict[tuple[int, int], Tail] = {}
"""By event loop and experiment: a task cannot serve the sockets of another loop."""


@asynccontextmanager
async def listen(experiment_id: int, watcher: Watcher) -> AsyncIterator[Listener]:
    """Listen to an experiment as long as the block runs."""
    place = id(asyncio.get_running_loop()), experiment_id
    tail = _tails.get(place) or _tails.setdefault(place, Tail(experiment_id))
    listener = Listener(watcher)
    try:
        await tail.add(listener)
        yield listener
    finally:
        await tail.remove(listener)
