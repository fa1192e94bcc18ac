"""A job that no trainer could carry out is refused."""

import dataclasses

import pytest

from tests.contract.documents import (
    CASES,
    EVALUATION,
    LOCAL_MODELS,
    SOMEBODY,
    SPEC,
    through_json,
)
from trainer.contract import (
    CONTRACT_VERSION,
    ContractError,
    Put,
    spec_from_json,
)


@pytest.mark.parametrize(
    "change",
    [
        {"contract": CONTRACT_VERSION + 1},
        {"contract": None},
        {"run": "fp-other-r1-mainz-a1"},
        {"attempt": 3},
        {"kind": "delete"},
        {"update": None},
        {"manifest": None},
        {"model": {"url": "x"}},
        {"plan": {}},
        {"unknown": 1},
    ],
)
def test_a_broken_job_is_a_contract_error(change):
    with pytest.raises(ContractError):
        spec_from_json({**through_json(SPEC.to_json()), **change})


def subject(name: str = "pooled", **changes):
    return {"name": name, "models": [dataclasses.asdict(LOCAL_MODELS[0])], **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"case_key": ""},  # by which name would the cases go?
        {"case_key": "secret"},
        {"case_key": "A" * 64},
        {"case_key": None},
        {"held_out": ["BRATS_007"]},
        {"held_out": [SOMEBODY.upper()]},
        {"held_out": [7]},
        {"held_out": None},
        {"subjects": [subject("global")]},
        {"subjects": [subject(), subject()]},
        {"subjects": [subject("")]},
        {"subjects": [subject("s" * 41)]},
        {"subjects": [subject(models=[])]},
        {"subjects": [subject(models=[{"url": "x"}])]},
        {"subjects": [{"name": "pooled"}]},
        {"kind": "train", "update": dataclasses.asdict(Put("http://store/update"))},
    ],
)
def test_a_comparison_that_would_not_say_what_it_measures_is_refused(change):
    document = through_json(EVALUATION.to_json())
    with pytest.raises(ContractError):
        spec_from_json({**document, **change})


def test_a_training_that_could_not_recognise_the_held_out_cases_is_refused():
    assert spec_from_json(dataclasses.replace(SPEC, case_key=CASES, held_out=(SOMEBODY,)).to_json()).held_out
    with pytest.raises(ContractError, match="no key"):
        spec_from_json(dataclasses.replace(SPEC, held_out=(SOMEBODY,)).to_json())
