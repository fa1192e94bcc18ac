"""What the checks of all connectors share: steps in order, and datasets as the trainer reports them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fedportal.connectors.base import CheckStep, DatasetReport
from fedportal.connectors.errors import SiteError

COMPARE = "Compare the versions of portal and site."


def take_steps(*steps: tuple[str, Callable[[], str]]) -> tuple[CheckStep, ...]:
    """Take the steps (name, act) in order; what comes after a failed one is not reached.

    An act returns the sentence that says what was found, and raises :class:`SiteError` with a remedy.
    """
    done: list[CheckStep] = []
    failed = False
    for name, act in steps:
        if failed:
            done.append(CheckStep(name, None, "Not reached."))
            continue
        start = time.monotonic()
        try:
            done.append(CheckStep(name, True, act(), seconds=time.monotonic() - start))
        except SiteError as error:
            failed = True
            done.append(CheckStep(name, False, error.message, error.remedy or COMPARE, time.monotonic() - start))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            failed = True
            message = f"The site's answer makes no sense ({type(error).__name__})."
            done.append(CheckStep(name, False, message, COMPARE, time.monotonic() - start))
    return tuple(done)


def dataset_report(report: Mapping[str, Any]) -> DatasetReport:
    """Read a dataset as ``trainer.inspect`` describes it. Raises ``KeyError``, ``TypeError`` or ``ValueError``."""
    return DatasetReport(
        name=str(report["name"]),
        title=str(report["title"]),
        train_cases=int(report["train_cases"]),
        validation_cases=int(report["validation_cases"]),
        channels=tuple(str(channel) for channel in report["channels"]),
        labels={int(number): str(name) for number, name in report["labels"].items()},
        spacing=tuple(float(mm) for mm in report.get("spacing", ())),
        shape=tuple(int(voxels) for voxels in report.get("shape", ())),
        problems=tuple(str(problem) for problem in report.get("problems", ())),
    )
