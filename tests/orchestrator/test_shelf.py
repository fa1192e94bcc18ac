"""Documents that portal and run leave for each other where they share a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Changes
from fedportal.orchestrator.snapshot import Snapshot
from fedportal.orchestrator.steps.opening import dispatch, publish
from fedportal.orchestrator.steps.watching import watch
from tests.orchestrator.fakes import Federation
from tests.orchestrator.snapshots import KEY, RUN, elsewhere, model, moves, site_run, snapshot
from trainer.contract import on_shelf

PREFIX = f"fedportal/{KEY}/r00001/a/a1"


def shelf(federation: Federation, name: str) -> Path:
    return federation.tools.spool / KEY / "r00001" / on_shelf(f"fp-{KEY}-r1-a-a1", name)


def published(federation: Federation) -> tuple[Snapshot, Changes]:
    s = snapshot(RoundState.PUBLISHING, site_runs=(site_run("a", upload={}),), incoming=model(federation))
    return s, publish(s, federation.tools).changes


def delivered(federation: Federation) -> Snapshot:
    """A run that has put its manifest; nothing but the store has it."""
    s, changes = published(federation)
    upload = changes.attempts[0].fields["upload"]
    ready = (site_run("a", upload=upload),)
    dispatch(snapshot(RoundState.DISPATCHING, site_runs=ready, incoming=s.incoming), federation.tools)
    federation["a"].deliver()
    running = (site_run("a", SiteRunState.RUNNING, upload=upload),)
    return snapshot(site_runs=running, incoming=s.incoming)


def test_a_site_on_this_machine_finds_its_job_on_the_shelf(federation: Federation):
    published(federation)
    assert shelf(federation, "spec.json").read_bytes() == federation.store.objects[f"{PREFIX}/spec.json"]


def test_no_other_site_has_a_shelf(federation: Federation):
    s = snapshot(RoundState.PUBLISHING, site_runs=(site_run("a", upload={}),), incoming=model(federation))
    publish(elsewhere(s), federation.tools)
    assert f"{PREFIX}/spec.json" in federation.store.objects
    assert not shelf(federation, "spec.json").exists()


def test_a_manifest_that_a_run_on_this_machine_has_left_is_not_read_from_the_store(federation: Federation):
    s = delivered(federation)
    shelf(federation, "manifest.json").write_bytes(federation.store.objects.pop(f"{PREFIX}/manifest.json"))
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: SiteRunState.ADMITTED}


@pytest.mark.parametrize("lies_there", [b"", b'{"document": {}, "hmac": "0"}'], ids=["empty", "forged"])
def test_a_manifest_on_the_shelf_is_believed_by_its_signature_only(federation: Federation, lies_there: bytes):
    s = delivered(federation)
    shelf(federation, "manifest.json").write_bytes(lies_there)
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: SiteRunState.ADMITTED}
