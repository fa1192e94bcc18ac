"""What must be in order before a start, and in which words the portal says what is not."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from fedportal.experiments import services
from fedportal.experiments.models import Experiment, Participation
from fedportal.experiments.plan import merged, nested
from fedportal.experiments.readiness import checklist
from fedportal.sites.models import Site, SiteCheck
from tests.factories import ada, make_dataset, make_experiment, make_site

pytestmark = pytest.mark.django_db


def first_part(experiment: Experiment) -> Participation:
    return experiment.participations.first()


def no_title(experiment):
    experiment.title = " "


def no_sites(experiment):
    experiment.participations.all().delete()


def retired(experiment):
    Site.objects.filter(pk=first_part(experiment).site_id).update(retired_at=timezone.now())


def never_checked(experiment):
    first_part(experiment).site.checks.all().delete()


def failing(experiment):
    steps = [{"name": "disk", "ok": False, "message": "The disk is full.", "remedy": "Free 20 GB.", "seconds": 0.1}]
    SiteCheck.objects.create(site=first_part(experiment).site, ok=False, steps=steps)


def not_heard_from(experiment):
    first_part(experiment).site.checks.update(at=timezone.now() - timedelta(days=2))


def dataset_gone(experiment):
    _dataset(experiment, is_available=False)


def dataset_damaged(experiment):
    _dataset(experiment, problems=["Case 7 has no segmentation.", "Case 8 has none either."])


def no_training_cases(experiment):
    _dataset(experiment, train_cases=0)


def nothing_held_out(experiment):
    _dataset(experiment, validation_cases=0)


def other_labels(experiment):
    _dataset(experiment, labels={"0": "background", "1": "tumour"})


def other_channels(experiment):
    _dataset(experiment, channels=["T1w", "FLAIR", "t1gd", "T2w"])


def _dataset(experiment, **fields):
    dataset = first_part(experiment).dataset
    for name, value in fields.items():
        setattr(dataset, name, value)
    dataset.save()


def plan(**values):
    def change(experiment):
        experiment.plan = merged(experiment.plan, nested({name.replace("__", "."): v for name, v in values.items()}))

    return change


def fields(**values):
    def change(experiment):
        for name, value in values.items():
            setattr(experiment, name, value)

    return change


def averaged_moments(strategy, norm="instance"):
    def change(experiment):
        fields(strategy=strategy)(experiment)
        plan(optimizer__treatment="aggregate", network__norm=norm)(experiment)

    return change


def seed_at_the_end(experiment):
    fields(repeats=3)(experiment)
    plan(seed=2**31 - 2)(experiment)


@pytest.mark.parametrize(
    ("spoil", "section", "says"),
    [
        (no_title, "question", "Give the experiment a name."),
        (no_sites, "sites", "Choose at least one site"),
        (retired, "sites", "is retired. Take it out"),
        (never_checked, "sites", "was not checked yet. Ask its steward"),
        (failing, "sites", "has a problem: The disk is full. Free 20 GB."),
        (not_heard_from, "sites", "was not heard from for a day"),
        (dataset_gone, "sites", "was not found by the last check"),
        (dataset_damaged, "sites", "Case 7 has no segmentation. (and 1 more)"),
        (no_training_cases, "sites", "needs at least one case to train on"),
        (nothing_held_out, "sites", "one held out to validate with"),
        (other_labels, "sites", "has other channels or labels than the experiment's task"),
        (other_channels, "sites", "has other channels or labels than the experiment's task"),
        (seed_at_the_end, "comparison", "beyond the largest there is: choose a smaller random seed"),
        (fields(baselines=["ensemble"]), "comparison", "tick “Local only”, too"),
        (plan(task__regions=[]), "recipe", "Regions: name at least one region to segment."),
        (plan(task__regions=[{"name": "WT", "labels": [9]}]), "recipe", "names a label that the task does not have"),
        (plan(network__strides=[2, 2]), "recipe", "Strides between levels: one stride"),
        (plan(optimizer__learning_rate=0), "recipe", "Learning rate: between 1e-8 and 10."),
        (plan(loss="guesswork"), "recipe", "Loss: choose one of"),
        (plan(rounds=0), "rounds", "The number of rounds is not the recipe's"),
        (fields(min_sites=4), "rounds", "The quorum is 4, but 3 sites take part: set it between 1 and 3."),
        (fields(min_sites=0), "rounds", "The quorum is 0"),
        (fields(deadline_minutes=0), "rounds", "Set a deadline above 0 minutes."),
        (fields(strategy="voting"), "rounds", "There is no strategy 'voting'"),
        (fields(strategy_options={"luck": 1}), "rounds", "has no option 'luck'"),
        (fields(strategy="trimmed_mean"), "rounds", "needs at least 3 sites in every round, not 2"),
        (fields(strategy="median"), "rounds", "of two values the median is their mean"),
        (fields(strategy="fedadam", strategy_options={"tau": 2}), "rounds", "Adaptivity τ is a number from 1e-09 to 1"),
        (fields(strategy="fedprox"), "rounds", "does not tell the sites what the strategy needs"),
        (plan(proximal_mu=0.1), "rounds", "does not tell the sites what the strategy needs"),
        (fields(strategy="fedbn"), "rounds", "have nothing to keep: choose batch or group"),
        (plan(local_layers="normalisation"), "recipe", "Strategy: the normalisation layers of this network"),
        (averaged_moments("fedadam"), "rounds", "it keeps a memory of its own at the portal"),
        (averaged_moments("fedbn", norm="batch"), "rounds", "would be moved by other sites' gradients"),
    ],
)
def test_a_start_is_refused_with_the_reason_and_its_section(spoil, section, says):
    experiment = make_experiment(ada())
    assert all(check.ok for check in checklist(experiment))
    spoil(experiment)
    experiment.save()
    open_ones = [check for check in checklist(experiment) if not check.ok]
    assert says in " ".join(problem for check in open_ones if check.section == section for problem in check.problems)
    with pytest.raises(services.NotReady) as refused:
        services.start(experiment=experiment, by=experiment.owner)
    assert says in refused.value.message
    assert experiment.rounds.count() == 0


def test_the_checklist_costs_the_same_for_three_sites_and_for_twelve(django_assert_num_queries):
    small, large = make_experiment(ada()), make_experiment(sites=12)
    for experiment in (small, large):
        with django_assert_num_queries(3):
            checklist(experiment)


def test_one_healthy_site_is_enough_with_a_quorum_of_one():
    dataset = make_dataset(make_site())
    experiment = services.create_draft(owner=ada(), participants=[dataset])
    services.start(experiment=experiment, by=experiment.owner)
    assert experiment.rounds.count() == 1
