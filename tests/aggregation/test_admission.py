"""What admission measures and what it refuses, with the key in the reason."""

import math

import numpy as np
import pytest

from fedportal.aggregation.admission import admit
from fedportal.aggregation.dtypes import DTYPES, narrowed
from fedportal.aggregation.errors import AggregationRefused
from fedportal.aggregation.weights import layout
from tests.aggregation.models import network, raw, save, write


def judged(tmp_path, update, reference=None, **options):
    base = save(tmp_path / "reference", network() if reference is None else reference)
    return admit(save(tmp_path / "update", update), base, **options)


def changed(key, value):
    return {**network(), key: value}


def test_a_good_update_is_admitted_with_its_distance(tmp_path):
    reference, update = network(0), network(1)
    verdict = judged(tmp_path, update, reference)
    keys = ("conv.weight", "norm.weight")
    old = np.concatenate([reference[k].ravel() for k in keys]).astype(float)
    new = np.concatenate([update[k].ravel() for k in keys]).astype(float)
    assert verdict.admitted
    assert verdict.reason == ""
    assert verdict.norm == pytest.approx(np.linalg.norm(new - old), rel=1e-12)
    assert verdict.relative_norm == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-12)
    assert verdict.cosine == pytest.approx(new @ old / np.linalg.norm(new) / np.linalg.norm(old), rel=1e-12)


def test_an_unchanged_model_has_distance_zero(tmp_path):
    verdict = judged(tmp_path, network())
    assert (verdict.admitted, verdict.norm, verdict.relative_norm) == (True, 0.0, 0.0)
    assert verdict.cosine == pytest.approx(1.0)


def test_an_update_in_another_order_of_bytes_is_admitted(tmp_path):
    reference = save(tmp_path / "reference", {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}, buffers=())
    text = (
        b'{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[3],"data_offsets":[8,20]}}'
    )
    values = np.array([0, 0, 1, 1, 1], np.float32)
    (tmp_path / "update").write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    assert admit(tmp_path / "update", reference) == admit(reference, reference)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({k: v for k, v in network().items() if k != "conv.weight"}, "lacks “conv.weight”"),
        (changed("surplus", np.zeros(1, np.float32)), "has “surplus”"),
        (changed("conv.weight", np.zeros((4, 2, 3, 3), np.float32)), "“conv.weight” is F32 4×2×3×3"),
        (changed("conv.weight", np.zeros((2, 4, 3, 3, 3), np.float32)), "“conv.weight” is F32 2×4×3×3×3"),
        (changed("conv.weight", np.zeros((4, 2, 3, 3, 3), np.float64)), "“conv.weight” is F64"),
        (changed("norm.num_batches_tracked", np.array(1, np.int32)), "“norm.num_batches_tracked” is I32 scalar"),
        (
            changed("norm.weight", np.array([0, np.nan, 0, 0], np.float32)),
            "“norm.weight” is not finite: its value number 2",
        ),
        (
            changed("norm.weight", np.array([0, 0, 0, -np.inf], np.float32)),
            "“norm.weight” is not finite: its value number 4",
        ),
        (changed("norm.running_var", np.array([np.inf, 0, 0, 0], np.float32)), "“norm.running_var” is not finite"),
        (changed("deep_supervision", np.array(False)), "“deep_supervision” is a fixed flag"),
    ],
)
def test_a_bad_update_is_refused_by_name(tmp_path, update, reason):
    verdict = judged(tmp_path, update)
    assert not verdict.admitted
    assert reason in verdict.reason


def test_many_missing_keys_are_counted_and_not_listed(tmp_path):
    reference = {f"layer{i}": np.zeros(1, np.float32) for i in range(50)}
    verdict = judged(tmp_path, {"layer0": np.zeros(1, np.float32)}, reference)
    assert verdict.reason == "It lacks “layer1”, “layer10”, “layer11” and 46 more."


def test_values_whose_squares_overflow_are_refused(tmp_path):
    huge = {"a": np.full(4, 1e200)}
    verdict = judged(tmp_path, huge, {"a": np.ones(4)})
    assert not verdict.admitted
    assert "“a” holds values too large" in verdict.reason


def test_an_update_beyond_the_limit_is_refused_and_measured(tmp_path):
    update = changed("norm.weight", network()["norm.weight"] + np.float32(1000))
    verdict = judged(tmp_path, update, max_relative_norm=2.0)
    assert not verdict.admitted
    assert "“norm.weight” moved most" in verdict.reason
    assert verdict.norm == pytest.approx(2000, rel=1e-3)
    assert judged(tmp_path, update, max_relative_norm=verdict.relative_norm).admitted


def test_buffers_and_counters_do_not_count_as_distance(tmp_path):
    update = {
        **network(),
        "norm.running_mean": np.full(4, 1e6, np.float32),
        "norm.num_batches_tracked": np.array(10**9),
    }
    assert judged(tmp_path, update, max_relative_norm=0.0).norm == 0.0


def test_a_model_of_zeros_has_a_finite_relative_distance(tmp_path):
    verdict = judged(tmp_path, {"a": np.array([3, 4], np.float32)}, {"a": np.zeros(2, np.float32)})
    assert (verdict.norm, verdict.relative_norm, verdict.cosine) == (5.0, 5.0, 0.0)


def test_a_broken_global_model_is_not_the_sites_fault(tmp_path):
    with pytest.raises(AggregationRefused, match="global model is not finite in “norm"):
        judged(tmp_path, network(), changed("norm.weight", np.full(4, np.nan, np.float32)))
    (tmp_path / "reference").write_bytes(b"")
    with pytest.raises(AggregationRefused, match="global model cannot be used"):
        admit(save(tmp_path / "update", network()), tmp_path / "reference")


def test_a_file_compared_with_itself_is_judged_alone(tmp_path):
    path = save(tmp_path / "state", changed("norm.weight", np.full(4, np.nan, np.float32)))
    assert "“norm.weight” is not finite" in admit(path, path).reason
    path.write_bytes(b"")
    assert "too short" in admit(path, path).reason


def test_bfloat16_updates_are_measured_by_value(tmp_path):
    header = layout([("a", DTYPES["BF16"], (2,))])
    for name, values in (("reference", [1.0, 0.0]), ("update", [1.0, 2.0]), ("broken", [1.0, math.nan])):
        write(tmp_path / name, header, [narrowed(np.array(values), DTYPES["BF16"])])
    assert admit(tmp_path / "update", tmp_path / "reference").norm == 2.0
    assert "“a” is not finite: its value number 2" in admit(tmp_path / "broken", tmp_path / "reference").reason
    assert raw(tmp_path / "reference")["a"].tolist() == [0x3F80, 0]


def test_a_hostile_key_stays_printable_and_short(tmp_path):
    key = "x\n\x1b[31m" + "y" * 5000
    verdict = judged(
        tmp_path, {"a": np.zeros(1, np.float32), key: np.zeros(1, np.float32)}, {"a": np.zeros(1, np.float32)}
    )
    assert verdict.reason.isprintable()
    assert len(verdict.reason) < 300
