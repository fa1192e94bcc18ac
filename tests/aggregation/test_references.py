"""Every strategy against an independent transcription of its paper, and against Flower's published code."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedportal.aggregation import merge
from fedportal.aggregation.strategies import STRATEGIES
from tests.aggregation.models import BUFFERS, merged
from tests.aggregation.references import Server, mean

ROUNDS = 4
CASES = {"a": 7, "b": 1, "c": 12, "d": 5, "e": 5}
CHANGED = {
    "fedprox": [{"proximal_mu": 0.5}],
    "fedavgm": [{"learning_rate": 0.5, "momentum": 0.0}, {"learning_rate": 2.0, "momentum": 0.5}],
    "fedadam": [{"learning_rate": 0.5, "beta1": 0.0, "beta2": 0.5, "tau": 0.1}, {"beta1": 0.99}],
    "fedyogi": [{"learning_rate": 0.5, "beta1": 0.5, "beta2": 0.9, "tau": 1e-6}],
    "fedadagrad": [{"learning_rate": 1.0, "beta1": 0.9, "tau": 0.01}],
    "trimmed_mean": [{"trim": 0.4}, {"trim": 0.01}],
}
SETTINGS = [(name, options) for name in STRATEGIES for options in [{}, *CHANGED.get(name, [])]]
ORDERED = [(name, {}) for name in STRATEGIES] + [("fedavg", {"weighting": "uniform"})]
WITH_MEMORY = [name for name, strategy in STRATEGIES.items() if strategy.uses_server_state]
WITHOUT_MEMORY = [name for name in STRATEGIES if name not in WITH_MEMORY]
GOLDEN = json.loads((Path(__file__).parent / "golden_flower.json").read_text())


def state(seed, kinds=("float32", "float64", "float16")):
    """A model with every kind of entry: parameters of three widths, one tied, a buffer, a counter, a flag."""
    random = np.random.default_rng(seed)
    tensors = {f"conv.{kind}": random.standard_normal((3, 4, 5)).astype(kind) for kind in kinds}
    tensors["tied"] = tensors["conv.float32"].copy()
    tensors["norm.running_mean"] = random.standard_normal(6).astype(np.float32)
    tensors["norm.running_var"] = random.random(6).astype(np.float32)
    tensors["norm.num_batches_tracked"] = np.array(random.integers(0, 2**40), np.int64)
    tensors["deep_supervision"] = np.array(True)
    return tensors


def defaults(name, options):
    return {option.name: option.default for option in STRATEGIES[name].options} | options


def run(folder, name, options, start, rounds, cases=CASES):
    """Yield (reference, updates, result) of each round; the updates do not depend on the model."""
    model, state_in = start, None
    for number in range(1, rounds + 1):
        updates = {site: state(100 * number + i) for i, site in enumerate(cases)}
        state_out = folder / f"state-{number}"
        result = merged(
            folder,
            {site: (tensors, cases[site]) for site, tensors in updates.items()},
            reference=model,
            strategy=name,
            options=options,
            state_in=state_in,
            state_out=state_out,
        )
        new = load_file(result.path)
        yield model, updates, new
        model, state_in = new, state_out if STRATEGIES[name].uses_server_state else None


@pytest.mark.parametrize(("name", "options"), SETTINGS)
@pytest.mark.parametrize("weighting", ["cases", "uniform"])
def test_every_strategy_is_its_paper(tmp_path, name, options, weighting):
    strategy = STRATEGIES[name]
    if strategy.weighted:
        options = options | {"weighting": weighting}
    counts = list(CASES.values()) if strategy.weighted and weighting == "cases" else [1] * len(CASES)
    servers: dict[str, Server] = {}
    for before, updates, after in run(tmp_path, name, options, state(0), ROUNDS):
        for key, value in after.items():
            sites = [update[key] for update in updates.values()]
            if key == "deep_supervision":
                assert value
            elif key == "norm.num_batches_tracked":
                assert value == max(site[()] for site in sites)
            elif key in BUFFERS and not strategy.merges_buffers:
                np.testing.assert_allclose(value, mean(sites, counts), rtol=1e-6)
            else:
                server = servers.setdefault(key, Server(name, defaults(name, options)))
                expected = server.round(before[key], sites, counts)
                # of values near 1: one that cancels to almost nothing carries the rounding of its summands
                relative, absolute = (1e-3, 1e-4) if value.dtype == np.float16 else (1e-6, 1e-7)
                np.testing.assert_allclose(
                    value.astype(np.float64), expected, rtol=relative, atol=absolute, err_msg=key
                )
        np.testing.assert_array_equal(after["tied"], after["conv.float32"])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["strategy"])
def test_every_strategy_that_flower_has_gives_flowers_numbers(tmp_path, case):
    model, state_in = np.array(GOLDEN["start"]), None
    for number, (updates, expected) in enumerate(zip(GOLDEN["updates"], case["results"], strict=True)):
        sites = {name: ({"w": np.array(values)}, GOLDEN["cases_per_site"][name]) for name, values in updates.items()}
        state_out = tmp_path / f"state-{number}"
        model = load_file(
            merged(
                tmp_path,
                sites,
                reference={"w": model},
                strategy=case["strategy"],
                options=case["options"],
                state_in=state_in,
                state_out=state_out,
            ).path
        )["w"]
        np.testing.assert_allclose(model, expected, rtol=1e-6)
        state_in = state_out if STRATEGIES[case["strategy"]].uses_server_state else None


@pytest.mark.parametrize(("name", "options"), ORDERED)
def test_any_order_of_arrival_gives_the_same_bytes_and_the_same_memory(tmp_path, name, options):
    results = set()
    for order in itertools.islice(itertools.permutations(CASES), 0, None, 17):
        memory = tmp_path / "memory"
        sites = {site: (state(i), CASES[site]) for i, site in enumerate(CASES)}
        result = merged(
            tmp_path,
            {site: sites[site] for site in order},
            reference=state(9),
            strategy=name,
            options=options,
            state_out=memory,
        )
        results.add((result.sha256, memory.read_bytes() if memory.exists() else b""))
    assert len(results) == 1


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_identical_updates_are_what_every_mean_gives_back(tmp_path, name):
    update = state(1)
    result = load_file(merged(tmp_path, {site: (update, n) for site, n in CASES.items()}, strategy=name).path)
    for key, value in update.items():
        assert result[key].tobytes() == value.tobytes()


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_server_optimizer_stays_where_it_is_when_the_sites_do(tmp_path, name):
    model = state(1)
    sites = {site: (model, n) for site, n in CASES.items()}
    result = merged(tmp_path, sites, reference=model, strategy=name, state_out=tmp_path / "state")
    after = load_file(result.path)
    assert all(after[key].tobytes() == value.tobytes() for key, value in model.items())


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_one_wrong_site_cannot_carry_the_model_or_its_buffers_away(tmp_path, name):
    wrong = {
        key: (value * 1e4).astype(value.dtype) if value.dtype.kind == "f" else value for key, value in state(5).items()
    }
    sites = {site: (state(i), 1) for i, site in enumerate("abcd")}
    after = load_file(merged(tmp_path, sites | {"z": (wrong, 1000)}, strategy=name).path)
    for key, value in after.items():
        if value.dtype.kind == "f":
            honest = np.stack([tensors[key] for tensors, _ in sites.values()])
            assert (honest.min(axis=0) <= value).all()
            assert (value <= honest.max(axis=0)).all()
    plain = load_file(merged(tmp_path, sites | {"z": (wrong, 1000)}).path)
    assert np.abs(plain["conv.float32"]).max() > 1000  # the mean is carried away


def test_running_variances_never_become_negative_under_a_server_optimizer(tmp_path):
    """Flower #1060, NVFlare #1718 and others: Adam at the server on a running variance makes it negative."""
    for name in ("fedadam", "fedyogi", "fedadagrad", "fedavgm"):
        for _, _, after in run(tmp_path, name, {"learning_rate": 5.0}, state(0), 3):
            assert (after["norm.running_var"] >= 0).all()


def test_a_median_is_computed_chunk_by_chunk(tmp_path, monkeypatch):
    sites = {site: (state(i), 1) for i, site in enumerate(CASES)}
    expected = merged(tmp_path, sites, strategy="median").sha256
    monkeypatch.setattr(merge, "CHUNK", 7)
    monkeypatch.setattr(merge, "BLOCK", 14)
    assert merged(tmp_path, sites, strategy="median", threads=3).sha256 == expected
