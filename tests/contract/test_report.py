"""What comes back from a site is refused unless it is what a portal can count, draw and show."""

import pytest

from tests.contract.documents import EVALUATED, MANIFEST, SOMEBODY, through_json
from trainer.contract import (
    ContractError,
    MetricRecord,
    Phase,
    canonical_json,
    manifest_from_json,
    metric_from_json,
)

SCORE = {"subject": "global", "case": SOMEBODY, "name": "dice", "values": {"WT": 0.5}}


@pytest.mark.parametrize(
    "change",
    [
        {"case": "BRATS_007"},
        {"case": "Erika Mustermann"},
        {"case": SOMEBODY + "0"},
        {"case": SOMEBODY + "\n"},
        {"case": int(SOMEBODY[:8], 16)},
        {"subject": ""},
        {"subject": "s" * 41},
        {"subject": None},
        {"name": "loss"},
        {"values": {"WT": float("nan")}},
        {"values": {"WT": float("inf")}},
        {"values": {"WT": "high"}},
        {"values": {"WT": True}},
        {"values": {"W" * 41: 0.5}},
        {"values": [0.5]},
        {"values": None},
        {"surprise": 1},
    ],
)
def test_what_is_no_score_of_a_pseudonymous_case_is_refused(change):
    document = {**through_json(EVALUATED.to_json()), "cases": [SCORE]}
    assert manifest_from_json(document).cases[0].values == {"WT": 0.5}
    with pytest.raises(ContractError):
        manifest_from_json({**document, "cases": [{**SCORE, **change}]})


@pytest.mark.parametrize("held_out", [["BRATS_007"], [None], [""], 7, "ab"])
def test_held_out_cases_leave_their_site_by_pseudonym_only(held_out):
    with pytest.raises(ContractError):
        manifest_from_json({**through_json(EVALUATED.to_json()), "held_out": held_out})


@pytest.mark.parametrize(
    "change",
    [
        {"contract": 0},
        {"train_cases": -1},
        {"train_cases": "8"},
        {"steps": True},
        {"message": None},
        {"update": {"sha256": "xyz", "size": 3}},
        {"update": {"sha256": "a" * 64, "size": 0}},
        {"metrics": [{"phase": "train", "name": "loss"}]},
        {"metrics": 3},
        {"seconds": {"train": None}},
        {"surprise": 1},
    ],
)
def test_a_broken_manifest_is_a_contract_error(change):
    with pytest.raises(ContractError):
        manifest_from_json({**through_json(MANIFEST.to_json()), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"phase": "global"},
        {"phase": "dream"},
        {"name": "Loss!"},
        {"name": ""},
        {"name": "x" * 33},
        {"region": "r" * 41},
        {"region": None},
        {"step": -1},
        {"step": 1.5},
        {"cases": -1},
        {"progress": 1.1},
        {"progress": None},
        {"at": -1},
        {"value": "high"},
        {"value": True},
        {"extra": 1},
    ],
)
def test_a_record_that_no_page_could_draw_is_refused(change):
    record = MetricRecord(Phase.TRAIN, "loss", 0.5).to_json()
    with pytest.raises(ContractError):
        metric_from_json({**record, **change})


def test_a_record_with_nan_cannot_even_be_encoded():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(MetricRecord(Phase.TRAIN, "loss", float("nan")).to_json())
    with pytest.raises(ContractError):
        metric_from_json({**MetricRecord(Phase.TRAIN, "loss", 0.5).to_json(), "value": float("inf")})
