"""Whole experiments over hospitals that poll, with real processes (see :mod:`tests.relay.scenes`)."""

from __future__ import annotations

import json

import pytest

from tests.relay.scenes import SCENES
from tests.stage import report_of

pytestmark = [pytest.mark.slow, pytest.mark.store]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    report = tmp_path_factory.mktemp("scenes") / "results.jsonl"
    return {row["scene"]: row for row in map(json.loads, report_of("tests.relay.scenes", to=report).splitlines())}


@pytest.mark.parametrize("scene", SCENES)
def test_a_scene_with_polling_sites_ends_as_it_should(results: dict, scene: str):
    assert results[scene]["ok"], results[scene]["said"]
