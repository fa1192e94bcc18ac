"""What stands beside a federated run for comparison: baselines, the evaluation of all models, repeats.

Each is an experiment of its own that goes through the same engine. The first run is the ``head`` of the family; ``turn``
says in which order its members run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import Q

from fedportal.accounts.models import User
from fedportal.aggregation.strategies import plan_fields
from fedportal.experiments import journal, lifecycle
from fedportal.experiments.families import rounds_beside
from fedportal.experiments.models import Baseline, Event, Experiment, Kind, Participation, Round, RoundKind, SiteRun
from fedportal.experiments.plan import EDITABLE, merged
from fedportal.experiments.recipe import BY_NAME
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.sites.models import Dataset
from fedportal.sites.pools import pooled_dataset, why_no_pool
from fedportal.ui.errors import DomainError

TURNS = {Kind.FEDERATED: 0, Kind.LOCAL_ONLY: 1, Kind.POOLED: 2, Kind.CYCLIC: 3, Kind.CROSS_SITE: 4}
"""The order within one repeat."""
STRATEGY = "fedavg"
"""A baseline merges one update: the mean of one is that one."""


class BaselineRefused(DomainError):
    """A baseline that was asked for is not possible; the message says why."""


@dataclass(frozen=True)
class Budget:
    """Planned optimizer steps over all rounds. They tell a site's number of cases: show them only to those who may know.

    ``per_site``: slug → steps of the federated run, the same alone. ``baselines``: value of :class:`Baseline` → steps.
    """

    per_site: Mapping[str, int]
    total: int
    baselines: Mapping[str, int]


def budget(experiment: Experiment) -> Budget:
    """Return what a federated run and its baselines compute. Raises ``ContractError`` while the plan is incomplete."""
    plan, rounds = experiment.training_plan, experiment.rounds_planned
    cases = {part.site.slug: part.dataset.train_cases for part in _parts(experiment)}
    per_site = {slug: rounds * plan.local_epochs * plan.steps_per_epoch(count) for slug, count in cases.items()}
    total = sum(per_site.values())
    pooled = rounds * plan.local_epochs * plan.steps_per_epoch(sum(cases.values()))
    return Budget(
        per_site,
        total,
        {
            Baseline.POOLED.value: pooled,
            Baseline.LOCAL_ONLY.value: total,
            Baseline.ENSEMBLE.value: 0,
            Baseline.CYCLIC.value: total,
        },
    )


# --- what is possible -----------------------------------------------------------------------------


def problems(experiment: Experiment) -> dict[str, str]:
    """Return why baselines cannot be had beside an experiment (value of :class:`Baseline` → sentence).

    A baseline that is not named is possible. Works on a draft as on a run that has ended.
    """
    parts = _parts(experiment)
    if general := _problem(experiment, parts):
        return dict.fromkeys(Baseline.values, general)
    found = {}
    if pool := why_no_pool([part.dataset for part in parts]):
        found[Baseline.POOLED.value] = pool
    rounds, most = experiment.plan.get("rounds", 0) * len(parts), BY_NAME["rounds"].high
    if most and rounds > most:
        text = f"It has a round for each site: {rounds} in all, and an experiment has at most {most:.0f}. Plan fewer rounds."
        found[Baseline.CYCLIC.value] = text
    return found


def _problem(experiment: Experiment, parts: Sequence[Participation]) -> str:
    """Return why an experiment can have no baseline at all; empty when it can."""
    if trouble := evaluation_problem(experiment):
        return trouble
    if len(parts) < 2:
        return "A comparison needs at least two sites: with one there is nothing to share."
    if not experiment.is_draft:
        for part in parts:
            if part.site.is_retired:
                return f"{part.site} is retired and takes part in nothing new."
            if not part.dataset.is_available:
                return f"{part.dataset} was not found by the last check."
    return ""


def evaluation_problem(experiment: Experiment) -> str:
    """Return why nothing can be compared with an experiment; empty when it can."""
    if experiment.kind != Kind.FEDERATED:
        return "Only a federated run has baselines: open the run that this one stands beside."
    if experiment.status in (ExperimentState.CANCELLING, ExperimentState.CANCELLED):
        return "The experiment was cancelled: there is nothing to compare with."
    if experiment.status is ExperimentState.COMPLETED and (silent := silent_sites(experiment)):
        return (
            f"{', '.join(silent)} did not say which cases the experiment was tested on, so a baseline could train on "
            "them. Clone the experiment and run it again; this version of the trainer says so."
        )
    return ""


def held_out(experiment: Experiment) -> dict[str, frozenset[str]]:
    """Return the pseudonyms of the held-out cases that each participant told (slug → pseudonyms, none: empty)."""
    found: dict[str, set[str]] = {part.site.slug: set() for part in _parts(experiment)}
    told = SiteRun.objects.filter(round__experiment=experiment, state=SiteRunState.ADMITTED)
    for slug, cases in told.order_by().values_list("participation__site__slug", "held_out").distinct():
        found[slug].update(cases)
    return {slug: frozenset(cases) for slug, cases in found.items()}


def silent_sites(experiment: Experiment) -> list[str]:
    """Return the names of the participants of which no held-out case is known."""
    told = held_out(experiment)
    return [part.site.name for part in _parts(experiment) if not told[part.site.slug]]


def _parts(experiment: Experiment) -> list[Participation]:
    return list(experiment.participations.select_related("site", "dataset__site"))


# --- making them ------------------------------------------------------------------------------------


def begin_family(experiment: Experiment, *, by: User) -> None:
    """Create and start what a draft wants beside itself: repeats with the next seeds, and baselines of each.

    Inside the transaction that starts the draft. Raises :class:`BaselineRefused`.
    """
    runs = [experiment]
    for number in range(1, experiment.repeats):
        runs.append(_repeat(experiment, number, by))
    for run in runs:
        if run.baselines or run.compare_every:
            _add_beside(run, {Baseline(kind) for kind in run.baselines}, by)


def _repeat(first: Experiment, number: int, by: User) -> Experiment:
    seed = first.plan.get("seed", 0) + number
    run = Experiment.objects.create(
        owner=first.owner,
        title=titled(first.title, f"seed {seed}"),
        head=first,
        turn=number * len(TURNS),
        plan=first.plan | {"seed": seed},
        rounds_planned=first.rounds_planned,
        **{name: getattr(first, name) for name in EDITABLE - {"title", "repeats"}},
    )
    for part in _parts(first):
        Participation.objects.create(experiment=run, site=part.site, dataset=part.dataset)
    text = f"{by} started the experiment with seed {seed}: repeat {number + 1} of {first.repeats}."
    begin(run, by=by, text=text)
    return run


@transaction.atomic
def add(*, experiment: Experiment, kinds: Iterable[str], by: User) -> list[Experiment]:
    """Create and start baselines beside a run that has started, with the evaluation of all models; return the new ones.

    ``kinds``: values of :class:`Baseline`; none: the evaluation alone. Of the first run of a family every repeat gets
    them. What is there is not made twice; an evaluation that has begun is followed by another one. Raises
    :class:`BaselineRefused`.
    """
    # locked, so that nobody cancels one of them while something is put beside it
    rows = Experiment.objects.select_for_update(no_key=True).order_by("pk")
    head = rows.get(pk=experiment.head_id or experiment.pk)
    if head.is_draft:
        raise BaselineRefused("Choose the baselines of a draft in its form: they start with it.")
    wanted = {Baseline(kind) for kind in kinds}
    runs = rows.filter(pk=experiment.pk)
    if experiment.is_head:
        runs = rows.filter(Q(pk=head.pk) | Q(head=head), kind=Kind.FEDERATED)
    made = [new for run in runs for new in _add_beside(run, wanted, by)]
    experiment.refresh_from_db(fields=["baselines"])
    return made


def _add_beside(main: Experiment, wanted: set[Baseline], by: User) -> list[Experiment]:
    trouble = problems(main)
    refused = [f"{kind.label}: {trouble[kind]}" for kind in Baseline if kind in wanted and kind in trouble]
    if not refused and not wanted and (why := evaluation_problem(main)):
        refused = [why]
    if refused:
        raise BaselineRefused(" ".join(refused))
    if Baseline.ENSEMBLE in wanted:
        wanted = wanted | {Baseline.LOCAL_ONLY}
    made = [new for kind in Baseline if kind in wanted for new in _companions(main, kind, by)]
    if made or not wanted:
        made += _evaluation(main, by, follows=bool(made))
    chosen = sorted({*main.baselines, *(kind.value for kind in wanted)})
    if chosen != main.baselines:
        main.baselines = chosen
        main.save(update_fields=["baselines"])
    if made:
        names = "; ".join(new.title.removeprefix(f"{main.title} · ") for new in made)
        text = f"{by} added for comparison: {names}."
        journal.record(main, "baselines_added", text, by=by.username, added=[new.key for new in made])
    return made


def _companions(main: Experiment, kind: Baseline, by: User) -> list[Experiment]:
    parts = _parts(main)
    datasets = [part.dataset for part in parts]
    match kind:
        case Baseline.POOLED:
            pooled = [pooled_dataset(datasets)]
            return _unless_there(main, Kind.POOLED, pooled, "pooled", by, deadline=len(parts))
        case Baseline.LOCAL_ONLY:
            return [
                new
                for dataset in datasets
                for new in _unless_there(main, Kind.LOCAL_ONLY, [dataset], f"local only, {dataset.site.name}", by)
            ]
        case Baseline.CYCLIC:
            return _unless_there(main, Kind.CYCLIC, datasets, "cyclic", by)
    return []


def _unless_there(
    main: Experiment, kind: Kind, datasets: Sequence[Dataset], what: str, by: User, *, deadline: int = 1
) -> list[Experiment]:
    there = main.companions.filter(kind=kind).exclude(state=ExperimentState.CANCELLED)
    if kind == Kind.LOCAL_ONLY:
        there = there.filter(participations__site=datasets[0].site)
    return [] if there.exists() else [_companion(main, kind, datasets, what, by, deadline=deadline)]


def _evaluation(main: Experiment, by: User, *, follows: bool) -> list[Experiment]:
    """Make the evaluation unless one is there that has not chosen its models yet, and so measures the new ones, too."""
    there = main.companions.filter(kind=Kind.CROSS_SITE).exclude(state=ExperimentState.CANCELLED)
    if follows:
        there = there.filter(models=None)
    if there.exists():
        return []
    datasets = [part.dataset for part in _parts(main)]
    return [_companion(main, Kind.CROSS_SITE, datasets, "cross-site evaluation", by)]


def _plan_of(main: Experiment, kind: Kind, sites: int) -> dict[str, Any]:
    plan = main.plan | plan_fields(STRATEGY, {})
    if kind == Kind.CROSS_SITE:
        return merged(plan, {"validation": {"hd95_every": 1}})
    if kind == Kind.CYCLIC:
        # a round is one site's, so what the schedule counts in rounds is as many times longer
        schedule = main.training_plan.schedule
        longer = {"warmup_rounds": schedule.warmup_rounds * sites, "step_rounds": schedule.step_rounds * sites}
        longer["step_rounds"] = min(longer["step_rounds"], int(BY_NAME["schedule.step_rounds"].high or 0))
        plan = merged(plan, {"rounds": main.plan["rounds"] * sites, "schedule": longer})
        if (plan.get("optimizer") or {}).get("treatment") == "keep":
            # what a site kept would be as old as the circle is long: the memory travels with the weights instead
            plan = merged(plan, {"optimizer": {"treatment": "aggregate"}})
    return plan


def _companion(
    main: Experiment, kind: Kind, datasets: Sequence[Dataset], what: str, by: User, *, deadline: int = 1
) -> Experiment:
    """Create and start an experiment beside ``main``. ``deadline``: how many sites' work one round of it holds."""
    experiment = Experiment.objects.create(
        owner=main.owner,
        title=titled(main.title, what),
        question=main.question,
        kind=kind,
        head=main.head or main,
        beside=main,
        turn=main.turn + TURNS[kind],
        plan=_plan_of(main, kind, len(datasets)),
        rounds_planned=rounds_beside(main, kind, len(datasets)),
        strategy=STRATEGY,
        weighting=main.weighting,
        min_sites=1,
        deadline_minutes=main.deadline_minutes * deadline,
        stragglers=main.stragglers,
        grace_minutes=main.grace_minutes,
        max_attempts=main.max_attempts,
        best_by=main.best_by,
        initial_model=main.initial_model,
    )
    for dataset in datasets:
        Participation.objects.create(experiment=experiment, site=dataset.site, dataset=dataset)
    begin(experiment, by=by, text=f"{by} added this run beside “{main.title}” for comparison.")
    return experiment


def titled(title: str, what: str) -> str:
    """Return ``Brain tumour · pooled``, with what it is even where the title is long."""
    ending = f" · {what}"[:60]
    return title[: 120 - len(ending)] + ending


def begin(experiment: Experiment, *, by: User, text: str) -> None:
    """DRAFT → RUNNING with its first round PENDING. Inside a transaction."""
    lifecycle.move_experiment(experiment, ExperimentState.RUNNING)
    kind = RoundKind.EVALUATE if experiment.kind == Kind.CROSS_SITE else RoundKind.TRAIN
    Round.objects.create(experiment=experiment, number=1, kind=kind, state=RoundState.PENDING)
    journal.record(experiment, "started", text, level=Event.Level.GOOD, by=by.username)
    experiment.wake()
