"""What a site delivers: collected, weighed, rejected with a reason, taken from the shelf."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedportal.connectors.base import RunState, RunStatus
from fedportal.experiments.states import RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Advance, Wait
from fedportal.orchestrator.steps.watching import STORE_SILENT, watch
from tests.orchestrator.fakes import Federation, model_bytes
from tests.orchestrator.snapshots import (
    KEY,
    RUN,
    at_work,
    elsewhere,
    later,
    moves,
    site_run,
    texts,
)
from trainer.contract import Exit, Kind, Manifest, Stored

S = SiteRunState


def test_an_update_is_collected_while_others_still_train(federation: Federation):
    s = at_work(federation, "a", "b", "c")
    federation["b"].deliver()
    outcome = watch(later(s, 12), federation.tools)
    assert isinstance(outcome, Wait)
    (change,) = outcome.changes.site_runs
    assert change.through == (S.UPLOADED, S.ADMITTED)
    assert (change.fields["train_cases"], change.fields["steps"]) == (8, 6)
    assert change.fields["update_norm"] > 0
    assert "Hospital B delivered its update after 12 s." in texts(outcome.changes)
    assert outcome.changes.measured[0].records[0].value == 0.5


def test_the_round_is_aggregated_when_all_have_delivered(federation: Federation):
    s = at_work(federation, "a", "b")
    for slug in "ab":
        federation[slug].deliver()
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Advance)
    assert outcome.changes.round_through == (RoundState.COLLECTING, RoundState.AGGREGATING)


def test_a_round_in_which_one_is_missing_is_weighed_first(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    federation["b"].deliver(exit_code=int(Exit.NO_DATASET), message="No dataset.", update=b"")
    outcome = watch(s, federation.tools)
    assert outcome.changes.round_through == (RoundState.COLLECTING,)


def test_a_delivery_counts_even_when_the_site_says_that_the_run_failed(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    federation["a"].die()
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}


def test_a_manifest_that_comes_between_look_and_answer_is_not_missed(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.errands.hanging.add(("look", f"fp-{KEY}-r1-a-a1"))
    federation.tools.pace.forget(("poll", f"fp-{KEY}-r1-a-a1"))
    federation["a"].deliver()
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Wait)
    assert outcome.until == s.now
    assert moves(outcome.changes) == {}


def test_an_evaluation_needs_no_update(federation: Federation):
    s = at_work(federation, "a")
    s = replace(s, newest=replace(s.round, is_evaluation=True, state=RoundState.EVALUATING))
    federation["a"].deliver(kind=Kind.EVALUATE, update=b"")
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.ADMITTED}
    assert "Hospital A measured the model" in texts(changes)


def test_a_late_update_of_an_old_attempt_is_ignored(federation: Federation):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    second = site_run("a", S.RUNNING, number=2)
    federation["a"].states[second.attempt.run] = RunStatus(RunState.RUNNING)
    s = replace(s, site_runs=(second, s.site_runs[1]))
    assert moves(watch(s, federation.tools).changes) == {}


BAD_MANIFESTS = {
    "another key": ({"key": "00" * 32}, "wrong signature"),
    "another run": ({"run": "fp-other-r1-a-a1"}, "another run"),
    "another experiment": ({"experiment": "other"}, "another run"),
    "another round": ({"round": 2}, "another run"),
    "another site": ({"site": "b"}, "another run"),
    "another attempt": ({"attempt": 2}, "another run"),
    "another kind": ({"kind": Kind.EVALUATE}, "another run"),
    "no case": ({"train_cases": 0}, "trained on no case"),
    "another network": ({"update": model_bytes(np.zeros(1)).replace(b'"w"', b'"v"')}, "lacks “w”"),
    "not finite": ({"update": model_bytes(np.nan)}, "finite"),
    "not safetensors": ({"update": b"not a model"}, ""),
    "far too large": ({"update": b"\0" * (2**21)}, "The update has 2097152 bytes"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_delivery_that_must_not_be_used_is_rejected_with_a_reason(federation: Federation, name: str):
    s = at_work(federation, "a", "b")
    arguments, reason = BAD_MANIFESTS[name]
    federation["a"].deliver(**arguments)
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.REJECTED}
    assert reason in changes.site_runs[0].because
    assert changes.site_runs[0].because in texts(changes)
    assert not changes.new_attempts


def test_an_update_that_moved_too_far_is_rejected(federation: Federation):
    s = at_work(federation, "a", "b", max_relative_norm=0.5)
    federation["a"].deliver(update=model_bytes(100.0))
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.REJECTED}


def test_an_update_that_is_not_what_the_manifest_says_is_fetched_by_another_attempt(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    federation["a"].deliver(update=model_bytes(3.0), **{"message": "x"})
    key = f"fedportal/{KEY}/r00001/a/a1/update.safetensors"
    federation.store.objects[key] = b"\0" * manifest.update.size
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.PENDING}
    assert "did not arrive whole" in changes.site_runs[0].because


def left_on_the_shelf(federation: Federation, manifest: Manifest, data: bytes) -> Path:
    shelf = federation.tools.spool / KEY / "r00001"
    shelf.mkdir(parents=True, exist_ok=True)
    (shelf / manifest.update.sha256).write_bytes(data)
    return shelf / manifest.update.sha256


def test_an_update_that_a_run_on_this_machine_has_left_is_not_read_from_the_store(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    data = federation.store.objects.pop(f"fedportal/{KEY}/r00001/a/a1/update.safetensors")
    left = left_on_the_shelf(federation, manifest, data)
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}
    assert not left.exists(), "it is taken, not copied"


def test_something_else_on_the_shelf_is_not_believed(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    left_on_the_shelf(federation, manifest, b"\0" * manifest.update.size)
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}
    key = f"fedportal/{KEY}/r00001/a/a1/update.safetensors"
    spooled = federation.tools.spool / KEY / "r00001" / "a-a1-update.safetensors"
    assert spooled.read_bytes() == federation.store.objects[key]


def test_the_store_is_not_asked_about_runs_that_still_work_on_this_machine(federation: Federation):
    s = at_work(federation, "a", "b")
    federation.store.is_down = True
    assert watch(s, federation.tools).reason == ""
    assert watch(elsewhere(s), federation.tools).reason == STORE_SILENT


def test_an_update_in_parts_is_completed_first(federation: Federation):
    federation.store.large = 1
    s = at_work(federation, "a", "b")
    federation["a"].deliver()
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.ADMITTED}
    assert list(federation.store.uploads.values()) == [f"fedportal/{KEY}/r00001/b/a1/update.safetensors"]


def test_the_manifests_update_hash_is_what_the_site_run_remembers(federation: Federation):
    s = at_work(federation, "a", "b")
    manifest = federation["a"].deliver()
    fields = watch(s, federation.tools).changes.site_runs[0].fields
    data = federation.store.objects[f"fedportal/{KEY}/r00001/a/a1/update.safetensors"]
    assert manifest.update == Stored(hashlib.sha256(data).hexdigest(), len(data))
    assert (fields["update_sha256"], fields["update_size"]) == (manifest.update.sha256, manifest.update.size)
