"""Names, keys and signatures; the documents survive their way over the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.documents import (
    EVALUATED,
    EVALUATION,
    KEY,
    MANIFEST,
    NAME,
    SOMEBODY,
    SOMEBODY_ELSE,
    SPEC,
    through_json,
)
from trainer.contract import (
    EXPLANATIONS,
    ContractError,
    Exit,
    LaunchTicket,
    attempt_key,
    attempt_prefix,
    case_key,
    case_pseudonym,
    check_name,
    global_model_key,
    manifest_from_json,
    metrics_token,
    run_name,
    signed,
    site_key,
    site_of,
    spec_from_json,
    verified,
)


def test_run_names_are_dns_labels_of_at_most_forty_characters():
    longest = run_name(experiment="a" * 8, round=10_000, site="b" * 15, attempt=99)
    assert longest == "fp-aaaaaaaa-r10000-bbbbbbbbbbbbbbb-a99"
    assert len(longest) <= 40


@pytest.mark.parametrize(
    "part",
    [
        {"experiment": "UPPER"},
        {"experiment": "a/../b"},
        {"experiment": ""},
        {"site": "mainz_1"},
        {"site": "-mainz"},
        {"site": "mainz-"},
        {"site": "mainz\n"},
        {"site": "a" * 16},
        {"round": -1},
        {"round": 100_000},
        {"attempt": 0},
        {"attempt": 100},
    ],
)
def test_a_name_that_could_not_be_a_run_is_refused(part):
    with pytest.raises(ContractError):
        run_name(**{"experiment": "abcd", "round": 1, "site": "mainz", "attempt": 1, **part})


def test_two_attempts_never_share_a_key():
    first, second = (attempt_prefix(experiment="abcd", round=1, site="mainz", attempt=n) for n in (1, 2))
    assert not first.startswith(second)
    assert not second.startswith(first)
    assert not global_model_key("abcd", 1).startswith(first)


def test_spec_and_manifest_survive_signed_json():
    assert spec_from_json(verified(signed(SPEC.to_json(), KEY), KEY)) == SPEC
    assert manifest_from_json(verified(signed(MANIFEST.to_json(), KEY), KEY)) == MANIFEST


def test_a_comparison_survives_signed_json():
    assert spec_from_json(verified(signed(EVALUATION.to_json(), KEY), KEY)) == EVALUATION
    assert manifest_from_json(verified(signed(EVALUATED.to_json(), KEY), KEY)) == EVALUATED


def test_a_peer_that_knows_of_no_comparison_is_understood():
    spec, manifest = through_json(SPEC.to_json()), through_json(MANIFEST.to_json())
    for name in ("case_key", "held_out", "subjects"):
        spec.pop(name)
    for name in ("held_out", "cases", "copies"):
        manifest.pop(name)
    assert spec_from_json(spec) == SPEC
    assert manifest_from_json(manifest) == MANIFEST


def test_a_case_has_one_pseudonym_in_a_family_of_experiments_and_another_in_every_other():
    assert case_pseudonym(case_key(b"secret", "abcd2345"), b"one") == SOMEBODY != SOMEBODY_ELSE
    assert case_pseudonym(case_key(b"secret", "wxyz2345"), b"one") != SOMEBODY
    assert case_pseudonym(case_key(b"other", "abcd2345"), b"one") != SOMEBODY


def test_a_changed_byte_or_another_key_breaks_the_signature():
    data = signed(SPEC.to_json(), KEY)
    with pytest.raises(ContractError):
        verified(data.replace(b"mainz", b"graz1"), KEY)
    with pytest.raises(ContractError):
        verified(data, attempt_key(b"secret", NAME.replace("a2", "a3")))


@given(st.binary(max_size=200))
def test_no_bytes_pass_as_signed_by_chance(data):
    with pytest.raises(ContractError):
        verified(data, KEY)


def test_deeply_nested_json_is_refused_without_a_crash():
    with pytest.raises(ContractError):
        verified(b"[" * 100_000, KEY)


def test_the_metrics_token_is_not_the_signing_key():
    assert metrics_token(KEY) != KEY
    assert metrics_token(KEY) != metrics_token(attempt_key(b"other", NAME))


def test_each_site_has_a_key_of_its_own_and_each_attempt_its_own_below_it():
    keys = {attempt_key(site_key(b"secret", slug), NAME) for slug in ("mainz", "graz")}
    assert len(keys | {KEY}) == 3
    assert attempt_key(site_key(b"secret", "mainz"), NAME) in keys


@given(st.from_regex(r"[a-z](?:[a-z0-9-]{0,13}[a-z0-9])?", fullmatch=True), st.integers(0, 999), st.integers(1, 9))
def test_the_site_is_read_from_the_name_of_a_run(slug, round, attempt):
    assert site_of(run_name(experiment="abcd", round=round, site=slug, attempt=attempt)) == slug
    assert site_of(check_name(slug, round)) == slug


@pytest.mark.parametrize(
    "name",
    ["", "mainz", "fp-abcd-r1-mainz", "fp-abcd-r1--a1", "fp-check-mainz", "fp-check--1", NAME + "\n", f"x{NAME}"],
)
def test_what_is_no_run_name_belongs_to_no_site(name):
    with pytest.raises(ContractError):
        site_of(name)


def test_every_exit_code_has_a_sentence():
    assert set(EXPLANATIONS) == set(Exit)
    assert all(text.endswith(".") for text in EXPLANATIONS.values())


def test_the_ticket_is_plain_json():
    assert through_json(LaunchTicket(NAME, "http://store/spec", KEY).to_json())["run"] == NAME
