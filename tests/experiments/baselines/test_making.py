"""Baselines, the cross-site evaluation and repeats, as rows: what is made, in which order it runs, what is refused."""

from __future__ import annotations

import pytest

from fedportal.experiments import baselines, lifecycle, services
from fedportal.experiments.models import Baseline, Experiment, Kind, Round, SiteRun
from fedportal.experiments.states import ExperimentState, RoundState
from fedportal.experiments.subjects import gather_subjects
from fedportal.sites.models import Dataset, Site
from tests import factories
from tests.experiments.baselines.runs import complete, of_kind, tell_held_out

pytestmark = pytest.mark.django_db

ALL = list(Baseline.values)


# --- making them ------------------------------------------------------------------------------------


def test_a_draft_starts_with_everything_that_was_ticked(draft, ada):
    fields = {"baselines": ALL, "max_relative_norm": 2.0, "patience": 2, "deadline_minutes": 10}
    services.update_draft(experiment=draft, by=ada, fields=fields, plan={"validation": {"hd95_every": 3}})
    services.start(experiment=draft, by=ada)
    family = list(draft.family)
    kinds = [run.kind for run in family]
    assert kinds == ["federated", "local_only", "local_only", "local_only", "pooled", "cyclic", "cross_site"]
    assert {run.state for run in family} == {"running"}
    assert {run.current_round.number for run in family} == {1}
    assert [run.current_round.kind for run in family] == ["train"] * 6 + ["evaluate"]
    assert [run.max_relative_norm for run in family] == [2.0] + [None] * 6
    assert [run.patience for run in family] == [2] + [0] * 6
    # a round of the pool is that of three
    assert [run.deadline_minutes for run in family] == [10] * 4 + [30] + [10] * 2
    assert [run.plan["validation"]["hd95_every"] for run in family] == [3] * 6 + [1]
    assert len({run.title for run in family}) == 7
    assert [run.waits_for for run in family] == [None, *[draft] * 6]


def test_each_is_trained_as_long_as_the_others_together_and_on_one_schedule(main, ada):
    main.plan = main.plan | {"proximal_mu": 0.1, "optimizer": {**main.plan["optimizer"], "treatment": "keep"}}
    main.save()
    baselines.add(experiment=main, kinds=ALL, by=ada)
    (pooled,), (cyclic,) = of_kind(main, Kind.POOLED), of_kind(main, Kind.CYCLIC)
    assert (pooled.rounds_planned, cyclic.rounds_planned) == (4, 12)
    assert cyclic.plan["rounds"] == 12
    assert cyclic.plan["optimizer"]["treatment"] == "aggregate", "what a site kept would be two rounds old"
    for run in main.companions.all():
        assert run.plan["proximal_mu"] == 0
        assert run.plan["seed"] == main.plan["seed"]
        assert run.strategy == "fedavg"
    planned = baselines.budget(main)
    assert planned.per_site == dict.fromkeys(planned.per_site, 4 * 1 * 4)
    assert planned.baselines == {"pooled": 48, "local_only": 48, "ensemble": 0, "cyclic": 48}
    assert planned.total == 48


def test_what_a_schedule_counts_in_rounds_is_as_much_training_in_the_circle(main, ada):
    schedule = {"name": "step", "warmup_rounds": 1, "step_rounds": 2, "step_factor": 0.5}
    main.plan = main.plan | {"schedule": schedule}
    main.save()
    baselines.add(experiment=main, kinds=["cyclic", "pooled"], by=ada)
    (cyclic,), (pooled,) = of_kind(main, Kind.CYCLIC), of_kind(main, Kind.POOLED)
    assert cyclic.plan["schedule"] == schedule | {"warmup_rounds": 3, "step_rounds": 6}
    assert pooled.plan["schedule"] == schedule


def test_a_circle_of_more_rounds_than_an_experiment_can_have_is_refused(draft):
    draft.plan = draft.plan | {"rounds": 3334}
    assert "10002 in all" in baselines.problems(draft)["cyclic"]
    draft.plan = draft.plan | {"rounds": 3333}
    assert "cyclic" not in baselines.problems(draft)


def test_they_follow_an_early_stop(main, ada):
    baselines.add(experiment=main, kinds=ALL, by=ada)
    main.rounds_planned = 2
    main.save()
    complete(main)
    assert {run.rounds_planned for run in of_kind(main, Kind.LOCAL_ONLY) + of_kind(main, Kind.POOLED)} == {2}
    (cyclic,) = of_kind(main, Kind.CYCLIC)
    assert (cyclic.rounds_planned, cyclic.plan["rounds"]) == (6, 12), "the schedule is the planned one, as in the run"


def test_what_is_there_is_not_made_twice_and_a_later_one_gets_an_evaluation_of_its_own(main, ada):
    made = baselines.add(experiment=main, kinds=["ensemble"], by=ada)
    assert [run.kind for run in made] == ["local_only"] * 3 + ["cross_site"]
    assert baselines.add(experiment=main, kinds=["ensemble", "local_only"], by=ada) == []
    assert baselines.add(experiment=main, kinds=[], by=ada) == [], "an evaluation is there"
    assert [run.kind for run in baselines.add(experiment=main, kinds=["pooled"], by=ada)] == ["pooled"]
    complete(main)
    for run in main.companions.exclude(kind=Kind.CROSS_SITE):
        complete(run)
    (evaluation,) = of_kind(main, Kind.CROSS_SITE)
    gather_subjects(evaluation)
    assert [run.kind for run in baselines.add(experiment=main, kinds=["cyclic"], by=ada)] == ["cyclic", "cross_site"]
    main.refresh_from_db()
    assert main.baselines == ["cyclic", "ensemble", "local_only", "pooled"]
    assert main.events.filter(kind="baselines_added").count() == 3


def test_what_was_cancelled_is_made_again(main, ada):
    for _ in range(2):
        made = baselines.add(experiment=main, kinds=["pooled"], by=ada)
        assert [run.kind for run in made] == ["pooled", "cross_site"]
        main.companions.update(state=ExperimentState.CANCELLED)


def test_only_who_was_admitted_says_which_cases_were_held_out(main):
    tell_held_out(main)
    part = main.participations.first()
    told = baselines.held_out(main)[part.site.slug]
    made = Round.objects.create(experiment=main, number=9, state=RoundState.DONE)
    SiteRun.objects.create(round=made, participation=part, state="rejected", held_out=["f" * 16])
    assert baselines.held_out(main)[part.site.slug] == told == {f"{part.site.pk:016x}"}


def test_the_evaluation_alone_can_be_asked_for(main, ada):
    assert [run.kind for run in baselines.add(experiment=main, kinds=[], by=ada)] == ["cross_site"]


def test_repeats_have_seeds_and_baselines_of_their_own_and_run_one_after_the_other(draft, ada):
    services.update_draft(
        experiment=draft, by=ada, plan={"seed": 42}, fields={"repeats": 3, "baselines": ["pooled"], "compare_every": 2}
    )
    services.start(experiment=draft, by=ada)
    runs = list(draft.family.filter(kind=Kind.FEDERATED))
    assert [run.plan["seed"] for run in runs] == [42, 43, 44]
    assert [run.title for run in runs] == ["Brains", "Brains · seed 43", "Brains · seed 44"]
    assert [run.companions.count() for run in runs] == [2, 2, 2]
    assert {run.compare_every for run in runs} == {2}
    assert [run.participations.count() for run in runs] == [3, 3, 3]
    (third,) = of_kind(runs[2], Kind.POOLED)
    assert third.plan["seed"] == 44
    assert third.title == "Brains · seed 44 · pooled"
    order = []
    while waiting := [run for run in draft.family.exclude(state="completed") if run.waits_for is None]:
        order += [(run.plan["seed"], run.kind) for run in waiting]
        for run in waiting:
            complete(run)
    assert order == [(seed, kind) for seed in (42, 43, 44) for kind in ("federated", "pooled", "cross_site")]
    assert Site.objects.filter(is_pool=True).count() == 1, "one pool for all of them"


def test_what_is_added_to_the_first_run_is_added_to_its_repeats(draft, ada):
    services.update_draft(experiment=draft, by=ada, fields={"repeats": 2})
    services.start(experiment=draft, by=ada)
    baselines.add(experiment=draft, kinds=["cyclic"], by=ada)
    assert [run.companions.count() for run in draft.family.filter(kind=Kind.FEDERATED)] == [2, 2]


def test_a_title_that_is_long_still_says_what_it_is(main, ada):
    Experiment.objects.filter(pk=main.pk).update(title="B" * 120)
    main.refresh_from_db()
    baselines.add(experiment=main, kinds=["pooled"], by=ada)
    for run in main.companions.all():
        assert len(run.title) <= 120
        assert run.title.endswith((" · pooled", " · cross-site evaluation"))


# --- the pool ---------------------------------------------------------------------------------------


def test_a_pool_reads_the_folders_of_its_members_and_is_no_hospital(main, ada):
    baselines.add(experiment=main, kinds=["pooled"], by=ada)
    (pool,) = Site.objects.filter(is_pool=True)
    parts = main.participations.select_related("site", "dataset")
    members = [
        {"site": part.site.slug, "data_root": part.site.config["data_root"], "dataset": part.dataset.name}
        for part in parts
    ]
    assert pool.config["pool"] == members
    assert pool.name == "Pool of " + ", ".join(part.site.name for part in parts)
    assert not any(pool.config["work_dir"].startswith(member["data_root"]) for member in members)
    assert len(pool.slug) <= 15
    assert pool not in Site.objects.hospitals()
    assert pool in Site.objects.active(), "its check is made as every other's"
    dataset = pool.datasets.get()
    assert (dataset.train_cases, dataset.validation_cases) == (24, 12)
    assert dataset.task_signature == parts[0].dataset.task_signature


def test_hospitals_data_are_not_pooled_unless_somebody_holds_a_copy(draft, ada):
    Site.objects.filter(participations__experiment=draft).update(connector="airflow")
    refused = baselines.problems(draft)
    assert list(refused) == ["pooled"]
    assert "may not leave" in refused["pooled"]
    services.update_draft(experiment=draft, by=ada, fields={"baselines": ["pooled"]})
    with pytest.raises(services.NotReady, match="may not leave"):
        services.start(experiment=draft, by=ada)

    members = list(Dataset.objects.filter(participations__experiment=draft))
    copy = factories.make_dataset(factories.make_site("copy"), train_cases=24)
    copy.copy_of.set(members[:2])
    assert baselines.problems(draft), "of two of three sites only"
    copy.copy_of.set(members)
    assert baselines.problems(draft) == {}
    services.start(experiment=draft, by=ada)
    (pooled,) = of_kind(draft, Kind.POOLED)
    assert [part.dataset for part in pooled.participations.all()] == [copy]
    assert not Site.objects.filter(is_pool=True)


def test_a_participant_may_hold_the_copies_of_the_others(draft):
    Site.objects.filter(participations__experiment=draft).update(connector="airflow")
    first, *others = Dataset.objects.filter(participations__experiment=draft)
    first.copy_of.set(others)
    assert baselines.problems(draft) == {}


# --- what is refused --------------------------------------------------------------------------------


def test_what_was_not_told_apart_is_refused(main, ada):
    complete(main)
    SiteRun.objects.filter(round__experiment=main, participation=main.participations.first()).update(held_out=[])
    with pytest.raises(baselines.BaselineRefused, match="did not say which cases"):
        baselines.add(experiment=main, kinds=["cyclic"], by=ada)
    assert set(baselines.problems(main)) == set(ALL)
    assert not main.companions.exists()


def test_one_site_drafts_and_cancelled_runs_have_no_baselines(draft, ada):
    with pytest.raises(baselines.BaselineRefused, match="draft"):
        baselines.add(experiment=draft, kinds=["pooled"], by=ada)
    services.start(experiment=draft, by=ada)
    (evaluation,) = baselines.add(experiment=draft, kinds=[], by=ada)
    with pytest.raises(baselines.BaselineRefused, match="stands beside"):
        baselines.add(experiment=evaluation, kinds=["pooled"], by=ada)
    services.cancel(experiment=draft, by=ada)
    for kinds in ([], ["local_only"]):
        with pytest.raises(baselines.BaselineRefused, match="cancelled"):
            baselines.add(experiment=draft, kinds=kinds, by=ada)
    alone = factories.make_experiment(ada, sites=1, min_sites=1)
    assert "two sites" in baselines.problems(alone)["cyclic"]


# --- what is measured -------------------------------------------------------------------------------


def names(evaluation: Experiment) -> list[str]:
    return [subject.name for subject in evaluation.subjects.all()]


def test_the_evaluation_measures_every_model_of_the_end_and_at_the_interval(main, ada):
    Experiment.objects.filter(pk=main.pk).update(compare_every=2)
    main.refresh_from_db()
    baselines.add(experiment=main, kinds=ALL, by=ada)
    complete(main)
    main.models.filter(round_number=3).update(dice=0.9)
    for run in main.companions.exclude(kind=Kind.CROSS_SITE):
        complete(run)
    (evaluation,) = of_kind(main, Kind.CROSS_SITE)
    for _ in range(2):  # the second time changes nothing
        gather_subjects(evaluation)
    slugs = sorted(main.participations.values_list("site__slug", flat=True))
    local = [f"local-{slug}" for slug in slugs]
    end = ["best", "pooled", *local, "cyclic", "ensemble"]
    on_the_way = [f"{name}-r2" for name in ("global", "pooled", *local, "cyclic", "ensemble")]
    assert names(evaluation) == end + on_the_way
    (incoming,) = evaluation.models.all()
    assert (incoming.key, incoming.round_number) == (main.models.get(round_number=4).key, 0)
    of = {subject.name: list(subject.global_models.all()) for subject in evaluation.subjects.all()}
    assert [model.round_number for model in of["best"]] == [3]
    assert {model.round_number for model in of["ensemble"]} == {4}
    assert len(of["ensemble"]) == 3
    assert [(model.experiment.kind, model.round_number) for model in of["cyclic-r2"]] == [("cyclic", 6)]
    assert of["cyclic"][0].round_number == 12


def test_what_has_failed_is_left_out_with_a_word(main, ada):
    baselines.add(experiment=main, kinds=ALL, by=ada)
    complete(main)
    *others, last = of_kind(main, Kind.LOCAL_ONLY)
    for run in [*others, *of_kind(main, Kind.CYCLIC)]:
        complete(run)
    lifecycle.move_experiment(last, ExperimentState.FAILED, because="It broke.")
    (evaluation,) = of_kind(main, Kind.CROSS_SITE)
    gather_subjects(evaluation)
    assert names(evaluation) == [f"local-{run.participations.get().site.slug}" for run in others] + ["cyclic"]
    said = " ".join(evaluation.events.filter(kind="not_measured").values_list("text", flat=True))
    assert last.title in said
    assert "pooled" in said
    assert "ensemble is not measured" in said
