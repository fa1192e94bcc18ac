"""Generating again: after an interruption, with other parameters, beside other people's data."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.phantoms.datasets import SMALL, cases, digests
from trainer.contract import Exit
from trainer.phantoms import dataset, main, template
from trainer.phantoms.dataset import DATASET, MARKER


def test_a_complete_dataset_is_left_alone(tmp_path, capsys):
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "1"]) == Exit.OK
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")}
    capsys.readouterr()
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "1"]) == Exit.OK
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*")} == before


@pytest.mark.parametrize("damage", ["lost", "emptied", "marker"])
def test_a_damaged_dataset_is_made_again(tmp_path, damage):
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "1"]) == Exit.OK
    whole = digests(tmp_path / "a")
    folder = tmp_path / "a" / DATASET
    image = next(folder.glob("imagesTr/*"))
    if damage == "lost":
        image.unlink()
    elif damage == "emptied":
        image.write_bytes(b"")
    else:
        (folder / MARKER).write_text("{")
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "1"]) == Exit.OK
    assert digests(tmp_path / "a") == whole


def test_other_parameters_replace_what_was_generated(tmp_path):
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "1"]) == Exit.OK
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "1", "--size", "16"]) == Exit.OK
    assert cases(tmp_path / "a" / DATASET)[0][1].shape == (16, 16, 16)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [DATASET]


def test_a_killed_generator_leaves_nothing_half_done_and_the_next_one_finishes(tmp_path):
    options = ["--sites", "1", "--size", "64", "--train", "6", "--validation", "1"]
    command = [sys.executable, "-m", "trainer.phantoms", "--out", str(tmp_path / "killed"), *options, "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "killed").glob(".phantoms/build/labelsTr/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "a").exists()

    for out in ("killed", "whole"):
        assert main(["--out", str(tmp_path / out), *options]) == Exit.OK
    assert digests(tmp_path / "killed" / "a") == digests(tmp_path / "whole" / "a")


def test_real_data_in_the_folder_is_never_touched(tmp_path, capsys):
    real = tmp_path / "b" / DATASET
    real.mkdir(parents=True)
    (real / "dataset.json").write_text("{}")
    assert main(["--out", str(tmp_path), *SMALL]) == Exit.NO_DATASET
    assert "left alone" in capsys.readouterr().err
    assert [path.name for path in real.iterdir()] == ["dataset.json"]
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_named_and_leaves_no_dataset(tmp_path, capsys, monkeypatch, workers):
    def save(image, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset.nibabel, "save", save)
    assert main(["--out", str(tmp_path), *SMALL, "--workers", workers]) == Exit.DISK_FULL
    assert "disk is full" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_worker_that_dies_is_noticed(tmp_path, capsys, monkeypatch):
    def dies(case):
        os._exit(9)

    monkeypatch.setattr(dataset, "write_case", dies)
    assert main(["--out", str(tmp_path), *SMALL, "--workers", "2"]) == Exit.UNEXPECTED
    assert "ended before it was done" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_missing_template_says_what_to_install(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(template.importlib.metadata, "distribution", missing)
    assert main(["--out", str(tmp_path), *SMALL]) == Exit.NO_DATASET
    assert "requirements-demo.txt" in capsys.readouterr().err


def test_neither_torch_nor_nilearn_is_imported(tmp_path):
    """Their start-up would cost more than all the phantoms."""
    code = (
        "import sys; from trainer.phantoms import main; "
        f"main(['--out', {str(tmp_path)!r}, '--sites', '1', '--size', '16', '--train', '1']); "
        "sys.exit(', '.join({'torch', 'monai', 'nilearn', 'pandas'} & set(sys.modules)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        ["--sites", "0"],
        ["--size", "8"],
        ["--size", "many"],
        ["--train", "0"],
        ["--seed", "-1"],
        ["--variant", "other"],
        ["--site-names", "a,b"],
        ["--site-names", "a,b,b"],
        ["--site-names", "a,b,../c"],
        ["--site-names", "a,,c"],
        ["--only", "nobody"],
    ],
)
def test_wrong_usage_is_refused_before_anything_is_written(tmp_path, capsys, wrong):
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "out"), *wrong])
    assert stop.value.code == 2
    assert wrong[0].lstrip("-") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
