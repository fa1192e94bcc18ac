"""What the docs lead to is there: links, addresses of the API, commands with their options, the example of a dataset."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from django.urls import resolve

from trainer.cases import read_dataset

ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
COMMAND = re.compile(r"python3? -m ((?:fedportal|trainer|tests)[.\w]*)((?:\\\n|[^\n`])*)")


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str):
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[name].read_text()):
        path, _, anchor = link.partition("#")
        target = (PAGES[name].parent / path) if path else PAGES[name]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", PAGES)
def test_every_command_has_the_options_that_are_told(name: str):
    for module, arguments in COMMAND.findall(PAGES[name].read_text()):
        spec = find_spec(module)
        assert spec is not None, module
        source = Path(spec.origin)
        sources = source.parent.rglob("*.py") if source.name == "__init__.py" else [source]
        known = "".join(path.read_text() for path in sources)
        for option in re.findall(r"--\w[\w-]*", arguments):
            assert f'"{option}"' in known, f"{module} {option}"


def test_the_addresses_of_the_script_are_those_of_the_api():
    addresses = re.findall(r"\$P(/[^\s')]*)", PAGES["docs/api.md"].read_text())
    assert len(addresses) > 5
    for address in addresses:
        resolve("/api" + address.replace("$key", "k7mw2xq9").replace("$round", "3"))


def test_the_example_of_a_dataset_is_one(tmp_path: Path):
    (example,) = re.findall(r"```json\n(.+?)```", PAGES["docs/data.md"].read_text(), re.DOTALL)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/dataset.json").write_text(example)
    dataset = read_dataset(tmp_path, "own")
    assert dataset.channels == ("T2", "ADC")
    assert {case.name for case in (*dataset.training, *dataset.validation)} == {"p01", "p02"}
