"""Aggregation in processes of their own: what kills one harms nobody else and leaves no half file."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from fedportal.aggregation.admission import admit
from fedportal.aggregation.errors import AggregationFailed, AggregationRefused, NothingToAggregate, WeightsError
from fedportal.aggregation.merge import Contribution, aggregate
from fedportal.aggregation.process import AggregationProcess
from fedportal.aggregation.warm import SPARES
from tests.aggregation.models import network, save


@pytest.fixture(scope="module")
def process():
    with AggregationProcess(timeout=60) as running:
        yield running


@pytest.fixture
def arguments(tmp_path):
    return {
        "reference": save(tmp_path / "reference", network(0)),
        "contributions": [
            Contribution(f"site-{seed}", save(tmp_path / f"update-{seed}", network(seed)), seed) for seed in (1, 2, 3)
        ],
        "strategy": "fedavg",
        "options": {"weighting": "cases"},
        "state_in": None,
        "out": tmp_path / "global",
        "state_out": None,
    }


@pytest.fixture
def stalled(arguments, tmp_path):
    """Arguments of a run that never ends: to open a named pipe that nobody writes to is to wait."""
    os.mkfifo(tmp_path / "pipe")
    return {**arguments, "contributions": [Contribution("a", tmp_path / "pipe", 1)]}


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid):
    """The children that have got a run; spare ones still belong to their parent's session."""
    found = []
    for child in children(pid):
        with suppress(ProcessLookupError):
            found += [child] if os.getsid(child) == child else []
    return found


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return result


def warm_pid(process):
    return process._warm.process.pid


def kill_runs_until(done, process):
    """Kill the runs, each some time after its start: one killed before it said its name would be started again."""
    while not done():
        time.sleep(0.2)
        for run in runs(warm_pid(process)):
            with suppress(ProcessLookupError):
                os.kill(run, signal.SIGKILL)


def test_it_returns_what_a_call_in_this_process_returns(process, arguments, tmp_path):
    assert process.aggregate(**arguments) == aggregate(**arguments)
    update, reference = arguments["contributions"][0].path, arguments["reference"]
    assert process.admit(update, reference) == admit(update, reference)
    assert process.admit(update, reference, max_relative_norm=1e-9) == admit(update, reference, max_relative_norm=1e-9)
    assert process.aggregate(**arguments, round=5).sha256 == aggregate(**arguments, round=5).sha256
    assert 0 < process.peak_memory_bytes < 300 * 2**20


def test_errors_come_through_as_they_are(process, arguments, tmp_path):
    with pytest.raises(NothingToAggregate):
        process.aggregate(**{**arguments, "contributions": []})
    with pytest.raises(AggregationRefused, match="no strategy"):
        process.aggregate(**{**arguments, "strategy": "fedsgd"})
    with pytest.raises(WeightsError, match="site a cannot be used: There is no such file"):
        process.aggregate(**{**arguments, "contributions": [Contribution("a", tmp_path / "missing", 1)]})


def test_a_failing_disk_is_reported_without_a_path(process, arguments, tmp_path):
    with pytest.raises(AggregationFailed, match="No such file or directory") as caught:
        process.aggregate(**{**arguments, "out": tmp_path / "nowhere" / "global"})
    assert str(tmp_path) not in caught.value.reason


def test_a_run_that_takes_too_long_is_killed(stalled, tmp_path):
    stalled["out"].write_bytes(b"the last model")
    with AggregationProcess(timeout=1.0) as process:
        with pytest.raises(AggregationFailed, match="longer than 1 seconds"):
            process.aggregate(**stalled)
        wait_for(lambda: not runs(warm_pid(process)))
    assert stalled["out"].read_bytes() == b"the last model"


def test_a_killed_run_is_reported_and_the_next_one_works(process, arguments, stalled):
    process.admit(arguments["reference"], arguments["reference"])
    with ThreadPoolExecutor() as pool:
        doomed = pool.submit(process.aggregate, **stalled)
        kill_runs_until(doomed.done, process)
        with pytest.raises(AggregationFailed, match="killed before it finished"):
            doomed.result()
    assert process.aggregate(**arguments).path.exists()


def test_a_run_killed_while_it_writes_leaves_no_half_file(process, tmp_path):
    models = {"w": np.ones(30_000_000, np.float32)}
    model = save(tmp_path / "model", models)
    (tmp_path / "global").write_bytes(b"the last model")
    process.admit(model, model)
    wait_for(lambda: not runs(warm_pid(process)))
    arguments = {
        "reference": model,
        "contributions": [Contribution(f"site-{number:02}", model, 1) for number in range(40)],
        "strategy": "fedavg",
        "options": {},
        "state_in": None,
        "out": tmp_path / "global",
        "state_out": None,
    }
    with ThreadPoolExecutor() as pool:
        doomed = pool.submit(process.aggregate, **arguments)
        wait_for(lambda: list(tmp_path.glob(".global.*.part")))
        for run in runs(warm_pid(process)):
            os.kill(run, signal.SIGKILL)
        with pytest.raises(AggregationFailed, match="killed before it finished"):
            doomed.result()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["global", "model"]
    assert (tmp_path / "global").read_bytes() == b"the last model"


def test_too_little_memory_is_reported(arguments):
    with (
        AggregationProcess(memory_limit_bytes=40 * 2**20) as process,
        pytest.raises(AggregationFailed, match="more memory than its limit of 40 MiB"),
    ):
        process.aggregate(**arguments)
    assert not arguments["out"].exists()


def test_a_header_that_eats_memory_is_stopped_by_the_limit(tmp_path):
    text = b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"
    (tmp_path / "bomb").write_bytes(len(text).to_bytes(8, "little") + text)
    reference = save(tmp_path / "reference", network())
    with (
        AggregationProcess(memory_limit_bytes=150 * 2**20) as process,
        pytest.raises(AggregationFailed, match="more memory"),
    ):
        process.admit(tmp_path / "bomb", reference)
    with AggregationProcess() as process:
        assert "not a tensor" in process.admit(tmp_path / "bomb", reference).reason


def test_a_killed_warm_process_is_replaced(process, arguments):
    expected = process.aggregate(**arguments)
    old = warm_pid(process)
    os.kill(old, signal.SIGKILL)
    assert process.aggregate(**arguments) == expected
    assert warm_pid(process) != old


def test_spare_processes_that_died_while_they_waited_are_passed_over(process, arguments):
    expected = process.aggregate(**arguments)
    spares = wait_for(lambda: len(children(warm_pid(process))) == SPARES and children(warm_pid(process)))
    for spare in spares:
        os.kill(spare, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{spare}").exists() for spare in spares))
    old = warm_pid(process)
    assert process.aggregate(**arguments) == expected
    assert warm_pid(process) == old


def test_spare_processes_end_with_the_warm_one(arguments):
    process = AggregationProcess()
    process.admit(arguments["reference"], arguments["reference"])
    spares = wait_for(lambda: len(children(warm_pid(process))) == SPARES and children(warm_pid(process)))
    process.close()
    wait_for(lambda: not any(Path(f"/proc/{spare}").exists() for spare in spares))


def test_a_run_outlives_the_warm_process_it_came_from(process, stalled, tmp_path):
    process.admit(stalled["reference"], stalled["reference"])
    wait_for(lambda: not runs(warm_pid(process)))
    with ThreadPoolExecutor() as pool:
        running = pool.submit(process.aggregate, **stalled)
        wait_for(lambda: runs(warm_pid(process)))
        time.sleep(0.1)
        os.kill(warm_pid(process), signal.SIGKILL)
        with (tmp_path / "pipe").open("wb"):
            pass
        with pytest.raises(WeightsError, match="too short"):
            running.result()


def test_many_threads_share_it(arguments, tmp_path):
    barrier = threading.Barrier(8)

    def work(number):
        barrier.wait()
        return process.aggregate(**{**arguments, "out": tmp_path / f"global-{number}"}).sha256

    with AggregationProcess() as process, ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(work, range(8)))
    assert len(digests) == 1


def test_closing_ends_the_warm_process(arguments):
    process = AggregationProcess()
    process.aggregate(**arguments)
    pid = warm_pid(process)
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_memory_does_not_grow_with_the_number_of_models(tmp_path):
    model = save(tmp_path / "model", {"w": np.ones(8_000_000, np.float32)})  # 30 MiB: thirty held at once would show
    peaks = []
    for count in (2, 30):
        with AggregationProcess() as process:
            process.aggregate(
                reference=model,
                contributions=[Contribution(f"site-{number}", model, 1 + number) for number in range(count)],
                strategy="fedavg",
                options={},
                state_in=None,
                out=tmp_path / "global",
                state_out=None,
            )
            peaks.append(process.peak_memory_bytes)
    assert max(peaks) < 160 * 2**20
    assert peaks[1] - peaks[0] < 30 * 2**20
