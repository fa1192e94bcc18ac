"""What strategies declare, what forms may refuse, and how their memory travels."""

import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedportal.aggregation.errors import AggregationRefused
from fedportal.aggregation.merge import Contribution, aggregate
from fedportal.aggregation.strategies import STRATEGIES, complete_options, plan_fields, refusal
from fedportal.aggregation.strategies.robust import trimmed_on_each_side
from tests.aggregation.models import BUFFERS, merged, network, read_header, save
from trainer.contract import TrainingPlan

NUMBERS = [(name, option) for name, strategy in STRATEGIES.items() for option in strategy.options if not option.choices]


def test_the_registry_offers_every_strategy_with_its_paper():
    assert list(STRATEGIES) == [
        "fedavg", "fedprox", "fedbn", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "median", "trimmed_mean",
    ]  # fmt: skip
    for name, strategy in STRATEGIES.items():
        assert strategy.name == name
        assert "arXiv:" in strategy.paper
        assert strategy.about.endswith(".")
        assert bool(strategy.slots(complete_options(strategy, {}))) == strategy.uses_server_state
        assert bool(strategy.why_min_sites) == (strategy.min_sites > 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"strategy": "fedavg", "sites": 0}, "needs at least 1 site in every round, not 0"),
        ({"strategy": "median", "sites": 2}, "needs at least 3 sites in every round, not 2: of two values"),
        (
            {"strategy": "trimmed_mean", "sites": 2},
            "needs at least 3 sites in every round, not 2: one value is cut off",
        ),
        ({"strategy": "fedsgd", "sites": 3}, "There is no strategy 'fedsgd'"),
        ({"strategy": "fedavg", "sites": 3, "options": {"weighting": "size"}}, "one of cases, uniform, not 'size'"),
        ({"strategy": "fedavg", "sites": 3, "options": {"momentum": 0.9}}, "has no option 'momentum'"),
        ({"strategy": "median", "sites": 3, "options": {"weighting": "cases"}}, "has no option 'weighting'"),
        ({"strategy": "fedbn", "sites": 3, "has_norm_entries": False}, "nothing to keep"),
        *(
            ({"strategy": name, "sites": 3, "treatment": "aggregate"}, "does not go with an averaged optimizer memory")
            for name in ("fedbn", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "median", "trimmed_mean")
        ),
    ],
)
def test_senseless_combinations_are_refused_with_a_reason(arguments, reason):
    assert reason in refusal(**arguments)


def test_sensible_combinations_are_not_refused():
    assert refusal("fedavg", sites=1, options={"weighting": "uniform"}, treatment="aggregate") is None
    assert refusal("fedprox", sites=1, treatment="aggregate", has_norm_entries=False) is None
    for name in STRATEGIES:
        assert refusal(name, sites=3, treatment="keep") is None


@pytest.mark.parametrize(("name", "option"), NUMBERS, ids=lambda value: getattr(value, "name", value))
def test_every_number_has_a_range_with_its_default_inside(name, option):
    assert math.isfinite(option.least)
    assert math.isfinite(option.most)
    assert option.least <= option.default <= option.most
    for value in (option.least, option.default, option.most):
        assert refusal(name, sites=3, options={option.name: value}) is None
    below, above = np.nextafter(option.least, -math.inf), np.nextafter(option.most, math.inf)
    for value in (below, above, math.nan, math.inf, True, "0.5", None):
        assert option.title in refusal(name, sites=3, options={option.name: value})


def test_a_trimmed_mean_never_trims_nothing_and_never_all():
    """Flower's trims nothing with four sites and a share of 0.2, and everything with a half of an even number."""
    (option,) = STRATEGIES["trimmed_mean"].options
    for sites in range(STRATEGIES["trimmed_mean"].min_sites, 200):
        for share in np.linspace(option.least, option.most, 49):
            assert 1 <= trimmed_on_each_side(sites, share) < sites / 2
    assert refusal("trimmed_mean", sites=4, options={"trim": 0.5})
    assert refusal("trimmed_mean", sites=4, options={"trim": 0.0})


@pytest.mark.parametrize(("sites", "share", "trimmed"), [(100, 0.29, 29), (4, 0.2, 1), (10, 0.2, 2), (5, 0.49, 2)])
def test_the_share_trimmed_is_rounded_down_but_not_by_floating_point(sites, share, trimmed):
    assert trimmed_on_each_side(sites, share) == trimmed


def test_what_the_sites_must_know_follows_from_the_strategy():
    rest = {"proximal_mu": 0.0, "local_layers": "none"}
    assert plan_fields("fedadam", {}) == rest
    assert plan_fields("fedprox", {"proximal_mu": 0.1}) == rest | {"proximal_mu": 0.1}
    assert plan_fields("fedbn", {}) == rest | {"local_layers": "normalisation"}
    assert rest.items() <= {name: getattr(TrainingPlan, name) for name in rest}.items()


def test_options_are_completed_with_defaults():
    assert complete_options(STRATEGIES["fedavg"], {}) == {"weighting": "cases"}
    with pytest.raises(AggregationRefused, match="Weighting"):
        complete_options(STRATEGIES["fedavg"], {"weighting": 3})


def test_the_merge_refuses_what_a_form_would_refuse(tmp_path):
    with pytest.raises(AggregationRefused, match="no strategy 'fedsgd'"):
        merged(tmp_path, {"a": (network(), 1)}, strategy="fedsgd")
    with pytest.raises(AggregationRefused, match="no option"):
        merged(tmp_path, {"a": (network(), 1)}, options={"surplus": 1})
    with pytest.raises(AggregationRefused, match="at least 3 sites"):
        merged(tmp_path, {"a": (network(), 1), "b": (network(1), 1)}, strategy="median")
    with pytest.raises(AggregationRefused, match="not 2"):  # a site that trained on no case has no voice
        merged(
            tmp_path, {name: (network(), cases) for name, cases in {"a": 1, "b": 1, "c": 0}.items()}, strategy="median"
        )


def test_server_state_travels_from_round_to_round(tmp_path):
    start, sites = network(0), {"a": (network(1), 1), "b": (network(2), 1)}
    state = tmp_path / "state"
    common = {"reference": start, "strategy": "fedavgm", "options": {"momentum": 0.5}, "state_out": state}
    first = load_file(merged(tmp_path, sites, **common).path)
    mean = (network(1)["conv.weight"].astype(float) + network(2)["conv.weight"]) / 2
    np.testing.assert_array_equal(
        first["conv.weight"], (start["conv.weight"] + (mean - start["conv.weight"])).astype("f4")
    )
    assert set(read_header(state).entries) == {"velocity.conv.weight", "velocity.norm.weight"}

    second = load_file(merged(tmp_path, sites, **common, state_in=state).path)
    velocity = 0.5 * (mean - start["conv.weight"]).astype(np.float32).astype(float) + (mean - start["conv.weight"])
    np.testing.assert_array_equal(second["conv.weight"], (start["conv.weight"] + velocity).astype(np.float32))


def test_layers_that_stay_at_the_sites_are_named_in_the_global_model_when_all_sites_say_so(tmp_path):
    """The updates decide, not the reference: a warm start may come from an experiment with other layers."""
    local = ("norm.weight", *BUFFERS)
    named, plain = save(tmp_path / "named", network(1), local=local), save(tmp_path / "plain", network(2))
    updates = {"all": [named, named], "one": [named, plain], "none": [plain, plain]}
    for reference in (named, plain):
        for who, paths in updates.items():
            aggregate(
                reference=reference,
                contributions=[Contribution(f"site-{number}", path, 1) for number, path in enumerate(paths)],
                strategy="fedbn",
                options={},
                state_in=None,
                out=tmp_path / "global",
                state_out=None,
            )
            header = read_header(tmp_path / "global")
            assert header.local == (set(local) if who == "all" else set())
            assert header.buffers == set(BUFFERS)


def test_buffers_and_counters_never_see_the_server_optimizer(tmp_path):
    sites = {"a": (network(1), 1), "b": (network(2), 1)}
    moved = load_file(merged(tmp_path, sites, reference=network(0), strategy="fedavgm", state_out=tmp_path / "s").path)
    plain = load_file(merged(tmp_path, sites, reference=network(0)).path)
    for key in (*BUFFERS, "norm.num_batches_tracked"):
        np.testing.assert_array_equal(moved[key], plain[key])


def test_a_state_that_does_not_fit_changes_nothing(tmp_path):
    merged(tmp_path, {"a": ({"w": np.ones(2, np.float32)}, 1)}, strategy="fedavgm", state_out=tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(AggregationRefused, match="state of the last round does not fit"):
        merged(
            tmp_path,
            {"a": (network(), 1)},
            strategy="fedavgm",
            state_in=tmp_path / "state",
            state_out=tmp_path / "state",
        )
    assert (tmp_path / "state").read_bytes() == before
    with pytest.raises(AggregationRefused, match="needs a place"):
        merged(tmp_path, {"a": (network(), 1)}, strategy="fedavgm")


def test_a_median_sees_all_sites_values(tmp_path):
    sites = {f"s{i}": ({"w": np.array([i, -i, 1e9 * (i == 2)], np.float32)}, 1 + i) for i in range(3)}
    np.testing.assert_array_equal(load_file(merged(tmp_path, sites, strategy="median").path)["w"], [1, -1, 0])
