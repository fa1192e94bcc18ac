"""What the checks of all connectors share: steps in order, remarks that are no failures, code, datasets."""

from __future__ import annotations

import json

import pytest

from fedportal.connectors.base import CheckReport, DatasetReport
from fedportal.connectors.checking import COMPARE, MANY_SERIES, Remark, code_step, dataset_step, take_steps
from fedportal.connectors.errors import SiteRefused, StoreUnreachable


def dataset(name: str) -> DatasetReport:
    return DatasetReport(name, name, 8, 2, ("CT",), {0: "background", 1: "liver"})


def test_a_remark_is_no_failure_and_what_comes_after_it_is_reached() -> None:
    def old() -> str:
        return code_step("0123", "4567", what="trainer", remedy="Run the installation again.")

    def refused() -> str:
        raise SiteRefused("No.", remedy="Ask.")

    steps = take_steps(("Code", old), ("Key", lambda: "Right."), ("Disk", refused), ("Data", lambda: "-"))
    assert [step.ok for step in steps] == [True, True, False, None]
    assert (steps[0].remedy, steps[1].remedy) == ("Run the installation again.", "")
    assert "0123" in steps[0].message
    assert "4567" in steps[0].message
    assert CheckReport(steps[:2]).ok, "the site is well"


@pytest.mark.parametrize("value", ['"NaN cases"', "Infinity", "[]", "{}", "null"])
def test_an_answer_that_makes_no_sense_fails_its_step_and_not_the_check(value: str) -> None:
    (step,) = take_steps(("Datasets", lambda: str(int(json.loads(f'{{"cases": {value}}}')["cases"]))))
    assert (step.ok, step.remedy) == (False, COMPARE)


def test_a_store_that_is_away_fails_the_step_that_needs_it() -> None:
    def probe() -> str:
        raise StoreUnreachable("the object store at 127.0.0.1:9 does not answer")

    steps = take_steps(("Trainer", probe), ("Data", lambda: "-"))
    assert [step.ok for step in steps] == [False, None]
    assert "portal's own object store" in steps[0].message
    assert "settings" in steps[0].remedy


def test_the_same_code_is_named_as_such() -> None:
    assert "the portal's own (4567)" in code_step("4567", "4567", what="trainer", remedy="-")
    with pytest.raises(Remark, match="unknown"):
        code_step("", "4567", what="trainer", remedy="-")


def test_datasets_are_named_and_too_many_series_are_remarked_on() -> None:
    found = [dataset("livers"), dataset("lungs")]
    assert dataset_step(found, remedy="-", series={"livers": MANY_SERIES - 1}) == "2 found: livers, lungs."
    with pytest.raises(Remark, match=r"livers \(5,000\)") as caught:
        dataset_step(found, remedy="-", series={"livers": MANY_SERIES, "lungs": 3})
    assert "Split" in caught.value.remedy
    with pytest.raises(SiteRefused, match="no dataset"):
        dataset_step([], remedy="Offer one.")
