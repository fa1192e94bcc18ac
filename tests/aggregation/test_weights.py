"""The reader and the writer against the safetensors library, and the rounding against exact arithmetic."""

import errno
import json
import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from fedportal.aggregation.dtypes import DTYPES, narrowed, widened
from fedportal.aggregation.errors import WeightsError
from fedportal.aggregation.weights import Role, WeightsFile, WeightsWriter, layout
from tests.aggregation.models import network, note, read_header, write
from tests.aggregation.models import save as save_model

NUMPY = {"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "F16": "f2", "U32": "u4", "I32": "i4"}
NUMPY |= {"F32": "f4", "U64": "u8", "I64": "i8", "F64": "f8"}


def everything():
    random = np.random.default_rng(7)
    tensors = {f"of-{name}": (random.random((2, 3)) * 100).astype(kind) for name, kind in NUMPY.items()}
    return tensors | {"scalar": np.array(1.5, "f4"), "empty": np.zeros((0, 3), "f4"), 'ä "quoted"\n': np.ones(1, "f4")}


def write_all(path, tensors, *, buffers=(), round=0):
    names = {np.dtype(kind): name for name, kind in NUMPY.items()}
    header = layout(
        ((key, DTYPES[names[t.dtype]], t.shape) for key, t in tensors.items()), buffers=buffers, round=round
    )
    write(path, header, (tensors[key] for key in header.entries))


def test_a_written_file_is_byte_for_byte_what_the_library_writes(tmp_path):
    tensors = everything()
    write_all(tmp_path / "ours", tensors, buffers=["scalar"], round=3)
    theirs = save(tensors, {"fedportal": '{"buffers":["scalar"],"round":3}'})
    assert (tmp_path / "ours").read_bytes() == theirs


def test_the_library_reads_what_was_written(tmp_path):
    tensors = everything()
    write_all(tmp_path / "ours", tensors)
    loaded = load_file(tmp_path / "ours")
    assert loaded.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(loaded[key], value)


def test_the_order_in_which_tensors_are_named_changes_no_byte(tmp_path):
    tensors = everything()
    write_all(tmp_path / "a", tensors, buffers=["scalar", "empty"])
    write_all(tmp_path / "b", dict(reversed(tensors.items())), buffers=["empty", "scalar"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_reader_agrees_with_the_library(tmp_path):
    tensors = everything()
    save_file(tensors, tmp_path / "theirs")
    with WeightsFile(tmp_path / "theirs") as weights:
        assert weights.header.size == (tmp_path / "theirs").stat().st_size
        for key, value in tensors.items():
            stored = np.empty(value.shape, weights.header.entries[key].dtype.stored)
            weights.read_into(stored, weights.header.entries[key])
            np.testing.assert_array_equal(stored.view(value.dtype), value)


def test_chunks_join_to_the_tensor_whatever_their_size(tmp_path):
    values = np.arange(10, dtype=np.float32)
    save_file({"a": np.zeros(3, np.float32), "b": values}, tmp_path / "theirs")
    with WeightsFile(tmp_path / "theirs") as weights:
        for size in (1, 3, 10, 99):
            np.testing.assert_array_equal(np.concatenate([c.copy() for c in weights.chunks("b", size)]), values)


def test_entries_have_roles(tmp_path):
    header = read_header(save_model(tmp_path / "model", network(), round=4))
    roles = {key: header.role(entry) for key, entry in header.entries.items()}
    assert roles == {
        "conv.weight": Role.PARAMETER,
        "norm.weight": Role.PARAMETER,
        "norm.running_mean": Role.BUFFER,
        "norm.running_var": Role.BUFFER,
        "norm.num_batches_tracked": Role.COUNTER,
        "deep_supervision": Role.FLAG,
    }
    assert header.round == 4


def test_a_file_without_our_note_has_parameters_only(tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model")
    header = read_header(tmp_path / "model")
    assert header.role(header.entries["a"]) is Role.PARAMETER
    assert header.round == 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"buffers":[1],"round":0}', '{"buffers":[],"round":true}', "[" * 9999]
)
def test_an_unreadable_note_is_reported(tmp_path, text):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model", {"fedportal": text})
    with pytest.raises(WeightsError, match="buffers and round"):
        _ = read_header(tmp_path / "model").buffers


def test_what_was_not_committed_leaves_what_was_there(tmp_path):
    (tmp_path / "model").write_bytes(b"before")
    with WeightsWriter(tmp_path / "model", layout([("a", DTYPES["F32"], (4,))])) as writer:
        writer.write(np.zeros(2, np.float32), 0)
    assert (tmp_path / "model").read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_disk_without_room_for_the_header_is_left_without_a_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"), WeightsWriter(tmp_path / "model", layout([])):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_while_writing_leaves_no_file(tmp_path):
    def tensors():
        yield np.zeros(2, np.float32)
        raise RuntimeError("the site's disk")

    with pytest.raises(RuntimeError, match="disk"):
        write(tmp_path / "model", layout([("a", DTYPES["F32"], (2,)), ("b", DTYPES["F32"], (2,))]), tensors())
    assert not list(tmp_path.iterdir())


def test_a_file_that_shrinks_under_the_reader_is_reported(tmp_path):
    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "model")
    with WeightsFile(tmp_path / "model") as weights:
        with (tmp_path / "model").open("rb+") as file:
            file.truncate(weights.header.data_start + 10)
        with pytest.raises(WeightsError, match="ends in the middle"):
            list(weights.chunks("a"))


def test_metadata_is_the_one_key_of_the_contract(tmp_path):
    write_all(tmp_path / "ours", {"a": np.zeros(1, np.float32)}, buffers=["b", "a"], round=2)
    metadata = read_header(tmp_path / "ours").metadata
    assert metadata.keys() == note().keys()
    assert json.loads(metadata["fedportal"]) == {"buffers": ["a", "b"], "round": 2}


# --- rounding: compared with exact rational arithmetic ----------------------------------------------


def nearest(value: float, *, bits: int, least_exponent: int) -> Fraction:
    """Round to ``bits`` significant bits, ties to even, spacing never below 2**least_exponent."""
    exact = Fraction(value)
    if not exact:
        return exact
    exponent = max(np.frexp(value)[1] - bits, least_exponent)
    return Fraction(round(exact / Fraction(2) ** int(exponent))) * Fraction(2) ** int(exponent)


MODERATE = st.floats(min_value=-1e38, max_value=1e38, allow_subnormal=True)


@given(st.lists(MODERATE | st.floats(min_value=-1e-37, max_value=1e-37), min_size=1, max_size=20))
def test_bfloat16_is_rounded_once_to_the_nearest(values):
    bits = narrowed(np.array(values), DTYPES["BF16"])
    back = widened(bits, DTYPES["BF16"])
    assert [Fraction(float(v)) for v in back] == [nearest(v, bits=8, least_exponent=-133) for v in values]


@given(st.lists(MODERATE, min_size=1, max_size=20))
def test_float32_is_rounded_once_to_the_nearest(values):
    back = narrowed(np.array(values), DTYPES["F32"])
    assert [Fraction(float(v)) for v in back] == [nearest(v, bits=24, least_exponent=-149) for v in values]


@given(st.lists(st.floats(min_value=-65000, max_value=65000), min_size=1, max_size=20))
def test_float16_is_rounded_once_to_the_nearest(values):
    back = narrowed(np.array(values), DTYPES["F16"])
    assert [Fraction(float(v)) for v in back] == [nearest(v, bits=11, least_exponent=-24) for v in values]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_beside_a_tie_is_not_rounded_twice(sign):
    # float32 would drop the last part and make these ties, which bfloat16 would then round to the even neighbour
    beside = sign * np.array([1 + 2**-8 + 2**-40, 1 + 2**-8 - 2**-40, 1 + 3 * 2**-8 - 2**-40, 1 + 3 * 2**-8 + 2**-40])
    rounded = widened(narrowed(beside, DTYPES["BF16"]), DTYPES["BF16"])
    np.testing.assert_array_equal(rounded, sign * np.array([1 + 2**-7, 1, 1 + 2**-7, 1 + 2**-6]))


def test_every_bfloat16_comes_back_as_it_was():
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        values = widened(bits, DTYPES["BF16"]).astype(np.float64)
    back = narrowed(values, DTYPES["BF16"])
    finite = np.isfinite(values)
    np.testing.assert_array_equal(back[finite], bits[finite])
    np.testing.assert_array_equal(back[np.isinf(values)], bits[np.isinf(values)])
    assert np.isnan(widened(back[np.isnan(values)], DTYPES["BF16"])).all()


def test_what_is_too_large_becomes_infinite():
    for name in ("BF16", "F16", "F32"):
        back = widened(narrowed(np.array([1e39, -1e39, 1e300]), DTYPES[name]), DTYPES[name])
        np.testing.assert_array_equal(back.astype(float), [np.inf, -np.inf, np.inf])
