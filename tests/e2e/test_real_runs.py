"""Whole experiments of real processes that do not go well, or not in the usual way: driven through the REST API."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy
import pytest
import requests
from playwright.sync_api import expect

from fedportal.connectors.trainer_process import TrainerProcess
from fedportal.connectors.weed import Weed
from tests.e2e.conftest import Stack
from tests.e2e.portal_client import TINY, Client, Hospitals
from trainer.contract import Kind, Manifest, Stored, signed, verified

pytestmark = [pytest.mark.browser, pytest.mark.slow]

GOOD = ("amstetten", "bregenz", "celle")
BROKEN = {
    "nan": "An image contains values that are not numbers",
    "labels": "contains a label number that dataset.json does not list",
    "missing": "that dataset.json lists is missing",
    "empty": "None of the training cases has anything segmented",
    "shape": "do not lie on the same grid",
}
LONG = {"local_epochs": 1000}
SHORT = {"local_epochs": 60}
"""Just long enough to step in."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A demo of its own: the hospitals that are added here would change what the other tests compose."""
    demo = Stack(tmp_path_factory.mktemp("real-runs"), arguments=("--rounds", "1", "--sites", "2"))
    demo.start()
    yield demo
    demo.stop()


@pytest.fixture(scope="module")
def researcher(stack: Stack) -> Client:
    return Client(stack, "researcher")


@pytest.fixture(scope="module")
def operator(stack: Stack) -> Client:
    return Client(stack, "operator")


@pytest.fixture(scope="module")
def hospitals(stack: Stack, operator: Client) -> Hospitals:
    return Hospitals(stack, operator, stack.folder / "more", (*GOOD, *BROKEN))


def numbers(client: Client, key: str, name: str, **wanted: object) -> list[dict]:
    rows = client.rows(f"/experiments/{key}/metrics/")
    return [row for row in rows if row["name"] == name and all(row[k] == v for k, v in wanted.items())]


# --- recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        {"name": "unet"},
        {"name": "residual_unet", "residual_units": 2},
        {"name": "segresnet", "norm": "group", "channels": [8, 16]},
        {"name": "dynunet", "channels": [4, 8, 8], "strides": [2, 2]},
        {"name": "attention_unet", "norm": "batch"},
        {"name": "swin_unetr", "channels": [12, 24]},
    ],
    ids=lambda network: network["name"],
)
def test_every_network_is_trained_merged_and_measured(researcher, hospitals, network):
    plan = {"network": {"channels": [4, 8], "strides": [2], **network}}
    key = researcher.start(GOOD[:2], title=network["name"], plan=plan)
    experiment = researcher.wait(key)
    assert experiment["state"] == "completed", experiment["reason"]
    first, last = researcher.get(f"/experiments/{key}/models/")
    assert first["sha256"] != last["sha256"]
    assert 0 <= last["dice"] <= 1


@pytest.mark.parametrize(
    ("optimizer", "loss"),
    [
        ({"name": "adam", "treatment": "reset"}, "dice_ce"),
        ({"name": "adamw", "weight_decay": 0.01, "treatment": "keep"}, "dice_focal"),
        ({"name": "adam", "amsgrad": True, "treatment": "aggregate"}, "generalised_dice"),
        ({"name": "sgd", "momentum": 0.9, "treatment": "aggregate"}, "dice"),
    ],
    ids=["reset", "keep", "aggregate", "aggregate-sgd"],
)
def test_the_optimizers_memory_is_treated_as_planned_over_the_rounds(researcher, hospitals, stack, optimizer, loss):
    plan = {"rounds": 3, "optimizer": optimizer, "loss": loss, "schedule": {"name": "step", "step_rounds": 1}}
    key = researcher.start(GOOD[:2], title=f"{optimizer['treatment']} {loss}", plan=plan)
    assert researcher.wait(key)["state"] == "completed"

    # the schedule runs over the rounds of the federation, not over the epochs of a round
    rates = {row["round_number"]: row["value"] for row in numbers(researcher, key, "learning_rate", site=GOOD[0])}
    assert rates == pytest.approx({1: 1e-3, 2: 5e-4, 3: 2.5e-4})
    kept = list((hospitals.work(GOOD[0]) / "state" / key).glob("optimizer-r*"))
    merged = list(Weed(stack.folder / "store").store().list(f"fedportal/{key}/"))
    assert bool(kept) == (optimizer["treatment"] == "keep")
    assert sum("server-state" in name for name in merged) == (3 if optimizer["treatment"] == "aggregate" else 0)


def test_patches_hausdorff_and_the_want_of_a_gpu_through_a_whole_run(researcher, stack, hospitals):
    plan = {
        "rounds": 3,
        "patch": [16, 16, 16],
        "patches_per_case": 2,
        "augmentation": "strong",
        "precision": "mixed",
        "validation": {"hd95_every": 2},
    }
    key = researcher.start(["linden", "seeblick"], title="Patches", plan=plan)  # 40 voxels an edge
    assert researcher.wait(key)["state"] == "completed"
    measured = {row["round_number"] for row in numbers(researcher, key, "hd95", phase="incoming", site="linden")}
    assert measured == {2, 3, 4}, "at the interval, in the last round, and of the final model"
    run = researcher.site_run(key, "linden")["attempts"][0]["run"]
    said = [line["text"] for line in researcher.get(f"/experiments/{key}/logs/?run={run}")["lines"]]
    assert "There is no GPU here: computing in float32 instead of mixed precision." in said


# --- bad data ---------------------------------------------------------------------------------------


@pytest.fixture
def broken(hospitals: Hospitals) -> None:
    """Break the data after the check found them well, each in its way."""

    def rewritten(slug: str, what: str, change, number: int = 0) -> None:
        file = hospitals.case(slug, what, number)
        image = nibabel.load(file)
        values = numpy.asanyarray(image.dataobj).astype("float32" if what == "image" else "uint8")
        nibabel.save(nibabel.Nifti1Image(change(values), image.affine), file)

    def with_value(value):
        def change(values):
            values[3, 3, 3] = value
            return values

        return change

    rewritten("nan", "image", with_value(numpy.nan))
    rewritten("labels", "label", with_value(7))
    rewritten("shape", "label", lambda values: values[:-2])
    hospitals.case("missing", "image").unlink()
    for number in (0, 1):
        rewritten("empty", "label", numpy.zeros_like, number)


def test_bad_data_leave_their_site_out_with_a_sentence_on_the_page(researcher, hospitals, broken, open_page):
    key = researcher.start([GOOD[0], *BROKEN], title="Bad data")
    assert researcher.wait(key)["state"] == "completed"
    page = open_page("researcher")
    page.goto(f"/experiments/{key}/")
    for slug, sentence in BROKEN.items():
        run = researcher.site_run(key, slug)
        assert run["state"] == "run_failed"
        assert len(run["attempts"]) == 1, "what is wrong with data is not tried again"
        assert run["attempts"][0]["exit_code"] not in (0, 1, None)
        assert sentence in run["reason"]
        expect(page.locator("#feed")).to_contain_text(sentence)
    expect(page.locator("#feed")).to_contain_text("Round 1 aggregated from 1 of 6 sites.")


# --- slow, dead and cancelled -------------------------------------------------------------------------


def test_a_site_that_stands_still_is_given_up_when_the_others_have_waited(researcher, hospitals):
    key = researcher.start(GOOD, title="Straggler", plan=SHORT, min_sites=2, stragglers="drop", grace_minutes=0.02)
    process = hospitals.process(key, GOOD[2])
    hospitals.signal(process, signal.SIGSTOP)
    assert researcher.wait(key)["state"] == "completed"
    assert "Round 1 aggregated from 2 of 3 sites." in researcher.sentences(key, kind="aggregated")
    assert researcher.site_run(key, GOOD[2])["state"] == "timed_out"
    assert not hospitals.is_alive(process)


def test_without_its_quorum_a_round_ends_at_the_deadline_and_can_be_taken_up_again(researcher, hospitals):
    key = researcher.start(GOOD[:2], title="Deadline", min_sites=2, deadline_minutes=0.1, plan=SHORT)
    hospitals.signal(hospitals.process(key, GOOD[1]), signal.SIGSTOP)
    failed = researcher.wait(key)
    assert failed["state"] == "failed"
    assert "did not deliver within 6.0 s" in failed["reason"]
    researcher.post(f"/experiments/{key}/resume/")
    assert researcher.wait(key, "completed")["reason"] == ""
    assert [run["number"] for run in researcher.site_run(key, GOOD[0])["attempts"]] == [1], "it had delivered"
    assert [run["number"] for run in researcher.site_run(key, GOOD[1])["attempts"]] == [1, 2]


def test_a_failed_site_is_told_to_try_again_on_the_page(researcher, hospitals, open_page):
    key = researcher.start(GOOD[:2], title="Try again", min_sites=2, max_attempts=1, plan=LONG)
    hospitals.signal(hospitals.process(key, GOOD[0]), signal.SIGSTOP)  # keeps the round open
    hospitals.signal(hospitals.process(key, GOOD[1]), signal.SIGKILL)
    page = open_page("researcher")
    page.goto(f"/experiments/{key}/")
    page.get_by_role("link", name=f"{GOOD[1].title()}, Round 1: log and reason").click()
    page.get_by_role("button", name="Try again").click()
    assert hospitals.process(key, GOOD[1], attempt=2)
    hospitals.signal(hospitals.process(key, GOOD[0]), signal.SIGCONT)
    researcher.post(f"/experiments/{key}/cancel/")
    researcher.wait(key, "cancelled")


def test_cancelling_ends_what_runs_at_the_sites_even_what_stands_still(researcher, hospitals):
    key = researcher.start(GOOD, title="Cancel", plan=LONG)
    processes = [hospitals.process(key, slug) for slug in GOOD]
    hospitals.signal(processes[2], signal.SIGSTOP)
    researcher.post(f"/experiments/{key}/cancel/")
    researcher.wait(key, "cancelled")
    assert [hospitals.is_alive(process) for process in processes] == [False] * 3


# --- bad objects --------------------------------------------------------------------------------------


def _corrupt(job, put):
    put(job["update"]["url"], b"\x00" * 4096)
    return {"update": Stored(hashlib.sha256(b"\x00" * 4096).hexdigest(), 4096)}


def _other_than_announced(job, put):
    put(job["update"]["url"], b"\x00" * 4096)
    return {"update": Stored("0" * 64, 4096)}


def _oversized(job, put):
    data = b"\x00" * (job["model"]["size"] + 8 * 2**20)
    put(job["update"]["url"], data)
    return {"update": Stored(hashlib.sha256(data).hexdigest(), len(data))}


def _nothing(job, put):
    return {"update": Stored("1" * 64, 100)}


def _of_another_site(job, put):
    return {"site": GOOD[0]}


@pytest.mark.parametrize(
    ("act", "state", "sentence"),
    [
        (_corrupt, "rejected", "safetensors"),
        (_other_than_announced, "run_failed", "did not arrive whole"),
        (_oversized, "rejected", "bytes, the model"),
        (_nothing, "run_failed", "did not arrive whole"),
        (_of_another_site, "rejected", "another run"),
        (None, "rejected", "manifest cannot be used"),
    ],
    ids=["corrupt", "other-than-announced", "oversized", "nothing", "of-another-site", "unsigned"],
)
def test_a_site_that_returns_rubbish_is_refused_and_the_round_goes_on(
    researcher, hospitals, stack, act, state, sentence
):
    slug = GOOD[1]
    key = researcher.start(GOOD[:2], title="Rubbish", max_attempts=1, plan=SHORT)
    hospitals.signal(hospitals.process(key, slug), signal.SIGSTOP)  # and act in its place
    run, place = f"fp-{key}-r1-{slug}-a1", hospitals.place(key, slug)
    job = verified(Weed(stack.folder / "store").store().get_bytes(f"{place}/spec.json"), hospitals.key(run, slug))

    def put(url: str, data: bytes) -> None:
        requests.put(url, data=data, timeout=30).raise_for_status()

    if act is None:
        put(job["manifest"]["url"], b'{"document": {}, "hmac": "00"}')
    else:
        said = {"run": run, "experiment": key, "round": 1, "site": slug, "attempt": 1, "kind": Kind.TRAIN}
        said |= {"exit_code": 0, "message": "Finished.", "train_cases": 2} | act(job, put)
        put(job["manifest"]["url"], signed(Manifest(**said).to_json(), hospitals.key(run, slug)))
    headers = {"Authorization": f"Bearer {hospitals.token(run, slug)}"}
    news = {"run": run, "records": [], "finished": True}
    assert requests.post(job["metrics_url"], json=news, headers=headers, timeout=30).ok
    assert researcher.wait(key)["state"] == "completed"
    assert researcher.site_run(key, slug)["state"] == state
    assert sentence in researcher.site_run(key, slug)["reason"]
    assert "Round 1 aggregated from 1 of 2 sites." in researcher.sentences(key)


# --- what is left in the end --------------------------------------------------------------------------


def test_every_file_of_a_model_is_what_the_portal_says_and_its_bundle_infers_alone(
    researcher, hospitals, tmp_path: Path
):
    key = researcher.start(GOOD[:2], title="Files")
    researcher.wait(key)
    model = researcher.get(f"/experiments/{key}/models/")[-1]
    said = {"weights": model["sha256"]} | {made["kind"]: made["sha256"] for made in model["artefacts"]}
    assert set(said) == {"weights", "recipe", "bundle"}
    for kind, digest in said.items():
        answer = requests.get(model["files"][kind], headers={"Authorization": f"Token {researcher.token}"}, timeout=30)
        assert hashlib.sha256(answer.content).hexdigest() == digest
        assert "attachment" in answer.headers["content-disposition"]
        (tmp_path / kind).write_bytes(answer.content)
    recipe = json.loads((tmp_path / "recipe").read_text())
    assert recipe["weights"]["sha256"] == model["sha256"]

    assert infers(tmp_path / "bundle", hospitals.dataset(GOOD[0]) / "imagesTr", tmp_path) == 3


def infers(bundle: Path, images: Path, folder: Path) -> int:
    """Segment a folder of images with a bundle and MONAI alone; return how many came out."""
    zipfile.ZipFile(bundle).extractall(folder / "there")
    (unpacked,) = (folder / "there").iterdir()
    places = {"dataset_dir": str(images), "output_dir": str(folder / "out")}
    program = (
        f"import monai.bundle; monai.bundle.run(config_file='configs/inference.json', bundle_root='.', **{places})"
    )
    # -I: neither this folder's modules nor anybody's environment, MONAI alone
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", program], cwd=unpacked, check=True, timeout=120)
    return len(list((folder / "out").glob("*.nii.gz")))


def test_the_model_of_a_middle_round_becomes_a_bundle_though_the_orchestrator_dies_over_it(
    researcher, hospitals, open_page, stack, tmp_path: Path
):
    key = researcher.start(GOOD[:2], title="Middle", plan={"rounds": 3})
    researcher.wait(key)
    models = researcher.get(f"/experiments/{key}/models/")
    number = next(m["round_number"] for m in models if m["round_number"] and m["bundle"]["state"] == "none")
    page = open_page("researcher")
    page.goto(f"/experiments/{key}/models/")
    (socket,) = stack.folder.rglob("trainer.sock")
    trainer = TrainerProcess(socket).ping()["pid"]
    os.kill(trainer, signal.SIGSTOP)  # so that there is time to kill
    try:
        page.locator(f"#round-{number}").get_by_role("button", name="Make MONAI bundle").click()
        expect(page.locator(f"#round-{number}")).to_contain_text("being made…")
        os.kill(stack.child("orchestrate"), signal.SIGKILL)  # the demo brings it back
    finally:
        os.kill(trainer, signal.SIGCONT)
    expect(page.locator(f"#round-{number}").get_by_role("link", name="MONAI bundle")).to_be_visible(timeout=60_000)
    made = researcher.get(f"/experiments/{key}/models/")[number]
    assert made["bundle"] == {"state": "ready", "message": ""}
    with page.expect_download() as downloading:
        page.locator(f"#round-{number}").get_by_role("link", name="MONAI bundle").click()
    data = downloading.value.path().read_bytes()
    assert hashlib.sha256(data).hexdigest() == next(a["sha256"] for a in made["artefacts"] if a["kind"] == "bundle")
    (tmp_path / "bundle").write_bytes(data)
    assert infers(tmp_path / "bundle", hospitals.dataset(GOOD[0]) / "imagesTr", tmp_path) == 3
    assert f"The MONAI bundle of the model of round {number} is ready." in researcher.sentences(key)


# --- another task -------------------------------------------------------------------------------------


def test_another_task_of_the_decathlon_is_read_composed_and_trained(researcher, operator, hospitals, stack):
    """A spleen in CT as the Decathlon delivers it: one channel without an axis of its own, no held-out cases listed."""
    folder = stack.folder / "spleens" / "Task09_Spleen"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    draw = numpy.random.default_rng(0)
    listed = []
    for number in (2, 3, 6, 8, 9):
        image = draw.normal(0, 300, (24, 22, 18)).astype("float32")
        label = numpy.zeros(image.shape, "uint8")
        label[6:14, 8:15, 4 : 9 + number % 3] = 1
        affine = numpy.diag([0.8, 0.8, 5, 1])
        for where, values in (("imagesTr", image + 200 * label), ("labelsTr", label)):
            nibabel.save(nibabel.Nifti1Image(values, affine), folder / where / f"spleen_{number}.nii.gz")
        listed.append({"image": f"./imagesTr/spleen_{number}.nii.gz", "label": f"./labelsTr/spleen_{number}.nii.gz"})
    described = {
        **{"name": "Spleen", "tensorImageSize": "3D", "modality": {"0": "CT"}, "numTraining": 5, "numTest": 1},
        **{"labels": {"0": "background", "1": "spleen"}, "training": listed, "test": ["./imagesTs/spleen_1.nii.gz"]},
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    config = {"data_root": str(folder.parent), "work_dir": str(hospitals.work("spleens")), "threads": 1}
    operator.post("/sites/", {"slug": "spleens", "name": "Spleens", "connector": "local", "config": config})
    hospitals.wait_until_checked("spleens")
    document = {"preset": "blank", "title": "Spleen", "min_sites": 1}
    participants = [{"site": "spleens", "dataset": "Task09_Spleen"}]
    plan = {**TINY, "spacing": [2, 2, 5], "patch": [16, 16, 8]}
    key = researcher.post("/experiments/", {**document, "participants": participants, "plan": plan})["key"]
    researcher.post(f"/experiments/{key}/start/")
    experiment = researcher.wait(key)
    assert experiment["state"] == "completed", experiment["reason"]
    assert [region["name"] for region in experiment["plan"]["task"]["regions"]] == ["spleen"]
    assert {row["region"] for row in numbers(researcher, key, "dice")} == {"spleen", "mean"}
    assert researcher.site_run(key, "spleens")["steps"] == 2  # four cases in batches of two, the fifth is held out
