"""What others write is read with care: whatever cannot be stored or repeated is refused where it comes in."""

from __future__ import annotations

import json

import pytest

from tests.contract.documents import MANIFEST
from trainer.contract import (
    ContractError,
    manifest_from_json,
    metric_from_json,
    signed,
    verified,
)
from trainer.contract.checks import read_json, storable

KEY = "ab" * 32
METRIC = {"phase": "train", "name": "loss", "value": 0.5}
HUGE = int("9" * 400)


@pytest.mark.parametrize(
    "text", ['"é💥"', '"\\ud83d\\udca5"', r'"\\u0000 is an escape"', '{"a": [1, null, true]}', "1e308"]
)
def test_what_others_may_write_is_read_as_it_is(text):
    assert read_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"NaN", "not JSON"),
        (b'{"a": -Infinity}', "not JSON"),
        (b"\xff\xfe1\x00", "not JSON"),
        (b"\xef\xbb\xbf1", "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ["\\u0000"]}', "character"),
        (b'{"\\u0000": 1}', "character"),
        (b'[{"a": "\\uD800"}]', "character"),
        (b'"\\udca5\\ud83d"', "character"),
    ],
)
def test_what_nobody_can_store_or_repeat_is_refused(data, why):
    with pytest.raises(ContractError, match=why):
        read_json(data)


@pytest.mark.parametrize("part", [b",[]", b",{}"])
def test_parts_without_end_are_not_even_parsed(part):
    """A few megabytes of them would take some hundred to hold."""
    with pytest.raises(ContractError, match="too many lists and objects"):
        read_json(b"[0" + part * 500_000 + b"]")


def test_a_signature_does_not_make_a_text_of_what_is_none():
    with pytest.raises(ContractError):
        verified(signed({"message": "\0"}, KEY), KEY)


@pytest.mark.parametrize(
    "name", ["train_cases", "validation_cases", "copies", "steps", "round", "attempt", "exit_code"]
)
@pytest.mark.parametrize("value", [-1, 2**31, HUGE, True, 1.0, "1", None])
def test_a_count_that_no_column_holds_is_refused(name, value):
    with pytest.raises(ContractError):
        manifest_from_json(MANIFEST.to_json() | {name: value})


@pytest.mark.parametrize("size", [0, -1, 2**63, HUGE, "10", None])
def test_a_size_that_no_object_has_is_refused(size):
    with pytest.raises(ContractError):
        manifest_from_json(MANIFEST.to_json() | {"update": {"sha256": "0" * 64, "size": size, "etags": []}})


@pytest.mark.parametrize("name", ["value", "step", "progress", "cases", "at"])
def test_a_number_that_no_float_holds_is_refused(name):
    with pytest.raises(ContractError):
        metric_from_json(METRIC | {name: HUGE})


def test_seconds_that_no_float_holds_are_refused():
    with pytest.raises(ContractError):
        manifest_from_json(MANIFEST.to_json() | {"seconds": {"train": HUGE}})


def test_words_of_others_are_kept_but_for_what_is_no_text():
    document = {"a\0": ["x\0y", 1, None, ("\ud800",)], 2: "é💥"}
    assert storable(document) == {
        "a\N{REPLACEMENT CHARACTER}": ["x\N{REPLACEMENT CHARACTER}y", 1, None, ["?"]],
        2: "é💥",
    }
