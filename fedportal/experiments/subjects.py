"""Which models a cross-site evaluation measures: those of the federated run, of its baselines, and averages of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fedportal.experiments import journal
from fedportal.experiments.models import Event, Experiment, GlobalModel, Kind, Subject, best_of
from fedportal.experiments.states import ExperimentState

ROLES = {Kind.POOLED: Subject.Role.POOLED, Kind.LOCAL_ONLY: Subject.Role.LOCAL, Kind.CYCLIC: Subject.Role.CYCLIC}


@dataclass(frozen=True)
class _Measured:
    """A subject before it is a row. ``round_number``: of the federated run; ``None``: the end."""

    role: Subject.Role
    models: tuple[GlobalModel, ...]
    site: str = ""
    round_number: int | None = None

    @property
    def name(self) -> str:
        words = [self.role.value, self.site, "" if self.round_number is None else f"r{self.round_number}"]
        return "-".join(filter(None, words))


def gather_subjects(experiment: Experiment) -> None:
    """Write down what an evaluation measures, when it opens: what there is by now of the run and its baselines.

    Its own global model of round 0 is the final model of the federated run: the same object in the store. A baseline that
    has not completed is left out, and the journal says so. Called again it changes nothing. Raises ``LookupError`` where
    the run has no model. Inside a transaction.
    """
    if experiment.models.exists():
        return
    main = experiment.beside
    final = main and main.newest_model
    if main is None or final is None:
        raise LookupError("there is no model to measure")
    GlobalModel.objects.create(
        experiment=experiment, round_number=0, key=final.key, sha256=final.sha256, size=final.size
    )
    for measured in [*_of_the_end(main, final), *_on_the_way(main, final)]:
        row = Subject.objects.create(
            experiment=experiment,
            name=measured.name,
            role=measured.role,
            site=measured.site,
            round_number=measured.round_number,
        )
        row.global_models.set(measured.models)
    for text in _left_out(main):
        journal.record(experiment, "not_measured", text, level=Event.Level.WARN, round_number=1)


def _of_the_end(main: Experiment, final: GlobalModel) -> Iterator[_Measured]:
    best = best_of(main.models.filter(round_number__gt=0), main.best_by)
    if best is not None and best.pk != final.pk:
        yield _Measured(Subject.Role.BEST, (best,))
    runs = _baselines(main)
    ends = {place: run.newest_model for place, run in runs.items()}
    yield from _measured(main, {place: model for place, model in ends.items() if model is not None}, None)


def _on_the_way(main: Experiment, final: GlobalModel) -> Iterator[_Measured]:
    every, runs = main.compare_every, _baselines(main)
    if not every:
        return
    sites = main.participations.count()
    for number in range(every, final.round_number, every):
        yield from (
            _Measured(Subject.Role.GLOBAL, (model,), round_number=number)
            for model in main.models.filter(round_number=number)
        )
        found = {}
        for (kind, site), run in runs.items():
            model = run.models.filter(round_number=number * (sites if kind == Kind.CYCLIC else 1)).first()
            if model is not None:
                found[kind, site] = model
        yield from _measured(main, found, number)


def _measured(
    main: Experiment, models: Mapping[tuple[Kind, str], GlobalModel], number: int | None
) -> Iterator[_Measured]:
    """Yield the subjects that models of baselines are, by (kind, site of a local-only one), in a fixed order."""
    for (kind, site), model in sorted(models.items(), key=lambda item: (list(ROLES).index(item[0][0]), item[0][1])):
        yield _Measured(ROLES[kind], (model,), site, number)
    local = tuple(model for (kind, _), model in sorted(models.items()) if kind == Kind.LOCAL_ONLY)
    if "ensemble" in main.baselines and len(local) == main.participations.count():
        yield _Measured(Subject.Role.ENSEMBLE, local, round_number=number)


def _baselines(main: Experiment) -> dict[tuple[Kind, str], Experiment]:
    """Return the completed baselines by (kind, site of a local-only one); of two the newer one."""
    found = {}
    done = main.companions.filter(state=ExperimentState.COMPLETED, kind__in=ROLES).order_by("pk")
    for run in done.prefetch_related("participations__site"):
        sites = [part.site.slug for part in run.participations.all()]
        found[Kind(run.kind), sites[0] if run.kind == Kind.LOCAL_ONLY else ""] = run
    return found


def _left_out(main: Experiment) -> Iterator[str]:
    done = _baselines(main)
    missing = main.companions.filter(kind__in=ROLES).exclude(pk__in=[run.pk for run in done.values()])
    for run in missing.exclude(state=ExperimentState.COMPLETED):
        yield f"“{run.title}” is not measured: it is “{run.status.label}”."
    local = [site for kind, site in done if kind == Kind.LOCAL_ONLY]
    if "ensemble" in main.baselines and len(local) < main.participations.count():
        yield "The ensemble is not measured: it needs the local-only model of every site."
