"""What the checks of all connectors share: steps in order, remarks that are no failures, code, datasets."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from fedportal.connectors.base import CheckReport, CheckStep, DatasetReport
from fedportal.connectors.checking import (
    COMPARE,
    MANY_SERIES,
    Remark,
    TrainerWords,
    certificate_step,
    code_step,
    dataset_step,
    take_steps,
)
from fedportal.connectors.errors import SiteRefused, StoreUnreachable
from fedportal.connectors.fields import SiteContext


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


class Words(TrainerWords):
    """A site that has answered."""

    def __init__(self, **answer: Any) -> None:
        super().__init__(SiteContext(slug="mainz"))
        self.asked = self.conf()
        fit = {"versions": {"contract": "1", "torch": "2"}, "gpus": [], "warm": True, "at": time.time()}
        self.hear({**fit, **answer}, since=time.monotonic(), remedy="-")

    def step(self, name: str) -> CheckStep:
        return next(step for step in take_steps(*((n, act) for n, act in self.heard_steps() if n == name)))


@pytest.mark.parametrize(("off", "agrees"), [(-55, True), (55, True), (-65, False), (65, False)])
def test_clocks_that_are_a_minute_apart_are_refused(off: int, agrees: bool) -> None:
    step = Words(at=time.time() + off).step("Clock")
    assert step.ok is agrees
    assert agrees or "65 seconds off" in step.message


def test_a_slow_line_is_told_as_it_is() -> None:
    store = {"ok": True, "bytes": 1_000_000, "down_s": 4.0, "up_s": 100.0}
    assert "fetched with 2 Mbit/s and put back with 0.08 Mbit/s" in Words(store=store).step("Object store").message


def test_the_run_of_a_check_names_the_site_so_that_the_relay_lets_it_through() -> None:
    assert re.fullmatch(r"fp-check-mainz-[0-9]+", Words().asked["run"])


@pytest.mark.parametrize(("days", "remedy"), [(3, "Let the site renew it."), (300, "")])
def test_a_certificate_that_ends_soon_is_remarked_on(days: int, remedy: str) -> None:
    http = SimpleNamespace(certificate_expiry=lambda: datetime.now(UTC) + timedelta(days=days, hours=1))
    (step,) = take_steps(("Certificate", lambda: certificate_step(http)))  # type: ignore[arg-type]
    assert (step.ok, step.remedy) == (True, remedy)


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
