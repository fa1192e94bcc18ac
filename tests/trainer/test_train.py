"""One site's part of a round, from dataset to update."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.trainer.conftest import changed, write_dataset
from trainer.contract import NETWORKS, Exit, Kind, Network, Task, metric_from_json, regions_for
from trainer.initial import init
from trainer.job import Fault
from trainer.machine import settle


def test_an_update_has_the_names_shapes_and_dtypes_of_the_model_and_says_its_round(plan, work, tmp_path: Path):
    outcome, run_dir = work(plan, round=2)
    assert outcome.update == run_dir / "update.safetensors"
    assert (outcome.train_cases, outcome.validation_cases, outcome.steps) == (2, 1, 2)
    (initial,) = tmp_path.glob("initial-*.safetensors")
    before, after = load_file(initial), load_file(outcome.update)
    assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    with safe_open(outcome.update, "pt") as file:
        assert file.metadata() == {"fedportal": '{"buffers":[],"round":2}'}
    assert set(outcome.seconds) == {"load", "validate_incoming", "train", "validate_local"}
    assert all(seconds >= 0 for seconds in outcome.seconds.values())


def test_training_learns(plan, work, report):
    work(changed(plan, local_epochs=30, optimizer={"learning_rate": 1e-2}))
    losses = report.values("train", "epoch_loss")
    assert losses[-1] < losses[0] - 0.1
    assert report.values("local", "dice", "mean")[0] > report.values("incoming", "dice", "mean")[0] + 0.1


def test_numbers_are_reported_per_step_epoch_and_region_as_the_contract_has_them(plan, work, report):
    work(changed(plan, batch_size=1, validation={"hd95_every": 1}))
    for record in report.metrics:
        assert metric_from_json(record.to_json()) == record
    steps = [r for r in report.metrics if (r.phase, r.name) == ("train", "loss")]
    assert [(r.step, r.progress, r.cases) for r in steps] == [(1, 0.25, 1), (2, 0.5, 1), (3, 0.75, 1), (4, 1.0, 1)]
    for name in ("epoch_loss", "learning_rate"):
        assert [r.step for r in report.metrics if r.name == name] == [2, 4]
    for phase, step, progress in (("incoming", 0, 0.0), ("local", 4, 1.0)):
        measured = [r for r in report.metrics if r.phase == phase]
        assert [(r.name, r.region) for r in measured] == [
            *(("dice", region) for region in ("WT", "TC", "ET", "mean")),
            *(("hd95", region) for region in ("WT", "TC", "ET", "mean")),
            ("loss", ""),
        ]
        assert {(r.step, r.progress) for r in measured} == {(step, progress)}
        dice = [r.value for r in measured if r.name == "dice"]
        assert math.isclose(dice[-1], sum(dice[:-1]) / 3)


def test_the_incoming_model_is_measured_before_it_is_changed(plan, work, report):
    work(plan)
    phases = [record.phase for record in report.metrics]
    assert phases.index("train") > max(i for i, phase in enumerate(phases) if phase == "incoming")
    first = report.values("incoming", "dice", "mean")
    work(plan, kind=Kind.EVALUATE)
    assert report.values("incoming", "dice", "mean") == [*first, *first]


@pytest.mark.parametrize("treatment", ["reset", "aggregate"])
def test_update_and_optimizer_state_are_final_and_handed_over_before_the_local_model_is_measured(
    plan, work, report, treatment: str
):
    handed = []

    def deliver(update: Path, optimizer: Path | None) -> None:
        assert not report.values("local", "dice", "mean")
        handed.append([path and path.read_bytes() for path in (update, optimizer)])

    outcome, _ = work(changed(plan, optimizer={"treatment": treatment}), deliver=deliver)
    assert report.values("local", "dice", "mean")
    assert handed == [[path and path.read_bytes() for path in (outcome.update, outcome.optimizer)]]
    assert (outcome.optimizer is None) == (treatment == "reset")


def test_the_local_model_is_not_measured_where_the_plan_says_so(plan, work, report):
    outcome, _ = work(changed(plan, validation={"local": False}))
    assert "validate_local" not in outcome.seconds
    assert not [r for r in report.metrics if r.phase == "local"]


def test_the_hausdorff_distance_is_measured_at_its_interval_and_in_the_last_round(plan, work, report):
    plan = changed(plan, rounds=5, local_epochs=1, validation={"hd95_every": 2, "local": False})
    for round in range(1, 6):
        work(plan, round=round)
        measured = bool(report.values("incoming", "hd95", "WT"))
        assert measured == (round in (2, 4, 5))
        report.metrics.clear()


@pytest.mark.parametrize(("every", "is_measured"), [(4, True), (0, False)])
def test_the_hausdorff_distance_of_the_final_model_is_measured_wherever_an_early_stop_puts_its_round(
    plan, work, report, every, is_measured
):
    plan = changed(plan, rounds=9, validation={"hd95_every": every})
    work(plan, kind=Kind.EVALUATE, round=3)
    assert bool(report.values("incoming", "hd95", "WT")) is is_measured


def test_evaluating_measures_the_incoming_model_and_writes_no_update(plan, work, report):
    outcome, run_dir = work(plan, kind=Kind.EVALUATE)
    assert (outcome.train_cases, outcome.validation_cases, outcome.steps, outcome.update) == (0, 1, 0, None)
    assert {(r.phase, r.step) for r in report.metrics} == {("incoming", 0)}
    assert set(outcome.seconds) == {"load", "validate_incoming"}
    assert list(run_dir.iterdir()) == []


# --- repeatable -----------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["light", "strong"])
def test_two_attempts_of_a_round_give_the_same_bytes(plan, work, augmentation):
    plan = changed(plan, augmentation=augmentation, network={"dropout": 0.2}, optimizer={"treatment": "aggregate"})
    first, _ = work(plan, attempt=1)
    torch.manual_seed(99)  # nothing that ran before may matter
    second, _ = work(plan, attempt=2)
    assert first.update != second.update
    assert first.update.read_bytes() == second.update.read_bytes()
    assert first.optimizer.read_bytes() == second.optimizer.read_bytes()


@pytest.mark.parametrize("other", [{"round": 2}, {"site": "bonn"}])
def test_another_round_or_site_draws_other_numbers(plan, work, other):
    plan = changed(plan, network={"dropout": 0.2})
    first, _ = work(plan)
    tensors = load_file(first.update)
    second, _ = work(plan, run="fp-other-r1-x-a1", **other)
    assert any(not torch.equal(tensors[name], value) for name, value in load_file(second.update).items())


def test_another_seed_draws_other_numbers(plan, work, tmp_path: Path):
    init(plan, tmp_path / "model")
    first, _ = work(plan, model=tmp_path / "model")
    before = first.update.read_bytes()
    second, _ = work(changed(plan, seed=1), model=tmp_path / "model")
    assert before != second.update.read_bytes()


WARM = """
import os, sys
from pathlib import Path
import torch, torch._dynamo, monai.networks.nets, monai.losses, monai.transforms, monai.data
import trainer.train
from tests.trainer.conftest import BRAIN, SMALL, Recorder, changed, make_spec
from trainer.contract import TrainingPlan
from trainer.job import Site

base = Path(sys.argv[1])
plan = TrainingPlan(task=BRAIN, network=SMALL, rounds=2, local_epochs=1, patch=(16, 16, 16))
for attempt in (1, 2):
    child = os.fork()
    if child == 0:
        run_dir = base / str(attempt)
        run_dir.mkdir()
        site = Site(base / "data", base / "work", threads=2)
        trainer.train.train(make_spec(plan, attempt=attempt), site=site, run_dir=run_dir,
                            model=base / "model", optimizer=None, report=Recorder())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
"""


def test_a_process_forked_from_a_warm_server_trains(tmp_path: Path):
    from tests.trainer.conftest import BRAIN, SMALL
    from trainer.contract import TrainingPlan

    write_dataset(tmp_path / "data/Brain")
    init(TrainingPlan(task=BRAIN, network=SMALL), tmp_path / "model")
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WARM, str(tmp_path)],
        check=True, timeout=600, env=env, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    updates = [(tmp_path / attempt / "update.safetensors").read_bytes() for attempt in "12"]
    assert updates[0] == updates[1]


# --- shapes and networks --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains(plan, work, report, name):
    network = Network(name=name, channels=(4, 8, 8), strides=(2, 2))
    outcome, _ = work(changed(plan, network=network, local_epochs=1))
    assert outcome.steps == 1
    assert all(math.isfinite(v) for v in report.values("train", "loss") + report.values("local", "dice", "mean"))


def test_volumes_of_different_sizes_train_together(plan, work, site):
    write_dataset(site.data_root / "Mixed", train=3, validation=2, shape=[(16, 16, 16), (13, 18, 11), (9, 10, 21)])
    outcome, _ = work(changed(plan, batch_size=3), dataset="Mixed")
    assert (outcome.train_cases, outcome.validation_cases, outcome.steps) == (3, 2, 2)


def test_patches_are_cut_from_larger_volumes_and_smaller_ones_are_padded(plan, work, site, report):
    write_dataset(site.data_root / "Large", train=2, validation=2, shape=[(24, 20, 17), (6, 20, 9)])
    plan = changed(plan, patch=(12, 12, 12), patches_per_case=3, spacing=(2.0, 2.0, 2.5))
    outcome, _ = work(plan, dataset="Large")
    assert outcome.steps == 2 * 3
    assert report.values("local", "dice", "mean")[0] is not None


def test_a_run_computes_on_the_processors_that_it_may_use(plan, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert settle(changed(plan, threads=0), allowed=0, seed=0, say=print).threads == 1


def test_an_image_of_one_channel_needs_no_channel_axis(plan, work, site):
    labels = {0: "background", 1: "left atrium"}
    write_dataset(site.data_root / "Heart", channels=("MRI",), labels=labels)
    task = Task("heart", ("MRI",), labels, regions_for(labels))
    outcome, _ = work(changed(plan, task=task), dataset="Heart")
    assert outcome.train_cases == 2


def test_batch_statistics_are_named_as_buffers_and_counters_are_not(plan, work):
    outcome, _ = work(changed(plan, network={"norm": "batch"}))
    with safe_open(outcome.update, "pt") as file:
        note = json.loads(file.metadata()["fedportal"])
        counters = [key for key in file.keys() if key.endswith("num_batches_tracked")]  # noqa: SIM118
        assert note["buffers"]
        assert all(key.endswith(("running_mean", "running_var")) for key in note["buffers"])
        assert counters
        assert all(file.get_tensor(key).dtype == torch.int64 for key in counters)


def test_mixed_precision_falls_back_without_a_gpu_and_says_so(plan, work, report):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    exact, _ = work(plan)
    before = exact.update.read_bytes()
    mixed, _ = work(
        changed(plan, precision="mixed"), model=exact.update.parents[3] / f"initial-{plan.digest()[:12]}.safetensors"
    )
    assert mixed.update.read_bytes() == before
    assert any("float32" in said for said in report.said)


def test_mixed_precision_trains_as_float32_does_but_for_rounding(plan, work, report, monkeypatch):
    plan = changed(plan, local_epochs=3, optimizer={"learning_rate": 1e-2}, loss="dice_ce")
    work(plan, run="exact")
    exact = report.values("train", "loss")
    report.metrics.clear()
    # a processor knows float16, too: slower than a GPU, but the same arithmetic
    monkeypatch.setattr("trainer.train.settle", lambda *plan, **rest: replace(settle(*plan, **rest), mixed=True))
    work(plan, run="mixed")
    rounded = report.values("train", "loss")
    assert rounded != exact
    assert rounded == pytest.approx(exact, abs=0.01)
    assert rounded[-1] < rounded[0]


def test_a_step_whose_gradients_do_not_fit_into_float16_changes_nothing_and_is_told(plan, work, report, monkeypatch):
    plan = changed(plan, optimizer={"treatment": "aggregate"}, loss="dice_ce")
    monkeypatch.setattr("trainer.train.settle", lambda *plan, **rest: replace(settle(*plan, **rest), mixed=True))
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, **more: scaler(device, init_scale=2.0**60, **more))
    outcome, run_dir = work(plan)
    before, after = (load_file(path) for path in (next(run_dir.parents[2].glob("initial-*")), outcome.update))
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert not any(tensor.any() for tensor in load_file(outcome.optimizer).values()), "nor does the optimizer count it"
    assert report.said[-1] == "In 2 of 2 steps a gradient was too large for float16: they changed nothing."


# --- the initial model and one that does not fit --------------------------------------------------


def test_the_initial_model_depends_on_the_seed_alone(plan, tmp_path: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name))
        init(changed(plan, seed=seed), tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_a_model_of_another_network_is_refused_by_the_name_of_a_tensor(plan, work, tmp_path: Path):
    init(changed(plan, network={"channels": (4, 16)}), tmp_path / "model")
    with pytest.raises(Fault, match=r"conv\.bias is float32 16, the network has float32 8") as caught:
        work(plan, model=tmp_path / "model")
    assert caught.value.exit is Exit.MODEL_MISMATCH


def test_a_training_that_diverges_ends_with_its_reason(plan, work):
    wild = changed(
        plan, batch_size=1, local_epochs=60, optimizer={"name": "sgd", "learning_rate": 10.0, "weight_decay": 1.0}
    )
    with pytest.raises(Fault) as caught:
        work(wild)
    assert caught.value.exit is Exit.DIVERGED
    assert "lower learning rate" in caught.value.message


def test_a_killed_run_leaves_nothing_that_disturbs_the_next(plan, work, tmp_path: Path):
    init(plan, tmp_path / "model")
    undisturbed, _ = work(plan, model=tmp_path / "model")
    expected = undisturbed.update.read_bytes()
    killed = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import trainer.cache, trainer.train
from pathlib import Path
from tests.trainer.conftest import BRAIN, SMALL, Recorder, make_spec
from trainer.contract import TrainingPlan
from trainer.job import Site
def half(tensors, path, **_):
    Path(path).write_bytes(b"half a file")
    os.kill(os.getpid(), signal.SIGKILL)
trainer.cache.save_file = half
base = Path(sys.argv[1])
plan = TrainingPlan(task=BRAIN, network=SMALL, rounds=2, local_epochs=2, batch_size=2)
trainer.train.train(make_spec(plan), site=Site(base / "data", base / "other", 1), run_dir=base, model=base / "model",
                    optimizer=None, report=Recorder())
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", killed, str(tmp_path)], timeout=600, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "other/cache").iterdir()
    assert left.name.endswith(".tmp")

    from tests.trainer.conftest import Recorder, make_spec
    from trainer.job import Site
    from trainer.train import train

    site = Site(tmp_path / "data", tmp_path / "other", 1)
    again = train(
        make_spec(plan), site=site, run_dir=tmp_path, model=tmp_path / "model", optimizer=None, report=Recorder()
    )
    assert again.update.read_bytes() == expected
