"""The states of an experiment, of its rounds and of its site runs, and the whole law of their moves.

Plain enums, no Django: the models use ``choices()``, the docs print the tables, the tests walk them.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Base of the three families: value is stored, label is shown, colour is a design token."""

    @property
    def label(self) -> str:
        return _LABELS[self][0]

    @property
    def colour(self) -> str:
        """One of ``quiet, busy, good, warn, bad``; never the only sign of a state."""
        return _LABELS[self][1]

    @property
    def is_final(self) -> bool:
        return not MOVES[self]

    def may_become(self, to: State) -> bool:
        return to in MOVES[self]

    @classmethod
    def choices(cls) -> list[tuple[str, str]]:
        return [(state.value, state.label) for state in cls]


class ExperimentState(State):
    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RoundState(State):
    PENDING = "round_pending"
    PUBLISHING = "publishing"
    DISPATCHING = "dispatching"
    TRAINING = "training"
    EVALUATING = "evaluating"
    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    DONE = "done"
    FAILED = "round_failed"
    CANCELLED = "round_cancelled"


class SiteRunState(State):
    PENDING = "run_pending"
    DISPATCHED = "dispatched"
    RUNNING = "run_running"
    UPLOADED = "uploaded"
    ADMITTED = "admitted"
    REJECTED = "rejected"
    FAILED = "run_failed"
    TIMED_OUT = "timed_out"
    SKIPPED = "skipped"
    CANCELLED = "run_cancelled"


_E, _R, _S = ExperimentState, RoundState, SiteRunState

_LABELS: dict[State, tuple[str, str]] = {
    _E.DRAFT: ("Draft", "quiet"),
    _E.RUNNING: ("Running", "busy"),
    _E.PAUSED: ("Paused", "warn"),
    _E.CANCELLING: ("Cancelling", "warn"),
    _E.COMPLETED: ("Completed", "good"),
    _E.FAILED: ("Failed", "bad"),
    _E.CANCELLED: ("Cancelled", "quiet"),
    _R.PENDING: ("Waiting", "quiet"),
    _R.PUBLISHING: ("Publishing model", "busy"),
    _R.DISPATCHING: ("Starting sites", "busy"),
    _R.TRAINING: ("Training", "busy"),
    _R.EVALUATING: ("Evaluating", "busy"),
    _R.COLLECTING: ("Collecting updates", "busy"),
    _R.AGGREGATING: ("Aggregating", "busy"),
    _R.DONE: ("Done", "good"),
    _R.FAILED: ("Failed", "bad"),
    _R.CANCELLED: ("Cancelled", "quiet"),
    _S.PENDING: ("Waiting", "quiet"),
    _S.DISPATCHED: ("Started", "busy"),
    _S.RUNNING: ("Training", "busy"),
    _S.UPLOADED: ("Update received", "busy"),
    _S.ADMITTED: ("Admitted", "good"),
    _S.REJECTED: ("Rejected", "bad"),
    _S.FAILED: ("Failed", "bad"),
    _S.TIMED_OUT: ("Timed out", "bad"),
    _S.SKIPPED: ("Skipped", "quiet"),
    _S.CANCELLED: ("Cancelled", "quiet"),
}

MOVES: dict[State, frozenset[State]] = {
    # A failed experiment can be taken up again: what its finished rounds gained is not lost.
    _E.DRAFT: frozenset({_E.RUNNING}),
    _E.RUNNING: frozenset({_E.PAUSED, _E.CANCELLING, _E.COMPLETED, _E.FAILED}),
    _E.PAUSED: frozenset({_E.RUNNING, _E.CANCELLING}),
    _E.CANCELLING: frozenset({_E.CANCELLED}),
    _E.COMPLETED: frozenset(),
    _E.FAILED: frozenset({_E.RUNNING}),
    _E.CANCELLED: frozenset(),
    # One federated round, in order of time. A round of evaluation only goes DISPATCHING → EVALUATING → COLLECTING → DONE.
    _R.PENDING: frozenset({_R.PUBLISHING, _R.FAILED, _R.CANCELLED}),
    _R.PUBLISHING: frozenset({_R.DISPATCHING, _R.FAILED, _R.CANCELLED}),
    _R.DISPATCHING: frozenset({_R.TRAINING, _R.EVALUATING, _R.FAILED, _R.CANCELLED}),
    _R.TRAINING: frozenset({_R.COLLECTING, _R.FAILED, _R.CANCELLED}),
    _R.EVALUATING: frozenset({_R.COLLECTING, _R.FAILED, _R.CANCELLED}),
    _R.COLLECTING: frozenset({_R.AGGREGATING, _R.DONE, _R.FAILED, _R.CANCELLED}),
    _R.AGGREGATING: frozenset({_R.DONE, _R.FAILED, _R.CANCELLED}),
    _R.DONE: frozenset(),
    # The failed round of an experiment that is taken up again starts anew with new attempts.
    _R.FAILED: frozenset({_R.PENDING}),
    _R.CANCELLED: frozenset(),
    # One site's part. PENDING again is the next attempt.
    _S.PENDING: frozenset({_S.DISPATCHED, _S.FAILED, _S.TIMED_OUT, _S.SKIPPED, _S.CANCELLED}),
    _S.DISPATCHED: frozenset({_S.RUNNING, _S.UPLOADED, _S.FAILED, _S.TIMED_OUT, _S.CANCELLED, _S.PENDING}),
    _S.RUNNING: frozenset({_S.UPLOADED, _S.FAILED, _S.TIMED_OUT, _S.CANCELLED, _S.PENDING}),
    _S.UPLOADED: frozenset({_S.ADMITTED, _S.REJECTED, _S.FAILED, _S.TIMED_OUT, _S.CANCELLED, _S.PENDING}),
    _S.ADMITTED: frozenset(),
    _S.REJECTED: frozenset({_S.PENDING}),
    _S.FAILED: frozenset({_S.PENDING}),
    _S.TIMED_OUT: frozenset({_S.PENDING}),
    _S.SKIPPED: frozenset({_S.PENDING}),
    _S.CANCELLED: frozenset(),
}

ACTIVE = frozenset({_E.RUNNING, _E.PAUSED, _E.CANCELLING})
"""States of an experiment that has begun and is not over."""
CANCELLABLE = frozenset(state for state in _E if state.may_become(_E.CANCELLING))
LIVE_ROUND = frozenset(_R) - {_R.DONE, _R.FAILED, _R.CANCELLED}
AT_SITE = frozenset({_S.DISPATCHED, _S.RUNNING})
"""Site-run states in which a remote run may exist."""
NOT_DELIVERED = frozenset({_S.REJECTED, _S.FAILED, _S.TIMED_OUT, _S.SKIPPED})
"""Site-run states that are over without an update; a person may ask for another try."""
SITE_RUN_OVER = NOT_DELIVERED | {_S.ADMITTED, _S.CANCELLED}
