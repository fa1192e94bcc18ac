"""A strategy remembers by its state file alone: whatever dies in whatever round, the end has the same hash."""

import hashlib
import os
import signal
import threading
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from fedportal.aggregation.errors import AggregationFailed, AggregationRefused
from fedportal.aggregation.merge import Contribution, aggregate
from fedportal.aggregation.process import AggregationProcess
from fedportal.aggregation.strategies import STRATEGIES
from fedportal.aggregation.weights import WeightsWriter
from tests.aggregation.models import merged, network, save

ROUNDS = 4
WITH_MEMORY = [name for name, strategy in STRATEGIES.items() if strategy.uses_server_state]


def contributions(folder, number):
    updates = {site: network(10 * number + i) for i, site in enumerate("abc")}
    return [
        Contribution(site, save(folder / f"{site}-{number}", tensors), 1 + i)
        for i, (site, tensors) in enumerate(updates.items())
    ]


def one_round(folder, name, number, *, forgets=False):
    has_state = STRATEGIES[name].uses_server_state
    return aggregate(
        reference=folder / f"global-{number - 1}",
        contributions=contributions(folder, number),
        strategy=name,
        options={},
        state_in=folder / f"state-{number - 1}" if has_state and number > 1 and not forgets else None,
        out=folder / f"global-{number}",
        state_out=folder / f"state-{number}" if has_state else None,
        round=number,
    )


def finished(folder, name, *, dies_in=None, monkeypatch=None):
    """Run all rounds and return what is left on the disk; in one round the work dies once, its files half written."""
    folder.mkdir()
    save(folder / "global-0", network(0))
    for number in range(1, ROUNDS + 1):
        if number == dies_in:
            with monkeypatch.context() as patched:
                patched.setattr(WeightsWriter, "commit", dies_at_the_model(WeightsWriter.commit))
                with pytest.raises(KeyboardInterrupt):
                    one_round(folder, name, number)
            assert not (folder / f"global-{number}").exists()
        one_round(folder, name, number)
    names = [f"global-{ROUNDS}", *([f"state-{ROUNDS}"] if STRATEGIES[name].uses_server_state else [])]
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]


def dies_at_the_model(commit):
    def instead(writer):
        if writer._path.name.startswith("global"):
            raise KeyboardInterrupt
        commit(writer)  # the state is on the disk already

    return instead


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_death_in_any_round_leaves_the_same_hash_at_the_end(tmp_path, name, monkeypatch):
    undisturbed = finished(tmp_path / "undisturbed", name)
    for number in range(1, ROUNDS + 1):
        assert finished(tmp_path / f"died-{number}", name, dies_in=number, monkeypatch=monkeypatch) == undisturbed


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_without_its_memory_the_end_would_be_another(tmp_path, name):
    model, memory = finished(tmp_path / "work", name)
    assert one_round(tmp_path / "work", name, ROUNDS).sha256 == model
    assert one_round(tmp_path / "work", name, ROUNDS, forgets=True).sha256 != model
    assert hashlib.sha256((tmp_path / "work" / f"state-{ROUNDS}").read_bytes()).hexdigest() != memory


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_a_killed_process_leaves_nothing_that_changes_the_result(tmp_path, name):
    """The real thing: kill -9 of the aggregation's own process, then the round again in a new one."""
    big = {"w": np.random.default_rng(0).standard_normal(6_000_000).astype(np.float32)}
    save(tmp_path / "global-0", big)
    for site in "ab":
        save(tmp_path / site, {"w": big["w"] * (1.5 if site == "a" else 0.5)})
    outputs = tmp_path / "global-1", tmp_path / "state-1"
    arguments = {
        "reference": tmp_path / "global-0",
        "contributions": [Contribution(site, tmp_path / site, 1) for site in "ab"],
        "strategy": name,
        "options": {},
        "state_in": None,
        "out": outputs[0],
        "state_out": outputs[1],
        "round": 1,
    }
    with AggregationProcess() as process:
        expected = process.aggregate(**arguments).sha256
        memory = outputs[1].read_bytes()
        while outputs[0].exists():  # on a busy machine a run may be over before it is killed
            for path in outputs:
                path.unlink()
            with killed_while_it_writes(tmp_path):
                try:
                    process.aggregate(**arguments)
                except AggregationFailed as failed:
                    assert "killed" in failed.reason  # noqa: PT017 - it may not fail at all
        assert process.aggregate(**arguments).sha256 == expected
        assert outputs[1].read_bytes() == memory
        assert not list(tmp_path.glob(".*"))


@contextmanager
def killed_while_it_writes(folder):
    """Kill the process whose unfinished model appears in the folder; its name tells its id."""
    over = threading.Event()

    def watch():
        while not over.wait(0.001):
            for part in folder.glob(".global-1.*.part"):
                with suppress(ProcessLookupError):
                    os.kill(int(part.name.split(".")[2]), signal.SIGKILL)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_strategies_keep_nothing_in_memory():
    assert all(not vars(strategy) for strategy in STRATEGIES.values())


def test_a_memory_that_overflows_is_refused_and_nothing_is_written(tmp_path):
    """An infinite second moment would hold its weight still for ever, while the model looks sound."""
    sites = {"a": ({"w": np.array([1.0, 1e25])}, 1)}
    with pytest.raises(AggregationRefused, match="memory would not be finite in “w”"):
        merged(tmp_path, sites, reference={"w": np.zeros(2)}, strategy="fedadagrad", state_out=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "global").exists()
