"""The merge: properties that hold for any updates, and the rules for each role of an entry."""

import hashlib
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.numpy import load_file

from fedportal.aggregation import merge
from fedportal.aggregation.dtypes import DTYPES, narrowed, widened
from fedportal.aggregation.errors import AggregationRefused, NothingToAggregate, WeightsError
from fedportal.aggregation.merge import Contribution, aggregate
from fedportal.aggregation.weights import layout
from tests.aggregation.models import BUFFERS, merged, network, raw, read_header, save, write

KINDS = ("float16", "float32", "float64")
LARGEST = {"float16": 6e4, "float32": 3e38, "float64": 1e150}


SHARED_MEMORY = Path("/dev/shm")
QUICK = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
"""Where the properties write their many small files: on a disk, fsync would be most of the time."""


def site_names(count):
    return [f"site-{number}" for number in range(count)]


@st.composite
def updates(draw, kinds=KINDS):
    """Return 1 to 6 updates of one small layout (two keys), each with 1 to 500 cases."""
    kind = draw(st.sampled_from(kinds))
    width = np.dtype(kind).itemsize * 8
    limit = float(np.dtype(kind).type(LARGEST[kind]))
    values = st.floats(min_value=-limit, max_value=limit, width=width)
    shapes = {"a": draw(arrays.array_shapes(max_dims=3, max_side=4)), "b": ()}
    one = st.fixed_dictionaries({key: arrays.arrays(kind, shape, elements=values) for key, shape in shapes.items()})
    sites = draw(st.lists(st.tuples(one, st.integers(1, 500)), min_size=1, max_size=6))
    return dict(zip(site_names(len(sites)), sites, strict=True))


def bytes_of(sites, **options):
    with TemporaryDirectory(dir=QUICK) as name:
        return merged(Path(name), sites, **options).path.read_bytes()


def values_of(sites, **options):
    with TemporaryDirectory(dir=QUICK) as name:
        return load_file(merged(Path(name), sites, **options).path)


few = settings(max_examples=60, deadline=None)


@few
@given(updates(), st.randoms(use_true_random=False))
def test_any_order_of_arrival_gives_the_same_bytes(sites, random):
    order = list(sites)
    random.shuffle(order)
    assert bytes_of({name: sites[name] for name in order}, reference=sites["site-0"][0]) == bytes_of(sites)


def test_sums_that_depend_on_their_order_come_out_the_same():
    sites = {
        name: ({"w": np.random.default_rng(seed).standard_normal(500)}, 3 + seed)
        for seed, name in enumerate(site_names(4))
    }
    every = {bytes_of({name: sites[name] for name in order}) for order in itertools.permutations(sites)}
    assert len(every) == 1
    products = [tensors["w"] * (count / 18) for tensors, count in sites.values()]
    sums = {sum(products[i] for i in order).tobytes() for order in itertools.permutations(range(4))}
    assert len(sums) > 1  # these numbers would have shown it


@few
@given(updates(), st.integers(2, 7))
def test_identical_updates_are_a_fixed_point(sites, count):
    tensors, cases = sites["site-0"]
    same = {name: (tensors, cases + number) for number, name in enumerate(site_names(count))}
    for key, value in values_of(same).items():
        assert value.tobytes() == tensors[key].tobytes()


@few
@given(updates())
def test_every_element_lies_between_the_sites_elements(sites):
    for key, value in values_of(sites).items():
        stack = np.stack([tensors[key] for tensors, _ in sites.values()])
        assert (stack.min(axis=0) <= value).all()
        assert (value <= stack.max(axis=0)).all()


@few
@given(updates(), st.integers(2, 1000))
def test_scaling_all_cases_changes_nothing(sites, factor):
    scaled = {name: (tensors, cases * factor) for name, (tensors, cases) in sites.items()}
    assert bytes_of(scaled) == bytes_of(sites)


@few
@given(updates(), st.integers(1, 100))
def test_uniform_weighting_is_the_same_as_equal_cases(sites, cases):
    equal = {name: (tensors, cases) for name, (tensors, _) in sites.items()}
    assert bytes_of(sites, options={"weighting": "uniform"}) == bytes_of(equal, options={"weighting": "cases"})


@few
@given(updates(kinds=("float16", "float32")))
def test_the_mean_equals_an_independent_one(sites):
    cases = [count for _, count in sites.values()]
    shares = np.array(cases, np.float64) / sum(cases)
    for key, value in values_of(sites).items():
        stack = np.stack([tensors[key].astype(np.float64) for tensors, _ in sites.values()])
        expected = np.tensordot(shares, stack, axes=1)
        spacing = np.spacing(np.abs(expected).astype(value.dtype)).astype(np.float64)
        cancelled = 1e-14 * np.abs(stack).max(axis=0)
        assert (np.abs(value.astype(np.float64) - expected) <= 0.5 * spacing + cancelled).all()


@few
@given(updates())
def test_tied_tensors_stay_tied(sites):
    tied = {name: ({**tensors, "tied": tensors["a"]}, cases) for name, (tensors, cases) in sites.items()}
    result = values_of(tied)
    assert result["tied"].tobytes() == result["a"].tobytes()
    assert result["a"].tobytes() == values_of(sites)["a"].tobytes()


@few
@given(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(1, 9)), min_size=1, max_size=5))
def test_counters_take_the_maximum(counts):
    sites = {f"s{i}": ({"n": np.array(count, np.int64)}, cases) for i, (count, cases) in enumerate(counts)}
    assert values_of(sites)["n"] == max(count for count, _ in counts)


def test_each_role_has_its_rule(tmp_path):
    reference = {**network(9), "deep_supervision": np.array(False)}
    sites = {"a": (network(0), 1), "b": (network(1), 3)}
    result = load_file(merged(tmp_path, sites, reference=reference).path)
    for key in ("conv.weight", "norm.weight", *BUFFERS):
        expected = (network(0)[key].astype(float) + 3 * network(1)[key].astype(float)) / 4
        np.testing.assert_array_equal(result[key], expected.astype(np.float32))
    assert result["norm.num_batches_tracked"] == 11
    assert not result["deep_supervision"]


def test_the_result_is_a_model_of_the_next_round(tmp_path):
    sites = {"a": (network(0), 1)}
    path = merged(tmp_path, sites).path
    assert read_header(path).round == 1
    assert read_header(path).buffers == set(BUFFERS)
    assert read_header(merged(tmp_path, sites, round=7).path).round == 7


def test_shares_add_up_and_name_every_site(tmp_path):
    result = merged(tmp_path, {"b": (network(1), 1), "c": (network(2), 0), "a": (network(0), 3)})
    assert result.weights == {"a": 0.75, "b": 0.25, "c": 0.0}
    assert list(result.weights) == ["a", "b", "c"]


def test_digest_and_size_are_those_of_the_file(tmp_path):
    result = merged(tmp_path, {"b": (network(1), 1)})
    data = result.path.read_bytes()
    assert (result.sha256, result.size) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("weighting", ["cases", "uniform"])
def test_a_site_without_cases_has_no_part(tmp_path, weighting):
    wild = {key: (value if value.dtype == bool else value * 99) for key, value in network(5).items()}
    with_it = merged(
        tmp_path, {"a": (network(0), 2), "b": (network(1), 2), "idle": (wild, 0)}, options={"weighting": weighting}
    )
    first = with_it.path.read_bytes()
    assert first == bytes_of({"a": (network(0), 2), "b": (network(1), 2)})


@pytest.mark.parametrize("weighting", ["cases", "uniform"])
def test_no_case_at_all_is_nothing_to_aggregate(tmp_path, weighting):
    with pytest.raises(NothingToAggregate, match="at least one case"):
        merged(tmp_path, {"a": (network(0), 0), "b": (network(1), 0)}, options={"weighting": weighting})
    with pytest.raises(NothingToAggregate):
        merged(tmp_path, {}, reference=network())


@pytest.mark.parametrize("cases", [-1, 10**8, True, 1.5])
def test_impossible_numbers_of_cases_are_refused(tmp_path, cases):
    with pytest.raises(AggregationRefused, match="Site b"):
        merged(tmp_path, {"a": (network(0), 1), "b": (network(1), cases)})
    assert not (tmp_path / "global").exists()


def test_a_site_counts_once(tmp_path):
    path = save(tmp_path / "model", network())
    twice = [Contribution("a", path, 1), Contribution("a", path, 2)]
    with pytest.raises(AggregationRefused, match="Site a contributes twice"):
        aggregate(
            reference=path,
            contributions=twice,
            strategy="fedavg",
            options={},
            state_in=None,
            out=tmp_path / "out",
            state_out=None,
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conv.weight": np.zeros((1,), np.float32)}, "site b does not fit. “conv.weight” is F32 1"),
        ({"surplus": np.zeros((1,), np.float32)}, "site b does not fit. It has “surplus”"),
        ({"norm.weight": np.full(4, np.nan, np.float32)}, "would not be finite in “norm.weight”"),
        ({"norm.running_mean": np.full(4, np.inf, np.float32)}, "would not be finite in “norm.running_mean”"),
    ],
)
def test_what_admission_should_have_refused_is_refused_here_too(tmp_path, change, reason):
    (tmp_path / "global").write_bytes(b"the last model")
    with pytest.raises(AggregationRefused) as caught:
        merged(tmp_path, {"a": (network(0), 1), "b": ({**network(1), **change}, 1)})
    assert reason in caught.value.reason
    assert (tmp_path / "global").read_bytes() == b"the last model"
    assert not list(tmp_path.glob(".*"))


def test_a_broken_reference_is_named(tmp_path):
    good = save(tmp_path / "good", network())
    (tmp_path / "bad").write_bytes(b"bad")
    with pytest.raises(WeightsError, match="global model cannot be used"):
        aggregate(
            reference=tmp_path / "bad",
            contributions=[Contribution("a", good, 1)],
            strategy="fedavg",
            options={},
            state_in=None,
            out=tmp_path / "out",
            state_out=None,
        )


def test_threads_and_the_size_of_chunks_change_no_bit(tmp_path, monkeypatch):
    sites = {name: (network(number), 3 + number) for number, name in enumerate(site_names(5))}
    expected = merged(tmp_path, sites).sha256
    for (chunk, block), threads in itertools.product([(1, 1), (3, 6), (64, 64)], [1, 2, 4]):
        monkeypatch.setattr(merge, "CHUNK", chunk)
        monkeypatch.setattr(merge, "BLOCK", block)
        assert merged(tmp_path, sites, threads=threads).sha256 == expected


def test_a_tensor_longer_than_a_block_is_merged_whole(tmp_path):
    length = 2 * merge.BLOCK + merge.CHUNK + 17
    sites = {
        name: ({"a": np.random.default_rng(seed).random(length, np.float32)}, seed + 1)
        for seed, name in enumerate(["x", "y", "z"])
    }
    result = load_file(merged(tmp_path, sites).path)["a"]
    expected = sum(t["a"].astype(float) * n for t, n in sites.values()) / 6
    np.testing.assert_array_equal(result, expected.astype(np.float32))


def test_zero_keeps_its_sign(tmp_path):
    sites = {name: ({"a": np.array([-0.0, 0.0], np.float32)}, 2) for name in ("x", "y")}
    np.testing.assert_array_equal(np.signbit(load_file(merged(tmp_path, sites).path)["a"]), [True, False])


def test_empty_tensors_and_models_pass_through(tmp_path):
    sites = {"x": ({"none": np.zeros((0, 3), np.float32)}, 1)}
    assert load_file(merged(tmp_path, sites).path)["none"].shape == (0, 3)


def test_bfloat16_is_averaged_in_float64_and_rounded_once(tmp_path):
    header = layout([("a", DTYPES["BF16"], (1000,))])
    columns = []
    contributions = []
    for seed, cases in enumerate((1, 2, 4)):
        bits = narrowed(np.random.default_rng(seed).standard_normal(1000), DTYPES["BF16"])
        columns.append(widened(bits, DTYPES["BF16"]).astype(float) * cases)
        write(tmp_path / f"{seed}", header, [bits])
        contributions.append(Contribution(f"s{seed}", tmp_path / f"{seed}", cases))
    result = aggregate(
        reference=tmp_path / "0",
        contributions=contributions,
        strategy="fedavg",
        options={},
        state_in=None,
        out=tmp_path / "out",
        state_out=None,
    )
    np.testing.assert_array_equal(raw(result.path)["a"], narrowed(sum(columns) / 7, DTYPES["BF16"]))


def test_averaged_optimizer_state_keeps_second_moments_positive(tmp_path):
    def moments(seed):
        random = np.random.default_rng(seed)
        return {
            "exp_avg.w": random.standard_normal(20).astype(np.float32),
            "exp_avg_sq.w": random.random(20).astype(np.float32) ** 8,
            "step.w": np.array(12.0 + seed, np.float32),
        }

    sites = {"a": (moments(0), 5), "b": (moments(1), 2)}
    result = load_file(merged(tmp_path, sites, round=4).path)
    assert (result["exp_avg_sq.w"] >= 0).all()
    assert result["step.w"] == np.float32((12 * 5 + 13 * 2) / 7)
    assert read_header(tmp_path / "global").round == 4
