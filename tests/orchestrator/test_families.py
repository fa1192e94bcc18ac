"""Families: a run with its baselines and the evaluation of all models, through the engine over sites in memory; and the
steps on literal snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedportal.experiments import baselines, services
from fedportal.experiments.models import Artefact, Baseline, CaseScore, Experiment, Kind, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator import sitework, spool
from fedportal.orchestrator.engine import MOST_STUMBLES
from fedportal.orchestrator.outcomes import Advance, Fail, Wait
from fedportal.orchestrator.snapshot import BesideView, SubjectView
from fedportal.orchestrator.steps.closing import aggregate, collect
from fedportal.orchestrator.steps.ending import finish
from fedportal.orchestrator.steps.opening import begin, dispatch, open_round
from fedportal.sites.models import Site
from tests.orchestrator.fakes import START, FakeSite, Federation, key_of
from tests.orchestrator.rows import fresh, journal, make_engine, make_running, models, run_to_end, undone
from tests.orchestrator.snapshots import attempt, model, participant, site_run, snapshot, texts
from tests.orchestrator.test_crashes import Crash, Mortal, cut
from trainer.contract import CaseScore as ToldScore
from trainer.contract import Kind as JobKind
from trainer.contract import case_key, spec_from_json, verified

__all__ = ["cut"]
ALL = list(Baseline.values)
PENDING, EVALUATING = RoundState.PENDING, RoundState.EVALUATING


# --- whole families ---------------------------------------------------------------------------------


def make_family(federation: Federation, kinds: list[str] = ALL, **fields: Any) -> Experiment:
    main = make_running(federation, **fields)
    Experiment.objects.filter(pk=main.pk).update(compare_every=1)
    baselines.add(experiment=fresh(main), kinds=kinds, by=main.owner)
    Experiment.objects.filter(head=main).update(due_at=START)
    for pool in Site.objects.filter(is_pool=True):
        federation.sites[pool.slug] = FakeSite(pool.slug, federation.store, auto=True)
    return main


def run_family(engine, federation: Federation, main: Experiment, *, looks: int = 200) -> None:
    """Drive all that is due until the whole family is over."""
    for _ in range(looks):
        active = [run for run in main.family if run.is_active]
        if not active:
            return
        for run in active:
            engine.drive(run.pk)
        federation.clock.tick(1)
        Experiment.objects.filter(due_at__gt=federation.clock()).update(due_at=federation.clock())
    raise AssertionError([(run.title, run.state, run.reason, journal(run)[-3:]) for run in main.family])


def results(main: Experiment) -> tuple[dict[str, list[str]], list[tuple]]:
    """What must be the same however often somebody was killed: all models and all scores."""
    found = {f"{run.kind} {run.participations.first().site.slug}": models(run) for run in main.family}
    columns = ("experiment__kind", "site", "subject", "case", "name", "region", "value")
    return found, sorted(CaseScore.objects.values_list(*columns), key=str)


@pytest.mark.django_db(transaction=True)
def test_a_family_runs_in_turn_and_every_model_is_measured_at_every_site(tmp_path: Path):
    federation = Federation(tmp_path, auto=True)
    main = make_family(federation)
    run_family(make_engine(federation), federation, main)
    family = {(run.kind, run.participations.first().site.slug): run for run in main.family}
    assert {run.state for run in family.values()} == {"completed"}, [run.reason for run in family.values()]

    # one after the other
    begun = [run.started_at for run in main.family.exclude(kind=Kind.LOCAL_ONLY)]
    assert begun == sorted(begun)
    cyclic, evaluation = family["cyclic", "a"], family["cross_site", "a"]
    where = SiteRun.objects.filter(round__experiment=cyclic, round__kind="train").order_by("round__number")
    assert [run.participation.site.slug for run in where] == ["a", "b", "c", "a", "b", "c"]

    # nobody trains on what is tested
    key = case_key(b"a secret of the tests", main.key)
    tested = {case for slug in "abc" for case in federation[slug].held_out(next(iter(federation[slug].specs.values())))}
    specs = [spec for site in federation.sites.values() for spec in site.specs.values()]
    assert {spec.case_key for spec in specs} == {key}
    for spec in specs:
        # a baseline trains on none of them; the run that the others stand beside looks for them in the end
        is_told = spec.experiment != evaluation.key and (spec.kind is JobKind.TRAIN) != (spec.experiment == main.key)
        assert set(spec.held_out) == (tested if is_told else set())

    # every model × site × case × region, once
    subjects = ["global", *evaluation.subjects.values_list("name", flat=True)]
    end = ["local-a", "local-b", "local-c", "pooled", "cyclic", "ensemble"]
    assert set(subjects) == {"global", "best", *end, "global-r1", *(f"{name}-r1" for name in end)}
    assert [spec.subjects for spec in specs if spec.experiment == evaluation.key] != [()] * 3
    rows = CaseScore.objects.filter(experiment=evaluation)
    assert rows.count() == len(subjects) * 3 * 2 * (3 + 3)
    assert CaseScore.objects.filter(experiment=main, subject="global", name="dice").count() == 3 * 2 * 3
    assert set(rows.values_list("case", flat=True)) == tested
    assert fresh(evaluation).models.get().dice == 0.5

    # what is left
    objects = set(federation.store.objects)
    for run in family.values():
        assert {model.key for model in run.models.all()} <= objects
    assert set(Artefact.objects.filter(kind="bundle").values_list("model__experiment", flat=True)) == {main.pk}
    assert not Artefact.objects.filter(model__experiment=evaluation).exists()
    said = journal(main)
    assert "The pooled baseline has begun." in said
    assert "The pooled baseline has ended: Dice 0.50." in said
    assert "The local-only baseline of Hospital b has ended: Dice 0.50." in said
    assert "The cross-site evaluation has ended: 15 models are measured." in said
    assert "Waits until “Brains” has ended." in journal(evaluation)


@pytest.mark.django_db
def test_the_journal_names_a_site_that_trained_on_what_is_tested(tmp_path: Path):
    federation = Federation(tmp_path, auto=True)
    federation["b"].copied = (("a", 1), ("b", 0))
    federation["c"].copied = (("c", 7),)  # a case that nobody holds out
    main = run_to_end(make_engine(federation), federation, make_running(federation))
    assert main.state == "completed"
    (event,) = main.events.filter(kind="copies")
    assert (event.site, event.level) == ("b", "warn")
    assert event.text == "Among the training cases of Hospital b are copies of cases that the model is tested on."


@pytest.mark.django_db(transaction=True)
def test_a_case_that_is_held_out_since_the_training_is_not_compared(tmp_path: Path):
    federation = Federation(tmp_path, ("a", "b"), auto=True)
    main = make_family(federation, ["local_only"], rounds=1)
    engine = make_engine(federation)
    while main.family.exclude(kind=Kind.CROSS_SITE).filter(state=ExperimentState.RUNNING).exists():
        for run in main.family.exclude(kind=Kind.CROSS_SITE):
            engine.drive(run.pk)
        federation.clock.tick(1)
    federation["b"].moved = 1
    run_family(engine, federation, main)
    evaluation = main.family.get(kind=Kind.CROSS_SITE)
    assert evaluation.state == "completed"
    for slug in "ab":
        assert CaseScore.objects.filter(experiment=evaluation, site=slug).values("case").distinct().count() == 2
    (event,) = evaluation.events.filter(kind="left_aside")
    assert (event.site, event.level) == ("b", "warn")


@pytest.mark.django_db
def test_a_crash_in_a_baseline_or_in_the_evaluation_changes_no_model_and_no_score(cut: Callable, tmp_path: Path):
    def family_of(folder: Path, *, until: Kind) -> tuple[Federation, Experiment]:
        """Return a family of which the member of a kind is next."""
        federation = Federation(folder, ("a", "b"), auto=True)
        main = make_family(federation, ["cyclic"], rounds=1)
        engine = make_engine(federation)
        for kind in (Kind.FEDERATED, Kind.CYCLIC, Kind.CROSS_SITE):
            run = main.family.get(kind=kind)
            if kind == until:
                return federation, run
            Experiment.objects.filter(pk=run.pk).update(due_at=START)
            while fresh(run).is_active:
                engine.drive(run.pk)
                federation.clock.tick(1)
        raise AssertionError(until)

    with undone():
        federation, run = family_of(tmp_path / "calm", until=Kind.CYCLIC)
        run_family(make_engine(federation), federation, run.head)
        expected = results(run.head)
    for kind in (Kind.CYCLIC, Kind.CROSS_SITE):
        for at in range(1, 40, 4):
            cut(0, lambda: None, False)
            with undone():
                federation, run = family_of(tmp_path / f"{kind}-{at}", until=kind)
                cut(at, lambda: (_ for _ in ()).throw(Crash), at % 2 == 0)
                mortal = Mortal(federation.tools, worker="vm-1", clock=federation.clock)
                try:
                    run_family(mortal, federation, run.head)
                except Crash:
                    restarted = make_engine(federation, "vm-1")
                    restarted.free_own_leases()
                    run_family(restarted, federation, run.head)
                    assert results(run.head) == expected, f"{kind}, step {at}"
                    launched = [name for site in federation.sites.values() for name in site.launched]
                    assert len(launched) == len(set(launched)), f"{kind}, step {at}: something was repeated"
                    continue
            assert at > 4, "some steps were cut"
            break
        else:
            raise AssertionError("it has fewer steps")


@pytest.mark.django_db
def test_what_the_evaluation_measured_is_replaced_when_it_is_taken_up_again(tmp_path: Path):
    federation = Federation(tmp_path, auto=True)
    main = make_family(federation, [], max_attempts=1)
    evaluation = main.family.get(kind=Kind.CROSS_SITE)
    engine = make_engine(federation)
    while fresh(main).is_active:
        engine.drive(main.pk)
        federation.clock.tick(1)
    old = CaseScore.objects.create(experiment=evaluation, site="a", subject="global", case="0" * 16, name="dice")
    for site in federation.sites.values():
        site.auto = False
    for _ in range(3):
        engine.drive(evaluation.pk)
        federation.clock.tick(1)
    for site in federation.sites.values():
        site.deliver(exit_code=20, message="It broke.", cases=())
    run_family(engine, federation, main)
    assert fresh(evaluation).status is ExperimentState.FAILED, journal(evaluation)
    assert "The cross-site evaluation has failed: " in " ".join(journal(main))
    services.resume(experiment=fresh(evaluation), by=main.owner)
    for site in federation.sites.values():
        site.auto = True
    run_family(engine, federation, main)
    assert fresh(evaluation).status is ExperimentState.COMPLETED, journal(evaluation)
    assert not CaseScore.objects.filter(pk=old.pk).exists()


@pytest.mark.django_db
def test_a_baseline_that_makes_the_portal_stumble_fails_and_wakes_the_others(
    tmp_path: Path, django_capture_on_commit_callbacks
):
    federation = Federation(tmp_path, auto=True)
    main = make_family(federation, ["cyclic"])
    engine = make_engine(federation)
    while fresh(main).is_active:
        engine.drive(main.pk)
        federation.clock.tick(1)
    cyclic, evaluation = main.family.get(kind=Kind.CYCLIC), main.family.get(kind=Kind.CROSS_SITE)
    federation.aggregation.trouble = RuntimeError("It broke.")
    wakes = evaluation.wakes
    with django_capture_on_commit_callbacks(execute=True):
        for _ in range(MOST_STUMBLES * 4):
            engine.drive(cyclic.pk)
            federation.clock.tick(70)
    assert fresh(cyclic).status is ExperimentState.FAILED
    assert fresh(evaluation).wakes > wakes
    assert any("The cyclic baseline has failed" in text for text in journal(main))


# --- steps ------------------------------------------------------------------------------------------


def test_it_waits_for_its_turn_and_nobody_stays_with_it(federation: Federation):
    outcome = open_round(snapshot(PENDING, waits_for="Brains"), federation.tools)
    assert isinstance(outcome, Wait)
    assert (outcome.reason, outcome.is_parked) == ("Waits until “Brains” has ended.", True)


def test_an_evaluation_without_a_round_begins_with_that_of_an_evaluation(federation: Federation):
    for kind, first in (("cross_site", (1, "evaluate")), ("cyclic", (1, "train"))):
        assert begin(snapshot(kind=kind, newest=None), federation.tools).changes.new_round == first


def test_in_cyclic_transfer_one_site_after_the_other_trains(federation: Federation):
    for number, run in ((1, "r1-a"), (2, "r2-b"), (3, "r3-c"), (4, "r4-a")):
        s = snapshot(PENDING, kind="cyclic", number=number, min_sites=1)
        changes = open_round(s, federation.tools).changes
        assert [new.run for new in changes.new_site_runs] == [f"fp-k3x9mq2a-{run}-a1"]


def test_a_cyclic_round_is_aggregated_from_one_of_one(federation: Federation):
    incoming = model(federation)
    federation.store.objects[f"{snapshot().prefix(attempt('a'))}/update.safetensors"] = federation.store.objects[
        incoming.key
    ]
    runs = (
        site_run("a", SiteRunState.ADMITTED, train_cases=8, update_sha256=incoming.sha256, update_size=incoming.size),
    )
    s = snapshot(RoundState.AGGREGATING, kind="cyclic", min_sites=1, site_runs=runs, incoming=incoming)
    spool.folder_of(s, 1, federation.tools).mkdir(parents=True)
    outcome = aggregate(s, federation.tools)
    assert "Round 1 aggregated from 1 of 1 site." in texts(outcome.changes)


def test_a_baseline_is_refused_where_the_tested_cases_are_not_known(federation: Federation):
    s = snapshot(PENDING, kind="local_only", beside=BesideView(held_out=("0" * 16,), silent=("Hospital B",)))
    outcome = open_round(s, federation.tools)
    assert isinstance(outcome, Fail)
    assert "Hospital B did not say which cases" in outcome.reason


def test_an_evaluation_chooses_its_models_before_it_opens(federation: Federation):
    outcome = open_round(snapshot(PENDING, kind="cross_site", is_evaluation=True), federation.tools)
    assert isinstance(outcome, Advance)
    assert outcome.changes.gathers_subjects
    assert not outcome.changes.round_through
    outcome = open_round(
        snapshot(PENDING, kind="cross_site", is_evaluation=True, incoming=model(federation)), federation.tools
    )
    assert outcome.changes.round_through == (RoundState.PUBLISHING, RoundState.DISPATCHING)
    assert outcome.changes.begins
    waits = open_round(snapshot(PENDING, participants=(participant("a", problem="Down."),)), federation.tools)
    assert not waits.changes.begins, "it waits for its sites"


def test_the_job_tells_what_must_not_be_trained_on_and_what_is_measured(federation: Federation):
    incoming = model(federation)
    others = tuple(replace(incoming, id=9 + n, key=f"fedportal/other/{n}", sha256=f"{n:064d}") for n in range(2))
    s = snapshot(
        incoming=incoming,
        family="headhead",
        beside=BesideView(held_out=("0" * 16, "f" * 16)),
    )
    sitework.publish(s, attempt("a"), "Task01_BrainTumour", federation.tools)
    spec = _spec(federation, s)
    assert spec.case_key == case_key(federation.tools.secret, "headhead")
    assert spec.held_out == ("0" * 16, "f" * 16)

    s = snapshot(EVALUATING, is_evaluation=True, incoming=incoming, subjects=(SubjectView("ensemble", others),))
    sitework.publish(s, attempt("a"), "Task01_BrainTumour", federation.tools)
    (ensemble,) = _spec(federation, s).subjects
    assert (ensemble.name, [fetch.sha256 for fetch in ensemble.models]) == ("ensemble", [m.sha256 for m in others])
    assert [fetch.url for fetch in ensemble.models] == [f"memory:{other.key}" for other in others]


def _spec(federation: Federation, s):
    data = federation.store.objects[f"{s.prefix(attempt('a'))}/spec.json"]
    return spec_from_json(verified(data, key_of(attempt("a").run)))


@pytest.fixture
def evaluated(federation: Federation) -> Callable[..., sitework.Delivery | None]:
    """Have site a deliver an evaluation of two models, with changes; return how it is judged."""
    incoming = model(federation)
    subjects = (SubjectView("pooled", (incoming,)),)

    def deliver(kind: str = "cross_site", tested: tuple[str, ...] = (), **changes: Any):
        more = {"incoming": incoming, "subjects": subjects, "tested": tested}
        s = snapshot(EVALUATING, kind=kind, is_evaluation=True, **more)
        sitework.publish(s, attempt("a"), "Task01_BrainTumour", federation.tools)
        site = federation["a"]
        site.specs[attempt("a").run] = _spec(federation, s)
        whole = site.deliver(attempt("a").run)
        given = {name: change(whole) for name, change in changes.items()}
        site.deliver(attempt("a").run, **given)
        return sitework.fetch_delivery(s, attempt("a"), federation.tools)

    return deliver


def test_a_whole_evaluation_is_taken_and_anything_else_is_refused(evaluated: Callable):
    assert evaluated().refused == ""
    for cases, why in (
        (lambda told: told.cases[:-2], "every model at every case"),
        (lambda _: (), "every model at every case"),
        (lambda told: (*told.cases, told.cases[0]), "a case twice"),
        (lambda told: (*told.cases, replace(told.cases[0], subject="other")), "not asked for: other"),
        (lambda told: (*told.cases, replace(told.cases[0], case="0" * 16)), "not asked for: 0000"),
        (lambda told: (*told.cases, ToldScore("pooled", told.held_out[0], "dice", {"ZZ": 1.0})), "not asked for: ZZ"),
    ):
        assert why in evaluated(cases=cases).refused
    assert evaluated(held_out=lambda _: (), cases=lambda _: ()).refused
    assert "held out when the models were trained" in evaluated(tested=("0" * 16,)).refused
    assert evaluated("federated", cases=lambda _: ()).refused == "", "an older trainer tells none of a final model"


def test_an_evaluation_that_no_site_could_make_fails(federation: Federation):
    runs = tuple(site_run(slug, SiteRunState.FAILED, reason="It broke.") for slug in "abc")
    s = snapshot(RoundState.COLLECTING, kind="cross_site", is_evaluation=True, site_runs=runs, min_sites=1)
    outcome = collect(s, federation.tools)
    assert isinstance(outcome, Fail)
    assert "It broke." in outcome.reason


def test_an_evaluation_says_what_it_is(federation: Federation):
    subjects = (SubjectView("pooled", (model(federation),)),)
    s = snapshot(
        RoundState.DISPATCHING, kind="cross_site", is_evaluation=True, subjects=subjects, site_runs=(site_run("a"),)
    )
    assert "Cross-site evaluation measures 2 models at 1 site" in texts(dispatch(s, federation.tools).changes)
    s = snapshot(RoundState.DONE, kind="cross_site", is_evaluation=True, models=(model(federation),), subjects=subjects)
    outcome = finish(s, federation.tools)
    assert outcome.changes.experiment_to is ExperimentState.COMPLETED
    assert not outcome.changes.artefacts
    assert model(federation).key in federation.store.objects
