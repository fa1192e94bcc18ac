"""Presets, the task of datasets, a plan in plain words, and the one table of settings."""

from __future__ import annotations

import dataclasses

import pytest

from fedportal.aggregation.strategies import STRATEGIES, plan_fields
from fedportal.experiments import services
from fedportal.experiments.models import Weighting
from fedportal.experiments.plan import (
    PRESETS,
    differences,
    merged,
    nested,
    preset_plan,
    problems_of,
    summary,
    with_task_of,
)
from fedportal.experiments.recipe import ALL_SETTINGS, BY_NAME, SETTINGS, Kind, flatten, has_effect, of_section
from tests.factories import BRAIN_TASK, ada, make_dataset, make_experiment, make_plan, make_site
from trainer.contract import TrainingPlan, plan_from_json, plan_problems

OF_PLAN = [setting for setting in SETTINGS if setting.of_plan]


def plan_with(name: str, value) -> dict[str, str]:
    return problems_of(merged(make_plan(rounds=5).to_json(), nested({name: value})))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_can_run_once_it_has_a_task(name):
    plan = dataclasses.replace(PRESETS[name].plan, task=BRAIN_TASK)
    assert plan_problems(plan) == {}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    document = preset_plan(PRESETS[name]) | {"task": make_plan().to_json()["task"]}
    assert plan_from_json(document) == dataclasses.replace(PRESETS[name].plan, task=BRAIN_TASK)


def test_the_laptop_preset_is_the_reference_experiment_in_small():
    plan = PRESETS["laptop"].plan
    assert (plan.network.channels, plan.network.strides, plan.network.residual_units) == ((8, 16, 32, 64), (1, 2, 2), 0)
    assert (plan.loss, plan.optimizer.name, plan.optimizer.learning_rate) == ("dice", "adam", 1e-3)
    assert (plan.batch_size, plan.local_epochs, plan.rounds, plan.patch) == (2, 3, 12, None)


def test_the_original_preset_is_the_reference_experiment():
    plan = PRESETS["original"].plan
    assert (plan.network.name, plan.network.channels[-1], plan.network.residual_units) == ("residual_unet", 256, 2)
    assert (plan.patch, plan.spacing, plan.precision) == ((128, 128, 64), (1.5, 1.5, 2.0), "mixed")
    assert (plan.optimizer.weight_decay, plan.optimizer.treatment, plan.rounds) == (1e-5, "reset", 500)


@pytest.mark.django_db
def test_the_regions_of_brain_tumours_follow_the_names_and_not_the_numbers():
    dataset = make_dataset(
        make_site(), labels={"0": "background", "1": "enhancing tumour", "2": "edema", "4": "non-enhancing tumour"}
    )
    task = with_task_of({}, [dataset])["task"]
    assert task["regions"] == [
        {"name": "WT", "labels": [1, 2, 4]},
        {"name": "TC", "labels": [1, 4]},
        {"name": "ET", "labels": [1]},
    ]


@pytest.mark.django_db
def test_edited_regions_stay_while_channels_and_labels_stay():
    first, second = make_dataset(make_site()), make_dataset(make_site())
    document = with_task_of({}, [first])
    document["task"]["regions"] = [{"name": "edema", "labels": [1]}]
    assert with_task_of(document, [second])["task"]["regions"] == [{"name": "edema", "labels": [1]}]
    spleen = make_dataset(make_site(), "Task09_Spleen", channels=["CT"], labels={"0": "background", "1": "spleen"})
    assert with_task_of(document, [spleen])["task"]["regions"] == [{"name": "spleen", "labels": [1]}]


def test_every_setting_of_the_contract_has_a_line_in_the_table():
    document = TrainingPlan(task=BRAIN_TASK).to_json()
    del document["task"]
    names = {f"{name}.{part}" for name, value in document.items() if isinstance(value, dict) for part in value}
    names |= {name for name, value in document.items() if not isinstance(value, dict)}
    following = set(plan_fields("fedavg", {}))
    assert {setting.name for setting in OF_PLAN} == names - following
    assert following < names


@pytest.mark.parametrize("setting", [s for s in OF_PLAN if s.low is not None], ids=lambda s: s.name)
def test_the_ranges_of_the_table_are_those_of_the_contract(setting):
    kinds = {
        Kind.WHOLES: {"network.channels": 2, "network.strides": 1}.get(setting.name),
        Kind.WHOLE_TRIPLE: 3,
        Kind.NUMBER_TRIPLE: 3,
    }
    count = kinds.get(setting.kind)

    def shaped(number: float):
        number = int(number) if setting.kind in (Kind.WHOLE, Kind.WHOLES, Kind.WHOLE_TRIPLE) else number
        return [number] * count if count else number

    step = 1 if setting.kind in (Kind.WHOLE, Kind.WHOLES, Kind.WHOLE_TRIPLE) else setting.high
    high = min(setting.high, 5) if setting.name == "schedule.warmup_rounds" else setting.high  # not above the rounds
    assert setting.name not in plan_with(setting.name, shaped(setting.low))
    assert setting.name not in plan_with(setting.name, shaped(high))
    assert setting.name in plan_with(setting.name, shaped(high + step))
    assert setting.name in plan_with(setting.name, shaped(setting.low - step))


@pytest.mark.parametrize("setting", [s for s in OF_PLAN if s.choices], ids=lambda s: s.name)
def test_the_choices_of_the_table_are_those_of_the_contract(setting):
    for value, _ in setting.choices:
        assert setting.name not in plan_with(setting.name, value)
    assert setting.name in plan_with(setting.name, "something else")


def test_every_setting_stands_in_one_section():
    shown = [
        s.name
        for section in ("recipe", "rounds", "comparison")
        for _, settings in of_section(section)
        for s in settings
    ]
    assert sorted(shown) == sorted(s.name for s in ALL_SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("optimizer.weight_decay", 1e-5, "0.00001"),
        ("optimizer.learning_rate", 0.001, "0.001"),
        ("patch", [128, 128, 64], "128 × 128 × 64 voxels"),
        ("patch", None, "whole volume"),
        ("spacing", [1.5, 1.5, 2.0], "1.5 × 1.5 × 2 mm"),
        ("network.channels", [8, 16], "8, 16"),
        ("network.name", "segresnet", "SegResNet"),
        ("validation.hd95_every", 0, "never"),
        ("validation.hd95_every", 1, "1 round"),
        ("validation.local", False, "No"),
        ("threads", 0, "the site decides"),
    ],
)
def test_values_are_shown_as_people_read_them(name, value, shown):
    assert BY_NAME[name].show(value) == shown


@pytest.mark.django_db
def test_a_setting_without_effect_is_not_spoken_of():
    experiment = make_experiment(ada())
    momentum = BY_NAME["optimizer.momentum"]
    assert not has_effect(experiment, momentum)
    experiment.plan = merged(experiment.plan, {"optimizer": {"name": "sgd"}})
    assert has_effect(experiment, momentum)
    for setting in ALL_SETTINGS:
        name, values = setting.needs
        assert not name or set(values) < dict(BY_NAME[name].choices).keys()


def test_a_change_of_one_value_leaves_its_neighbours():
    changed = merged(
        {"optimizer": {"name": "adam", "learning_rate": 1}}, {"optimizer": {"learning_rate": 2}, "rounds": 3}
    )
    assert changed == {"optimizer": {"name": "adam", "learning_rate": 2}, "rounds": 3}
    assert flatten(changed, ["optimizer.name", "rounds", "patch"]) == {"optimizer.name": "adam", "rounds": 3}


def test_a_region_cannot_take_the_name_of_the_mean_over_regions():
    assert "task.regions" in plan_with("task.regions", [{"name": "mean", "labels": [1]}])


@pytest.mark.django_db
def test_the_review_is_one_plain_sentence():
    experiment = make_experiment(ada(), rounds=20)
    assert summary(experiment) == (
        "Train a U-Net on BRATS (WT, TC and ET from FLAIR, T1w, t1gd and T2w) at 3 sites with 24 training cases for "
        "20 rounds of 1 epoch, with Adam at learning rate 0.001; combine the updates by federated averaging, weighted "
        "by training cases; a round counts when at least 2 of 3 sites answer within 6 hours."
    )


@pytest.mark.django_db
def test_the_review_of_an_empty_draft_says_what_is_missing():
    sentence = summary(services.create_draft(owner=ada(), preset="blank"))
    assert "on a task still to be chosen at no site yet" in sentence
    assert "at least 2 sites answer within 6 hours" in sentence


@pytest.mark.django_db
def test_the_review_of_one_site_speaks_of_one():
    experiment = make_experiment(ada(), sites=1, weighting=Weighting.UNIFORM, deadline_minutes=90)
    assert "at 1 site with 8 training cases" in summary(experiment)
    assert "every site counting the same; a round counts when the site answers within 90 minutes." in summary(
        experiment
    )


@pytest.mark.django_db
def test_differences_name_what_differs_and_nothing_else():
    owner = ada()
    original = make_experiment(owner)
    twin = services.clone(experiment=original, by=owner)
    assert differences(original, twin) == []
    services.update_draft(
        experiment=twin,
        by=owner,
        plan={"rounds": 30, "task": {"regions": [{"name": "WT", "labels": [1, 2, 3]}]}},
        fields={"stragglers": "drop"},
        participants=[part.dataset for part in list(original.participations.all())[:2]],
    )
    assert [label for label, _, _ in differences(original, twin)] == [
        "Sites",
        "Rounds",
        "When a site is late",
        "Task: regions",
    ]
    assert ("Rounds", "2 rounds", "30 rounds") in differences(original, twin)


@pytest.mark.django_db
def test_the_options_of_the_chosen_strategy_stand_in_the_summary_and_in_differences():
    owner = ada()
    plain, other = (make_experiment(owner, sites=0) for _ in range(2))
    other.strategy, other.strategy_options = "fedavgm", {"momentum": 0.5}
    assert "by FedAvgM (server learning rate 1, server momentum 0.5), weighted by" in summary(other)
    assert differences(plain, other) == [
        ("Strategy", "Federated averaging", "FedAvgM"),
        ("FedAvgM: server learning rate", "—", "1"),
        ("FedAvgM: server momentum", "—", "0.5"),
    ]
    other.strategy, other.strategy_options = "median", {}
    assert "by coordinate-wise median, every site counting the same" in summary(other)
    assert differences(plain, other)[0] == ("Strategy", "Federated averaging", "Coordinate-wise median")
    assert not has_effect(other, BY_NAME["weighting"])


def test_every_option_of_every_strategy_is_a_setting_with_its_range():
    for strategy in STRATEGIES.values():
        for option in strategy.options:
            if option.name != "weighting":
                setting = BY_NAME[f"{strategy.name}.{option.name}"]
                assert (setting.low, setting.high, setting.default) == (option.least, option.most, option.default)
                assert setting.label.startswith(f"{strategy.title}: ")
                assert setting.help.endswith(".")
