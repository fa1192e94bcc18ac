"""What docs/operations.md and deploy/ say of the settings is what the settings file reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = set(re.findall(r'(?:env(?:\.\w+)?|secret)\(\s*"([A-Z0-9_]+)"', (ROOT / "fedportal/settings.py").read_text()))
TOLD = set(re.findall(r"`([A-Z][A-Z0-9_]+)`", (ROOT / "docs/operations.md").read_text()))
ELSEWHERE = {"FEDPORTAL_WORKER_ID"}
"""For tests: an orchestrator's name is made of its machine and process."""


def settings_in(text: str) -> set[str]:
    return {name.removesuffix("_FILE") for name in re.findall(r"^(?:Environment=)?([A-Z0-9_]+)=", text, re.MULTILINE)}


def test_every_variable_is_explained():
    names = {name.removesuffix("_FILE") if name != "FEDPORTAL_S3_CA_FILE" else name for name in READ}
    assert names - ELSEWHERE <= TOLD


@pytest.mark.parametrize("file", sorted((ROOT / "deploy").rglob("fedportal*")), ids=lambda file: file.name)
def test_what_is_deployed_sets_only_variables_that_are_read(file):
    names = settings_in(file.read_text())
    assert names <= READ | {"DATABASE_URL"}
    if file.suffix == ".env":
        assert {"SECRET_KEY", "FEDPORTAL_KEYS", "FEDPORTAL_S3_SECRET_KEY", "FEDPORTAL_BEHIND_PROXY"} <= names


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy/systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_a_unit_starts_what_the_page_of_operations_names(unit):
    start = re.search(r"^ExecStart=/opt/fedportal/\.venv/bin/(.+)$", unit.read_text(), re.MULTILINE)[1]
    program = start.split()[0]
    told = (ROOT / "docs/operations.md").read_text() + (ROOT / "docs/kaapana-pull.md").read_text()
    assert start in told if "relay" not in unit.name else program in told


def test_no_location_of_nginx_sets_a_header_of_its_own():
    """It would lose those of the server, and pass on what a client says of its address."""
    indents = re.findall(r"^( *)proxy_set_header ", (ROOT / "deploy/nginx.conf").read_text(), re.MULTILINE)
    assert set(indents) == {" " * 4}
