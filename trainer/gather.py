"""The cases of a job: those of its dataset, or of all members of the site's pool, checked against the task and prepared."""

from __future__ import annotations

from trainer.cache import PreparedCase, prepare, prepared
from trainer.cases import check_task, read_datasets
from trainer.contract import Exit, JobSpec, Kind
from trainer.images import Recipe
from trainer.job import Fault, Report, Site

Cases = tuple[PreparedCase, ...]


def gather(spec: JobSpec, *, site: Site, threads: int, report: Report) -> tuple[Cases, Cases]:
    """Return (training, held-out) cases; an evaluation has none to train on.

    Raises :class:`Fault` NO_CASES beside what reading finds, also where a comparison tests on all there is to train on.
    """
    datasets = read_datasets(site, spec.dataset)
    recipes = [recipe_for(spec, check_task(dataset, spec.plan.task)) for dataset in datasets]
    trains = spec.kind is Kind.TRAIN
    if trains and not any(dataset.training for dataset in datasets):
        raise Fault(Exit.NO_CASES, "There is no case to train on.")
    if not any(dataset.validation for dataset in datasets):
        raise Fault(Exit.NO_CASES, "There is no case to validate with.")
    training: Cases = ()
    held_out: Cases = ()
    for dataset, recipe in zip(datasets, recipes, strict=True):
        listed = dataset.training if trains else ()
        cases = prepare(listed + dataset.validation, recipe, cache=site.cache, threads=threads, report=report)
        training, held_out = training + cases[: len(listed)], held_out + cases[len(listed) :]
    return (_untested(training, spec, report=report) if trains else ()), held_out


def named(cases: Cases, spec: JobSpec) -> dict[str, PreparedCase]:
    """Return the cases by their pseudonyms, each once; none without a key for them."""
    found: dict[str, PreparedCase] = {}
    for case in cases if spec.case_key else ():
        found.setdefault(case.pseudonym(spec.case_key), case)
    return found


def copies(spec: JobSpec, *, site: Site, report: Report) -> int:
    """Return how many of the dataset's training cases are tested on, here or elsewhere.

    Only those that lie prepared are looked at: the ones that were trained on do, and a measurement prepares no others.
    """
    if not spec.held_out:
        return 0
    tested = frozenset(spec.held_out)
    found = 0
    for dataset in read_datasets(site, spec.dataset):
        recipe = recipe_for(spec, check_task(dataset, spec.plan.task))
        cases = prepared(dataset.training, recipe, cache=site.cache)
        found += sum(case.pseudonym(spec.case_key) in tested for case in cases)
    if found:
        report.say(f"Of the training cases here {found} are copies of cases that the model is tested on.", cases=found)
    return found


def recipe_for(spec: JobSpec, order: tuple[int, ...]) -> Recipe:
    return Recipe(order=order, labels=tuple(sorted(spec.plan.task.labels)), spacing=spec.plan.spacing)


def _untested(training: Cases, spec: JobSpec, *, report: Report) -> Cases:
    """Return the cases that no comparison tests on."""
    if not spec.held_out:
        return training
    tested = frozenset(spec.held_out)
    kept = tuple(case for case in training if case.pseudonym(spec.case_key) not in tested)
    if len(kept) < len(training):
        left_out = len(training) - len(kept)
        report.say(
            f"Left out {left_out} of {len(training)} training cases: the comparison tests on them.", cases=left_out
        )
    if not kept:
        raise Fault(Exit.NO_CASES, "The comparison tests on every case that there is to train on.")
    return kept
