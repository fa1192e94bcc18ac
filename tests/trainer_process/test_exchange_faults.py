"""What an attempt says and leaves when its work fails, its job is none, or the line to the store is bad."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.trainer_process.attempts import Attempt, never, reverse
from tests.trainer_process.bench import Bench, Ear, wait_for
from tests.trainer_process.line import Fault, Line
from trainer.contract import (
    Exit,
    JobSpec,
    Put,
    attempt_key,
    signed,
)
from trainer.exchange import Inputs, job_from_json
from trainer.job import Fault as TrainerFault
from trainer.job import Outcome

pytestmark = pytest.mark.store


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


def delivering(line: Line, error: Exception | None = None) -> Callable[[Inputs], Outcome]:
    """A work whose update is refused while it measures; then it ends, or fails."""

    def work(inputs: Inputs) -> Outcome:
        outcome = reverse(inputs)
        assert outcome.update is not None
        inputs.deliver(outcome.update, None)
        wait_for(lambda: line.requests("PUT", "update.safetensors"), seconds=120)
        if error is not None:
            raise error
        return outcome

    return work


def test_an_update_that_did_not_get_through_beside_the_work_is_sent_after_it(
    attempt: Attempt, disturbed: Bench, line: Line
) -> None:
    line.faults = [Fault("PUT", "update.safetensors", status=403)]
    ticket = disturbed.ticket()
    assert attempt(ticket, delivering(line)) is Exit.OK
    assert len(line.requests("PUT", "update.safetensors")) == 2
    assert disturbed.manifest(ticket).update is not None
    assert disturbed.read(ticket, "update.safetensors") == disturbed.model[::-1]


def test_an_update_that_gets_through_neither_beside_the_work_nor_after_it_is_a_failure(
    attempt: Attempt, disturbed: Bench, line: Line
) -> None:
    line.faults = [Fault("PUT", "update.safetensors", status=403, times=2)]
    ticket = disturbed.ticket()
    assert attempt(ticket, delivering(line)) is Exit.TRANSFER_FAILED
    assert disturbed.manifest(ticket).update is None


@pytest.mark.parametrize("status", [200, 403, 503], ids=["sent", "refused", "tried-again"])
def test_a_work_that_fails_after_its_update_was_final_is_the_reason_and_waits_for_nothing(
    attempt: Attempt, disturbed: Bench, line: Line, status: int
) -> None:
    line.faults = [Fault("PUT", "update.safetensors", status=status, times=1000)]
    ticket = disturbed.ticket()
    assert attempt(ticket, delivering(line, TrainerFault(Exit.OUT_OF_MEMORY)), patience=600) is Exit.OUT_OF_MEMORY
    manifest = disturbed.manifest(ticket)
    assert (manifest.exit_code, manifest.update) == (Exit.OUT_OF_MEMORY, None)


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
