"""Acts on a run with baselines and repeats: what becomes of the whole family."""

from __future__ import annotations

import pytest

from fedportal.experiments import baselines, families, lifecycle, services
from fedportal.experiments.models import Baseline, Experiment, Kind
from fedportal.experiments.states import ExperimentState
from fedportal.sites.models import Site
from tests import factories
from tests.experiments.baselines.runs import complete, of_kind

pytestmark = pytest.mark.django_db


def test_cancelling_the_run_cancels_what_stands_beside_it_but_not_other_repeats(draft, ada):
    services.update_draft(experiment=draft, by=ada, fields={"repeats": 2, "baselines": ["local_only"]})
    services.start(experiment=draft, by=ada)
    _, second = draft.family.filter(kind=Kind.FEDERATED)
    services.cancel(experiment=second, by=ada)
    states = {run.pk: run.state for run in draft.family}
    beside = set(second.companions.values_list("pk", flat=True)) | {second.pk}
    assert {states[pk] for pk in beside} == {"cancelling"}
    assert {state for pk, state in states.items() if pk not in beside} == {"running"}


def test_cancelling_the_first_run_ends_its_whole_family_even_when_it_has_ended_itself(draft, ada):
    services.update_draft(experiment=draft, by=ada, fields={"repeats": 2, "baselines": ["local_only"]})
    services.start(experiment=draft, by=ada)
    complete(draft)
    services.cancel(experiment=draft, by=ada)
    assert {run.state for run in draft.family.exclude(pk=draft.pk)} == {"cancelling"}
    draft.refresh_from_db()
    assert draft.state == "completed"
    with pytest.raises(lifecycle.MoveRefused):
        services.cancel(experiment=draft, by=ada)


def test_a_failed_baseline_stands_in_nobodys_way_and_a_failed_run_does(main, ada):
    baselines.add(experiment=main, kinds=["local_only", "pooled"], by=ada)
    (evaluation,) = of_kind(main, Kind.CROSS_SITE)
    (pooled,) = of_kind(main, Kind.POOLED)
    lifecycle.move_experiment(main, ExperimentState.FAILED, because="It broke.")
    assert pooled.waits_for == main
    services.resume(experiment=main, by=ada)
    complete(main)
    for run in of_kind(main, Kind.LOCAL_ONLY):
        lifecycle.move_experiment(run, ExperimentState.FAILED, because="It broke.")
    assert pooled.waits_for is None
    services.pause(experiment=pooled, by=ada)
    assert evaluation.waits_for == pooled


def test_the_next_repeat_does_not_wait_for_what_waits_for_a_failed_run(draft, ada):
    services.update_draft(experiment=draft, by=ada, fields={"repeats": 2, "baselines": ["pooled"]})
    services.start(experiment=draft, by=ada)
    second = draft.family.filter(kind=Kind.FEDERATED).last()
    assert second.waits_for == draft
    lifecycle.move_experiment(draft, ExperimentState.FAILED, because="It broke.")
    assert of_kind(draft, Kind.POOLED)[0].waits_for == draft
    assert second.waits_for is None


def test_a_family_is_one_experiment_of_its_sites(main, ada):
    baselines.add(experiment=main, kinds=list(Baseline.values), by=ada)
    sites = Site.objects.filter(participations__experiment=main).with_counts()
    assert {site.running_count for site in sites} == {1}


def test_whoever_ends_wakes_the_family_and_the_run_beside_hears_of_it(main, ada, django_capture_on_commit_callbacks):
    baselines.add(experiment=main, kinds=["pooled"], by=ada)
    (pooled,), (evaluation,) = of_kind(main, Kind.POOLED), of_kind(main, Kind.CROSS_SITE)
    complete(main)
    wakes = evaluation.wakes
    with django_capture_on_commit_callbacks(execute=True):
        families.tell_begun(pooled)
        complete(pooled)
    evaluation.refresh_from_db()
    assert evaluation.wakes == wakes + 1
    said = list(main.events.filter(kind__startswith="baseline_").order_by("pk").values_list("text", flat=True))
    assert said == ["The pooled baseline has begun.", "The pooled baseline has ended: Dice 0.40."]


def test_who_sees_the_run_sees_its_family_and_a_new_owner_owns_it(main, ada):
    baselines.add(experiment=main, kinds=["pooled"], by=ada)
    eve = factories.eve()
    (pooled,) = of_kind(main, Kind.POOLED)
    assert pooled not in Experiment.objects.visible_to(eve)
    services.share(experiment=pooled, user=eve, by=ada)
    assert set(Experiment.objects.visible_to(eve)) == set(main.family)
    services.unshare(experiment=main, user=eve, by=ada)
    assert not Experiment.objects.visible_to(eve)
    services.hand_over(experiment=main, to=eve, by=ada)
    assert {run.owner for run in main.family} == {eve}
    assert set(Experiment.objects.visible_to(ada)) == set(main.family)


def test_the_copy_of_a_baseline_is_that_of_its_run(main, ada):
    baselines.add(experiment=main, kinds=["pooled"], by=ada)
    (pooled,) = of_kind(main, Kind.POOLED)
    twin = services.clone(experiment=pooled, by=ada)
    assert (twin.kind, twin.head, twin.cloned_from) == (Kind.FEDERATED, None, main)
    assert twin.participations.count() == 3
    assert twin.baselines == ["pooled"]
