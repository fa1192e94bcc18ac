"""What strategies declare, what forms may refuse, and that the port carries strategies still to come."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedportal.aggregation.errors import AggregationRefused
from fedportal.aggregation.strategies import STRATEGIES, FedAvg, complete_options, refusal
from fedportal.aggregation.weights import read_header
from tests.aggregation.models import BUFFERS, merged, network


class Momentum(FedAvg):
    """A server optimizer as one of the next strategies will be: it keeps a velocity per trained parameter."""

    name = "momentum"
    uses_server_state = True

    def slots(self, options):
        return {"velocity": 0.0}

    def step(self, model, combined, state, options):
        state["velocity"] *= 0.5
        state["velocity"] += combined - model
        np.add(model, state["velocity"], out=combined)


class Median(FedAvg):
    """A strategy that needs all sites' values at once."""

    name = "median"
    min_sites = 3
    weighted = False
    handles_buffers = False
    options = ()

    def counts(self, cases, options):
        return [min(count, 1) for count in cases]

    def combine(self, values, out):
        rows = np.stack([values.read(site).astype(np.float64) for site in range(len(values.weights))])
        np.median(rows, axis=0, out=out)


@pytest.fixture(autouse=True)
def more_strategies(monkeypatch):
    for strategy in (Momentum(), Median()):
        monkeypatch.setitem(STRATEGIES, strategy.name, strategy)


def test_the_registry_offers_fedavg_under_its_name():
    fedavg = STRATEGIES["fedavg"]
    assert (fedavg.name, fedavg.min_sites, fedavg.weighted, fedavg.uses_server_state) == ("fedavg", 1, True, False)
    assert "1602.05629" in fedavg.paper


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"strategy": "fedavg", "sites": 0}, "needs at least 1 sites"),
        ({"strategy": "median", "sites": 2}, "needs at least 3 sites, there are 2"),
        ({"strategy": "median", "sites": 3, "has_buffers": True}, "running statistics"),
        ({"strategy": "fedsgd", "sites": 3}, "There is no strategy 'fedsgd'"),
        ({"strategy": "fedavg", "sites": 3, "options": {"weighting": "size"}}, "one of cases, uniform, not 'size'"),
        ({"strategy": "fedavg", "sites": 3, "options": {"momentum": 0.9}}, "has no option 'momentum'"),
    ],
)
def test_senseless_combinations_are_refused_with_a_reason(arguments, reason):
    assert reason in refusal(**arguments)


def test_sensible_combinations_are_not_refused():
    assert refusal("fedavg", sites=1, options={"weighting": "uniform"}, has_buffers=True) is None
    assert refusal("median", sites=3) is None


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


def test_server_state_travels_from_round_to_round(tmp_path):
    start, sites = network(0), {"a": (network(1), 1), "b": (network(2), 1)}
    state = tmp_path / "state"
    common = {"reference": start, "strategy": "momentum", "state_out": state}
    first = load_file(merged(tmp_path, sites, **common).path)
    mean = (network(1)["conv.weight"].astype(float) + network(2)["conv.weight"]) / 2
    np.testing.assert_array_equal(
        first["conv.weight"], (start["conv.weight"] + (mean - start["conv.weight"])).astype("f4")
    )
    assert set(read_header(state).entries) == {"velocity.conv.weight", "velocity.norm.weight"}

    second = load_file(merged(tmp_path, sites, **common, state_in=state).path)
    velocity = 0.5 * (mean - start["conv.weight"]).astype(np.float32).astype(float) + (mean - start["conv.weight"])
    np.testing.assert_array_equal(second["conv.weight"], (start["conv.weight"] + velocity).astype(np.float32))


def test_buffers_and_counters_never_see_the_server_optimizer(tmp_path):
    sites = {"a": (network(1), 1), "b": (network(2), 1)}
    moved = load_file(merged(tmp_path, sites, reference=network(0), strategy="momentum", state_out=tmp_path / "s").path)
    plain = load_file(merged(tmp_path, sites, reference=network(0)).path)
    for key in (*BUFFERS, "norm.num_batches_tracked"):
        np.testing.assert_array_equal(moved[key], plain[key])


def test_a_state_that_does_not_fit_changes_nothing(tmp_path):
    merged(tmp_path, {"a": ({"w": np.ones(2, np.float32)}, 1)}, strategy="momentum", state_out=tmp_path / "state")
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(AggregationRefused, match="state of the last round does not fit"):
        merged(
            tmp_path,
            {"a": (network(), 1)},
            strategy="momentum",
            state_in=tmp_path / "state",
            state_out=tmp_path / "state",
        )
    assert (tmp_path / "state").read_bytes() == before
    with pytest.raises(AggregationRefused, match="needs a place"):
        merged(tmp_path, {"a": (network(), 1)}, strategy="momentum")


def test_a_median_sees_all_sites_values(tmp_path):
    sites = {f"s{i}": ({"w": np.array([i, -i, 1e9 * (i == 2)], np.float32)}, 1 + i) for i in range(3)}
    np.testing.assert_array_equal(load_file(merged(tmp_path, sites, strategy="median").path)["w"], [1, -1, 0])
