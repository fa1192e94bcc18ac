"""Batches: order, crops, padding, regions, seeds."""

import numpy as np
import pytest
import torch

from tests.trainer.conftest import BRAIN, Recorder, changed, save, volumes, write_dataset
from trainer import augmentation
from trainer.cache import prepare
from trainer.cases import read_dataset
from trainer.contract import AUGMENTATIONS
from trainer.data import ahead, batches, pad, regions_of, seed_for, unpad
from trainer.images import Recipe


def cases_of(site, name="Brain"):
    recipe = Recipe(order=(0, 1, 2, 3), labels=(0, 1, 2, 3), spacing=None)
    training = read_dataset(site.data_root, name).training
    return prepare(training, recipe, cache=site.cache, threads=1, report=Recorder())


def epoch(cases, plan, *, preset="none", seed=1):
    return list(batches(cases, plan, augment=augmentation.build(preset), seed=seed))


def test_a_region_is_the_union_of_its_labels():
    label = torch.tensor([0, 1, 2, 3], dtype=torch.uint8).reshape(4, 1, 1)
    regions = regions_of(label, BRAIN)
    assert regions.shape == (3, 4, 1, 1)
    assert regions[:, :, 0, 0].tolist() == [
        [False, True, True, True],
        [False, False, True, True],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 8, 8), (9, 6, 11)])
def test_unpadding_undoes_padding(shape):
    tensor = torch.arange(2 * 5 * 6 * 7).reshape(2, 5, 6, 7) + 1
    padded = pad(tensor, shape)
    assert padded.shape[1:] == tuple(max(a, b) for a, b in zip(shape, (5, 6, 7), strict=True))
    assert torch.equal(unpad(padded, (5, 6, 7)), tensor)
    assert padded.sum() == tensor.sum()


def test_an_epoch_has_every_case_once_and_the_last_batch_is_short(plan, site):
    write_dataset(site.data_root / "Five", train=5, shape=(8, 8, 8))
    cases = cases_of(site, "Five")
    made = epoch(cases, changed(plan, batch_size=2))
    assert [len(batch.image) for batch in made] == [2, 2, 1]
    assert changed(plan, batch_size=2).steps_per_epoch(5) == 3
    seen = torch.cat([batch.image for batch in made])
    for case in cases:
        assert sum(torch.equal(image, case.image.float()) for image in seen) == 1


def test_the_order_differs_between_epochs_and_repeats_with_its_seed(plan, site):
    write_dataset(site.data_root / "Eight", train=8, shape=(8, 8, 8))
    cases = cases_of(site, "Eight")

    def orders(seed):
        return torch.cat([b.image for b in epoch(cases, plan, seed=seed)])

    assert torch.equal(orders(1), orders(1))
    assert not torch.equal(orders(1), orders(2))


def test_batches_made_ahead_are_the_same_and_an_error_in_between_comes_through(plan, site):
    write_dataset(site.data_root / "Five", train=5, shape=(8, 8, 8))
    cases = cases_of(site, "Five")
    plain = epoch(cases, plan)
    made = list(ahead(batches(cases, plan, augment=augmentation.build("none"), seed=1)))
    assert len(made) == len(plain)
    assert all(torch.equal(a.image, b.image) for a, b in zip(made, plain, strict=True))

    calls = []

    def fail_later(image, label, seed):
        calls.append(seed)
        if len(calls) == 3:
            raise MemoryError
        return image, label

    with pytest.raises(MemoryError):
        list(ahead(batches(cases, plan, augment=fail_later, seed=1)))


def test_a_target_has_a_channel_per_region_that_fits_the_image(plan, site):
    (batch,) = epoch(cases_of(site), plan)
    assert (batch.image.shape, batch.image.dtype) == ((2, 4, 16, 16, 16), torch.float32)
    assert (batch.target.shape, batch.target.dtype) == ((2, 3, 16, 16, 16), torch.float32)
    whole, core, enhancing = batch.target.unbind(1)
    assert (whole >= core).all()
    assert (core >= enhancing).all()
    # the balls are brighter than what is around them
    assert batch.image[:, 0][whole > 0].mean() > batch.image[:, 0][whole == 0].mean() + 1


def test_volumes_are_padded_to_what_the_network_takes(plan, site):
    write_dataset(site.data_root / "Odd", train=2, shape=[(9, 10, 13), (11, 8, 5)])
    plan = changed(plan, network={"channels": (4, 8, 8), "strides": (2, 2)})
    (batch,) = epoch(cases_of(site, "Odd"), plan)
    assert batch.image.shape == (2, 4, 12, 12, 16)


def test_patches_are_drawn_from_each_case_and_half_of_them_on_foreground(plan, site):
    label = np.zeros((32, 32, 32), np.uint8)
    label[3:5, 3:5, 3:5] = 1
    label[28, 28, 28] = 3
    for number in (0, 1):
        save(site.data_root / f"Brain/imagesTr/CASE_00{number}.nii.gz", volumes(number, shape=(32, 32, 32))[0])
        save(site.data_root / f"Brain/labelsTr/CASE_00{number}.nii.gz", label)
    plan = changed(plan, patch=(8, 8, 8), patches_per_case=200, batch_size=50)
    made = epoch(cases_of(site), plan)
    assert [len(batch.image) for batch in made] == [50] * 8 == [50] * plan.steps_per_epoch(2)
    targets = torch.cat([batch.target for batch in made])
    assert targets.shape[2:] == (8, 8, 8)
    with_whole = targets[:, 0].amax((1, 2, 3)).mean()
    with_enhancing = targets[:, 2].amax((1, 2, 3)).mean()
    # half are centred on a label, each label as often as the other, however small; few of the others hit one
    assert 0.45 < with_whole < 0.6
    assert 0.2 < with_enhancing < 0.35


def test_patches_reach_every_edge_of_the_volume(plan, site):
    plan = changed(plan, patch=(8, 8, 8), patches_per_case=150, batch_size=300)
    image = np.zeros((16, 16, 16, 4), np.int16)
    image[..., 0] = 1 + np.indices((16, 16, 16))[0]
    for number in (0, 1):
        save(site.data_root / f"Brain/imagesTr/CASE_00{number}.nii.gz", image)
    (batch,) = epoch(cases_of(site), plan)
    firsts = batch.image[:, 0, 0, 0, 0].unique()
    assert len(firsts) == 9, "every position from 0 to 16 - 8 occurs"


@pytest.mark.parametrize("preset", [name for name in AUGMENTATIONS if name != "none"])
def test_augmentation_changes_image_and_label_together_and_repeats_with_its_seed(preset):
    image, label = volumes(1, shape=(16, 18, 20))
    image = torch.from_numpy(image).float().movedim(-1, 0) / 100
    label = torch.from_numpy(label)
    label[9:, :, :] = 0  # a shape that shows a flip
    augment = augmentation.build(preset)
    results = [augment(image.clone(), label.clone(), seed) for seed in range(12)]
    for changed_image, changed_label in results:
        assert (changed_image.shape, changed_image.dtype) == (image.shape, torch.float32)
        assert (changed_label.shape, changed_label.dtype) == (label.shape, torch.uint8)
        assert type(changed_image) is torch.Tensor
        assert set(changed_label.unique().tolist()) <= {0, 1, 2, 3}
        inside = changed_label > 0
        assert changed_image[0][inside].mean() > changed_image[0][~inside].mean(), "the label lies on what it marks"
    assert len({tuple(flipped.flatten().tolist()) for _, flipped in results}) > 3
    again = augment(image.clone(), label.clone(), 5)
    assert torch.equal(again[0], results[5][0])
    assert torch.equal(again[1], results[5][1])


def test_the_preset_none_changes_nothing():
    image, label = torch.rand(4, 8, 8, 8), torch.zeros(8, 8, 8, dtype=torch.uint8)
    assert augmentation.build("none")(image, label, 1) == (image, label)


def test_a_seed_depends_on_every_word_and_their_order():
    seeds = {seed_for(*words) for words in [(0, 1, "a"), (1, 0, "a"), (0, 1, "b"), (0, 1), (0, "1", "a")]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(0, 1, "a") == seed_for(0, 1, "a")
