"""The cases of a job: a pool of several hospitals, and nothing to train on that a comparison tests on."""

import dataclasses
import gzip
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

from tests.trainer.conftest import BRAIN_CHANNELS, edit_json, make_spec, save, volumes, write_dataset
from trainer.cases import read_datasets
from trainer.contract import Exit, Kind, case_key
from trainer.evaluate import evaluate
from trainer.gather import gather
from trainer.initial import init
from trainer.job import Fault, Member, Site
from trainer.train import train

KEY = case_key(b"secret", "abcd")


@pytest.fixture
def pool(tmp_path):
    """Two hospitals with data of their own, and a site that stands for both."""
    members = []
    for seed, (slug, dataset) in enumerate({"bonn": "Brain", "graz": "Task01"}.items(), start=1):
        write_dataset(tmp_path / slug / dataset, train=3, validation=2, seed=seed)
        members.append(Member(slug, tmp_path / slug, dataset))
    return Site(data_root=tmp_path / "none", work_dir=tmp_path / "pool", threads=1, pool=tuple(members))


@pytest.fixture
def learn(plan, tmp_path, report):
    """Train a round at a site and return the outcome."""

    def run(site, **changes):
        spec = make_spec(plan, case_key=KEY, **changes)
        if not (model := tmp_path / "initial.safetensors").exists():
            init(plan, model)
        folder = site.run_dir(spec.run)
        folder.mkdir(parents=True)
        return train(spec, site=site, run_dir=folder, model=model, optimizer=None, report=report)

    return run


def of_member(pool, number):
    """Return the site at which a member of the pool is at home."""
    member = pool.pool[number]
    return dataclasses.replace(pool, data_root=member.data_root, work_dir=pool.work_dir / member.site, pool=())


def gathered(site, plan, report, **changes):
    return gather(make_spec(plan, **changes), site=site, threads=1, report=report)


def fault_of(function, *args, **changes):
    with pytest.raises(Fault) as caught:
        function(*args, **changes)
    return caught.value


# --- a pool --------------------------------------------------------------------------------------


def test_a_pool_has_the_cases_of_its_members_named_after_them(pool, plan, report):
    training, held_out = gathered(pool, plan, report, dataset="pooled")
    assert [case.name for case in training] == [f"{slug}/CASE_00{n}" for slug in ("bonn", "graz") for n in range(3)]
    assert [case.name for case in held_out] == [f"{slug}/CASE_00{n}" for slug in ("bonn", "graz") for n in (3, 4)]


def test_a_pool_holds_out_what_its_members_do(pool, plan):
    for member in pool.pool:
        path = member.data_root / member.dataset / "dataset.json"
        document = json.loads(path.read_text())
        document["training"] += document.pop("validation")
        path.write_text(json.dumps(document))
    for number, dataset in enumerate(read_datasets(pool, "pooled")):
        (alone,) = read_datasets(of_member(pool, number), pool.pool[number].dataset)
        assert [case.image for case in dataset.validation] == [case.image for case in alone.validation]


def test_training_on_a_pool_is_training_on_one_folder_with_all_cases(pool, learn, tmp_path):
    whole = tmp_path / "whole/Whole"
    entries = {"training": [], "validation": []}
    for member in pool.pool:
        folder = member.data_root / member.dataset
        for part in ("imagesTr", "labelsTr"):
            for path in (folder / part).iterdir():
                (whole / part).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, whole / part / f"{member.site}-{path.name}")
        document = json.loads((folder / "dataset.json").read_text())
        for key, listed in entries.items():
            for entry in document[key]:
                name = f"{member.site}-{entry['image'].rsplit('/', 1)[1]}"
                listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (whole / "dataset.json").write_text(json.dumps(document | entries))
    pooled = learn(pool, dataset="pooled")
    copied = learn(Site(tmp_path / "whole", tmp_path / "work", 1), dataset="Whole")
    assert (pooled.train_cases, pooled.steps) == (6, 6)
    assert pooled.update.read_bytes() == copied.update.read_bytes()
    assert pooled.held_out == copied.held_out


def test_members_may_store_their_channels_in_different_orders(pool, plan, report):
    before = [case.image.clone() for case in gathered(pool, plan, report)[0]]
    folder = pool.pool[1].data_root / "Task01"
    order = [2, 0, 3, 1]
    for path in (folder / "imagesTr").iterdir():
        save(path, np.asanyarray(nibabel.load(path).dataobj)[..., order])
    edit_json(folder / "dataset.json", modality={str(i): BRAIN_CHANNELS[j] for i, j in enumerate(order)})
    after = [case.image for case in gathered(pool, plan, report)[0]]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_pool_is_evaluated_on_the_cases_of_all_members(pool, plan, tmp_path, report):
    init(plan, tmp_path / "model")
    spec = make_spec(plan, kind=Kind.EVALUATE, case_key=KEY)
    together = evaluate(spec, site=pool, model=tmp_path / "model", subjects={}, report=report)
    alone = [
        evaluate(
            dataclasses.replace(spec, dataset=member.dataset),
            site=of_member(pool, number), model=tmp_path / "model", subjects={}, report=report,
        )
        for number, member in enumerate(pool.pool)
    ]  # fmt: skip
    assert together.cases == alone[0].cases + alone[1].cases


@pytest.mark.parametrize(
    ("break_it", "exit"),
    [
        (lambda folder: (folder / "dataset.json").unlink(), Exit.NO_DATASET),
        (lambda folder: edit_json(folder / "dataset.json", labels={"0": "background"}), Exit.LABELS_DIFFER),
        (lambda folder: edit_json(folder / "dataset.json", modality={"0": "CT"}), Exit.WRONG_CHANNELS),
        (lambda folder: (folder / "imagesTr/CASE_001.nii.gz").unlink(), Exit.MISSING_FILE),
        (lambda folder: (folder / "imagesTr/CASE_001.nii.gz").write_bytes(b"x"), Exit.UNREADABLE_IMAGE),
    ],
)
def test_a_member_that_does_not_fit_is_named(pool, plan, report, break_it, exit):
    break_it(pool.pool[1].data_root / "Task01")
    fault = fault_of(gathered, pool, plan, report)
    assert fault.exit is exit
    assert "graz" in fault.message


@pytest.mark.parametrize("name", ["..", "../bonn/Brain", "/etc", "link"])
def test_a_member_cannot_lead_out_of_its_data_folder(pool, plan, report, name):
    bonn, graz = pool.pool
    (graz.data_root / "link").symlink_to(bonn.data_root / "Brain")
    pool = dataclasses.replace(pool, pool=(bonn, dataclasses.replace(graz, dataset=name)))
    assert fault_of(gathered, pool, plan, report).exit is Exit.NO_DATASET


def test_a_member_cannot_list_the_images_of_another(pool, plan, report):
    graz = pool.pool[1].data_root / "Task01"
    entry = {"image": "../../bonn/Brain/imagesTr/CASE_000.nii.gz", "label": "./labelsTr/CASE_000.nii.gz"}
    edit_json(graz / "dataset.json", training=[entry])
    assert fault_of(gathered, pool, plan, report).exit is Exit.NO_DATASET


# --- nothing that a comparison tests on -----------------------------------------------------------


def hide_copies(pool) -> int:
    """Put the held-out cases of the first member among the training cases of the second, so that nobody would see."""
    bonn, graz = (member.data_root / member.dataset for member in pool.pool)
    document = json.loads((graz / "dataset.json").read_text())
    listed = json.loads((bonn / "dataset.json").read_text())["validation"]
    for number, entry in enumerate(listed):
        name = f"PATIENT_{number}.nii.gz"
        for part in ("image", "label"):
            data = gzip.decompress((bonn / entry[part]).read_bytes())
            (graz / f"{part}sTr" / name).write_bytes(gzip.compress(data, compresslevel=1 + number))
        document["training"].append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (graz / "dataset.json").write_text(json.dumps(document))
    return len(listed)


def test_a_baseline_cannot_be_made_to_train_on_a_case_that_the_comparison_tests_on(pool, learn, report):
    federated = [learn(of_member(pool, n), dataset=member.dataset) for n, member in enumerate(pool.pool)]
    tested = tuple(case for outcome in federated for case in outcome.held_out)
    honest = learn(pool, held_out=tested)
    assert (len(tested), honest.train_cases) == (4, 6)
    assert not [said for said in report.said if "Left out" in said]

    assert hide_copies(pool) == 2
    fooled = learn(pool, attempt=2)
    assert fooled.train_cases == 8, "the attempt is a real one: untold, the trainer takes the copies for cases"
    careful = learn(pool, attempt=3, held_out=tested)
    assert (careful.train_cases, careful.steps) == (6, honest.steps)
    assert careful.update.read_bytes() == honest.update.read_bytes() != fooled.update.read_bytes()
    assert [said for said in report.said if "Left out" in said] == [
        "Left out 2 of 8 training cases: the comparison tests on them."
    ]


def test_what_is_left_out_at_one_hospital_is_left_out_alike(pool, learn):
    hide_copies(pool)
    tested = learn(of_member(pool, 0), dataset="Brain").held_out
    assert learn(of_member(pool, 1), dataset="Task01", held_out=tested).train_cases == 3


def test_an_evaluation_finds_what_it_tests_on_among_what_was_trained_on(pool, learn, plan, tmp_path, report):
    tested = learn(of_member(pool, 0), dataset="Brain").held_out
    hide_copies(pool)
    graz = of_member(pool, 1)
    asked = {"kind": Kind.EVALUATE, "case_key": KEY, "dataset": "Task01", "held_out": tested}

    def measured(plan=plan, **changes):
        spec = make_spec(plan, **asked | changes)
        return evaluate(spec, site=graz, model=tmp_path / "initial.safetensors", subjects={}, report=report)

    assert measured().copies == 0, "nothing was trained on here, and a measurement decodes nothing for it"
    learn(graz, dataset="Task01", attempt=2)
    (graz.data_root / "Task01/imagesTr/CASE_000.nii.gz").unlink()  # gone since: no fault of a measurement
    assert measured().copies == 2
    assert report.said[-1] == "Of the training cases here 2 are copies of cases that the model is tested on."
    assert measured(held_out=()).copies == 0
    assert measured(held_out=("0" * 16,)).copies == 0


def test_a_training_of_which_nothing_is_left_says_why(pool, learn, plan):
    site = of_member(pool, 0)
    path = site.data_root / "Brain/dataset.json"
    document = json.loads(path.read_text())
    edit_json(path, validation=document["training"], training=document["validation"])
    tested = learn(site, dataset="Brain").held_out
    edit_json(path, training=document["training"])
    fault = fault_of(learn, site, dataset="Brain", attempt=2, held_out=tested)
    assert fault.exit is Exit.NO_CASES
    assert "comparison tests on every case" in fault.message


def test_pseudonyms_that_are_nobodys_here_change_nothing(pool, learn, report):
    first = learn(pool)
    second = learn(pool, attempt=2, held_out=("0" * 16,))
    assert first.update.read_bytes() == second.update.read_bytes()
    assert not [said for said in report.said if "Left out" in said]


def test_the_pseudonym_of_a_case_outlives_the_settings_that_it_is_prepared_with(pool, plan, report):
    names = []
    for spacing in (None, (3.0, 3.0, 3.0)):
        held_out = gathered(pool, dataclasses.replace(plan, spacing=spacing), report)[1]
        names.append([case.pseudonym(KEY) for case in held_out])
    assert names[0] == names[1]
    assert len(set(names[0])) == 4


def test_another_patient_of_the_same_size_has_another_pseudonym(pool, plan, report):
    before = [case.pseudonym(KEY) for case in gathered(pool, plan, report)[1]]
    save(pool.pool[0].data_root / "Brain/imagesTr/CASE_003.nii.gz", volumes(99)[0])
    after = [case.pseudonym(KEY) for case in gathered(pool, plan, report)[1]]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True, True, True]
