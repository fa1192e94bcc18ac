"""Every field of the composer: what it refuses, in which words, and that nothing typed is lost."""

from __future__ import annotations

import pytest
from django.utils import timezone

from fedportal.experiments import services
from fedportal.experiments.forms import SECTIONS, ComparisonForm, QuestionForm, RecipeForm, RoundsForm, SitesForm
from fedportal.experiments.readiness import checklist
from fedportal.experiments.recipe import ALL_SETTINGS, SETTINGS
from fedportal.sites.models import Site
from tests.factories import make_dataset, make_plan, make_site

pytestmark = pytest.mark.django_db


RIGHT = {
    "question": {"name": "Mine", "question": ""},
    "recipe": {
        "network_name": "unet", "network_channels": "8, 16", "network_strides": "2", "network_residual_units": "0",
        "network_norm": "instance", "network_dropout": "0", "loss": "dice", "batch_size": "2", "augmentation": "light",
        "precision": "float32", "seed": "0", "threads": "0", "optimizer_name": "adam",
        "optimizer_learning_rate": "0.001", "optimizer_treatment": "reset", "optimizer_weight_decay": "0",
        "optimizer_momentum": "0.9", "schedule_name": "constant", "schedule_warmup_rounds": "0",
        "schedule_final_factor": "0.01", "schedule_power": "0.9", "schedule_step_rounds": "10",
        "schedule_step_factor": "0.5", "patch": "", "spacing": "", "patches_per_case": "1", "validation_local": "on",
        "validation_hd95_every": "0", "validation_overlap": "0.25", "regions": "WT: 1, 2, 3",
        "initial_model": "",
    },
    "rounds": {
        "rounds": "12", "local_epochs": "3", "strategy": "fedavg", "weighting": "cases", "max_relative_norm": "",
        "best_by": "mean", "patience": "0", "min_sites": "2", "deadline_minutes": "30", "stragglers": "wait", "grace_minutes": "5", "max_attempts": "3",
    },
    "comparison": {"baselines": ["pooled", "local_only", "ensemble", "cyclic"], "compare_every": "5", "repeats": "3"},
}  # fmt: skip

REFUSED = [
    ("question", "name", "", "Give the experiment a name"),
    ("question", "name", "x" * 121, "at most 120"),
    ("question", "name", "\u202eturned", "single line"),
    ("question", "question", "x" * 4001, "at most 4000"),
    ("recipe", "network_name", "resnet", "not one of the available choices"),
    ("recipe", "network_channels", "", "Channels per level is missing. Range 1 to 2048."),
    ("recipe", "network_channels", "8, many", "Write whole numbers like 8, 16, 32."),
    ("recipe", "network_channels", "8, 0", "between 1 and 2048; 0 is not"),
    ("recipe", "network_channels", "8", "2 to 7 levels"),
    ("recipe", "network_strides", "3", "between 1 and 2; 3 is not"),
    ("recipe", "network_strides", "2, 2", "One stride of 1 or 2 between each two levels."),
    ("recipe", "network_residual_units", "5", "less than or equal to 4"),
    ("recipe", "network_norm", "layer", "not one of the available choices"),
    ("recipe", "network_dropout", "0.95", "less than or equal to 0.9"),
    ("recipe", "loss", "l2", "not one of the available choices"),
    ("recipe", "batch_size", "2.5", "Write a whole number."),
    ("recipe", "batch_size", "0", "greater than or equal to 1"),
    ("recipe", "augmentation", "wild", "not one of the available choices"),
    ("recipe", "precision", "half", "not one of the available choices"),
    ("recipe", "seed", "-1", "greater than or equal to 0"),
    ("recipe", "threads", "257", "less than or equal to 256"),
    ("recipe", "optimizer_name", "lion", "not one of the available choices"),
    ("recipe", "optimizer_learning_rate", "0,001", "with a decimal point, like 0.001"),
    ("recipe", "optimizer_learning_rate", "nan", "with a decimal point"),
    ("recipe", "optimizer_learning_rate", "11", "less than or equal to 10"),
    ("recipe", "optimizer_treatment", "forget", "not one of the available choices"),
    ("recipe", "optimizer_weight_decay", "-0.1", "greater than or equal to 0"),
    ("recipe", "optimizer_momentum", "1", "less than or equal to 0.9999"),
    ("recipe", "schedule_name", "random", "not one of the available choices"),
    ("recipe", "schedule_warmup_rounds", "3", "Not more than the rounds."),
    ("recipe", "schedule_final_factor", "2", "less than or equal to 1"),
    ("recipe", "schedule_power", "0", "greater than or equal to 0.1"),
    ("recipe", "schedule_step_rounds", "0", "greater than or equal to 1"),
    ("recipe", "schedule_step_factor", "0", "greater than or equal to 0.001"),
    ("recipe", "patch", "128 × 128", "Write three whole numbers like 128 × 128 × 64"),
    ("recipe", "patch", "128 × 128 × 4", "between 8 and 512; 4 is not"),
    ("recipe", "spacing", "1.5 mm", "Write numbers like 1.5 × 1.5 × 2."),
    ("recipe", "spacing", "1, 1, 30", "between 0.1 and 20; 30 is not"),
    ("recipe", "spacing", "1, 1, nan", "between 0.1 and 20; nan is not"),
    ("recipe", "patches_per_case", "33", "less than or equal to 32"),
    ("recipe", "validation_hd95_every", "-1", "greater than or equal to 0"),
    ("recipe", "validation_overlap", "0.99", "less than or equal to 0.9"),
    ("recipe", "regions", "", "Name at least one region"),
    ("recipe", "regions", "WT 1 2 3", "write a name, a colon and label numbers"),
    ("recipe", "regions", "WT: one", "write a name, a colon and label numbers"),
    ("recipe", "regions", "WT: 1\nWT: 2", "Each region needs its own name."),
    ("recipe", "regions", "WT: 9", "names a label that the task does not have"),
    ("recipe", "regions", "mean: 1", "stands for the mean over regions"),
    ("recipe", "regions", f"{'x' * 41}: 1", "at most 40 characters"),
    ("rounds", "rounds", "0", "greater than or equal to 1"),
    ("rounds", "local_epochs", "1001", "less than or equal to 1000"),
    ("rounds", "strategy", "voting", "not one of the available choices"),
    ("rounds", "weighting", "by mood", "not one of the available choices"),
    ("rounds", "max_relative_norm", "0", "greater than or equal to 0.001"),
    ("rounds", "best_by", "NET", "not one of the available choices"),
    ("rounds", "patience", "-1", "greater than or equal to 0"),
    ("recipe", "initial_model", "999", "not one of the available choices"),
    ("rounds", "min_sites", "4", "Only 3 take part: write a number from 1 to 3."),
    ("rounds", "min_sites", "0", "greater than or equal to 1"),
    ("rounds", "deadline_minutes", "0", "greater than or equal to 0.05"),
    ("rounds", "stragglers", "shout", "not one of the available choices"),
    ("rounds", "grace_minutes", "-1", "greater than or equal to 0"),
    ("rounds", "max_attempts", "100", "less than or equal to 99"),
    ("comparison", "baselines", ["voting"], "not one of the available choices"),
    ("comparison", "baselines", ["pooled", "ensemble"], "tick “Local only”, too"),
    ("comparison", "compare_every", "-1", "greater than or equal to 0"),
    ("comparison", "compare_every", "often", "Write a whole number."),
    ("comparison", "repeats", "0", "greater than or equal to 1"),
    ("comparison", "repeats", "21", "less than or equal to 20"),
]  # fmt: skip


@pytest.mark.parametrize("section", RIGHT)
def test_the_right_values_are_accepted(draft, section):
    form = SECTIONS[section](RIGHT[section], experiment=draft)
    assert form.errors == {}


@pytest.mark.parametrize(("section", "field", "typed", "says"), REFUSED)
def test_a_wrong_value_is_refused_at_its_field_and_stays_as_typed(draft, section, field, typed, says):
    form = SECTIONS[section](RIGHT[section] | {field: typed}, experiment=draft)
    assert set(form.errors) - {"network_strides"} == {field} - {"network_strides"}  # they follow the channels
    assert says in form.errors[field][0]
    assert form[field].value() == typed


def test_every_field_has_a_refused_case_but_the_check_boxes():
    tried = {field for _, field, _, _ in REFUSED}
    everything = {name for section in RIGHT for name in RIGHT[section]}
    assert everything - tried == {"validation_local", "optimizer_amsgrad"} & everything


def test_sgd_has_no_amsgrad(draft):
    form = RecipeForm(RIGHT["recipe"] | {"optimizer_name": "sgd", "optimizer_amsgrad": "on"}, experiment=draft)
    assert form.errors == {"optimizer_amsgrad": ["Only Adam and AdamW have AMSGrad."]}


def test_what_was_understood_is_saved_beside_what_was_not(draft):
    typed = RIGHT["recipe"] | {"optimizer_learning_rate": "fast", "batch_size": "4", "patch": "64 64 64"}
    form = RecipeForm(typed, experiment=draft)
    assert not form.save(draft.owner)
    draft.refresh_from_db()
    assert (draft.plan["batch_size"], draft.plan["patch"]) == (4, [64, 64, 64])
    assert draft.plan["optimizer"]["learning_rate"] == 0.001
    assert form["optimizer_learning_rate"].value() == "fast"


def test_a_form_shows_and_returns_the_plan_unchanged(draft):
    services.update_draft(
        experiment=draft,
        by=draft.owner,
        plan=make_plan(patch=(64, 64, 32), spacing=(1.5, 1.5, 2.0)).to_json(),
        fields={"max_relative_norm": 0.5},
    )
    draft.refresh_from_db()
    before = (draft.plan, draft.max_relative_norm, draft.min_sites)
    for form_class in (RecipeForm, RoundsForm):
        shown = form_class(experiment=draft)
        sent = {field.html_name: field.field.prepare_value(field.value()) for field in shown}
        sent = {name: "" if value is None else value for name, value in sent.items() if value is not False}
        assert form_class(sent, experiment=draft).save(draft.owner)
    draft.refresh_from_db()
    assert (draft.plan, draft.max_relative_norm, draft.min_sites) == before


@pytest.mark.parametrize("typed", ["8,16", "8 16", "8; 16", "8 × 16", "8x16", " 8 , 16 "])
def test_several_numbers_may_be_written_in_several_ways(draft, typed):
    form = RecipeForm(RIGHT["recipe"] | {"network_channels": typed}, experiment=draft)
    assert form.is_valid()
    assert form.cleaned_data["network_channels"] == [8, 16]


def test_small_numbers_are_shown_without_an_exponent(draft):
    services.update_draft(experiment=draft, by=draft.owner, plan={"optimizer": {"weight_decay": 1e-5}})
    assert 'value="0.00001"' in str(RecipeForm(experiment=draft)["optimizer_weight_decay"])


def test_every_setting_has_help_and_range_or_default_beside_it(draft):
    settings = {setting.field: setting for setting in ALL_SETTINGS}
    for form in (RecipeForm(experiment=draft), RoundsForm(experiment=draft), ComparisonForm(experiment=draft)):
        for name, field in form.fields.items():
            if setting := settings.get(name):
                assert setting.help in field.help_text
                assert setting.range_text in field.help_text
                assert field.unit == setting.unit
    assert all(s.range_text for s in SETTINGS if s.low is not None)


def test_a_question_may_be_left_for_later(draft):
    assert QuestionForm({"name": "Mine"}, experiment=draft).save(draft.owner)
    draft.refresh_from_db()
    assert (draft.title, draft.question) == ("Mine", "")


# --- sites ------------------------------------------------------------------------------------------


def test_no_site_is_a_draft_but_not_yet_an_experiment(draft):
    assert SitesForm({}, experiment=draft).save(draft.owner)
    assert draft.participations.count() == 0


def test_a_site_takes_part_with_one_dataset(draft):
    site = make_site()
    two = [make_dataset(site), make_dataset(site, "Task01_Second")]
    form = SitesForm({"datasets": [dataset.pk for dataset in two]}, experiment=draft)
    assert not form.save(draft.owner)
    assert "choose either Task01_BrainTumour or Task01_Second" in form.errors["datasets"][0]
    assert draft.participations.count() == 3


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"channels": ["CT"]}, "has CT"),
        ({"labels": {"0": "background", "1": "spleen"}}, "has 0 background, 1 spleen"),
    ],
)
def test_datasets_of_different_tasks_do_not_train_one_model(draft, fields, says):
    datasets = [make_dataset(make_site("aachen")), make_dataset(make_site("bonn"), "Task09_Spleen", **fields)]
    form = SitesForm({"datasets": [dataset.pk for dataset in datasets]}, experiment=draft)
    assert not form.is_valid()
    assert says in form.errors["datasets"][0]
    assert "Choose datasets with the same channels and labels." in form.errors["datasets"][0]


@pytest.mark.parametrize("value", ["99999", "one"])
def test_an_unknown_dataset_is_refused(draft, value):
    assert "datasets" in SitesForm({"datasets": [value]}, experiment=draft).errors


@pytest.mark.parametrize("unfit", ["retired", "gone"])
def test_a_dataset_that_is_not_offered_can_be_given_up_but_not_chosen(draft, unfit):
    site = make_site(retired_at=timezone.now() if unfit == "retired" else None)
    dataset = make_dataset(site, is_available=unfit != "gone")
    assert "datasets" in SitesForm({"datasets": [dataset.pk]}, experiment=draft).errors
    services.update_draft(experiment=draft, by=draft.owner, participants=[dataset])
    form = SitesForm(experiment=draft)
    card = next(card for card in form.cards() if card.site == site)
    assert card.takes_part
    assert card.problem or card.choices[0].problem


def test_the_cards_say_what_is_wrong_with_a_site_and_what_does_not_fit(draft):
    sick = make_site("sick", healthy=False)
    make_dataset(sick, problems=["Case 3 is damaged."])
    other = make_site("other")
    make_dataset(other, "Task09_Spleen", channels=["CT"], labels={"0": "background", "1": "spleen"})
    cards = {card.site.slug: card for card in SitesForm(experiment=draft).cards()}
    assert "was not checked yet" in cards["sick"].problem
    assert "Case 3 is damaged." in cards["sick"].choices[0].problem
    assert (
        cards["other"].choices[0].unlike.startswith("Another task: it has the channels CT; the chosen ones have FLAIR")
    )
    assert [card.takes_part for card in SitesForm(experiment=draft).cards()] == [True, True, True, False, False]


# --- comparison -------------------------------------------------------------------------------------


def comparison_form(draft, *baselines, **typed):
    return ComparisonForm(RIGHT["comparison"] | {"baselines": list(baselines)} | typed, experiment=draft)


def test_what_it_is_compared_with_is_kept_in_one_order(draft):
    assert comparison_form(draft, "cyclic", "pooled", "cyclic").save(draft.owner)
    draft.refresh_from_db()
    assert (draft.baselines, draft.compare_every, draft.repeats) == (["pooled", "cyclic"], 5, 3)
    assert comparison_form(draft, repeats="1").save(draft.owner)
    draft.refresh_from_db()
    assert (draft.baselines, draft.repeats) == ([], 1)


def test_a_baseline_that_cannot_be_is_closed_with_its_reason_and_refused(draft):
    Site.objects.filter(participations__experiment=draft).update(connector="airflow")
    closed = {choice.name: choice for choice in ComparisonForm(experiment=draft).choices}
    assert [name for name, choice in closed.items() if choice.is_closed] == ["pooled"]
    assert "may not leave the hospital" in closed["pooled"].problem
    form = comparison_form(draft, "pooled", "cyclic")
    assert not form.save(draft.owner)
    assert "may not leave the hospital" in form.errors["baselines"][0]
    draft.refresh_from_db()
    assert (draft.baselines, draft.repeats) == ([], 3)  # the rest was understood


def test_a_chosen_baseline_that_has_become_impossible_can_be_given_up_and_keeps_the_draft_from_starting(draft):
    assert comparison_form(draft, "local_only", "ensemble").save(draft.owner)
    draft.participations.exclude(pk=draft.participations.first().pk).delete()
    services.update_draft(experiment=draft, by=draft.owner, fields={"min_sites": 1})
    shown = {choice.name: choice for choice in ComparisonForm(experiment=draft).choices}
    assert [choice.is_closed for choice in shown.values()] == [True, False, False, True]
    assert "at least two sites" in shown["local_only"].problem
    [check] = [check for check in checklist(draft) if not check.ok]
    assert (check.section, len(check.problems)) == ("comparison", 1)
    assert comparison_form(draft).save(draft.owner)
    draft.refresh_from_db()
    assert all(check.ok for check in checklist(draft))
