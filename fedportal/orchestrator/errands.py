"""Calls that may take long (a site that does not answer, a large download), made beside the steps.

A step starts errands, waits a moment for the quick ones and goes on; what comes late is taken by a later step. So
one dead site delays nobody. Errands live in memory only: after a crash the next step starts them again, and all that
they do may be done twice.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

LARGE_AT_ONCE = 4
"""So many errands that move or read whole models run at the same time."""
FORGOTTEN_AFTER = 3600.0


@dataclass
class Errand:
    """One call, under way or finished. Exactly one of ``value`` and ``error`` has a meaning when it is done."""

    value: Any = None
    error: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)
    begun: float = field(default_factory=time.monotonic)
    is_announced: bool = False


class Errands:
    """Errands by key: at most one of a key is under way, and its result waits until it is taken.

    :meth:`of` gives each experiment errands of its own; large ones count together.
    """

    def __init__(self, large: threading.BoundedSemaphore | None = None) -> None:
        self._news = threading.Condition()
        self._lock = self._news
        self._errands: dict[Hashable, Errand] = {}
        self._large = large or threading.BoundedSemaphore(LARGE_AT_ONCE)
        self._owners: dict[Hashable, Errands] = {}

    def of(self, owner: Hashable) -> Errands:
        """Return the errands of one experiment: always the same object."""
        with self._lock:
            return self._owners.setdefault(owner, Errands(self._large))

    def drop(self, owner: Hashable) -> None:
        """Forget the errands of an experiment that is over."""
        with self._lock:
            self._owners.pop(owner, None)

    def start(
        self,
        key: Hashable,
        call: Callable[[], Any],
        *,
        is_large: bool = False,
        is_news: bool | Callable[[Any], bool] = True,
    ) -> bool:
        """Start ``call`` in a thread of its own, unless one of that key is under way or not yet taken.

        One that is no news wakes nobody when it is done: it can wait for the next step. A function is asked with the
        result; an error is news to it.
        """
        with self._lock:
            if key in self._errands:
                return False
            now = time.monotonic()
            self._errands = {
                k: e for k, e in self._errands.items() if now - e.begun < FORGOTTEN_AFTER or not e.done.is_set()
            }
            errand = self._errands[key] = Errand(is_announced=is_news is False)
        # Daemon threads: a hanging site must not keep the orchestrator from ending.
        threading.Thread(
            target=self._run, args=(errand, call, is_large, is_news), daemon=True, name=f"errand {key}"
        ).start()
        return True

    def _run(
        self, errand: Errand, call: Callable[[], Any], is_large: bool, is_news: bool | Callable[[Any], bool]
    ) -> None:
        try:
            with self._large if is_large else nullcontext():
                errand.value = call()
            if callable(is_news):
                errand.is_announced = not is_news(errand.value)
        except Exception as error:  # handed to the step that takes it, which knows what it means
            errand.error = error
        finally:
            errand.done.set()
            with self._news:
                self._news.notify_all()

    def is_under_way(self, key: Hashable) -> bool:
        with self._lock:
            errand = self._errands.get(key)
        return errand is not None and not errand.done.is_set()

    def keys(self, *prefix: Hashable) -> list[tuple[Hashable, ...]]:
        """Return the keys (tuples) that begin with ``prefix``, under way or finished."""
        with self._lock:
            return [key for key in self._errands if isinstance(key, tuple) and key[: len(prefix)] == prefix]

    def wait(self, keys: Iterable[Hashable], patience: float) -> None:
        """Return when the errands of these keys are done, or after ``patience`` seconds."""
        with self._lock:
            errands = [self._errands[key] for key in keys if key in self._errands]
        end = time.monotonic() + patience
        for errand in errands:
            if not errand.done.wait(max(0.0, end - time.monotonic())):
                return

    def wait_for_news(self, patience: float) -> bool:
        """Return True as soon as an errand has finished that was not announced yet, False after ``patience`` seconds.

        Each is announced once: one that nobody wants any more must not keep anybody awake.
        """
        with self._news:
            found = self._news.wait_for(self._unannounced, patience)
            for errand in found:
                errand.is_announced = True
            return bool(found)

    def _unannounced(self) -> list[Errand]:
        return [errand for errand in self._errands.values() if errand.done.is_set() and not errand.is_announced]

    def take(self, key: Hashable) -> Errand | None:
        """Return a finished errand and forget it; ``None`` when there is none or it is not finished."""
        with self._lock:
            errand = self._errands.get(key)
            if errand is None or not errand.done.is_set():
                return None
            return self._errands.pop(key)


def doubled(times: int, *, longest: float) -> float:
    """Return the seconds of a pause that doubles each time. Silence may last for days, and ``2.0**1024`` is no number."""
    return min(longest, 2.0 ** min(times, 10))


@dataclass
class _Beat:
    due: float = 0.0
    interval: float = 0.0
    misses: int = 0


class Pace:
    """When to ask a site again: slower the longer it works, slower still while it does not answer, never in step
    with the others. In memory only, since a question more after a crash does no harm."""

    JITTER = 0.2
    SLOWEST = 60.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[Hashable, _Beat] = {}

    def is_due(self, key: Hashable) -> bool:
        return self.remaining(key) <= 0

    def is_known(self, key: Hashable) -> bool:
        """Whether it was ever asked."""
        return key in self._beats

    def remaining(self, key: Hashable) -> float:
        """Seconds until it is due; 0 or less: it is."""
        beat = self._beats.get(key)
        return 0.0 if beat is None else beat.due - self._clock()

    def heard(self, key: Hashable, *, first: float, longest: float) -> None:
        """It answered: ask again after ``first`` seconds, each time a quarter later, up to ``longest``."""
        beat = self._beats.setdefault(key, _Beat())
        beat.interval = min(longest, beat.interval * 1.25 if beat.interval and not beat.misses else first)
        beat.misses = 0
        self._set(beat)

    def put_off(self, key: Hashable, seconds: float) -> None:
        """Its site is not asked before that many seconds have passed: that is no answer, and no miss of its own."""
        beat = self._beats.setdefault(key, _Beat())
        beat.misses, beat.interval = 0, 0.0
        beat.due = self._clock() + seconds

    def missed(self, key: Hashable) -> int:
        """It did not answer: double the pause. Returns how often in a row."""
        beat = self._beats.setdefault(key, _Beat())
        beat.misses += 1
        beat.interval = doubled(beat.misses, longest=self.SLOWEST)
        self._set(beat)
        return beat.misses

    def forget(self, *keys: Hashable) -> None:
        for key in keys:
            self._beats.pop(key, None)

    def _set(self, beat: _Beat) -> None:
        beat.due = self._clock() + beat.interval * random.uniform(1 - self.JITTER, 1 + self.JITTER)
