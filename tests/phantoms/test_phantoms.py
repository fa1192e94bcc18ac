"""The generated demo data: layout, repeatability, what distinguishes the sites."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from tests.phantoms.datasets import SMALL, cases, described, digests, label_volumes
from trainer.contract import Exit
from trainer.phantoms import main
from trainer.phantoms.anatomy import Frame, smooth_noise
from trainer.phantoms.cohort import cohort, default_names
from trainer.phantoms.dataset import DATASET

# --- layout ---------------------------------------------------------------------------------------


def test_dataset_json_has_the_keys_of_the_real_task(demo):
    listed = described(demo / "a" / DATASET)
    assert listed["modality"] == {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    assert listed["labels"] == {
        "0": "background",
        "1": "edema",
        "2": "non-enhancing tumor",
        "3": "enhancing tumour",
    }
    assert listed["tensorImageSize"] == "4D"
    assert (listed["numTraining"], listed["numValidation"], listed["numTest"]) == (8, 4, 0)
    assert (len(listed["training"]), len(listed["validation"]), listed["test"]) == (8, 4, [])
    assert {"name", "reference", "licence", "release"} <= set(listed)


def test_the_description_says_that_nobody_was_ever_a_patient(demo):
    listed = described(demo / "a" / DATASET)
    assert "SYNTHETIC, not patients" in listed["description"]
    assert "McConnell Brain Imaging Centre" in listed["licence"]


@pytest.mark.parametrize("site", ["a", "b", "c"])
def test_every_listed_file_is_there_and_no_other(demo, site):
    folder = demo / site / DATASET
    listed = described(folder)
    named = {Path(file) for case in listed["training"] + listed["validation"] for file in case.values()}
    assert {path.relative_to(folder) for path in folder.glob("*Tr/*")} == named
    assert len(named) == 24


def test_case_names_differ_between_sites_so_that_they_can_be_pooled(demo):
    names = [path.name for path in demo.glob(f"*/{DATASET}/imagesTr/*")]
    assert len(names) == len(set(names)) == 36


@pytest.mark.parametrize("site", ["a", "b", "c"])
def test_image_and_label_agree_in_shape_place_and_spacing(demo, site):
    for image, label in cases(demo / site / DATASET):
        assert image.shape == (40, 40, 40, 4)
        assert label.shape == (40, 40, 40)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        np.testing.assert_allclose(image.header.get_zooms()[:3], 4.8)
        np.testing.assert_array_equal(image.affine, label.affine)
        np.testing.assert_allclose(image.header.get_qform(), image.header.get_sform(), atol=1e-4)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("site", ["a", "b", "c"])
def test_background_is_exactly_zero_and_the_tumour_lies_in_the_brain(demo, site):
    for image, label in cases(demo / site / DATASET):
        voxels, tumour = np.asarray(image.dataobj), np.asarray(label.dataobj)
        brain = voxels[..., 0] > 0
        assert (voxels[brain] >= 1).all()
        assert (voxels[~brain] == 0).all()
        assert 0.1 < brain.mean() < 0.3
        assert set(np.unique(tumour)) <= {0, 1, 2, 3}
        assert {1} < set(np.unique(tumour)) - {0}
        assert brain[tumour > 0].all()


def test_the_whole_brain_is_in_the_picture(demo):
    for site in ("a", "b", "c"):
        for image, _ in cases(demo / site / DATASET):
            brain = np.asarray(image.dataobj)[..., 0] > 0
            # The template itself ends in the brainstem, so its lower face may touch the border.
            faces = (brain[0], brain[-1], brain[:, 0], brain[:, -1], brain[..., -1])
            assert max(face.sum() for face in faces) < 0.02 * 40 * 40


def test_the_tissues_look_as_on_a_scanner(demo):
    """Fluid is bright on T2 and dark on FLAIR; edema is bright on FLAIR; the rim takes up contrast agent."""
    for image, label in cases(demo / "a" / DATASET):
        flair, t1, t1gd, t2 = np.moveaxis(np.asarray(image.dataobj).astype(float), -1, 0)
        tumour = np.asarray(label.dataobj)
        healthy = (flair > 0) & (tumour == 0)
        fluid = healthy & (t2 > np.percentile(t2[healthy], 99))
        assert np.median(flair[fluid]) < np.median(flair[healthy])
        assert np.median(t1[fluid]) < np.median(t1[healthy])
        assert np.median(flair[tumour == 1]) > 1.3 * np.median(flair[healthy])
        if (tumour == 3).any():
            assert np.median(t1gd[tumour == 3]) > np.percentile(t1gd[healthy], 90)


@pytest.mark.parametrize("site", ["a", "b", "c"])
def test_the_tumour_can_be_learned(demo, site):
    """The best FLAIR threshold of each case finds the whole tumour well: a network has something to learn."""

    def best(flair: np.ndarray, whole: np.ndarray) -> float:
        bright = (flair > t for t in np.percentile(flair[flair > 0], np.arange(60, 99.6, 0.5)))
        return max(2 * (found & whole).sum() / (found.sum() + whole.sum()) for found in bright)

    dice = [
        best(np.asarray(image.dataobj)[..., 0], np.asarray(label.dataobj) > 0)
        for image, label in cases(demo / site / DATASET)
    ]
    assert np.mean(dice) > 0.6
    assert np.mean(dice) < 0.99  # nor is it painted on


@pytest.mark.parametrize("site", ["a", "b", "c"])
def test_a_tumour_hangs_together(demo, site):
    for label in label_volumes(demo / site / DATASET):
        for part in (label > 0, label > 1):
            assert ndimage.label(part)[1] == 1


def test_some_tumours_do_not_enhance_and_most_do(demo):
    enhancing = [(label == 3).any() for site in "abc" for label in label_volumes(demo / site / DATASET)]
    assert 0.5 < np.mean(enhancing) < 1


# --- the same again, byte for byte ----------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(tmp_path):
    for out, workers in (("one", "1"), ("three", "3")):
        assert main(["--out", str(tmp_path / out), *SMALL, "--workers", workers]) == Exit.OK
    for site in "abc":
        first, second = (digests(tmp_path / out / site) for out in ("one", "three"))
        assert first == second
        assert len(first) == 8


def test_another_seed_gives_other_brains(tmp_path):
    for seed in ("0", "1"):
        assert main(["--out", str(tmp_path / seed), *SMALL, "--sites", "1", "--seed", seed]) == Exit.OK
    first, second = (label_volumes(tmp_path / seed / "a" / DATASET) for seed in ("0", "1"))
    assert not any(np.array_equal(a, b) for a in first for b in second)


def test_a_site_alone_is_the_same_as_among_others(tmp_path):
    assert main(["--out", str(tmp_path / "all"), *SMALL, "--sites", "5"]) == Exit.OK
    assert main(["--out", str(tmp_path / "one"), *SMALL, "--sites", "5", "--only", "e"]) == Exit.OK
    assert [path.name for path in (tmp_path / "one").iterdir() if not path.name.startswith(".")] == ["e"]
    assert digests(tmp_path / "one" / "e") == digests(tmp_path / "all" / "e")


def test_more_training_cases_leave_the_held_out_ones_as_they_were(tmp_path):
    for count in ("1", "3"):
        options = ["--sites", "1", "--size", "24", "--train", count, "--validation", "2"]
        assert main(["--out", str(tmp_path / count), *options]) == Exit.OK
    few, many = (label_volumes(tmp_path / count / "a" / DATASET) for count in ("1", "3"))
    for a, b in zip(few[-2:], many[-2:], strict=True):
        np.testing.assert_array_equal(a, b)


# --- how sites differ -----------------------------------------------------------------------------


def test_iid_sites_have_one_look_and_other_patients(tmp_path):
    sites = cohort("iid", names=["x", "y"], train=2, validation=1, seed=0)
    assert (sites[0].look, sites[0].tumours) == (sites[1].look, sites[1].tumours)
    assert main(["--out", str(tmp_path), *SMALL, "--sites", "2", "--variant", "iid"]) == Exit.OK
    a, b = (label_volumes(tmp_path / site / DATASET) for site in "ab")
    assert not any(np.array_equal(x, y) for x in a for y in b)


def test_scanners_differ_in_intensity_scale_and_tumour_size(demo):
    def middle(site: str) -> float:
        volumes = [np.asarray(image.dataobj) for image, _ in cases(demo / site / DATASET)]
        return float(np.median([np.median(v[v > 0]) for v in volumes]))

    def size(site: str) -> float:
        return float(np.median([(label > 0).sum() for label in label_volumes(demo / site / DATASET)]))

    assert 3 * middle("b") < 2 * middle("a") < middle("c")
    assert size("b") < size("a") < size("c")


def test_missing_subtypes_leave_one_site_without_enhancement_and_one_with_small_tumours_only(tmp_path):
    options = ["--size", "32", "--train", "6", "--validation", "2", "--variant", "missing-subtypes"]
    assert main(["--out", str(tmp_path), *options]) == Exit.OK
    never, small, large = (label_volumes(tmp_path / site / DATASET) for site in "abc")
    assert not any((label == 3).any() for label in never)
    assert all((label == 3).any() for label in small + large)
    assert max((label > 0).sum() for label in small) < min((label > 0).sum() for label in large)


def test_unequal_sites_have_half_normal_and_double_the_training_cases(tmp_path):
    options = ["--size", "16", "--train", "2", "--validation", "1", "--variant", "unequal"]
    assert main(["--out", str(tmp_path), *options]) == Exit.OK
    assert [described(tmp_path / site / DATASET)["numTraining"] for site in "abc"] == [1, 2, 4]
    assert [described(tmp_path / site / DATASET)["numValidation"] for site in "abc"] == [1, 1, 1]


def test_further_sites_get_scanners_of_their_own_from_the_seed():
    sites = cohort("scanner", names=default_names(8), train=1, validation=1, seed=3)
    assert len({site.look for site in sites}) == 8
    assert sites == cohort("scanner", names=default_names(8), train=1, validation=1, seed=3)
    assert sites[5].look != cohort("scanner", names=default_names(8), train=1, validation=1, seed=4)[5].look


def test_default_names_do_not_end_with_the_alphabet():
    assert default_names(28)[25:] == ["z", "site-27", "site-28"]


def test_smooth_noise_fills_any_cube():
    for size in (16, 33, 96):
        field = smooth_noise(np.random.default_rng(0), 6, size)
        assert field.shape == (size, size, size)
        assert 0.1 < field.std() < 1.2
        assert np.abs(np.diff(field, axis=0)).max() < 10 * 6 / size


def test_the_frame_is_centred_on_the_origin():
    frame = Frame(40)
    corners = frame.affine() @ np.array([[0, 39], [0, 39], [0, 39], [1, 1]])
    np.testing.assert_allclose(corners[:3, 0], -corners[:3, 1])
    np.testing.assert_allclose(corners[:3, 0], frame.grid()[:, 0, 0, 0], atol=1e-5)
