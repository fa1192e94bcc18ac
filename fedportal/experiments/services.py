"""What people do with experiments. Forms hold the rules about input, these functions those about state.

Every act is one short transaction: lock and reread the experiment, check, move through ``lifecycle``, write one line
of the journal that says who did it. The orchestrator's step that was under way meanwhile goes stale and is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from django.db import transaction
from django.utils import timezone

from fedportal.accounts.models import User
from fedportal.aggregation.strategies import plan_fields
from fedportal.experiments import baselines, journal, lifecycle
from fedportal.experiments.models import Event, Experiment, Participation, Round, SiteRun
from fedportal.experiments.plan import EDITABLE, PRESETS, merged, preset_plan, with_task_of
from fedportal.experiments.proposal import propose
from fedportal.experiments.readiness import Check, checklist
from fedportal.experiments.states import (
    CANCELLABLE,
    LIVE_ROUND,
    NOT_DELIVERED,
    ExperimentState,
    RoundState,
    SiteRunState,
)
from fedportal.sites.models import Dataset, Site
from fedportal.ui.errors import DomainError

DEFAULT_STRATEGY = str(Experiment._meta.get_field("strategy").default)

STILL_TRAINING = LIVE_ROUND - {RoundState.COLLECTING, RoundState.AGGREGATING}


class NotADraft(DomainError):
    """Only a draft can be changed or deleted. Clone the experiment to change its plan."""


class Deleted(DomainError):
    """The experiment was deleted meanwhile."""

    status = HTTPStatus.NOT_FOUND


class NotReady(DomainError):
    """The experiment is not ready to start."""

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks
        super().__init__(" ".join(problem for check in checks for problem in check.problems))


class CannotOwn(DomainError):
    """Only researchers and operators can own an experiment."""


class CannotRetry(DomainError):
    """This site cannot be started again in this round."""


@contextmanager
def _locked(experiment: Experiment) -> Iterator[None]:
    """Open the act's transaction and reread the experiment under its row lock.

    The key stays free for others' foreign keys: a baseline's end is written into the journal of the run beside it. SQLite
    has no row locks; there the transaction itself is exclusive from its first statement.
    """
    with transaction.atomic():
        try:
            experiment.refresh_from_db(from_queryset=Experiment.objects.select_for_update(no_key=True))
        except Experiment.DoesNotExist as error:
            raise Deleted from error
        yield


# --- drafts ---------------------------------------------------------------------------------------


def create_draft(
    *,
    owner: User,
    preset: str = "laptop",
    title: str | None = None,
    participants: Iterable[Dataset] | None = None,
    plan: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Experiment:
    """Create a DRAFT from a preset, ``plan`` and ``fields`` laid over it.

    Without ``participants`` a preset of the reference experiment begins with those of :func:`propose`.
    """
    chosen = PRESETS[preset]
    if participants is None:
        participants = [] if preset == "blank" else propose(owner).datasets
    participants = list(participants)
    document = merged(with_task_of(preset_plan(chosen), participants), plan or {})
    options = dict(chosen.options)
    if participants:
        options["min_sites"] = min(options["min_sites"], len(participants))
    options |= _editable(fields)
    strategy, of_strategy = options.get("strategy", DEFAULT_STRATEGY), options.get("strategy_options", {})
    document |= plan_fields(strategy, of_strategy)
    with transaction.atomic():
        experiment = Experiment.objects.create(
            owner=owner,
            title=chosen.title if title is None else title,
            plan=document,
            rounds_planned=document["rounds"],
            **options,
        )
        _take_part(experiment, participants)
        journal.record(experiment, "draft_created", f"{owner} created the experiment.", by=owner.username)
    return experiment


def update_draft(
    *,
    experiment: Experiment,
    by: User,
    fields: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    participants: Iterable[Dataset] | None = None,
) -> None:
    """Change a DRAFT: ``fields`` of :data:`fedportal.experiments.plan.EDITABLE`, ``plan`` laid over the plan, ``participants`` in place of the old.

    What the sites must know of the strategy (FedProx's μ, FedBN's layers) goes into the plan; options of another
    strategy than the new one are dropped. The task follows the datasets; regions that were edited stay as long as channels and labels do. Raises
    :class:`NotADraft` when the experiment has started meanwhile.
    """
    values = _editable(fields)
    with _locked(experiment):
        _require_draft(experiment)
        document = merged(experiment.plan, plan or {})
        if participants is not None:
            datasets = list(participants)
            _take_part(experiment, datasets)
            document = with_task_of(document, datasets)
        strategy = values.get("strategy", experiment.strategy)
        if strategy != experiment.strategy:
            values.setdefault("strategy_options", {})
        document |= plan_fields(strategy, values.get("strategy_options", experiment.strategy_options))
        lifecycle.fence(
            experiment, **values, plan=document, rounds_planned=document.get("rounds", experiment.rounds_planned)
        )
        # saving a form again and again is one event for a reader of the journal
        if not experiment.events.filter(kind="draft_changed", data__by=by.username).exists():
            journal.record(experiment, "draft_changed", f"{by} changed the draft.", by=by.username)


def clone(*, experiment: Experiment, by: User) -> Experiment:
    """Create a DRAFT of ``by`` with the plan, options and (not retired) sites of any experiment, in whatever state.

    The copy of a baseline is that of the run that it stands beside.
    """
    experiment = experiment.beside or experiment
    with transaction.atomic():
        twin = Experiment.objects.create(
            owner=by,
            title=f"{experiment.title[:112]} (copy)",
            question=experiment.question,
            cloned_from=experiment,
            plan=experiment.plan,
            # not experiment.rounds_planned: an early stop shortens that
            rounds_planned=experiment.plan.get("rounds", experiment.rounds_planned),
            **{name: getattr(experiment, name) for name in EDITABLE - {"title", "question"}},
        )
        parts = experiment.participations.filter(site__retired_at=None).select_related("dataset", "site")
        _take_part(twin, [part.dataset for part in parts])
        text = f"{by} created the experiment as a copy of “{experiment.title}”."
        journal.record(twin, "draft_created", text, by=by.username, cloned_from=experiment.key)
    return twin


def delete_draft(*, experiment: Experiment) -> None:
    """Delete a DRAFT with all that belongs to it. Raises :class:`NotADraft` when it has started meanwhile."""
    with _locked(experiment):
        _require_draft(experiment)
        lifecycle.fence(experiment)
        experiment.delete()


def share(*, experiment: Experiment, user: User, by: User) -> None:
    """Let somebody see an experiment in any state, with its family. Sharing twice is sharing once."""
    experiment = experiment.head or experiment
    with _locked(experiment):
        if user.pk == experiment.owner_id or experiment.viewers.filter(pk=user.pk).exists():
            return
        experiment.viewers.add(user)
        journal.record(experiment, "shared", f"{by} shared the experiment with {user}.", by=by.username)


def unshare(*, experiment: Experiment, user: User, by: User) -> None:
    """Take back what :func:`share` gave; pages that are open close at the next news. Twice is once."""
    experiment = experiment.head or experiment
    with _locked(experiment):
        if not experiment.viewers.filter(pk=user.pk).exists():
            return
        experiment.viewers.remove(user)
        text = f"{by} no longer shares the experiment with {user}."
        journal.record(experiment, "unshared", text, by=by.username)


def hand_over(*, experiment: Experiment, to: User, by: User) -> None:
    """Give an experiment in any state, with its family, to another owner; the one before may still see it.

    Raises :class:`CannotOwn`.
    """
    experiment = experiment.head or experiment
    with _locked(experiment):
        if to.pk == experiment.owner_id:
            return
        if not to.may_compose:
            raise CannotOwn(f"{to} cannot own an experiment: only researchers and operators can.")
        before = experiment.owner
        lifecycle.fence(experiment, owner=to)
        experiment.members.update(owner=to)
        experiment.viewers.remove(to)
        experiment.viewers.add(before)
        text = f"{by} handed the experiment over from {before} to {to}."
        journal.record(experiment, "handed_over", text, by=by.username)


# --- running ----------------------------------------------------------------------------------------


def start(*, experiment: Experiment, by: User) -> None:
    """DRAFT → RUNNING with round 1 PENDING, and so its repeats and baselines; wakes the orchestrator.

    Raises :class:`NotReady` or ``MoveRefused``.
    """
    with _locked(experiment):
        if not experiment.is_draft:
            raise lifecycle.MoveRefused(experiment, ExperimentState.RUNNING)
        if failing := [check for check in checklist(experiment) if not check.ok]:
            raise NotReady(failing)
        lifecycle.move_experiment(experiment, ExperimentState.RUNNING)
        Round.objects.create(experiment=experiment, number=1)
        rounds, sites = experiment.rounds_planned, experiment.participations.count()
        counted = f"{rounds} round{'s' if rounds != 1 else ''} at {sites} site{'s' if sites != 1 else ''}"
        text = f"{by} started the experiment: {counted}."
        journal.record(experiment, "started", text, level=Event.Level.GOOD, by=by.username)
        baselines.begin_family(experiment, by=by)
        experiment.wake()


def pause(*, experiment: Experiment, by: User) -> None:
    """RUNNING → PAUSED: nothing new is started; what runs at the sites is heard out after the resume."""
    with _locked(experiment):
        lifecycle.move_experiment(experiment, ExperimentState.PAUSED, because=f"Paused by {by}.")
        text = f"{by} paused the experiment. What a site is computing goes on; nothing new is started."
        journal.record(experiment, "paused", text, level=Event.Level.WARN, by=by.username)


def resume(*, experiment: Experiment, by: User) -> None:
    """PAUSED or FAILED → RUNNING. Of a failed experiment the failed round begins anew with new attempts."""
    with _locked(experiment):
        if experiment.is_draft:
            raise lifecycle.MoveRefused(experiment, ExperimentState.RUNNING)
        has_failed = experiment.status is ExperimentState.FAILED
        lifecycle.move_experiment(experiment, ExperimentState.RUNNING)
        text = f"{by} resumed the experiment."
        current = experiment.current_round
        if has_failed and current is not None and current.status is RoundState.FAILED:
            _begin_again(current)
            text = f"{by} resumed the experiment: {current.title.lower()} begins anew."
        journal.record(experiment, "resumed", text, by=by.username)
        experiment.wake()


def cancel(*, experiment: Experiment, by: User) -> None:
    """RUNNING or PAUSED → CANCELLING, with all that stands beside it; of the first run of a family with the whole family.

    The orchestrator ends what runs at the sites and makes them CANCELLED. A first run that has ended stays as it is; what
    of its family has not is cancelled.
    """
    with _locked(experiment):
        others = experiment.family.exclude(pk=experiment.pk) if experiment.is_head else experiment.companions.all()
        others = others.filter(state__in=CANCELLABLE)
        left = list(others)
        if experiment.status in CANCELLABLE or not left:
            _cancel(experiment, by)
        else:
            text = f"{by} cancelled what was left beside the experiment: {'; '.join(other.title for other in left)}."
            journal.record(experiment, "family_cancelled", text, level=Event.Level.WARN, by=by.username)
        for other in left:
            with _locked(other):
                if other.status in CANCELLABLE:
                    _cancel(other, by)


def _cancel(experiment: Experiment, by: User) -> None:
    lifecycle.move_experiment(experiment, ExperimentState.CANCELLING, because=f"Cancelled by {by}.")
    text = f"{by} cancelled the experiment. What runs at the sites is being ended."
    journal.record(experiment, "cancelling", text, level=Event.Level.WARN, by=by.username)
    experiment.wake()


def retry_site(*, experiment: Experiment, site: Site, by: User) -> None:
    """A failed, timed-out, rejected or skipped site run of the live round → PENDING: a new attempt follows.

    Raises :class:`CannotRetry` when there is nothing to try again, or when the round is past training.
    """
    with _locked(experiment):
        if experiment.status not in (ExperimentState.RUNNING, ExperimentState.PAUSED):
            raise CannotRetry(f"The experiment is “{experiment.status.label}”: resume it first.")
        current = experiment.current_round
        if current is None or current.status not in STILL_TRAINING:
            raise CannotRetry("The round no longer waits for its sites; the site takes part in the next one.")
        run = current.site_runs.filter(participation__site=site).select_related("participation__site").first()
        if run is None or run.status not in NOT_DELIVERED:
            state = f"is “{run.status.label}”" if run else "takes no part"
            raise CannotRetry(f"{site} {state} in {current.title.lower()}: there is nothing to try again.")
        lifecycle.fence(experiment, due_at=timezone.now())
        lifecycle.move(run, SiteRunState.PENDING, not_before=None)
        text = f"{by} asked {site} to try {current.title.lower()} again."
        journal.record(experiment, "retried", text, round_number=current.number, site=site.slug, by=by.username)
        experiment.wake()


# --- parts of the above -----------------------------------------------------------------------------


def _editable(fields: Mapping[str, Any] | None) -> dict[str, Any]:
    values = dict(fields or {})
    if unknown := values.keys() - EDITABLE:
        raise ValueError(f"not editable: {', '.join(sorted(unknown))}")
    return values


def _require_draft(experiment: Experiment) -> None:
    if not experiment.is_draft:
        raise NotADraft


def _take_part(experiment: Experiment, datasets: Iterable[Dataset]) -> None:
    """Make the datasets' sites the participants; a site takes part once."""
    chosen = {dataset.site_id: dataset for dataset in datasets}
    experiment.participations.exclude(site__in=chosen).delete()
    for site_id, dataset in chosen.items():
        Participation.objects.update_or_create(experiment=experiment, site_id=site_id, defaults={"dataset": dataset})


def _begin_again(current: Round) -> None:
    """A FAILED round → PENDING, its runs that did not deliver → PENDING. Inside a fenced transaction."""
    fresh = {"dispatched_at": None, "deadline_at": None, "quorum_at": None, "ended_at": None}
    lifecycle.move(current, RoundState.PENDING, started_at=timezone.now(), **fresh)
    for run in SiteRun.objects.filter(round=current, state__in=[state.value for state in NOT_DELIVERED]):
        lifecycle.move(run, SiteRunState.PENDING, not_before=None)
