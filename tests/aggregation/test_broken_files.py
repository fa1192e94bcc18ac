"""A corpus of files that no honest trainer writes: each is refused with a reason and changes nothing."""

import json
import struct

import numpy as np
import pytest

from fedportal.aggregation.admission import admit
from fedportal.aggregation.errors import AggregationError, WeightsError
from fedportal.aggregation.merge import Contribution, aggregate
from fedportal.aggregation.weights import MAX_HEADER_BYTES
from tests.aggregation.models import network, read_header, save

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file(header, data=bytes(8), *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(**changes):
    return {"a": {**GOOD, **changes}}


BROKEN = {
    "no byte": (b"", "too short"),
    "a few bytes": (b"\x02\0\0\0\0\0\0\0{", "too short"),
    "another format": (b"PK\x03\x04" + bytes(100), "header"),
    "a pickle": (b"\x80\x02}q\0." + bytes(100), "header"),
    "not JSON": (file(b"not json at all"), "cannot be read"),
    "space before the header": (file(b" " + json.dumps(entry()).encode()), "cannot be read"),
    "UTF-16": (file(json.dumps(entry()).encode("utf-16")), "cannot be read"),
    "broken UTF-8": (file(b'{"\xff": 1}'), "cannot be read"),
    "lone surrogate as a key": (
        file(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
        "cannot be read",
    ),
    "a list": (file([1, 2]), "cannot be read"),
    "nested too deep": (file(b'{"a":' * 200_000), "cannot be read"),
    "a number of a million digits": (file(b'{"a":' + b"9" * 1_000_000 + b"}"), "cannot be read"),
    "NaN in the header": (file(b'{"a": NaN}'), "cannot be read"),
    "header longer than the file": (file(entry(), length=5000), "cut off"),
    "header bomb": (file(entry(), length=2**63), "claims"),
    "header of the largest number": (file(entry(), length=2**64 - 1), "claims"),
    "header just too large": (file(b"{" + b" " * MAX_HEADER_BYTES), "claims"),
    "duplicate key": (file(b'{"a": %s, "a": %s}' % ((json.dumps(GOOD).encode(),) * 2)), "“a” twice"),
    "duplicate field": (
        file(b'{"a": {"dtype": "F32", "dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}'),
        "twice",
    ),
    "metadata is a list": (file({"__metadata__": [], **entry()}), "metadata"),
    "metadata of numbers": (file({"__metadata__": {"a": 1}, **entry()}), "metadata"),
    "tensor is a number": (file({"a": 5}), "“a” is not a tensor"),
    "field missing": (file({"a": {"dtype": "F32", "shape": [2]}}), "“a” is not a tensor"),
    "surplus field": (file(entry(device="cuda")), "“a” is not a tensor"),
    "unknown format": (file(entry(dtype="F3")), "number format “F3”"),
    "format is a list": (file(entry(dtype=["F32"])), "number format"),
    "complex numbers": (file(entry(dtype="C64", shape=[1])), "number format “C64”"),
    "negative edge": (file(entry(shape=[-1, -2])), "no valid shape"),
    "fractional edge": (file(b'{"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}'), "cannot be read"),
    "boolean edge": (file(entry(shape=[True, 2])), "no valid shape"),
    "shape is a text": (file(entry(shape="2")), "no valid shape"),
    "too many dimensions": (file(entry(shape=[1] * 100 + [2])), "no valid shape"),
    "huge declared size": (file(entry(shape=[2**40, 2**40], data_offsets=[0, 8])), "does not fit"),
    "size that wraps to 8 in 64 bits": (file(entry(shape=[2**62 + 2])), "does not fit"),
    "offsets beyond the file": (file(entry(shape=[2**20], data_offsets=[0, 2**22])), "outside the file"),
    "offsets backwards": (file(entry(data_offsets=[8, 0])), "outside the file"),
    "negative offset": (file(entry(data_offsets=[-8, 0])), "no valid place"),
    "one offset": (file(entry(data_offsets=[0])), "no valid place"),
    "overlap": (file({"a": GOOD, "b": {**GOOD, "data_offsets": [4, 12]}}, bytes(12)), "“b” overlaps"),
    "same place twice": (file({"a": GOOD, "b": GOOD}), "overlaps"),
    "empty tensor inside another": (
        file({"a": GOOD, "b": {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]}}),
        "“b” overlaps",
    ),
    "gap": (file(entry(data_offsets=[8, 16]), bytes(16)), "gap"),
    "trailing bytes": (file(entry(), bytes(9)), "1 bytes that belong to no tensor"),
    "truncated data": (file(entry(), bytes(7)), "outside the file"),
    "shape does not fit the bytes": (file(entry(shape=[3])), "does not fit"),
}


@pytest.fixture
def reference(tmp_path):
    return save(tmp_path / "reference", {"a": np.ones(2, np.float32)}, buffers=())


@pytest.mark.parametrize("name", BROKEN)
def test_the_reader_refuses_with_a_reason(tmp_path, name):
    data, reason = BROKEN[name]
    (tmp_path / "broken").write_bytes(data)
    with pytest.raises(WeightsError, match=reason) as caught:
        read_header(tmp_path / "broken")
    assert str(tmp_path) not in caught.value.reason
    assert caught.value.reason.endswith(".")


@pytest.mark.parametrize("name", BROKEN)
def test_admission_says_why_and_does_not_raise(tmp_path, reference, name):
    (tmp_path / "broken").write_bytes(BROKEN[name][0])
    verdict = admit(tmp_path / "broken", reference)
    assert not verdict.admitted
    assert BROKEN[name][1].split()[-1].strip("“”") in verdict.reason


@pytest.mark.parametrize("name", BROKEN)
def test_a_merge_with_a_broken_file_leaves_the_last_model(tmp_path, reference, name):
    (tmp_path / "broken").write_bytes(BROKEN[name][0])
    (tmp_path / "global").write_bytes(b"the last model")
    with pytest.raises(AggregationError, match="site b"):
        aggregate(
            reference=reference,
            contributions=[Contribution("a", reference, 1), Contribution("b", tmp_path / "broken", 1)],
            strategy="fedavg",
            options={},
            state_in=None,
            out=tmp_path / "global",
            state_out=None,
        )
    assert (tmp_path / "global").read_bytes() == b"the last model"
    assert {path.name for path in tmp_path.iterdir()} == {"reference", "broken", "global"}


def test_a_file_cut_at_any_byte_is_refused(tmp_path):
    whole = save(tmp_path / "whole", network()).read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(WeightsError):
            read_header(tmp_path / "cut")


def test_a_folder_or_a_missing_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(WeightsError):
            read_header(path)


def test_many_repeated_keys_are_refused_in_no_time(tmp_path):
    pair = b'"a":1,'
    (tmp_path / "broken").write_bytes(file(b"{" + pair * 1_000_000 + b'"b":1}'))
    with pytest.raises(WeightsError, match="twice"):
        read_header(tmp_path / "broken")
