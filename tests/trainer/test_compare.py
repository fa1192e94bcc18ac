"""Models beside each other, case by case: what an evaluation says of its subjects, and by which names."""

import json
import math

import numpy as np
import pytest
import torch

import trainer.compare
from tests.trainer.conftest import changed, edit_json, make_spec, write_dataset
from trainer import metrics, networks, weights
from trainer.cases import read_dataset
from trainer.contract import Exit, Kind, Manifest, canonical_json, case_key, input_shape, manifest_from_json
from trainer.data import pad, regions_of, unpad
from trainer.images import Recipe, read_case
from trainer.initial import init
from trainer.job import Fault

KEY = case_key(b"secret", "abcd")


@pytest.fixture
def plan(plan):
    return changed(plan, validation={"hd95_every": 0})


@pytest.fixture
def models(plan, work, site, tmp_path):
    """Two models that were trained on different cases, and one that was not trained."""
    write_dataset(site.data_root / "Other", seed=7)
    taught = changed(plan, local_epochs=12, optimizer={"learning_rate": 1e-2}, validation={"local": False})
    found = []
    for number, dataset in enumerate(("Brain", "Other"), start=1):
        outcome, _ = work(taught, dataset=dataset)
        found.append(outcome.update.rename(tmp_path / f"model-{number}.safetensors"))
    init(plan, tmp_path / "model-3.safetensors")
    return (*found, tmp_path / "model-3.safetensors")


@pytest.fixture
def held_out(site):
    return write_dataset(site.data_root / "Held", train=1, validation=3, shape=[(16, 16, 16), (13, 18, 11)], seed=3)


def by_hand(plan, site, paths):
    """Return dice and hd95 [case, region] of the mean probabilities of some models, the long way round."""
    dice, distance = [], []
    recipe = Recipe((0, 1, 2, 3), (0, 1, 2, 3), None)
    for case in read_dataset(site.data_root, "Held").validation:
        image, label, spacing, _ = read_case(case, recipe)
        image = image.half().float()
        probabilities = []
        for path in paths:
            network = networks.build(plan.task, plan.network).eval()
            weights.load_model(path, network)
            with torch.inference_mode():
                logits = network(pad(image[None], input_shape(plan.network, label.shape)))
            probabilities.append(unpad(logits, label.shape)[0].sigmoid().numpy())
        predicted = np.mean(probabilities, axis=0) >= 0.5
        truth = regions_of(label, plan.task).numpy()
        both = (predicted & truth).sum((1, 2, 3))
        dice.append(2 * both / (predicted.sum((1, 2, 3)) + truth.sum((1, 2, 3))))
        distance.append(metrics.hd95(torch.from_numpy(predicted), torch.from_numpy(truth), spacing=spacing))
    return np.array(dice), np.array(distance)


def scores(outcome, plan, subject, name):
    """Return what an outcome says of a subject as numbers [case, region]."""
    regions = [region.name for region in plan.task.regions]
    rows = [score.values for score in outcome.cases if (score.subject, score.name) == (subject, name)]
    return np.array([[math.nan if row[region] is None else row[region] for region in regions] for row in rows])


def test_each_subject_is_measured_in_each_case_and_an_ensemble_by_its_mean_probability(
    plan, work, site, models, held_out
):
    subjects = {"ensemble": models, "local-mainz": models[:1], "local-bonn": models[1:2], "initial": models[2:]}
    outcome, _ = work(
        plan, kind=Kind.EVALUATE, dataset="Held", model=models[0], subjects=subjects,
        case_key=KEY,
    )  # fmt: skip
    for subject, paths in {**subjects, "global": models[:1]}.items():
        dice, distance = by_hand(plan, site, paths)
        np.testing.assert_allclose(scores(outcome, plan, subject, "dice"), dice, atol=1e-6)
        np.testing.assert_allclose(scores(outcome, plan, subject, "hd95"), distance, atol=1e-4)
    found = {subject: scores(outcome, plan, subject, "dice").tobytes() for subject in subjects}
    assert len(set(found.values())) == 4, "subjects that nobody could tell apart prove nothing"
    assert set(outcome.seconds) == {"load", "validate_incoming", "subjects"}


def test_cases_leave_by_pseudonym_and_the_manifest_takes_them(plan, work, models, held_out):
    subjects = {"initial": models[2:]}
    outcome, _ = work(
        plan, kind=Kind.EVALUATE, dataset="Held", model=models[0], subjects=subjects,
        case_key=KEY,
    )  # fmt: skip
    assert len(set(outcome.held_out)) == outcome.validation_cases == 3
    assert {score.case for score in outcome.cases} == set(outcome.held_out)
    assert len(outcome.cases) == 2 * 2 * 3
    spec = make_spec(plan)
    names = ("run", "experiment", "round", "site", "attempt", "kind")
    manifest = Manifest(
        **{name: getattr(spec, name) for name in names}, exit_code=0, message="", held_out=outcome.held_out,
        cases=outcome.cases,
    )  # fmt: skip
    text = canonical_json(manifest.to_json())
    assert manifest_from_json(json.loads(text)) == manifest
    assert b"CASE" not in text


def test_without_a_key_no_case_leaves_the_site(plan, work):
    for kind in Kind:
        outcome, _ = work(plan, kind=kind)
        assert (outcome.held_out, outcome.cases) == ((), ())


def test_a_training_names_its_held_out_cases_as_an_evaluation_does(plan, work):
    trained, _ = work(plan, case_key=KEY)
    evaluated, _ = work(plan, kind=Kind.EVALUATE, case_key=KEY)
    assert trained.held_out == evaluated.held_out != ()
    assert trained.cases == ()
    elsewhere, _ = work(plan, kind=Kind.EVALUATE, case_key=case_key(b"secret", "wxyz"))
    assert not set(elsewhere.held_out) & set(trained.held_out)


@pytest.mark.parametrize("every", [0, 4])
def test_a_final_evaluation_has_the_distance_by_case_where_the_plan_has_it(plan, work, report, every):
    plan = changed(plan, rounds=9, validation={"hd95_every": every})
    outcome, _ = work(plan, kind=Kind.EVALUATE, round=3, case_key=KEY)
    assert {score.subject for score in outcome.cases} == {"global"}
    assert {score.name for score in outcome.cases} == ({"dice", "hd95"} if every else {"dice"})
    (dice,) = (score for score in outcome.cases if score.name == "dice")
    assert list(dice.values.values()) == [report.values("incoming", "dice", region)[0] for region in dice.values]


def test_what_is_undefined_in_a_case_is_no_number(plan, work, site, models, tmp_path):
    write_dataset(site.data_root / "Empty", labels={0: "background"}, validation=1)
    labels = {str(number): name for number, name in plan.task.labels.items()}
    edit_json(site.data_root / "Empty/dataset.json", labels=labels)
    subjects = {"pooled": models[:1]}
    outcome, _ = work(
        plan, kind=Kind.EVALUATE, dataset="Empty", model=models[0], subjects=subjects,
        case_key=KEY,
    )  # fmt: skip
    assert [score.values for score in outcome.cases if score.name == "hd95"] == [
        {"WT": None, "TC": None, "ET": None}
    ] * 2


def test_a_case_that_is_listed_twice_is_measured_once(plan, work, site, models):
    folder = site.data_root / "Brain"
    (folder / "imagesTr/AGAIN.nii.gz").write_bytes((folder / "imagesTr/CASE_002.nii.gz").read_bytes())
    (entry,) = json.loads((folder / "dataset.json").read_text())["validation"]
    edit_json(folder / "dataset.json", validation=[entry, {**entry, "image": "./imagesTr/AGAIN.nii.gz"}])
    subjects = {"pooled": models[:1]}
    outcome, _ = work(
        plan,
        kind=Kind.EVALUATE,
        model=models[0],
        subjects=subjects,
        case_key=KEY,
    )
    assert (outcome.validation_cases, len(outcome.held_out)) == (2, 1)
    keys = [(score.subject, score.case, score.name) for score in outcome.cases]
    assert len(keys) == len(set(keys)) == 4


def test_a_model_sees_each_case_once_and_one_is_in_memory_at_a_time(plan, work, models, held_out, monkeypatch):
    seen, built = [], []
    predict, build = trainer.compare.predict, networks.build
    monkeypatch.setattr(trainer.compare, "predict", lambda *a, **k: seen.append(1) or predict(*a, **k))
    monkeypatch.setattr(networks, "build", lambda *a, **k: built.append(1) or build(*a, **k))
    subjects = {
        "local-a": models[:1], "local-b": models[1:2], "ensemble": models[:2], "pooled": models[2:],
        "best": models[2:],
    }  # fmt: skip
    work(plan, kind=Kind.EVALUATE, dataset="Held", model=models[0], subjects=subjects, case_key=KEY,)  # fmt: skip
    assert (len(seen), len(built)) == (3 * 3, 1)


def test_a_subject_is_measured_as_it_lies_in_its_file_and_the_incoming_model_with_the_sites_own_layers(
    plan, work, site, report
):
    plan = changed(
        plan, network={"norm": "batch"}, local_layers="normalisation", optimizer={"learning_rate": 1e-2}, local_epochs=8
    )
    trained, _ = work(plan, round=1)
    model = trained.update
    changed_statistics(model)
    subjects = {"best": (model,)}
    rest = {"kind": Kind.EVALUATE, "round": 2, "model": model, "case_key": KEY}
    own, _ = work(plan, subjects=subjects, **rest)
    assert not np.array_equal(scores(own, plan, "global", "dice"), scores(own, plan, "best", "dice"))
    for path in site.state("abcd").iterdir():
        path.unlink()
    bare, _ = work(plan, subjects=subjects, attempt=2, **rest)
    assert np.array_equal(scores(bare, plan, "global", "dice"), scores(own, plan, "best", "dice"))


def changed_statistics(path):
    """Give a model normalisation layers that are not this site's."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors |= {
        name: value * 3 + 1 for name, value in tensors.items() if name.endswith(("running_mean", "running_var"))
    }
    save_file(tensors, path)


def test_a_subject_of_another_network_is_refused(plan, work, models, tmp_path):
    init(changed(plan, network={"channels": (4, 16)}), tmp_path / "other.safetensors")
    subjects = {"pooled": (tmp_path / "other.safetensors",)}
    with pytest.raises(Fault) as caught:
        work(
            plan,
            kind=Kind.EVALUATE,
            subjects=subjects,
            case_key=KEY,
        )
    assert caught.value.exit is Exit.MODEL_MISMATCH
