"""The only writer of a state. Nothing else assigns ``state`` on an experiment, a round or a site run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from fedportal.experiments.models import Experiment, Round, SiteRun
from fedportal.experiments.states import ExperimentState, State
from fedportal.ui.errors import DomainError


class MoveRefused(DomainError):
    """The state does not allow this."""

    def __init__(self, row: Experiment | Round | SiteRun, to: State) -> None:
        self.row, self.to = row, to
        super().__init__(f"{row} is “{row.status.label}” and cannot become “{to.label}”.")


class StaleClaim(DomainError):
    """The experiment changed at the same moment, so nothing was done. Look at it, and do it again if you still want to."""

    def __init__(self, detail: str = "") -> None:
        self.detail = detail  # for the log
        super().__init__()


def fence(experiment: Experiment, **fields: Any) -> None:
    """Compare-and-set on the experiment's version, first statement of every transaction that changes its state.

    Writes ``fields`` and ``version + 1`` if the version in the database is still the one in hand, else raises
    :class:`StaleClaim`. Inside the same transaction the row is then locked by this writer.
    """
    updated = Experiment.objects.filter(pk=experiment.pk, version=experiment.version).update(
        version=F("version") + 1, **fields
    )
    if updated != 1:
        raise StaleClaim(f"{experiment.key} is no longer at version {experiment.version}")
    experiment.version += 1
    for name, value in fields.items():
        setattr(experiment, name, value)


def move_experiment(experiment: Experiment, to: ExperimentState, *, because: str = "", **fields: Any) -> None:
    """Move an experiment, fenced by its version. Raises :class:`MoveRefused` or :class:`StaleClaim`."""
    if not experiment.status.may_become(to):
        raise MoveRefused(experiment, to)
    now = timezone.now()
    fields = {"state": to.value, "reason": because, "due_at": now, **fields}
    if to is ExperimentState.RUNNING and experiment.started_at is None:
        fields["started_at"] = now
    fields["ended_at"] = (
        now if to in (ExperimentState.COMPLETED, ExperimentState.FAILED, ExperimentState.CANCELLED) else None
    )
    with transaction.atomic():
        fence(experiment, **fields)


def move(row: Round | SiteRun, *through: State, because: str = "", **fields: Any) -> None:
    """Move a round or a site run, through one state or several; only the last one is written.

    Runs inside a transaction whose first statement was :func:`fence` on the experiment. Raises
    :class:`MoveRefused`, or :class:`StaleClaim` when the row is not in the state that this writer read.
    """
    for before, to in pairwise((row.status, *through)):
        if not before.may_become(to):
            raise MoveRefused(row, to)
    values = {"state": through[-1].value, "reason": because, **fields}
    if type(row).objects.filter(pk=row.pk, state=row.state).update(**values) != 1:
        raise StaleClaim(f"{row} is no longer in state {row.state}")
    for name, value in values.items():
        setattr(row, name, value)
