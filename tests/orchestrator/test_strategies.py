"""Strategies over whole experiments: their memory survives every death, patience ends them, others' models begin them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedportal.aggregation.strategies import STRATEGIES
from fedportal.experiments import services
from fedportal.experiments.models import Experiment
from fedportal.experiments.states import ExperimentState
from tests.orchestrator.fakes import Federation
from tests.orchestrator.rows import fresh, journal, make_engine, make_running, models, run_to_end, undone
from tests.orchestrator.test_crashes import STEPS, Crash, Mortal, cut  # noqa: F401 - a fixture

pytestmark = pytest.mark.django_db
WITH_MEMORY = [name for name, strategy in STRATEGIES.items() if strategy.uses_server_state]


def hashes(experiment: Experiment) -> list[tuple[str, str]]:
    return list(experiment.models.order_by("round_number").values_list("sha256", "server_state_sha256"))


def begun(federation: Federation, strategy: str = "fedavg", **fields) -> Experiment:
    return make_running(federation, strategy=strategy, **fields)


@pytest.mark.parametrize("strategy", WITH_MEMORY)
def test_a_server_optimizer_ends_with_the_same_hashes_wherever_the_process_died(cut, tmp_path: Path, strategy: str):  # noqa: F811
    federation = Federation(tmp_path / "calm", auto=True)
    with undone():
        expected = hashes(run_to_end(make_engine(federation), federation, begun(federation, strategy)))
    assert len(expected) == 3
    assert [bool(memory) for _, memory in expected] == [False, True, True]
    for at in range(1, STEPS[2] + 1):
        federation = Federation(tmp_path / str(at), auto=True)
        with undone():
            experiment = begun(federation, strategy)
            cut(at, lambda: (_ for _ in ()).throw(Crash), True)
            with pytest.raises(Crash):
                run_to_end(Mortal(federation.tools, worker="vm-1", clock=federation.clock), federation, experiment)
            restarted = make_engine(federation, "vm-1")
            restarted.free_own_leases()
            experiment = run_to_end(restarted, federation, experiment)
            assert experiment.status is ExperimentState.COMPLETED, f"step {at}: {experiment.reason}"
            assert hashes(experiment) == expected, f"step {at}"


def test_strategies_make_different_models_of_the_same_updates(tmp_path: Path):
    found = {}
    for strategy in ("fedavg", *WITH_MEMORY):
        federation = Federation(tmp_path / strategy, auto=True)
        with undone():
            found[strategy] = models(run_to_end(make_engine(federation), federation, begun(federation, strategy)))[-1]
    assert len(set(found.values())) == len(found)


def test_an_experiment_whose_models_get_no_better_stops_and_measures_its_last_one(tmp_path: Path):
    """The sites in memory measure 0.5 whatever they get."""
    federation = Federation(tmp_path, auto=True)
    experiment = run_to_end(make_engine(federation), federation, begun(federation, rounds=9, patience=2))
    assert experiment.status is ExperimentState.COMPLETED
    assert [(r.number, r.kind) for r in experiment.rounds.order_by("number")] == [
        (1, "train"), (2, "train"), (3, "train"), (4, "evaluate"),
    ]  # fmt: skip
    assert [model.dice for model in experiment.models.order_by("round_number")] == [0.5] * 4
    assert (experiment.rounds_planned, experiment.plan["rounds"]) == (3, 9)
    assert experiment.best_model.round_number == 0
    (said,) = (text for text in journal(experiment) if "stops early" in text)
    assert said.startswith("No model for 2 rounds had a better mean Dice than that of the start with 0.500")
    assert "The experiment is complete after 3 rounds." in journal(experiment)[-1]
    assert services.clone(experiment=experiment, by=experiment.owner).rounds_planned == 9


def test_patience_beyond_the_rounds_changes_nothing(tmp_path: Path):
    federation = Federation(tmp_path, auto=True)
    experiment = run_to_end(make_engine(federation), federation, begun(federation, patience=2))
    assert (experiment.rounds.count(), experiment.rounds_planned) == (3, 2)


def test_an_experiment_starts_from_a_copy_of_the_chosen_model(tmp_path: Path):
    federation = Federation(tmp_path, auto=True)
    source = run_to_end(make_engine(federation), federation, begun(federation))
    chosen = source.newest_model
    heir = services.clone(experiment=source, by=source.owner)
    services.update_draft(experiment=heir, by=source.owner, fields={"initial_model": chosen})
    services.start(experiment=fresh(heir), by=source.owner)
    initialised = len(federation.commands)
    heir = run_to_end(make_engine(federation), federation, fresh(heir))
    assert heir.status is ExperimentState.COMPLETED
    first = heir.models.get(round_number=0)
    assert (first.sha256, first.size) == (chosen.sha256, chosen.size)
    assert first.key != chosen.key
    assert federation.store.objects[first.key] == federation.store.objects[chosen.key]
    assert not any(command[0] == "init" for command in federation.commands[initialised:])
    said = f"The experiment starts from the model of round 2 of “Brains” ({source.key})"
    assert any(text.startswith(said) for text in journal(heir))
