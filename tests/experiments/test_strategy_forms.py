"""The composer's strategies: what each may be combined with, and what it tells the sites."""

from __future__ import annotations

import pytest

from fedportal.aggregation.strategies import STRATEGIES
from fedportal.experiments import services
from fedportal.experiments.forms import RecipeForm, RoundsForm
from fedportal.experiments.readiness import checklist
from fedportal.experiments.recipe import STRATEGY_SETTINGS, number_text
from tests.experiments.test_forms import RIGHT

pytestmark = pytest.mark.django_db


def rounds_form(draft, strategy, **typed):
    defaults = {setting.field: number_text(setting.default) for setting in STRATEGY_SETTINGS}
    return RoundsForm(RIGHT["rounds"] | defaults | {"min_sites": "3", "strategy": strategy} | typed, experiment=draft)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "fedbn"])
def test_every_strategy_can_be_chosen_with_its_defaults(draft, strategy):
    form = rounds_form(draft, strategy)
    assert form.save(draft.owner), form.errors
    draft.refresh_from_db()
    own = {o.name: o.default for o in STRATEGIES[strategy].options if o.name != "weighting"}
    assert (draft.strategy, draft.strategy_options) == (strategy, own)
    assert all(check.ok for check in checklist(draft))


@pytest.mark.parametrize(
    ("strategy", "option", "typed", "says"),
    [
        ("fedprox", "proximal_mu", "0", "greater than or equal to 1e-06"),
        ("fedprox", "proximal_mu", "11", "less than or equal to 10"),
        ("fedprox", "proximal_mu", "", "FedProx: proximal term μ is missing. Range 0.000001 to 10."),
        ("fedavgm", "learning_rate", "0", "greater than or equal to 0.0001"),
        ("fedavgm", "momentum", "1", "less than or equal to 0.999"),
        ("fedadam", "learning_rate", "fast", "Write a number with a decimal point"),
        ("fedadam", "beta1", "1", "less than or equal to 0.999"),
        ("fedadam", "beta2", "1", "less than or equal to 0.9999"),
        ("fedadam", "tau", "0", "greater than or equal to 1e-09"),
        ("fedyogi", "learning_rate", "11", "less than or equal to 10"),
        ("fedyogi", "beta1", "-1", "greater than or equal to 0"),
        ("fedyogi", "beta2", "nan", "Write a number with a decimal point"),
        ("fedyogi", "tau", "2", "less than or equal to 1"),
        ("fedadagrad", "learning_rate", "0", "greater than or equal to 1e-06"),
        ("fedadagrad", "beta1", "1", "less than or equal to 0.999"),
        ("fedadagrad", "tau", "0", "greater than or equal to 1e-09"),
        ("trimmed_mean", "trim", "0.5", "less than or equal to 0.49"),
    ],
)
def test_a_wrong_option_is_refused_and_matters_only_to_its_own_strategy(draft, strategy, option, typed, says):
    field = f"{strategy}_{option}"
    form = rounds_form(draft, strategy, **{field: typed})
    assert set(form.errors) == {field}
    assert says in form.errors[field][0]
    assert form[field].value() == typed
    assert rounds_form(draft, "fedavg", **{field: typed}).is_valid()


def test_every_option_has_a_refused_case():
    marks = test_a_wrong_option_is_refused_and_matters_only_to_its_own_strategy.pytestmark
    tried = {f"{case[0]}.{case[1]}" for mark in marks if mark.name == "parametrize" for case in mark.args[1]}
    assert {setting.name for setting in STRATEGY_SETTINGS} == tried


@pytest.mark.parametrize("strategy", ["median", "trimmed_mean"])
def test_a_robust_strategy_wants_three_updates_in_every_round(draft, strategy):
    form = rounds_form(draft, strategy, min_sites="2")
    assert list(form.errors) == ["strategy"]
    assert "needs at least 3 sites in every round, not 2" in form.errors["strategy"][0]


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedyogi", "fedadagrad", "median", "trimmed_mean"])
def test_an_averaged_optimizer_memory_does_not_go_with_it_whichever_is_chosen_first(draft, strategy):
    services.update_draft(experiment=draft, by=draft.owner, plan={"optimizer": {"treatment": "aggregate"}})
    draft.refresh_from_db()
    form = rounds_form(draft, strategy)
    assert "does not go with an averaged optimizer memory" in form.errors["strategy"][0]
    services.update_draft(
        experiment=draft, by=draft.owner, fields={"strategy": strategy}, plan={"optimizer": {"treatment": "reset"}}
    )
    draft.refresh_from_db()
    form = RecipeForm(RIGHT["recipe"] | {"optimizer_treatment": "aggregate"}, experiment=draft)
    assert list(form.errors) == ["optimizer_treatment"]
    assert STRATEGIES[strategy].title in form.errors["optimizer_treatment"][0]


def test_fedbn_wants_normalisation_layers_that_have_something_to_keep(draft):
    assert "nothing to keep" in rounds_form(draft, "fedbn").errors["strategy"][0]
    services.update_draft(experiment=draft, by=draft.owner, plan={"network": {"norm": "batch"}})
    draft.refresh_from_db()
    assert rounds_form(draft, "fedbn").save(draft.owner)
    draft.refresh_from_db()
    assert draft.plan["local_layers"] == "normalisation"
    assert all(check.ok for check in checklist(draft))
    form = RecipeForm(RIGHT["recipe"], experiment=draft)  # instance normalisation again
    assert "nothing to keep" in form.errors["network_norm"][0]


def test_what_the_sites_need_goes_when_another_strategy_comes(draft):
    assert rounds_form(draft, "fedprox", fedprox_proximal_mu="0.1").save(draft.owner)
    draft.refresh_from_db()
    assert draft.plan["proximal_mu"] == 0.1
    assert RoundsForm(experiment=draft)["fedprox_proximal_mu"].value() == "0.1"
    assert rounds_form(draft, "fedavg").save(draft.owner)
    draft.refresh_from_db()
    assert (draft.plan["proximal_mu"], draft.strategy_options) == (0.0, {})


def test_an_option_that_was_refused_keeps_its_last_value(draft):
    assert rounds_form(draft, "fedadam", fedadam_beta1="0.5").save(draft.owner)
    draft.refresh_from_db()
    assert not rounds_form(draft, "fedadam", fedadam_beta1="5", fedadam_tau="0.1").save(draft.owner)
    draft.refresh_from_db()
    assert (draft.strategy_options["beta1"], draft.strategy_options["tau"]) == (0.5, 0.1)
