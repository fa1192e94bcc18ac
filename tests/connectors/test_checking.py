"""What the checks of all connectors share: steps in order, remarks that are no failures, code, datasets."""

from __future__ import annotations

import pytest

from fedportal.connectors.base import CheckReport, DatasetReport
from fedportal.connectors.checking import MANY_SERIES, Remark, code_step, dataset_step, take_steps
from fedportal.connectors.errors import SiteRefused


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
