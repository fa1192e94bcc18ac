"""docs/contract.md names all that crosses the wire."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from trainer.contract import PERMANENT, Exit, JobSpec, Manifest, MetricRecord

PAGE = (Path(__file__).parents[2] / "docs/contract.md").read_text()


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "document"), [("The job spec", JobSpec), ("The manifest", Manifest), ("Metric records", MetricRecord)]
)
def test_every_field_is_explained(title: str, document: type):
    assert {field.name for field in fields(document)} <= set(re.findall(r"`(\w+)`", section(title)))


def test_every_exit_code_is_explained_and_whether_another_attempt_may_help():
    told = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| (yes|no)? ?\|", section("Exit codes"), re.MULTILINE)
    again = {Exit.OK: ""} | dict.fromkeys(PERMANENT, "no")
    assert told == [(str(int(code)), code.name, again.get(code, "yes")) for code in Exit]
