"""The warm server: one per socket, replaced when it died, and never a danger to the runs it started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteMisbehaved, SiteUnreachable
from fedportal.connectors.local import LocalConnector
from fedportal.connectors.trainer_process import TrainerProcess
from tests.trainer_process.bench import SCRIPTED, Bench, wait_for
from trainer.serve import TAKEN


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[TrainerProcess]:
    process = TrainerProcess(tmp_path / "s", command=SCRIPTED)
    process.start_server(timeout=30)
    yield process
    process.stop_server()


def pid_of(process: TrainerProcess) -> int:
    answer = process.ping()
    assert answer is not None
    return int(answer["pid"])


def children_of(pid: int) -> list[tuple[int, str]]:
    """Return pid and state of a process's children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(") ")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == pid:
                found.append((int(entry.name), state))
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


def said(process: TrainerProcess, data: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(process.socket_path))
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return dict(json.loads(connection.makefile().readline()))


def site(warm: TrainerProcess, tmp_path: Path) -> LocalConnector:
    return LocalConnector(
        data_root=tmp_path, work_dir=tmp_path / "work", socket=warm.socket_path or "", command=SCRIPTED
    )


def test_a_server_that_runs_is_kept(warm: TrainerProcess) -> None:
    first = pid_of(warm)
    assert warm.start_server() == first
    assert TrainerProcess(warm.socket_path, command=SCRIPTED).start_server() == first


def test_a_second_server_on_the_socket_refuses(warm: TrainerProcess) -> None:
    done = subprocess.run(
        [*SCRIPTED, "serve", "--socket", str(warm.socket_path)], capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == TAKEN
    assert "another trainer server" in done.stderr
    assert warm.ping()


def test_many_starters_end_up_with_one_server(tmp_path: Path) -> None:
    import threading

    process = TrainerProcess(tmp_path / "s", command=SCRIPTED)
    pids: list[int | None] = []
    threads = [threading.Thread(target=lambda: pids.append(process.start_server(timeout=30))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 4
    assert set(pids) == {pid_of(process)}
    process.stop_server()


def test_the_socket_of_a_killed_server_is_replaced(warm: TrainerProcess) -> None:
    first = pid_of(warm)
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: gone(first))
    assert warm.ping() is None
    assert warm.socket_path is not None
    assert warm.socket_path.exists()
    assert warm.start_server(timeout=30) != first
    assert warm.ping()


def test_a_server_of_other_code_is_replaced(warm: TrainerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pid_of(warm)
    monkeypatch.setattr(warm, "_fingerprint", lambda: "other code")
    assert warm.start_server(timeout=30) != first
    wait_for(lambda: gone(first))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_idle_processes_end_with_the_server(warm: TrainerProcess, number: signal.Signals) -> None:
    server = pid_of(warm)
    waiting = wait_for(lambda: len(children_of(server)) == 4 and children_of(server))
    os.kill(server, number)
    wait_for(lambda: all(gone(pid) for pid, _ in waiting))


@pytest.mark.store
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_runs_outlive_the_server(warm: TrainerProcess, bench: Bench, tmp_path: Path, number: signal.Signals) -> None:
    here, ticket = site(warm, tmp_path), bench.ticket("lasts")
    here.launch(ticket)
    wait_for(lambda: "scripted work" in here.logs(ticket.run).text)
    server = pid_of(warm)
    os.kill(server, number)
    wait_for(lambda: gone(server))
    assert here.poll(ticket.run).state is RunState.RUNNING
    assert here.launch(ticket) is False, "a cold start must not double the run"
    here.cancel(ticket.run)
    assert here.poll(ticket.run).state is RunState.CANCELLED


@pytest.mark.store
def test_ended_runs_leave_no_zombies_and_waiting_processes_are_made_up_for(
    warm: TrainerProcess, bench: Bench, tmp_path: Path
) -> None:
    here = site(warm, tmp_path)
    for attempt in range(1, 8):
        ticket = bench.ticket("quick", attempt=attempt)
        assert here.launch(ticket)
        wait_for(lambda ticket=ticket: here.poll(ticket.run).state is RunState.SUCCEEDED)
    server = pid_of(warm)
    wait_for(lambda: [state for _, state in children_of(server)].count("Z") == 0 and len(children_of(server)) == 4)


@pytest.mark.store
def test_a_run_still_starts_when_all_waiting_processes_were_killed(
    warm: TrainerProcess, bench: Bench, tmp_path: Path
) -> None:
    for pid, _ in children_of(pid_of(warm)):
        os.kill(pid, signal.SIGKILL)
    here, ticket = site(warm, tmp_path), bench.ticket("quick")
    assert here.launch(ticket)
    wait_for(lambda: here.poll(ticket.run).state is RunState.SUCCEEDED)


@pytest.mark.store
def test_each_run_has_a_session_of_its_own_and_its_output_in_its_log(
    warm: TrainerProcess, bench: Bench, tmp_path: Path
) -> None:
    here, ticket = site(warm, tmp_path), bench.ticket("lasts")
    here.launch(ticket)
    wait_for(lambda: "scripted work" in here.logs(ticket.run).text)
    pid = int((tmp_path / "work" / "runs" / ticket.run / "pid").read_text())
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert Path(f"/proc/{pid}/fd/2").readlink() == tmp_path / "work" / "runs" / ticket.run / "log.txt"
    here.cancel(ticket.run)


@pytest.mark.parametrize(
    "data",
    [b"\n", b"nonsense\n", b"[]\n", b"{}\n", b'{"op": "dance"}\n', b'{"op": "run"}\n', b'{"op": "run", "job": {}}\n',
     b'{"op": "command"}\n', b"", b"x" * 2_000_000 + b"\n"],
)  # fmt: skip
def test_a_request_that_is_none_is_answered_and_the_server_goes_on(warm: TrainerProcess, data: bytes) -> None:
    try:
        assert said(warm, data)["ok"] is False
    except (ConnectionError, ValueError):
        assert len(data) > 1_000_000, "only a request that is too long may be cut off"
    assert warm.ping()


def test_only_the_owner_may_speak_to_the_server(warm: TrainerProcess) -> None:
    assert warm.socket_path is not None
    assert warm.socket_path.stat().st_mode & 0o777 == 0o600


# --- commands, warm and cold -----------------------------------------------------------------------


@pytest.fixture(params=["warm", "cold"])
def process(request: pytest.FixtureRequest) -> TrainerProcess:
    if request.param == "warm":
        return TrainerProcess(request.getfixturevalue("scripted_server"), command=SCRIPTED)
    return TrainerProcess(command=SCRIPTED)


def test_a_command_gives_back_code_and_output(process: TrainerProcess) -> None:
    done = process.run_command(["version"], timeout=30)
    assert done.exit_code == 0
    assert json.loads(done.require())["contract"] == "1"


def test_a_failed_command_gives_back_the_sentence(process: TrainerProcess, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    argv = ["init", "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out")]
    done = process.run_command(argv, timeout=30)
    assert done.exit_code == 10
    with pytest.raises(SiteMisbehaved, match="does not understand"):
        done.require()
    assert not (tmp_path / "out").exists()


def test_a_command_that_is_none_says_so(process: TrainerProcess) -> None:
    done = process.run_command(["dance"], timeout=30)
    assert done.exit_code == 2
    assert "invalid choice" in done.log


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    monkeypatch.setenv("TMPDIR", str(outputs))
    script = tmp_path / "slow.py"
    script.write_text(
        f"import sys, time\nsys.path.insert(0, {str(Path.cwd())!r})\n"
        "import trainer.inspect\n"
        "trainer.inspect.inspect = lambda _: time.sleep(60)\n"
        "from trainer.__main__ import main\n"
        "sys.exit(main(preload=()))\n"
    )
    command = (sys.executable, str(script))
    warm = TrainerProcess(tmp_path / "s", command=command)
    server = warm.start_server(timeout=30)
    assert server is not None
    try:
        for process in (warm, TrainerProcess(command=command)):
            with pytest.raises(SiteUnreachable, match="did not end"):
                process.run_command(["inspect", "--data-root", str(tmp_path)], timeout=1)
        wait_for(lambda: len(children_of(server)) == 4)
        assert warm.ping()
        wait_for(lambda: not list(outputs.iterdir()))
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(warm.socket_path))
            connection.sendall(json.dumps({"op": "command", "argv": ["inspect", "--data-root", "/"]}).encode() + b"\n")
            wait_for(lambda: list(outputs.iterdir()))
            warm.stop_server()
        wait_for(lambda: not list(outputs.iterdir()))
    finally:
        warm.stop_server()
