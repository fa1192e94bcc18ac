"""Pull, work, push: what an attempt leaves in the store and at the site."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer_process.attempts import Attempt, never, reverse
from tests.trainer_process.bench import HOUR, Bench, Ear, token_of, wait_for
from tests.trainer_process.line import Fault, Line
from trainer.contract import (
    CaseScore,
    Exit,
    Fetch,
    Kind,
    Subject,
    case_key,
    case_pseudonym,
    on_shelf,
)
from trainer.exchange import Inputs
from trainer.job import Outcome

pytestmark = pytest.mark.store
CASES = case_key(b"secret", "abcd")


def test_a_training_leaves_update_log_manifest_and_metrics(attempt: Attempt, bench: Bench, ear: Ear) -> None:
    ticket = bench.ticket()
    assert attempt(ticket) is Exit.OK
    assert attempt.settled == (Exit.OK, "Finished.")
    manifest = bench.manifest(ticket)
    update = bench.read(ticket, "update.safetensors")
    assert update == bench.model[::-1]
    assert manifest.update is not None
    assert (manifest.update.sha256, manifest.update.size) == (hashlib.sha256(update).hexdigest(), len(update))
    assert (manifest.train_cases, manifest.validation_cases, manifest.steps) == (8, 4, 3)
    assert set(manifest.seconds) == {"pull", "push", "train"}
    assert manifest.versions["contract"] == "1"
    assert [record["value"] for record in ear.records] == [0.25]
    assert [record.to_json() for record in manifest.metrics] == ear.records
    assert set(ear.tokens) == {token_of(ticket)}
    lines = [json.loads(line) for line in bench.read(ticket, "log.txt").splitlines()]
    assert all({"at", "level", "message"} <= set(line) for line in lines)


def test_the_manifest_is_written_last(attempt: Attempt, disturbed: Bench, line: Line) -> None:
    assert attempt(disturbed.ticket(optimizer_out=None)) is Exit.OK
    assert [name for verb, name, _ in line.seen if verb == "PUT"] == ["update.safetensors", "log.txt", "manifest.json"]


def test_the_portal_hears_finished_after_the_run_has_settled(attempt: Attempt, bench: Bench, ear: Ear) -> None:
    before: list[bool] = []
    settle = attempt._settle
    attempt._settle = lambda code, message: (before.append(ear.finished), settle(code, message))  # type: ignore[method-assign]
    ticket = bench.ticket()
    attempt(ticket)
    assert before == [False]
    assert ear.finished
    assert ear.posts[-1]["run"] == ticket.run


def test_an_evaluation_needs_no_update(attempt: Attempt, bench: Bench) -> None:
    ticket = bench.ticket(kind=Kind.EVALUATE, update=None)
    assert attempt(ticket, lambda _: Outcome(validation_cases=4)) is Exit.OK
    assert (bench.manifest(ticket).update, bench.manifest(ticket).validation_cases) == (None, 4)
    assert not bench.has(ticket, "update.safetensors")


def test_the_averaged_optimizer_state_comes_and_goes(attempt: Attempt, bench: Bench) -> None:
    spec = bench.spec()
    bench.store.put_bytes("fedportal/abcd/r00001/server-state.safetensors", b"moments")
    came: list[bytes] = []

    def work(inputs: Inputs) -> Outcome:
        assert inputs.optimizer is not None
        came.append(inputs.optimizer.read_bytes())
        out = inputs.folder / "optimizer.safetensors"
        out.write_bytes(b"new moments")
        return replace(reverse(inputs), optimizer=out)

    ticket = bench.publish(
        replace(
            spec,
            optimizer_in=Fetch(
                bench.store.presign_get("fedportal/abcd/r00001/server-state.safetensors", HOUR),
                hashlib.sha256(b"moments").hexdigest(),
                7,
            ),
            optimizer_out=bench.store.open_upload("fedportal/abcd/r00001/mainz/a1/optimizer.safetensors", 20, HOUR),
        )
    )
    assert attempt(ticket, work) is Exit.OK
    assert came == [b"moments"]
    stored = bench.manifest(ticket).optimizer
    assert stored is not None
    assert (stored.size, bench.read(ticket, "optimizer.safetensors")) == (11, b"new moments")


def test_an_update_travels_while_the_site_still_measures(attempt: Attempt, disturbed: Bench, line: Line) -> None:
    def work(inputs: Inputs) -> Outcome:
        moments = inputs.folder / "optimizer.safetensors"
        moments.write_bytes(b"moments")
        outcome = replace(reverse(inputs), optimizer=moments)
        assert outcome.update is not None
        inputs.deliver(outcome.update, moments)
        # the measuring of the local model
        wait_for(lambda: disturbed.has(ticket, "optimizer.safetensors"), seconds=120)
        assert disturbed.read(ticket, "update.safetensors") == disturbed.model[::-1]
        assert not disturbed.has(ticket, "manifest.json")
        return outcome

    place = disturbed.store.open_upload("fedportal/abcd/r00001/mainz/a1/optimizer.safetensors", 20, HOUR)
    ticket = disturbed.ticket(optimizer_out=place)
    assert attempt(ticket, work) is Exit.OK
    manifest = disturbed.manifest(ticket)
    assert manifest.update is not None
    assert manifest.optimizer is not None
    assert manifest.update.sha256 == hashlib.sha256(disturbed.model[::-1]).hexdigest()
    assert manifest.optimizer.sha256 == hashlib.sha256(b"moments").hexdigest()
    put = ["update.safetensors", "optimizer.safetensors", "log.txt", "manifest.json"]
    assert [name for verb, name, _ in line.seen if verb == "PUT"] == put


def test_each_model_of_the_subjects_is_fetched_once(attempt: Attempt, disturbed: Bench, line: Line) -> None:
    store = disturbed.store
    contents = {name: name.encode() * 50 for name in ("linden", "ahorn")}

    def fetch(name: str) -> Fetch:
        key = f"fedportal/abcd/{name}.safetensors"
        return Fetch(store.presign_get(key, HOUR), store.put_bytes(key, contents[name]), len(contents[name]))

    spec = disturbed.spec(kind=Kind.EVALUATE, update=None, case_key=CASES)
    models = {name: fetch(name) for name in contents}
    subjects = [Subject(f"local-{name}", (model,)) for name, model in models.items()]
    subjects += [Subject("ensemble", tuple(models.values())), Subject("best", (spec.model,))]
    seen: dict[str, list[bytes]] = {}
    pseudonym = case_pseudonym(CASES, b"voxels")

    def work(inputs: Inputs) -> Outcome:
        assert all(path.parent == inputs.folder for paths in inputs.subjects.values() for path in paths)
        seen.update({name: [path.read_bytes() for path in paths] for name, paths in inputs.subjects.items()})
        scores = tuple(CaseScore(name, pseudonym, "dice", {"WT": 0.5}) for name in inputs.subjects)
        return Outcome(validation_cases=1, held_out=(pseudonym,), cases=scores)

    ticket = disturbed.publish(replace(spec, subjects=tuple(subjects)))
    assert attempt(ticket, work) is Exit.OK
    linden, ahorn = contents.values()
    assert seen == {
        "local-linden": [linden], "local-ahorn": [ahorn], "ensemble": [linden, ahorn], "best": [disturbed.model],
    }  # fmt: skip
    assert sorted(name for verb, name, _ in line.seen if verb == "GET") == [
        "ahorn.safetensors", "global.safetensors", "linden.safetensors", "spec.json",
    ]  # fmt: skip
    manifest = disturbed.manifest(ticket)
    assert manifest.held_out == (pseudonym,)
    assert [score.subject for score in manifest.cases] == ["local-linden", "local-ahorn", "ensemble", "best"]


def test_a_subject_that_is_not_the_announced_one_is_not_measured(attempt: Attempt, bench: Bench) -> None:
    spec = bench.spec(kind=Kind.EVALUATE, update=None, case_key=CASES)
    forged = Subject("pooled", (replace(spec.model, sha256="0" * 64),))
    ticket = bench.publish(replace(spec, subjects=(forged,)))
    assert attempt(ticket, never) is Exit.TRANSFER_FAILED
    assert "damaged" in bench.manifest(ticket).message


def shelf_of(attempt: Attempt, folder: Path) -> Path:
    """A portal on the same machine: the shelf of the round at hand."""
    attempt.shelf = folder / "spool" / "abcd" / "r00001"
    attempt.shelf.mkdir(parents=True)
    return attempt.shelf


def test_objects_pass_over_the_shelf_of_a_portal_on_the_same_machine(
    attempt: Attempt, disturbed: Bench, line: Line, tmp_path: Path
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    (shelf / disturbed.model_sha256).write_bytes(disturbed.model)
    ticket = disturbed.ticket()
    (shelf / on_shelf(ticket.run, "spec.json")).write_bytes(disturbed.read(ticket, "spec.json"))
    assert attempt(ticket) is Exit.OK
    assert [(verb, name) for verb, name, _ in line.seen] == [("PUT", "update.safetensors"), ("PUT", "manifest.json")]
    update = disturbed.read(ticket, "update.safetensors")
    assert (shelf / hashlib.sha256(update).hexdigest()).read_bytes() == update == disturbed.model[::-1]
    assert (shelf / disturbed.model_sha256).read_bytes() == disturbed.model
    assert (shelf / on_shelf(ticket.run, "manifest.json")).read_bytes() == disturbed.read(ticket, "manifest.json")


def test_a_portal_on_the_same_machine_is_told_the_end_only_where_the_manifest_does_not_tell_it(
    attempt: Attempt, disturbed: Bench, ear: Ear, line: Line, tmp_path: Path
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    first = disturbed.ticket(metrics_url=ear.url)
    assert attempt(first) is Exit.OK
    assert not ear.finished
    attempt.settled = None
    line.faults = [Fault("PUT", "manifest.json", status=403, times=99)]
    assert attempt(disturbed.ticket(attempt=2, metrics_url=ear.url)) is Exit.TRANSFER_FAILED
    assert ear.finished
    assert 0.25 in [record["value"] for record in ear.records]
    assert [path.name for path in shelf.glob("*manifest.json")] == [on_shelf(first.run, "manifest.json")]


@pytest.mark.parametrize("lies_there", [None, b"", bytes(200_000)], ids=["nothing", "empty", "another"])
def test_what_the_shelf_does_not_have_as_announced_is_fetched(
    attempt: Attempt, bench: Bench, tmp_path: Path, lies_there: bytes | None
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    if lies_there is not None:
        (shelf / bench.model_sha256).write_bytes(lies_there)
    ticket = bench.ticket()
    assert attempt(ticket) is Exit.OK
    assert bench.read(ticket, "update.safetensors") == bench.model[::-1]


@pytest.mark.parametrize("lies_there", [b"", b'{"document": {}, "hmac": "0"}'], ids=["empty", "forged"])
def test_a_job_on_the_shelf_is_believed_by_its_signature_only(
    attempt: Attempt, bench: Bench, tmp_path: Path, lies_there: bytes
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    ticket = bench.ticket()
    (shelf / on_shelf(ticket.run, "spec.json")).write_bytes(lies_there)
    assert attempt(ticket) is Exit.OK
    assert bench.manifest(ticket).exit_code == 0


def test_an_update_that_was_not_stored_is_not_left_on_the_shelf(
    attempt: Attempt, disturbed: Bench, line: Line, tmp_path: Path
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    line.faults = [Fault("PUT", "update.safetensors", status=403, times=99)]
    ticket = disturbed.ticket()
    assert attempt(ticket) is Exit.TRANSFER_FAILED
    assert [path.name for path in shelf.iterdir()] == [on_shelf(ticket.run, "manifest.json")]
