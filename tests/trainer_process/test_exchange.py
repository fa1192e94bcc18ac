"""Pull, work, push: what an attempt leaves in the store and at the site, when all goes well and when it does not."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer_process.bench import HOUR, Bench, Ear, token_of
from tests.trainer_process.line import Fault, Line
from trainer.contract import (
    CaseScore,
    Exit,
    Fetch,
    JobSpec,
    Kind,
    LaunchTicket,
    MetricRecord,
    Phase,
    Put,
    Subject,
    attempt_key,
    case_key,
    case_pseudonym,
    signed,
)
from trainer.exchange import Inputs, Job, exchange, job_from_json
from trainer.job import Fault as TrainerFault
from trainer.job import Outcome, Site
from trainer.reporting import Log

pytestmark = pytest.mark.store
CASES = case_key(b"secret", "abcd")


def reverse(inputs: Inputs) -> Outcome:
    """Stands in for the training: the update is the model backwards."""
    inputs.report.metric(MetricRecord(Phase.TRAIN, "loss", 0.25, step=3, progress=1.0))
    update = inputs.folder / "update.safetensors"
    update.write_bytes(inputs.model.read_bytes()[::-1])
    return Outcome(train_cases=8, validation_cases=4, steps=3, update=update, seconds={"train": 1.5})


class Attempt:
    """Carries out a ticket in this process and keeps what it settled."""

    def __init__(self, folder: Path) -> None:
        self.shelf: Path | None = None
        self.site = Site(data_root=folder / "data", work_dir=folder / "work")
        self.settled: tuple[Exit, str] | None = None

    def __call__(
        self,
        ticket: LaunchTicket,
        work: Callable[[Inputs], Outcome] = reverse,
        *,
        patience: float = 5,
        key: str = "",
        run: str = "",
    ) -> Exit:
        job = Job(run or ticket.run, ticket.spec_url, key or ticket.key, self.site, self.shelf)
        job.folder.mkdir(parents=True)
        return exchange(job, log=Log(job.folder / "log.txt"), settle=self._settle, work=work, patience=patience)

    def _settle(self, code: Exit, message: str) -> None:
        assert self.settled is None
        self.settled = (code, message)

    @property
    def message(self) -> str:
        assert self.settled is not None
        return self.settled[1]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


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
    attempt.shelf = folder / "spool"
    shelf = attempt.shelf / "abcd" / "r00001"
    shelf.mkdir(parents=True)
    return shelf


def test_objects_pass_over_the_shelf_of_a_portal_on_the_same_machine(
    attempt: Attempt, disturbed: Bench, line: Line, tmp_path: Path
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    (shelf / disturbed.model_sha256).write_bytes(disturbed.model)
    ticket = disturbed.ticket()
    assert attempt(ticket) is Exit.OK
    assert ("GET", "global.safetensors") not in [(verb, name) for verb, name, _ in line.seen]
    update = disturbed.read(ticket, "update.safetensors")
    assert (shelf / hashlib.sha256(update).hexdigest()).read_bytes() == update == disturbed.model[::-1]
    assert (shelf / disturbed.model_sha256).read_bytes() == disturbed.model


def test_a_portal_on_the_same_machine_is_told_the_end_only_where_the_manifest_does_not_tell_it(
    attempt: Attempt, disturbed: Bench, ear: Ear, line: Line, tmp_path: Path
) -> None:
    shelf_of(attempt, tmp_path)
    assert attempt(disturbed.ticket(metrics_url=ear.url)) is Exit.OK
    assert not ear.finished
    attempt.settled = None
    line.faults = [Fault("PUT", "manifest.json", status=403, times=99)]
    assert attempt(disturbed.ticket(attempt=2, metrics_url=ear.url)) is Exit.TRANSFER_FAILED
    assert ear.finished
    assert 0.25 in [record["value"] for record in ear.records]


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


def test_an_update_that_was_not_stored_is_not_left_on_the_shelf(
    attempt: Attempt, disturbed: Bench, line: Line, tmp_path: Path
) -> None:
    shelf = shelf_of(attempt, tmp_path)
    line.faults = [Fault("PUT", "update.safetensors", status=403, times=99)]
    assert attempt(disturbed.ticket()) is Exit.TRANSFER_FAILED
    assert list(shelf.iterdir()) == []


def raising(error: Exception) -> Callable[[Inputs], Outcome]:
    def work(inputs: Inputs) -> Outcome:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (TrainerFault(Exit.WRONG_LABEL, "Case BRATS_007."), Exit.WRONG_LABEL, "BRATS_007"),
        (RuntimeError("boom"), Exit.UNEXPECTED, "RuntimeError"),
        (MemoryError(), Exit.OUT_OF_MEMORY, "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), Exit.DISK_FULL, "disk is full"),
        (OSError(errno.EDQUOT, "Quota exceeded"), Exit.DISK_FULL, "disk is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), Exit.OUT_OF_MEMORY, "memory"),
        (TrainerFault(Exit.DIVERGED), Exit.DIVERGED, "learning rate"),
    ],
)
def test_a_failed_work_still_leaves_manifest_and_log(
    attempt: Attempt, bench: Bench, ear: Ear, error: Exception, code: Exit, words: str
) -> None:
    ticket = bench.ticket()
    assert attempt(ticket, raising(error)) is code
    manifest = bench.manifest(ticket)
    assert (manifest.exit_code, manifest.update) == (code, None)
    assert words in manifest.message == attempt.message
    assert ear.finished
    log = bench.read(ticket, "log.txt").decode()
    assert type(error).__name__ in log


def test_a_chained_full_disk_is_recognised(attempt: Attempt, bench: Bench) -> None:
    def work(inputs: Inputs) -> Outcome:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not write the cache") from error

    assert attempt(bench.ticket(), work) is Exit.DISK_FULL


def test_a_training_without_an_update_is_a_failure(attempt: Attempt, bench: Bench) -> None:
    ticket = bench.ticket()
    assert attempt(ticket, lambda _: Outcome(train_cases=1)) is Exit.UNEXPECTED
    assert bench.manifest(ticket).exit_code == Exit.UNEXPECTED


def never(inputs: Inputs) -> Outcome:
    raise AssertionError("the work was started")


def changed(spec: JobSpec) -> bytes:
    """The spec as somebody on the way would change it: another dataset under the old signature."""
    document = json.loads(signed(spec.to_json(), attempt_key(b"s" * 32, spec.run)))
    document["document"]["dataset"] = "other"
    return json.dumps(document).encode()


def test_a_changed_spec_is_not_run_and_nothing_in_it_is_used(attempt: Attempt, bench: Bench, ear: Ear) -> None:
    spec = bench.spec()
    ticket = bench.publish(spec, data=changed(spec))
    assert attempt(ticket, never) is Exit.BAD_SIGNATURE
    assert attempt.settled is not None
    assert attempt.settled[0] is Exit.BAD_SIGNATURE
    assert not bench.has(ticket, "manifest.json")
    assert not bench.has(ticket, "log.txt")
    assert ear.posts == []


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff\xfe", b'{"document": {}, "hmac": "00"}', b"[" * 100_000])
def test_a_spec_that_is_none_is_not_run(attempt: Attempt, bench: Bench, data: bytes) -> None:
    assert attempt(bench.publish(bench.spec(), data=data), never) is Exit.BAD_SIGNATURE


def test_a_spec_under_another_key_is_not_run(attempt: Attempt, bench: Bench) -> None:
    assert attempt(bench.ticket(), never, key="ab" * 32) is Exit.BAD_SIGNATURE


def test_a_spec_of_another_run_is_not_run(attempt: Attempt, bench: Bench) -> None:
    spec = bench.spec(attempt=2)
    key = attempt_key(b"s" * 32, spec.run)
    ticket = bench.publish(spec, data=signed(spec.to_json(), key))
    assert attempt(ticket, never, run="fp-abcd-r1-mainz-a1") is Exit.BAD_JOB


@pytest.mark.parametrize(
    "change", [{"contract": 99}, {"kind": "dream"}, {"surprise": 1}, {"update": None}, {"plan": {}}]
)
def test_a_spec_of_another_contract_is_not_run(attempt: Attempt, bench: Bench, change: dict[str, object]) -> None:
    spec = bench.spec()
    data = signed({**spec.to_json(), **change}, attempt_key(b"s" * 32, spec.run))
    assert attempt(bench.publish(spec, data=data), never) is Exit.BAD_JOB
    assert "versions" in attempt.message


@pytest.mark.parametrize("dataset", ["../other", "/etc", "", ".hidden", "a/b"])
def test_a_dataset_that_leads_elsewhere_is_refused(attempt: Attempt, bench: Bench, dataset: str) -> None:
    ticket = bench.ticket(dataset)
    assert attempt(ticket, never) is Exit.NO_DATASET
    assert bench.manifest(ticket).exit_code == Exit.NO_DATASET


def test_a_model_that_is_not_the_announced_one_is_not_trained_from(attempt: Attempt, bench: Bench) -> None:
    spec = bench.spec()
    ticket = bench.publish(replace(spec, model=replace(spec.model, sha256="0" * 64)))
    assert attempt(ticket, never) is Exit.TRANSFER_FAILED
    assert "damaged" in bench.manifest(ticket).message


def test_a_line_that_breaks_everywhere_once_changes_nothing(attempt: Attempt, disturbed: Bench, line: Line) -> None:
    names = ("spec.json", "global.safetensors", "update.safetensors", "log.txt", "manifest.json")
    for verb in ("GET", "PUT"):
        for name in names:
            line.faults += [
                Fault(verb, name, status=503),
                Fault(verb, name, drop=True),
                Fault(verb, name, drop=True, delivered=True),
            ]
    ticket = disturbed.ticket()
    assert attempt(ticket, patience=10) is Exit.OK
    assert disturbed.manifest(ticket).exit_code == 0
    assert disturbed.read(ticket, "update.safetensors") == disturbed.model[::-1]
    assert sum(fault.times for fault in line.faults) == 5 * 3  # all that fit the verb were used up


def test_an_update_that_cannot_be_delivered_is_a_failure_that_is_told(
    attempt: Attempt, disturbed: Bench, line: Line
) -> None:
    line.faults = [Fault("PUT", "update.safetensors", status=403, times=99)]
    ticket = disturbed.ticket()
    assert attempt(ticket) is Exit.TRANSFER_FAILED
    assert disturbed.manifest(ticket).exit_code == Exit.TRANSFER_FAILED
    assert "403" in disturbed.manifest(ticket).message


def test_a_manifest_that_cannot_be_delivered_fails_the_run(attempt: Attempt, disturbed: Bench, line: Line) -> None:
    line.faults = [Fault("PUT", "manifest.json", status=403, times=99)]
    ticket = disturbed.ticket()
    assert attempt(ticket) is Exit.TRANSFER_FAILED
    assert attempt.settled is not None
    assert attempt.settled[0] is Exit.TRANSFER_FAILED
    assert not disturbed.has(ticket, "manifest.json")


def test_the_first_reason_stays_the_reason(attempt: Attempt, disturbed: Bench, line: Line) -> None:
    line.faults = [Fault("PUT", "manifest.json", status=403, times=99)]
    ticket = disturbed.ticket()
    assert attempt(ticket, raising(TrainerFault(Exit.WRONG_LABEL))) is Exit.WRONG_LABEL


def test_a_place_without_address_is_a_failed_transfer(attempt: Attempt, bench: Bench) -> None:
    assert attempt(bench.ticket(update=Put())) is Exit.TRANSFER_FAILED


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"run": "../x", "spec_url": "u", "key": "ab", "data_root": "d", "work_dir": "w"},
        {"run": "fp-x", "spec_url": "u", "key": "not hex", "data_root": "d", "work_dir": "w"},
        {"run": "fp-x", "spec_url": "u", "key": "ab", "data_root": "d", "work_dir": "w", "threads": "many"},
        {"run": "fp-x", "spec_url": "u", "key": "ab", "data_root": "d", "work_dir": "w", "pool": 7},
        {"run": "fp-x", "spec_url": "u", "key": "ab", "data_root": "d", "work_dir": "w", "pool": ["bonn"]},
        {"run": "fp-x", "spec_url": "u", "key": "ab", "data_root": "d", "work_dir": "w", "pool": [{"site": "bonn"}]},
    ],
)
def test_a_job_that_is_none_is_refused(document: object) -> None:
    with pytest.raises(TrainerFault) as caught:
        job_from_json(document)
    assert caught.value.exit is Exit.BAD_JOB
