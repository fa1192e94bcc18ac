"""The task of a site's scheduler: it starts a run or finds it, shows its log, ends with its code, ends it on SIGTERM."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedportal.connectors.trainer_process import ROOT, is_locked
from tests.trainer_process.bench import Bench, Ear, wait_for
from trainer.contract import CONTRACT_VERSION, Exit, LaunchTicket
from trainer.site_file import SiteFile
from trainer.task import GRACE, NO_VERDICT, Run, _show, tidy

KEY = (b"s" * 32).hex()


class Task:
    """Starts tasks of one site as its scheduler would."""

    def __init__(self, folder: Path, socket: Path | str = "") -> None:
        self.folder = folder
        self.work_dir = folder / "work"
        self.site = folder / "site.json"
        self.describe(socket=str(socket))
        self._processes: list[subprocess.Popen[str]] = []

    def describe(self, **changes: Any) -> None:
        values = {"data_root": str(self.folder), "work_dir": str(self.work_dir), "key": KEY, "threads": 1, **changes}
        self.site.write_text(json.dumps(values))

    def start(self, ticket: LaunchTicket, duty: str = "train", **changes: Any) -> subprocess.Popen[str]:
        conf = {"run": ticket.run, "spec_url": ticket.spec_url, "contract": CONTRACT_VERSION, **changes}
        environment = {
            "FEDPORTAL_SITE": str(self.site),
            "FEDPORTAL_RUN": ticket.run,
            "FEDPORTAL_CONF": json.dumps(conf),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.task", duty],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def lives(self, run: str) -> bool:
        return is_locked(self.work_dir / "runs" / run / "lock")

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=20)


@pytest.fixture
def task(tmp_path: Path, scripted_server: Path) -> Any:
    task = Task(tmp_path, scripted_server)
    yield task
    task.close()


def ended(process: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    output, _ = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.mark.store
def test_the_log_and_the_exit_code_of_a_run_become_the_tasks(task: Task, bench: Bench, ear: Ear) -> None:
    ticket = bench.ticket("quick")
    code, lines = ended(task.start(ticket))
    assert code == 0
    messages = [line["message"] for line in lines]
    assert "scripted work: quick" in messages
    assert "run ends" in messages
    assert lines[-1]["exit_code"] == 0
    assert bench.manifest(ticket).exit_code == 0
    assert ear.finished


@pytest.mark.store
def test_a_failure_keeps_its_code_and_its_sentence(task: Task, bench: Bench) -> None:
    code, lines = ended(task.start(bench.ticket("fails")))
    assert code == Exit.WRONG_LABEL == lines[-1]["exit_code"]
    assert "BRATS_007" in lines[-1]["message"]


@pytest.mark.store
def test_a_task_that_is_started_again_finds_its_run(task: Task, bench: Bench) -> None:
    ticket = bench.ticket("lasts")
    first = task.start(ticket)
    wait_for(lambda: task.lives(ticket.run))
    first.kill()
    first.communicate()
    assert task.lives(ticket.run), "the run outlives the task that had it started"
    pid = (task.work_dir / "runs" / ticket.run / "pid").read_text()
    second = task.start(ticket)
    assert second.stdout is not None
    assert "task begins" in second.stdout.readline()
    assert "started before" in second.stdout.readline()
    assert (task.work_dir / "runs" / ticket.run / "pid").read_text() == pid
    second.terminate()
    assert ended(second)[0] == Exit.CANCELLED
    assert not task.lives(ticket.run)


@pytest.mark.store
def test_a_run_that_succeeded_is_not_repeated_and_one_that_failed_is(task: Task, bench: Bench, ear: Ear) -> None:
    quick, fails = bench.ticket("quick", attempt=1), bench.ticket("fails", attempt=2)
    for _ in range(2):
        assert ended(task.start(quick))[0] == 0
        assert ended(task.start(fails))[0] == Exit.WRONG_LABEL
    assert sum(post["finished"] for post in ear.posts) == 3


@pytest.mark.store
@pytest.mark.parametrize("dataset", ["lasts", "computes", "has-children"])
def test_sigterm_ends_the_run_with_all_its_processes(task: Task, bench: Bench, dataset: str) -> None:
    ticket = bench.ticket(dataset)
    process = task.start(ticket)
    wait_for(lambda: task.lives(ticket.run))
    log = task.work_dir / "runs" / ticket.run / "log.txt"
    wait_for(lambda: log.exists() and "scripted work" in log.read_text())
    process.terminate()
    assert ended(process)[0] == Exit.CANCELLED
    assert not task.lives(ticket.run)


@pytest.mark.store
def test_of_several_attempts_of_a_round_only_the_newest_is_at_work(task: Task, bench: Bench) -> None:
    """Somebody has deleted the first in Airflow: its task learns of it some seconds later, or is started again."""
    first, second = bench.ticket("lasts"), bench.ticket("quick", attempt=2)
    task.start(first)
    wait_for(lambda: task.lives(first.run))
    code, lines = ended(task.start(second))
    assert code == 0
    assert not task.lives(first.run)
    assert [line["run"] for line in lines if "earlier attempt" in line["message"]] == [first.run]
    assert json.loads((task.work_dir / "runs" / first.run / "exit.json").read_text())["exit_code"] == Exit.CANCELLED
    code, lines = ended(task.start(first))
    assert (code, "later attempt" in lines[-1]["message"]) == (Exit.CANCELLED, True)
    assert not task.lives(first.run)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_sigterm_while_the_run_starts_leaves_nothing_behind(tmp_path: Path, scripted_server: Path, warm: bool) -> None:
    """Airflow 3 kills a task that takes more than 5 s for its end: nobody would say that its processes are gone."""
    task = Task(tmp_path, scripted_server if warm else "")
    ticket = LaunchTicket(run="fp-10ac37-r1-mainz-a1", spec_url="http://127.0.0.1:9/spec", key="")
    process = task.start(ticket)
    assert process.stdout is not None
    assert "task begins" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    code, lines = ended(process)
    assert time.monotonic() - told < 2 * GRACE, "waited for something that had ended"
    assert code == Exit.CANCELLED == lines[-1]["exit_code"]
    assert not task.lives(ticket.run)


@pytest.mark.store
def test_a_run_that_is_killed_is_worth_another_try(task: Task, bench: Bench) -> None:
    code, lines = ended(task.start(bench.ticket("killed")))
    assert code == NO_VERDICT
    assert "memory" in lines[-1]["message"]


def test_a_run_that_cannot_write_into_its_folder_was_not_killed(tmp_path: Path) -> None:
    task = Task(tmp_path)
    ticket = LaunchTicket("fp-abcd-r1-mainz-a1", "http://127.0.0.1:9/b/k")
    (task.work_dir / "runs" / ticket.run / ".exit.json").mkdir(parents=True)
    code, lines = ended(task.start(ticket))
    assert code == Exit.UNEXPECTED == lines[-1]["exit_code"]
    said = " ".join(line["message"] for line in lines)
    assert "memory" not in said
    assert "started before" not in said


def test_a_cold_start_that_is_cancelled_spares_who_has_the_number_of_an_earlier_run(tmp_path: Path) -> None:
    task = Task(tmp_path)
    ticket = LaunchTicket("fp-abcd-r1-mainz-a1", "http://127.0.0.1:9/b/k")
    folder = task.work_dir / "runs" / ticket.run
    folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as bystander:
        (folder / "pid").write_text(str(bystander.pid))
        process = task.start(ticket)
        # it is opened with signals held back, which come through when the run's process is there
        wait_for((folder / "log.txt").exists, seconds=60)
        process.terminate()
        assert ended(process)[0] == Exit.CANCELLED
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize("error", [RuntimeError("reentrant call"), BrokenPipeError()])
def test_a_task_that_can_say_nothing_more_still_ends_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The signal comes in the middle of a line, or when nobody reads the task's output any more."""

    def say(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("trainer.task._say", say)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ending:
        Run(SiteFile(tmp_path, tmp_path / "work", KEY), "fp-abcd-r1-mainz-a1", "http://store/spec")._end()
    assert ending.value.code == Exit.CANCELLED


def test_a_large_log_is_shown_whole_and_a_line_that_is_being_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr("trainer.task.BLOCK", 10)
    log = tmp_path / "log.txt"
    assert _show(log, 0) == 0
    log.write_bytes(whole := b"first\nsecond\n" + b"a line of three blocks and more\n" + b"\n")
    shown = _show(log, 0)
    log.write_bytes(whole + b"begun")
    assert shown == len(whole) == _show(log, shown)
    log.write_bytes(whole + b"begun, done\n")
    _show(log, shown)
    assert capfdbinary.readouterr().out == whole + b"begun, done\n"


def test_without_a_warm_trainer_the_run_starts_cold(tmp_path: Path) -> None:
    """The real trainer, in a process of its own: it gets as far as a store that is not there."""
    task = Task(tmp_path, tmp_path / "nobody-listens")
    ticket = LaunchTicket("fp-abcd-r1-mainz-a1", "http://127.0.0.1:9/b/k?X-Amz-Signature=x")
    process = task.start(ticket)
    try:
        file = task.work_dir / "runs" / ticket.run / "pid"
        wait_for(lambda: file.exists() and task.lives(ticket.run), seconds=60)
        pid = int(file.read_text())
        assert os.getsid(pid) == pid != process.pid
        process.send_signal(signal.SIGTERM)
        code, lines = ended(process)
        assert code == Exit.CANCELLED
        assert not task.lives(ticket.run)
        assert not any("X-Amz" in json.dumps(line) for line in lines)
    finally:
        task.close()


@pytest.mark.parametrize(
    ("duty", "changes", "words"),
    [
        ("train", {"contract": 99}, "contract 99"),
        ("train", {"run": "fp-abcd-r1-mainz-a2"}, "not of fp-abcd-r1-mainz-a1"),
        ("train", {"run": "../../etc"}, "not the name of a run"),
        ("dream", {}, "no duty"),
    ],
)
def test_what_is_no_job_is_refused_with_a_sentence(
    tmp_path: Path, duty: str, changes: dict[str, Any], words: str
) -> None:
    task = Task(tmp_path)
    code, lines = ended(task.start(LaunchTicket("fp-abcd-r1-mainz-a1", "http://store/spec"), duty, **changes))
    assert code == Exit.BAD_JOB
    assert words in lines[-1]["message"]
    assert not task.work_dir.exists()


@pytest.mark.parametrize("changes", [{"key": ""}, {"key": "no hex"}, {"data_root": None}])
def test_a_broken_site_file_is_refused_and_its_key_is_not_shown(tmp_path: Path, changes: dict[str, Any]) -> None:
    task = Task(tmp_path)
    task.describe(**changes)
    code, lines = ended(task.start(LaunchTicket("fp-abcd-r1-mainz-a1", "http://store/spec")))
    assert code == Exit.BAD_JOB
    assert "installation" in lines[-1]["message"]
    assert KEY not in json.dumps(lines)


def test_a_site_file_that_is_none_is_refused(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.site.write_text("[]")
    code, lines = ended(task.start(LaunchTicket("fp-abcd-r1-mainz-a1", "http://store/spec")))
    assert code == Exit.BAD_JOB
    assert "installation" in lines[-1]["message"]


def test_a_site_may_keep_no_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDPORTAL_SITE", str(tmp_path / "site.json"))
    for keep_days in (0, 3):
        Task(tmp_path).describe(keep_days=keep_days)
        assert SiteFile.read().keep_days == keep_days


def test_folders_of_old_runs_go_those_of_living_and_young_ones_stay(tmp_path: Path) -> None:
    import fcntl

    site = SiteFile(tmp_path, tmp_path / "work", KEY, keep_days=1)
    old, alive, young, mine = (tmp_path / "work" / "runs" / f"fp-abcd-r{number}-mainz-a1" for number in (1, 2, 3, 4))
    for folder in (old, alive, young, mine):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        if folder is not young:
            os.utime(folder, (time.time() - 2 * 86400,) * 2)
    with (alive / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tidy(site, keep=mine.name)
    assert [folder.exists() for folder in (old, alive, young, mine)] == [False, True, True, True]


def test_a_check_proves_the_key_and_names_the_datasets(tmp_path: Path) -> None:
    import hashlib
    import hmac

    task = Task(tmp_path)
    code, lines = ended(task.start(LaunchTicket("check-1", ""), "check", nonce="abc", portal="http://127.0.0.1:9/"))
    assert code == 0
    (report,) = lines
    assert report["proof"] == hmac.new(bytes.fromhex(KEY), b"check:abc", hashlib.sha256).hexdigest()
    assert report["portal"] == {"ok": False, "error": "ConnectionError"}
    assert report["versions"]["contract"] == str(CONTRACT_VERSION)
    assert report["free_bytes"] > 0
    assert report["datasets"] == []


@pytest.mark.store
def test_a_check_measures_the_way_to_the_store(tmp_path: Path, bench: Bench) -> None:
    from datetime import timedelta

    hour = timedelta(hours=1)
    bench.store.put_bytes("fedportal/checks/x", bytes(1000))
    addresses = {
        "get": bench.store.presign_get("fedportal/checks/x", hour),
        "put": bench.store.presign_put("fedportal/checks/y", hour),
    }
    # as a Kaapana that polls passes them on
    escaped = {way: html.escape(address) for way, address in addresses.items()}
    _, (report,) = ended(Task(tmp_path).start(LaunchTicket("check-1", ""), "check", store=escaped))
    assert (report["store"]["ok"], report["store"]["bytes"]) == (True, 1000)
    assert bench.store.get_bytes("fedportal/checks/y") == bytes(1000)
    _, (report,) = ended(
        Task(tmp_path).start(LaunchTicket("check-1", ""), "check", store={**addresses, "get": addresses["put"]})
    )
    assert report["store"]["ok"] is False
    assert re.fullmatch(r"The store at \S+ refused a small object \(403 \w+\)", report["store"]["error"])


def test_a_check_tells_of_a_data_folder_that_is_not_there(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.describe(data_root=str(tmp_path / "nowhere"))
    _, (report,) = ended(task.start(LaunchTicket("check-1", ""), "check"))
    assert report["problems"] == ["The data folder cannot be read (No such file or directory)."]
