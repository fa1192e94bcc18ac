"""From NIfTI to what the network sees."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.trainer.conftest import save, volumes
from trainer.cases import Case
from trainer.contract import Exit
from trainer.images import Recipe, read_case
from trainer.job import Fault


@pytest.fixture
def case(tmp_path: Path) -> Case:
    case = Case("CASE", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    image, label = volumes(1, shape=(10, 12, 14))
    save(case.image, image)
    save(case.label, label)
    return case


def recipe(order=(0, 1, 2, 3), spacing=None) -> Recipe:
    return Recipe(order=order, labels=(0, 1, 2, 3), spacing=spacing)


def test_channels_come_first_and_each_is_normalised(case):
    image, label, spacing, _ = read_case(case, recipe())
    assert (image.shape, image.dtype) == ((4, 10, 12, 14), torch.float32)
    assert (label.shape, label.dtype) == ((10, 12, 14), torch.uint8)
    assert spacing == (2.0, 2.0, 2.0)
    for channel in image:
        assert channel.mean().abs() < 1e-4
        assert (channel.std() - 1).abs() < 1e-2


def test_zero_voxels_stay_zero_and_do_not_count(case):
    image, _ = volumes(1, shape=(10, 12, 14))
    image[:5] = 0
    save(case.image, image)
    found, *_ = read_case(case, recipe())
    assert (found[:, :5] == 0).all()
    assert found[:, 5:].mean(dim=(1, 2, 3)).abs().max() < 1e-4
    assert (found[:, 5:].std(dim=(1, 2, 3)) - 1).abs().max() < 1e-2


def test_an_empty_channel_stays_empty(case):
    image, _ = volumes(1, shape=(10, 12, 14))
    image[..., 2] = 0
    save(case.image, image)
    found, *_ = read_case(case, recipe())
    assert (found[2] == 0).all()


def test_channels_are_put_into_the_order_of_the_task(case):
    straight, *_ = read_case(case, recipe())
    turned, *_ = read_case(case, recipe(order=(3, 0, 2, 1)))
    assert torch.equal(turned, straight[[3, 0, 2, 1]])


def test_however_a_scanner_stores_its_axes_the_result_is_the_same(case):
    image, label = volumes(1, shape=(10, 12, 14))
    straight = read_case(case, recipe())
    # y first, x mirrored: the same patient
    affine = np.array([[0.0, -2, 0, 18], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    save(case.image, np.ascontiguousarray(image[::-1].transpose(1, 0, 2, 3)), affine)
    save(case.label, np.ascontiguousarray(label[::-1].transpose(1, 0, 2)), affine)
    turned = read_case(case, recipe())
    torch.testing.assert_close(turned[0], straight[0])
    assert torch.equal(turned[1], straight[1])


def test_each_file_of_a_pair_may_be_stored_its_own_way_if_its_header_says_so(case):
    straight = read_case(case, recipe())
    affine = np.array([[0.0, -2, 0, 18], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    save(case.label, np.ascontiguousarray(volumes(1, shape=(10, 12, 14))[1][::-1].transpose(1, 0, 2)), affine)
    turned = read_case(case, recipe())
    assert torch.equal(turned[1], straight[1])


@pytest.mark.parametrize(
    "affine", [np.diag([-2.0, -2, 2, 1]), np.diag([-1.0, -1, 1, 1])], ids=["no origin", "no header"]
)
def test_a_pair_whose_headers_turn_it_apart_is_refused(case, affine):
    """A tool that drops the header of the segmentation: turned by its own header it would lie mirrored on the image."""
    save(case.label, volumes(1, shape=(10, 12, 14))[1], affine)
    with pytest.raises(Fault, match="CASE: the headers of image and segmentation contradict") as caught:
        read_case(case, recipe())
    assert caught.value.exit is Exit.SHAPE_MISMATCH


def test_a_pair_stored_one_way_belongs_together_whatever_else_its_headers_say(case):
    expected = read_case(case, recipe())[1]
    save(
        case.label,
        volumes(1, shape=(10, 12, 14))[1],
        np.array([[1.0, 0, 0, 90], [0, 1, 0, -7], [0, 0, 1, 0], [0, 0, 0, 1]]),
    )
    assert torch.equal(read_case(case, recipe())[1], expected)


def content(case, **changes) -> bytes:
    return read_case(case, recipe(**changes))[3]


@pytest.mark.parametrize(
    "copy",
    [
        lambda _, path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1)),
        lambda image, path: save(path, image, np.diag([1.0, 1.0, 3.0, 1.0])),
        lambda image, path: save(path, image.astype(np.float64)),
        lambda image, path: save(path, image.astype(">i4")),
        lambda image, path: save(path, image[::-1, :, ::-1]),
        lambda image, path: save(path, np.where(image == 0, np.float32(-0.0), image)),
    ],
    ids=["packed anew", "another header", "another type", "another byte order", "turned", "a zero with a sign"],
)
def test_a_copy_is_known_again_by_its_content(case, copy):
    image, _ = volumes(1, shape=(10, 12, 14))
    image[:3] = 0
    save(case.image, image)
    before = content(case)
    copy(image, case.image)
    assert content(case) == before
    other = Case("OTHER", case.image.rename(case.image.with_name("other.nii.gz")), case.label)
    assert content(other) == before
    assert content(other, spacing=(1.0, 2.0, 4.0)) == before


def test_a_copy_with_its_channels_in_another_order_is_known_again(case):
    before = content(case)
    image, _ = volumes(1, shape=(10, 12, 14))
    save(case.image, image[..., [1, 0, 3, 2]])
    assert content(case) != before, "another contrast in each place: not the task's channels"
    assert content(case, order=(1, 0, 3, 2)) == before


def test_one_other_voxel_makes_another_content(case):
    before = content(case)
    image, _ = volumes(1, shape=(10, 12, 14))
    image[3, 4, 5, 2] += 1
    save(case.image, image)
    assert content(case) != before


def test_labels_that_a_tool_has_rounded_are_the_numbers_they_mean(case):
    expected = read_case(case, recipe())[1]
    label = volumes(1, shape=(10, 12, 14))[1]
    save(case.label, label.astype(np.float32) * np.float32(1.0001) - np.float32(1e-4))
    assert torch.equal(read_case(case, recipe())[1], expected)


def test_image_and_label_are_resampled_onto_the_same_grid(case):
    image, label, spacing, _ = read_case(case, recipe(spacing=(1.0, 2.0, 4.0)))
    assert image.shape[1:] == label.shape
    assert spacing == pytest.approx((1.0, 2.0, 4.0))
    assert label.shape[1] == 12
    assert abs(label.shape[0] - 20) <= 1
    assert abs(label.shape[2] - 7) <= 1
    assert set(label.unique().tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", "<>")
def test_both_versions_and_byte_orders_are_read_with_scale_and_offset(tmp_path: Path, kind, order):
    stored = np.random.default_rng(0).integers(1, 100, (4, 4, 4, 4)).astype(f"{order}i2")
    header = kind.header_class(endianness=order)
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_sform(np.eye(4), 1)
    header["scl_slope"], header["scl_inter"] = 2.0, -50.0
    header.set_data_offset(len(header.binaryblock) + 4)
    (tmp_path / "image.nii").write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    save(tmp_path / "label.nii", np.zeros((4, 4, 4), np.float64))
    image, label, *_ = read_case(Case("CASE", tmp_path / "image.nii", tmp_path / "label.nii"), recipe())
    values = np.moveaxis(stored.astype(float) * 2 - 50, -1, 0)
    used = np.where(values == 0, np.nan, values)
    mean, deviation = (f(used, axis=(1, 2, 3), keepdims=True) for f in (np.nanmean, np.nanstd))
    np.testing.assert_allclose(image, np.where(values == 0, 0, (values - mean) / deviation), rtol=1e-4, atol=1e-5)
    assert not label.any()


def test_a_single_wrong_bit_in_a_compressed_file_is_noticed(case):
    data = bytearray(gzip.decompress(case.label.read_bytes()))
    data[-500] ^= 1
    damaged = gzip.compress(bytes(data))
    original = case.label.read_bytes()
    case.label.write_bytes(damaged[:-8] + original[-8:])  # the checksum of the undamaged voxels
    with pytest.raises(Fault) as caught:
        read_case(case, recipe())
    assert caught.value.exit is Exit.UNREADABLE_IMAGE
