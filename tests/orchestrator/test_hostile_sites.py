"""A site that signs nonsense with its own key: it is blamed in a sentence, and the round goes on with the others."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedportal.connectors.errors import ObjectDamaged
from fedportal.experiments.states import ExperimentState, RoundState, SiteRunState
from fedportal.orchestrator.outcomes import Advance
from fedportal.orchestrator.steps.watching import watch
from tests.aggregation.models import save
from tests.factories import make_plan
from tests.orchestrator.fakes import FakeSite, Federation, key_of
from tests.orchestrator.rows import fresh, journal, make_engine, make_running
from tests.orchestrator.snapshots import KEY, RUN, at_work, moves, texts
from trainer.contract import Kind, Optimizer, Stored, signed

S = SiteRunState
DICE = {"phase": "incoming", "name": "dice", "value": 0.5, "region": "WT", "cases": 4}
LOSS = {"phase": "train", "name": "loss", "value": 0.5, "step": 1, "progress": 0.5}
CASE = {"subject": "global", "case": "0123456789abcdef", "name": "dice", "values": {"WT": 0.5}}
WHOLE = ("load", "validate_incoming", "train", "validate_local")

NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "seconds that are a number": ({"seconds": 5}, "seconds are not durations"),
    "seconds that are a list": ({"seconds": [1]}, "seconds are not durations"),
    "seconds that are nothing": ({"seconds": None}, "seconds are not durations"),
    "seconds whose sum is infinite": ({"seconds": dict.fromkeys(WHOLE, 1e308)}, "seconds are not durations"),
    "seconds before the start": ({"seconds": {"train": -1.0}}, "seconds are not durations"),
    "a Dice whose mean is infinite": ({"metrics": [{**DICE, "value": 1e308}]}, "not a drawable record"),
    "a Dice above one": ({"metrics": [{**DICE, "value": 1.01}]}, "not a drawable record"),
    "a Dice below nothing": ({"metrics": [{**DICE, "value": -0.01}]}, "not a drawable record"),
    "a loss of hundreds of digits": ({"metrics": [{**LOSS, "value": 10**300}]}, "not a drawable record"),
    "a region that clears the screen": ({"metrics": [{**DICE, "region": "\x1b[2J"}]}, "not a drawable record"),
    "more cases than can be summed": ({"train_cases": 10**7 + 1}, "a count or a name"),
    "cases that nobody asked for": ({"cases": [CASE]}, "nobody asked for"),
    "parts that are numbers": ({"etags": [1]}, "the parts of an object"),
    "parts without an end": ({"etags": ["x"] * 10_001}, "the parts of an object"),
    "a part that is markup": ({"etags": ["\n</ETag>"]}, "the parts of an object"),
    "a run of endless name": ({"run": "x" * 2_000_000}, "another run"),
    "a field of endless name": ({"x" * 2_000_000: 1}, "unexpected keyword"),
}


def tells(site: FakeSite, **changes: Any) -> None:
    """Deliver, with a manifest whose fields are replaced by what no trainer writes; the signature is genuine."""
    document = site.deliver().to_json()
    if "etags" in changes:
        document["update"]["etags"] = changes.pop("etags")
    spec = site.specs[site.run]
    site.store.objects[spec.manifest.url.removeprefix("memory:")] = signed({**document, **changes}, key_of(site.run))


@pytest.mark.parametrize("name", NONSENSE)
def test_a_signed_manifest_of_nonsense_is_rejected_and_the_others_go_on(federation: Federation, name: str):
    s = at_work(federation, "a", "b")
    changes, reason = NONSENSE[name]
    tells(federation["a"], **changes)
    federation["b"].deliver()
    outcome = watch(s, federation.tools)
    assert isinstance(outcome, Advance)
    assert moves(outcome.changes) == {RUN["a"]: S.REJECTED, RUN["b"]: S.ADMITTED}
    because = next(change.because for change in outcome.changes.site_runs if change.site_run == RUN["a"])
    assert reason in because
    assert len(because) < 1100
    assert because.isprintable()
    assert f"The update of Hospital A was rejected: {because}" in texts(outcome.changes)


@pytest.mark.parametrize("name", [name for name, (changes, _) in NONSENSE.items() if "etags" not in changes])
def test_so_is_one_of_an_evaluation(federation: Federation, name: str):
    s = at_work(federation, "a", "b")
    s = replace(s, newest=replace(s.round, is_evaluation=True, state=RoundState.EVALUATING))
    tells(federation["a"], **{"kind": Kind.EVALUATE.value, "update": None, **NONSENSE[name][0]})
    assert moves(watch(s, federation.tools).changes) == {RUN["a"]: S.REJECTED}


def test_last_words_without_end_are_cut_and_steer_no_terminal(federation: Federation):
    s = at_work(federation, "a", "b")
    tells(federation["a"], exit_code=14, message="\x1b[31m<script>\x07" + "x" * 2_000_000)
    (change,) = watch(s, federation.tools).changes.site_runs
    assert change.because.startswith("[31m<script>")
    assert change.because.isprintable()
    assert len(change.because) < 1100


def test_parts_that_were_never_sent_cost_the_attempt_and_not_the_experiment(federation: Federation, monkeypatch):
    s = at_work(federation, "a", "b")
    federation["a"].deliver()

    def refuse(key: str, put: object, etags: object) -> None:
        raise ObjectDamaged("the parts are not those that were announced (InvalidPart)")

    monkeypatch.setattr(federation.store, "close_upload", refuse)
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.PENDING}
    assert "did not arrive whole" in changes.site_runs[0].because


def test_a_foreign_optimizer_state_is_its_sites_fault_in_the_first_round_too(federation: Federation, tmp_path: Path):
    plan = make_plan(optimizer=Optimizer(treatment="aggregate"))
    s = at_work(federation, "a", "b", plan=plan)
    moments = {f"{entry}.w": np.ones(16, np.float32) for entry in ("exp_avg", "exp_avg_sq")}
    states = {"a": {"exp_avg.v": np.ones(3, np.float32)}, "b": {**moments, "step.w": np.array(6, np.int64)}}
    for slug, state in states.items():
        data = save(tmp_path / slug, state, buffers=()).read_bytes()
        federation.store.objects[f"fedportal/{KEY}/r00001/{slug}/a1/optimizer.safetensors"] = data
        federation[slug].deliver(optimizer=Stored(hashlib.sha256(data).hexdigest(), len(data)))
    changes = watch(s, federation.tools).changes
    assert moves(changes) == {RUN["a"]: S.REJECTED, RUN["b"]: S.ADMITTED}
    assert "The optimizer state cannot be used: It lacks “exp_avg.w”" in changes.site_runs[0].because


@pytest.mark.django_db
def test_an_experiment_ends_well_beside_a_site_that_only_tells_nonsense(federation: Federation):
    experiment = make_running(federation, rounds=1, min_sites=2)
    engine = make_engine(federation)
    names = iter(NONSENSE)
    told = set()
    for _ in range(20):
        engine.drive(experiment.pk)
        for slug in "abc":
            for run in set(federation[slug].launched) - told:
                told.add(run)
                if slug == "a":
                    tells(federation["a"], **NONSENSE[next(names)][0])
                else:
                    federation[slug].deliver(run)
        if not fresh(experiment).is_active:
            break
        federation.clock.tick(5)
    assert fresh(experiment).status is ExperimentState.COMPLETED
    lines = journal(experiment)
    assert not [line for line in lines if "stumbled" in line]
    assert [line for line in lines if "was rejected: The manifest cannot be used" in line]
