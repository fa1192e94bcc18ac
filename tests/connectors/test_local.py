"""The local connector: the contract from warm and from cold, and what only a site on this machine can show."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedportal.connectors.base import RunState
from fedportal.connectors.errors import SiteUnreachable
from fedportal.connectors.fields import SiteContext, Unfit
from fedportal.connectors.local import LocalConnector
from fedportal.connectors.registry import build
from fedportal.connectors.trainer_process import TrainerProcess, is_locked
from tests.connectors.contract import ConnectorContract
from tests.trainer.conftest import write_dataset
from tests.trainer_process.bench import SCRIPTED, Bench, wait_for
from trainer.contract import Exit

pytestmark = pytest.mark.store
RunFolder = Callable[[str], Path]


class TestContract(ConnectorContract):
    @pytest.fixture
    def site(self, local_site: LocalConnector) -> LocalConnector:
        return local_site


def pid_of(folder: Path) -> int:
    return int((folder / "pid").read_text())


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_killed_run_is_failed_and_says_why(local_site: LocalConnector, bench: Bench) -> None:
    ticket = bench.ticket("killed")
    local_site.launch(ticket)
    wait_for(lambda: local_site.poll(ticket.run).state.is_over)
    status = local_site.poll(ticket.run)
    assert (status.state, status.exit_code) == (RunState.FAILED, None)
    assert "memory" in status.message
    assert "scripted work: killed" in status.message or "printed by a library" in status.message
    assert local_site.launch(ticket) is False


def test_a_run_that_could_not_even_say_that_the_disk_is_full_is_told_from_a_killed_one(
    local_site: LocalConnector, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = bench.ticket("killed")
    local_site.launch(ticket)
    wait_for(lambda: local_site.poll(ticket.run).state.is_over)
    monkeypatch.setattr("fedportal.connectors.local.shutil.disk_usage", lambda _folder: SimpleNamespace(free=0))
    status = local_site.poll(ticket.run)
    assert (status.state, status.exit_code) == (RunState.FAILED, Exit.DISK_FULL)
    assert "disk is full" in status.message


@pytest.mark.parametrize("dataset", ["computes", "has-children"])
def test_cancel_leaves_no_process(
    local_site: LocalConnector, bench: Bench, run_folder: RunFolder, dataset: str
) -> None:
    ticket = bench.ticket(dataset)
    local_site.launch(ticket)
    wait_for(lambda: "scripted work" in local_site.logs(ticket.run).text)
    pid = pid_of(run_folder(ticket.run))
    local_site.cancel(ticket.run)
    assert local_site.poll(ticket.run).state is RunState.CANCELLED
    assert not is_locked(run_folder(ticket.run) / "lock")
    wait_for(lambda: not alive(pid))


def test_cancel_ends_a_run_that_does_not_listen(
    local_site: LocalConnector, bench: Bench, run_folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedportal.connectors.local.GRACE", 0.3)
    ticket = bench.ticket("lasts")
    local_site.launch(ticket)
    wait_for(lambda: "scripted work" in local_site.logs(ticket.run).text)
    os.kill(pid_of(run_folder(ticket.run)), signal.SIGSTOP)
    local_site.cancel(ticket.run)
    assert local_site.poll(ticket.run).state is RunState.CANCELLED


def test_many_launches_at_once_start_one_process(local_site: LocalConnector, bench: Bench) -> None:
    ticket = bench.ticket("lasts")
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(local_site.launch(ticket))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 5 + [True]
    wait_for(lambda: "run begins" in local_site.logs(ticket.run).text)
    assert local_site.logs(ticket.run).text.count("run begins") == 1


def test_a_launch_that_crashed_before_its_process_began_is_repeated(
    local_site: LocalConnector, bench: Bench, run_folder: RunFolder
) -> None:
    ticket = bench.ticket("quick")
    run_folder(ticket.run).mkdir(parents=True)
    (run_folder(ticket.run) / "lock").touch()
    assert local_site.poll(ticket.run).state is RunState.LOST
    assert local_site.launch(ticket) is True
    wait_for(lambda: local_site.poll(ticket.run).state is RunState.SUCCEEDED)


def test_a_run_outlives_the_process_that_launched_it(bench: Bench, tmp_path: Path, scripted_server: Path) -> None:
    for number, socket in enumerate(("", str(scripted_server)), start=1):
        ticket = bench.ticket("lasts", attempt=number)
        config = {"data_root": str(tmp_path), "work_dir": str(tmp_path / "work"), "socket": socket, "command": SCRIPTED}
        launcher = subprocess.run(
            [
                sys.executable,
                "-c",
                "import json, os, sys\n"
                "from fedportal.connectors.local import LocalConnector\n"
                "from trainer.contract import LaunchTicket\n"
                "config, ticket = json.loads(sys.stdin.read())\n"
                "LocalConnector(**config).launch(LaunchTicket(**ticket))\n"
                "os.kill(os.getpid(), 9)\n",
            ],
            input=json.dumps([config, ticket.to_json()]).encode(),
            check=False,
        )
        assert launcher.returncode == -signal.SIGKILL
        site = LocalConnector(**config)
        wait_for(lambda site=site, ticket=ticket: "scripted work" in site.logs(ticket.run).text)
        assert site.poll(ticket.run).state is RunState.RUNNING
        site.cancel(ticket.run)
        assert site.poll(ticket.run).state is RunState.CANCELLED


def test_no_secret_of_a_launch_stays_in_the_runs_folder(
    local_site: LocalConnector, bench: Bench, run_folder: RunFolder
) -> None:
    ticket = bench.ticket("crashes")
    local_site.launch(ticket)
    wait_for(lambda: local_site.poll(ticket.run).state.is_over)
    wait_for(lambda: "run ends" in local_site.logs(ticket.run).text)
    files = [path for path in run_folder(ticket.run).iterdir() if path.is_file()]
    assert files
    for path in files:
        assert ticket.key not in path.read_text()
        assert "Signature" not in path.read_text()
    assert "Signature" not in bench.read(ticket, "log.txt").decode()


def test_the_portals_secrets_stay_out_of_the_trainers_environment(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET_KEY", "FEDPORTAL_KEYS", "DATABASE_URL", "FEDPORTAL_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "keep-me-secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    trainer = TrainerProcess(tmp_path / "s", command=SCRIPTED)
    server = trainer.start_server(timeout=30)
    site = LocalConnector(data_root=tmp_path, work_dir=tmp_path / "work", command=SCRIPTED)
    ticket = bench.ticket("lasts")
    try:
        site.launch(ticket)
        for pid in (server, pid_of(tmp_path / "work" / "runs" / ticket.run)):
            # empty for a moment while a process becomes another program
            wait_for(lambda pid=pid: "proxy.example.org" in Path(f"/proc/{pid}/environ").read_text())
            assert "keep-me-secret" not in Path(f"/proc/{pid}/environ").read_text()
    finally:
        trainer.stop_server()
        site.cancel(ticket.run)


def test_a_check_names_what_is_wrong_and_does_not_go_on(tmp_path: Path) -> None:
    site = LocalConnector(data_root=tmp_path / "nowhere", work_dir=tmp_path / "work")
    report = site.check()
    assert [step.ok for step in report.steps] == [False, None, None, None]
    assert report.steps[0].message == "The data folder cannot be read (No such file or directory)."
    assert report.steps[0].remedy


def test_a_check_finds_that_the_trainer_is_broken(tmp_path: Path) -> None:
    site = LocalConnector(data_root=tmp_path, work_dir=tmp_path / "work", command=("/bin/false",))
    steps = site.check().steps
    assert [step.ok for step in steps] == [True, True, False, None]


def test_a_trainer_that_cannot_be_started_is_unreachable(tmp_path: Path, bench: Bench) -> None:
    site = LocalConnector(data_root=tmp_path, work_dir=tmp_path / "work", command=("/nowhere/python",))
    ticket = bench.ticket()
    with pytest.raises(SiteUnreachable):
        site.launch(ticket)
    assert site.poll(ticket.run).state is RunState.LOST


@pytest.mark.parametrize("run", ["", "../x", ".hidden", "a/b"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, run: str) -> None:
    site = LocalConnector(data_root=tmp_path, work_dir=tmp_path)
    for act in (site.poll, site.cancel, site.logs):
        with pytest.raises(ValueError, match="not the name"):
            act(run)


@pytest.mark.parametrize("way", ["warm", "cold"])
def test_a_pool_reaches_the_run_and_is_reported_as_one_dataset(
    bench: Bench, tmp_path: Path, scripted_server: Path, way: str
) -> None:
    write_dataset(tmp_path / "bonn/Brain", train=2, validation=1, shape=(4, 4, 4))
    write_dataset(tmp_path / "graz/Task01", train=4, validation=2, shape=(4, 4, 4))
    members = [
        {"site": slug, "data_root": str(tmp_path / slug), "dataset": dataset}
        for slug, dataset in (("bonn", "Brain"), ("graz", "Task01"))
    ]
    config = {"data_root": str(tmp_path / "none"), "work_dir": str(tmp_path / "work"), "threads": 1, "pool": members}
    assert LocalConnector.clean_config(config, {}) == config
    socket = str(scripted_server) if way == "warm" else ""
    site = LocalConnector(**config, socket=socket, command=SCRIPTED)
    ticket = bench.ticket("pooled")
    site.launch(ticket)
    wait_for(lambda: site.poll(ticket.run).state is RunState.SUCCEEDED)
    log = site.logs(ticket.run).text
    for member in members:
        assert f"member {member['site']}: {member['dataset']} in {member['data_root']}" in log
    report = site.check()
    assert report.ok, report.steps
    (dataset,) = report.datasets
    assert (dataset.name, dataset.train_cases, dataset.validation_cases) == ("pooled", 6, 3)
    shutil.rmtree(tmp_path / "graz")
    assert [step.ok for step in site.check().steps] == [False, None, None, None]


@pytest.mark.parametrize(
    "pool",
    [
        "bonn",
        {"site": "bonn", "data_root": "/srv/bonn", "dataset": "Brain"},
        ["bonn"],
        [{"site": "bonn", "data_root": "/srv/bonn"}],
        [{"site": "bonn", "data_root": "/srv/bonn", "dataset": "Brain", "threads": 1}],
        [{"site": "bonn", "data_root": "/srv/bonn", "dataset": ""}],
        [{"site": "bonn", "data_root": 7, "dataset": "Brain"}],
        [{"site": "bonn", "data_root": "bonn", "dataset": "Brain"}],
        [{"site": "bonn", "data_root": "/srv/../etc", "dataset": "Brain"}],
    ],
)
def test_a_pool_of_another_shape_is_refused(pool: object) -> None:
    config = {"data_root": "/srv/none", "work_dir": "/srv/work", "threads": 1, "pool": pool}
    with pytest.raises(Unfit) as refusal:
        LocalConnector.clean_config(config, {})
    assert refusal.value.field == "pool"
    with pytest.raises(ValueError, match=r"pool|path"):
        build("local", config, {}, site=SiteContext(slug="pool"))


def test_a_pool_does_not_work_inside_the_data_of_a_member() -> None:
    pool = [{"site": "bonn", "data_root": "/srv/bonn", "dataset": "Brain"}]
    with pytest.raises(Unfit, match="outside"):
        LocalConnector.clean_config({"data_root": "/srv/none", "work_dir": "/srv/bonn/work", "pool": pool}, {})


def test_the_registry_builds_what_it_knows(tmp_path: Path) -> None:
    site = SiteContext(slug="mainz", trainer_socket=str(tmp_path / "trainer.sock"))
    config = {"data_root": str(tmp_path), "work_dir": str(tmp_path / "work"), "threads": 1}
    assert isinstance(build("local", config, {}, site=site), LocalConnector)
    for kind, unfit in (
        ("pigeon", config),
        ("local", {}),
        ("local", {"data_root": "/a"}),
        ("local", {**config, "data_root": 7}),
    ):
        with pytest.raises(ValueError, match="connector"):
            build(kind, unfit, {}, site=site)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("data_root", "data", "whole path"),
        ("data_root", "~/data", "whole path"),
        ("data_root", "/srv/../etc", "without"),
        ("data_root", "/", "root of the machine"),
        ("data_root", "//", "root of the machine"),
        ("data_root", "/srv/\0data", "whole path"),
        ("work_dir", "work", "whole path"),
        ("work_dir", "/srv/data", "outside of the data folder"),
        ("work_dir", "/srv/./data/work", "outside of the data folder"),
    ],
)
def test_a_folder_that_cannot_work_is_refused_with_its_field(field: str, value: str, reason: str) -> None:
    with pytest.raises(Unfit, match=reason) as refusal:
        LocalConnector.clean_config({"data_root": "/srv/data", "work_dir": "/srv/work", "threads": 1, field: value}, {})
    assert refusal.value.field == field


def test_folders_are_normalised_and_other_settings_kept() -> None:
    typed = {"data_root": " /srv//data/ ", "work_dir": "/srv/work", "threads": 1, "image": "trainer:1"}
    assert LocalConnector.clean_config(typed, {}) == {**typed, "data_root": "/srv/data"}
