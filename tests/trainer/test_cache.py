"""Prepared cases on disk: decoded once, whole or not there, one for all runs."""

import dataclasses
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tests.trainer.conftest import Recorder, changed, save, volumes
from trainer import cache
from trainer.cache import ABANDONED_SECONDS, UNUSED_SECONDS, VOXELS_PER_LABEL, prepare
from trainer.cases import read_dataset
from trainer.images import Recipe, read_case

RECIPE = Recipe(order=(0, 1, 2, 3), labels=(0, 1, 2, 3), spacing=None)


def prepared(site, recipe=RECIPE, *, threads=1, report=None):
    cases = read_dataset(site.data_root, "Brain").training
    return prepare(cases, recipe, cache=site.cache, threads=threads, report=report or Recorder())


def test_the_second_round_reads_no_nifti(plan, work, report, monkeypatch):
    work(plan)
    monkeypatch.delattr(cache, "read_case")
    outcome, _ = work(plan, round=2)
    assert outcome.train_cases == 2
    assert [said for said in report.said if "Preparing" in said] == ["Preparing 3 of 3 cases."]


def test_an_image_that_was_replaced_is_read_again(site):
    first = prepared(site)[0].image.clone()
    save(site.data_root / "Brain/imagesTr/CASE_000.nii.gz", volumes(77)[0])
    assert not torch.equal(prepared(site)[0].image, first)


def test_a_segmentation_of_the_same_size_is_read_again_though_its_time_was_set_back(site):
    label, path = volumes(0)[1], site.data_root / "label.nii"
    case = dataclasses.replace(read_dataset(site.data_root, "Brain").training[0], label=path)

    def label_of() -> torch.Tensor:
        return prepare([case], RECIPE, cache=site.cache, threads=1, report=Recorder())[0].label.clone()

    save(path, label)
    first, status = label_of(), path.stat()
    save(path, np.roll(label, 3, axis=0))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert not torch.equal(label_of(), first)


def test_other_settings_have_their_own_files(plan, work, site, report):
    work(plan)
    work(changed(plan, spacing=(3.0, 3.0, 3.0)))
    work(changed(plan, augmentation="none", seed=3))
    assert len(list(site.cache.iterdir())) == 6
    assert [said for said in report.said if "Preparing" in said] == ["Preparing 3 of 3 cases."] * 2


def test_a_prepared_case_is_what_reading_gives(site):
    case = read_dataset(site.data_root, "Brain").training[0]
    image, label, spacing, _ = read_case(case, RECIPE)
    stored = prepared(site)[0]
    assert (stored.name, stored.shape, stored.spacing) == ("CASE_000", (16, 16, 16), spacing)
    assert torch.equal(stored.image, image.to(torch.float16))
    assert torch.equal(stored.label, label)
    for number in (1, 2, 3):
        voxels = {tuple(row[1:]) for row in stored.foreground.tolist() if row[0] == number}
        there = {tuple(voxel) for voxel in (label == number).nonzero().tolist()}
        assert voxels == there, "few voxels: all of them are listed"


def test_of_a_large_structure_only_some_voxels_are_listed(site):
    save(site.data_root / "Brain/labelsTr/CASE_000.nii.gz", np.ones((16, 16, 16), np.uint8))
    foreground = prepared(site)[0].foreground
    assert foreground.shape == (VOXELS_PER_LABEL, 4)
    assert len(foreground.unique(dim=0)) == VOXELS_PER_LABEL
    assert foreground[:, 1:].amin(0).tolist() == [0, 0, 0]
    assert foreground[:, 1:].amax(0).tolist() == [15, 15, 15]


def test_no_voxel_is_looked_for_behind_the_last_of_a_very_large_structure():
    assert cache._evenly(2**25)[[0, -1]].tolist() == [0, 2**25 - 1]


def test_a_damaged_file_is_made_again(site):
    expected = prepared(site)[0].image.clone()
    for content in (b"", b"garbage", (5000).to_bytes(8, "little") + b"{"):
        for path in site.cache.iterdir():
            path.unlink()  # others may have the old file mapped
            path.write_bytes(content)
        assert torch.equal(prepared(site)[0].image, expected)


def test_runs_at_the_same_time_share_the_cache(site):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: prepared(site, threads=2), range(8)))
    for cases in results:
        assert all(torch.equal(a.image, b.image) for a, b in zip(cases, results[0], strict=True))
    assert len(list(site.cache.iterdir())) == 2


def test_a_run_goes_on_when_another_deletes_what_it_reads(site):
    case = prepared(site)[0]
    before = case.image.clone()
    for path in site.cache.iterdir():
        path.unlink()
    assert torch.equal(case.image, before)


def test_what_nobody_used_for_a_month_and_what_killed_runs_left_is_swept(site):
    prepared(site)
    used, unused = sorted(site.cache.iterdir())
    left, writing = site.cache / ".a.1.tmp", site.cache / ".a.2.tmp"
    left.write_bytes(b"x")
    writing.write_bytes(b"x")
    now = time.time()
    os.utime(unused, (now - UNUSED_SECONDS - 60,) * 2)
    os.utime(left, (now - ABANDONED_SECONDS - 60,) * 2)
    report = Recorder()
    prepare((), RECIPE, cache=site.cache, threads=1, report=report)
    assert sorted(site.cache.iterdir()) == sorted([used, writing])
    os.utime(used, (now - UNUSED_SECONDS + 60,) * 2)
    prepared(site)
    assert used.stat().st_mtime >= now - 60, "using a case keeps it"
