"""One run's process and folder: claimed once, ended at once, its outcome written once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_process.bench import HOUR, SCRIPTED, Bench, Ear, wait_for
from trainer.contract import Exit, Fetch, Kind, LaunchTicket, Put, Subject, case_key
from trainer.run import RESERVE, claim, exit_code_of, settle


def start(ticket: LaunchTicket, tmp_path: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a run as an Airflow task would: in the foreground, job in the environment."""
    job = {**ticket.to_json(), "data_root": str(tmp_path / "data"), "work_dir": str(tmp_path / "work"), "threads": 1}
    return subprocess.Popen(
        [*SCRIPTED, "run"],
        env={**os.environ, "FEDPORTAL_JOB": json.dumps(job), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def folder_of(ticket: LaunchTicket, tmp_path: Path) -> Path:
    return tmp_path / "work" / "runs" / ticket.run


def exit_of(ticket: LaunchTicket, tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((folder_of(ticket, tmp_path) / "exit.json").read_text()))


@pytest.mark.store
@pytest.mark.parametrize(
    ("dataset", "code"),
    [("quick", Exit.OK), ("fails", Exit.WRONG_LABEL), ("crashes", Exit.UNEXPECTED), ("memory", Exit.OUT_OF_MEMORY), ("disk-full", Exit.DISK_FULL)],
)  # fmt: skip
def test_the_exit_code_says_how_it_went(bench: Bench, tmp_path: Path, dataset: str, code: Exit) -> None:
    ticket = bench.ticket(dataset)
    returned, output = finished(start(ticket, tmp_path))
    assert returned == code
    assert exit_of(ticket, tmp_path)["exit_code"] == code
    assert bench.manifest(ticket).exit_code == code
    assert f"scripted work: {dataset}" in output, "a task's console shows the log"


@pytest.mark.store
def test_a_site_derives_the_key_of_a_job_that_comes_without_one(bench: Bench, tmp_path: Path) -> None:
    ticket = bench.ticket()
    keyless = LaunchTicket(ticket.run, ticket.spec_url)
    process = start(keyless, tmp_path, FEDPORTAL_SITE_KEY=(b"s" * 32).hex())
    assert finished(process)[0] == Exit.OK
    assert bench.manifest(ticket).exit_code == Exit.OK


@pytest.mark.store
def test_a_job_without_a_key_is_not_run_by_a_site_that_has_none(bench: Bench, tmp_path: Path) -> None:
    ticket = bench.ticket()
    code, output = finished(start(LaunchTicket(ticket.run, ticket.spec_url), tmp_path))
    assert code == Exit.BAD_JOB
    assert "FEDPORTAL_SITE_KEY" in output


@pytest.mark.store
def test_large_files_of_a_run_are_gone_when_it_is_over(bench: Bench, tmp_path: Path) -> None:
    key = "fedportal/abcd/r00002/global.safetensors"
    other = Fetch(bench.store.presign_get(key, HOUR), bench.store.put_bytes(key, b"other"), 5)
    compared = {"kind": Kind.EVALUATE, "case_key": case_key(b"s", "abcd"), "subjects": (Subject("best", (other,)),)}
    for ticket in (bench.ticket(), bench.ticket(attempt=2, **compared)):
        assert finished(start(ticket, tmp_path))[0] == Exit.OK
        names = {path.name for path in folder_of(ticket, tmp_path).iterdir()}
        assert names == {"lock", "pid", "log.txt", "exit.json"}


@pytest.mark.store
def test_a_second_start_after_success_does_nothing(bench: Bench, tmp_path: Path, ear: Ear) -> None:
    ticket = bench.ticket()
    finished(start(ticket, tmp_path))
    posts = len(ear.posts)
    assert finished(start(ticket, tmp_path))[0] == 0
    assert len(ear.posts) == posts


@pytest.mark.store
def test_a_scheduler_may_repeat_its_own_failed_task(bench: Bench, tmp_path: Path) -> None:
    failing = bench.ticket("fails")
    assert finished(start(failing, tmp_path))[0] == Exit.WRONG_LABEL
    mended = bench.ticket("quick")
    assert mended.run == failing.run
    assert finished(start(mended, tmp_path))[0] == 0
    assert exit_of(mended, tmp_path)["exit_code"] == 0


@pytest.mark.store
def test_a_run_that_was_killed_while_it_measured_begins_anew(bench: Bench, tmp_path: Path) -> None:
    killed = bench.ticket("measures")
    process = start(killed, tmp_path)
    wait_for(lambda: bench.has(killed, "update.safetensors"), seconds=120)
    process.kill()
    assert finished(process)[0] == -signal.SIGKILL
    assert bench.read(killed, "update.safetensors") == bench.model
    assert not bench.has(killed, "manifest.json")
    again = bench.ticket("quick")
    assert finished(start(again, tmp_path))[0] == Exit.OK
    update, stored = bench.read(again, "update.safetensors"), bench.manifest(again).update
    assert update == bench.model[::-1]
    assert stored is not None
    assert stored.sha256 == hashlib.sha256(update).hexdigest()


@pytest.mark.store
def test_two_processes_of_one_run_work_once(bench: Bench, tmp_path: Path) -> None:
    ticket = bench.ticket("lasts")
    first = start(ticket, tmp_path)
    wait_for(lambda: (folder_of(ticket, tmp_path) / "pid").exists())
    code, output = finished(start(ticket, tmp_path))
    assert (code, "is running" in output) == (0, True)
    assert first.poll() is None
    first.terminate()
    assert finished(first)[0] == Exit.CANCELLED


@pytest.mark.store
@pytest.mark.parametrize("dataset", ["lasts", "computes"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_at_once_even_in_a_long_operation(
    bench: Bench, tmp_path: Path, dataset: str, number: signal.Signals
) -> None:
    ticket = bench.ticket(dataset)
    process = start(ticket, tmp_path)
    log = folder_of(ticket, tmp_path) / "log.txt"
    wait_for(lambda: log.exists() and "scripted work" in log.read_text())
    process.send_signal(number)
    # 500 million rounds of a hash take minutes: only a thread of its own can answer this soon
    assert finished(process)[0] == Exit.CANCELLED
    assert exit_of(ticket, tmp_path) == {"exit_code": 40, "message": "The run was cancelled."}


@pytest.mark.store
def test_a_signal_ends_a_run_that_waits_for_the_store(bench: Bench, tmp_path: Path) -> None:
    ticket = bench.ticket()
    dead = LaunchTicket(ticket.run, "http://127.0.0.1:9/b/k?X-Amz-Signature=x", ticket.key)
    process = start(dead, tmp_path)
    log = folder_of(ticket, tmp_path) / "log.txt"
    wait_for(lambda: log.exists() and "trying again" in log.read_text())
    process.terminate()
    assert finished(process)[0] == Exit.CANCELLED


@pytest.mark.store
def test_a_signal_ends_a_run_that_measures_while_its_update_waits_for_the_store(bench: Bench, tmp_path: Path) -> None:
    ticket = bench.ticket("measures", update=Put("http://127.0.0.1:9/b/k?X-Amz-Signature=x"))
    process = start(ticket, tmp_path)
    log = folder_of(ticket, tmp_path) / "log.txt"
    wait_for(lambda: log.exists() and "the update: 127.0.0.1:9 does not answer" in log.read_text(), seconds=120)
    process.terminate()
    assert finished(process)[0] == Exit.CANCELLED
    assert exit_of(ticket, tmp_path)["exit_code"] == Exit.CANCELLED
    assert not bench.has(ticket, "manifest.json")
    assert {path.name for path in folder_of(ticket, tmp_path).iterdir()} == {"lock", "pid", "log.txt", "exit.json"}


@pytest.mark.store
def test_a_store_that_never_comes_back_fails_the_run(bench: Bench, tmp_path: Path) -> None:
    ticket = bench.ticket()
    dead = LaunchTicket(ticket.run, "http://127.0.0.1:9/b/k?X-Amz-Signature=x", ticket.key)
    code, output = finished(start(dead, tmp_path, SCRIPTED_PATIENCE="0.3"))
    assert code == Exit.TRANSFER_FAILED
    assert exit_of(ticket, tmp_path)["exit_code"] == Exit.TRANSFER_FAILED
    assert "Signature" not in output


@pytest.mark.parametrize("job", ["", "nonsense", "[]", "{}"])
def test_a_job_that_is_none_is_said_to_be_none(job: str) -> None:
    done = subprocess.run(
        [*SCRIPTED, "run"], env={**os.environ, "FEDPORTAL_JOB": job}, capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.BAD_JOB
    assert "Traceback" not in done.stderr


# --- claim and settle ------------------------------------------------------------------------------


def test_a_run_is_claimed_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lock = claim(folder)
    assert lock is not None
    assert claim(folder, wait=0) is None
    os.close(lock)  # its process died before it began
    lock = claim(folder, wait=0)
    assert lock is not None
    (folder / "pid").write_text("1")
    os.close(lock)
    assert claim(folder, wait=0) is None
    assert claim(folder, wait=0, again=True) is not None


def test_a_run_that_ended_well_is_never_claimed_again(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1")
    settle(tmp_path, Exit.OK, "Finished.")
    assert claim(tmp_path, wait=0, again=True) is None


def test_one_who_only_looks_does_not_keep_a_run_from_being_claimed(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with (tmp_path / "lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        import threading

        threading.Timer(0.1, looking.close).start()
        lock = claim(tmp_path, wait=5)
    assert lock is not None


def test_what_was_settled_first_stays(tmp_path: Path) -> None:
    settle(tmp_path, Exit.OK, "Finished.")
    settle(tmp_path, Exit.CANCELLED, "The run was cancelled.")
    assert exit_code_of(tmp_path) == 0


def test_the_outcome_needs_no_new_room_on_the_disk(tmp_path: Path) -> None:
    reserve = tmp_path / ".exit.json"
    reserve.write_bytes(b" " * RESERVE)
    inode = reserve.stat().st_ino
    settle(tmp_path, Exit.DISK_FULL, "ü" * 5000)
    written = (tmp_path / "exit.json").stat()
    assert (written.st_ino, exit_code_of(tmp_path)) == (inode, Exit.DISK_FULL)
    assert written.st_size == RESERVE


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"exit_code": "x"}'])
def test_a_broken_outcome_is_no_outcome(tmp_path: Path, text: str) -> None:
    (tmp_path / "exit.json").write_text(text)
    assert exit_code_of(tmp_path) is None
