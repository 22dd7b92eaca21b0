"""Batches: every image once per epoch, in an order that depends on the seed and the epoch only."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.layouts import load_manifest
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.runs.recipe import AugmentationOptions
from pneumoscope.training.data_module import ImageArrays, ImageDataModule, derive_seed, epoch_batches

pytestmark = pytest.mark.training


@given(st.integers(2, 300), st.integers(8, 70), st.integers(0, 5), st.integers(1, 4))
def test_every_image_is_in_one_batch_and_no_batch_is_too_small(count, batch, epoch, world_size):
    batches = epoch_batches(count, batch, seed=7, epoch=epoch, world_size=world_size)

    assert sorted(index for indices in batches for index in indices) == list(range(count))
    assert all(len(indices) >= max(2, world_size) for indices in batches) or len(batches) == 1
    assert all(len(indices) == batch for indices in batches[:-1])
    assert len(batches[-1]) < batch + max(2, world_size)
    if 2 <= count % batch < world_size:  # fewer images than devices are left
        assert len(batches[-1]) == batch + count % batch or len(batches) == 1
    else:
        assert batches == epoch_batches(count, batch, seed=7, epoch=epoch)


def test_the_reports_epoch_has_70_steps_of_64_or_139_of_32():
    assert len(epoch_batches(4434, 64, 0, 0)) == 70
    assert len(epoch_batches(4434, 32, 0, 0)) == 139


def test_order_depends_on_the_epoch_and_the_seed():
    first = epoch_batches(50, 8, seed=0, epoch=0)

    assert first == epoch_batches(50, 8, seed=0, epoch=0)
    assert first != epoch_batches(50, 8, seed=0, epoch=1)
    assert first != epoch_batches(50, 8, seed=1, epoch=0)


def test_single_last_image_is_merged_into_the_previous_batch():
    # Batch normalization cannot train on one image.
    assert [len(indices) for indices in epoch_batches(17, 8, 0, 0)] == [8, 9]


def test_derived_seeds_are_those_of_seed_sequence():
    expected = int(np.random.SeedSequence((3, 1)).generate_state(1, np.uint64)[0]) >> 1

    assert derive_seed(3, 1) == expected
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert torch.Generator().manual_seed(derive_seed(3, 1)).initial_seed() == expected


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_devices_share_a_batch_without_overlap(world_size):
    indices = epoch_batches(40, 12, 0, 0, world_size=world_size)[0]

    parts = [indices[rank::world_size] for rank in range(world_size)]

    assert sorted(index for part in parts for index in part) == sorted(indices)


def epoch_images(phantoms, world_size, epoch, views=1):
    """Return {index: image} and {index: batch} of one epoch over all devices; with several views, {index: images}."""
    manifest = load_manifest(phantoms)
    images, test = manifest.split("train"), manifest.split("test")
    arrays = ImageArrays(manifest.root, images, test, Preprocessing(size=32))
    options = AugmentationOptions(flip=True, rotation=10, brightness=0.3, noise=0.1, border_swap=0.5)
    seen, batch_of = {}, {}
    for rank in range(world_size):
        batches = ImageDataModule(arrays, batch=7, seed=3, augmentation=options, views=views)
        batches.setup("fit")
        batches.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=epoch)
        for number, batch in enumerate(batches.train_dataloader()):
            images_of_batch = batch.images.unflatten(0, (views, -1)).transpose(0, 1)
            for index, copies in zip(batch.indices.tolist(), images_of_batch, strict=True):
                assert index not in seen
                seen[index], batch_of[index] = copies if views > 1 else copies[0], number
    assert sorted(seen) == list(range(len(images)))
    return seen, batch_of


def test_augmentation_does_not_depend_on_the_number_of_devices_and_changes_with_the_epoch(phantoms):
    one, batches = epoch_images(phantoms, 1, 0)
    later, _ = epoch_images(phantoms, 1, 1)

    for world_size in (2, 3):
        several, shared = epoch_images(phantoms, world_size, 0)
        assert shared == batches
        for index, image in one.items():
            torch.testing.assert_close(several[index], image, rtol=0, atol=1e-3)
    assert not any(torch.allclose(later[index], image, atol=1) for index, image in one.items())


def test_second_view_is_another_augmentation_of_the_same_image(phantoms):
    one, _ = epoch_images(phantoms, 1, 0)
    two, _ = epoch_images(phantoms, 1, 0, views=2)

    for index, (first, second) in two.items():
        torch.testing.assert_close(first, one[index], rtol=0, atol=1e-3)
        assert not torch.allclose(first, second, atol=1)


def test_borders_come_from_training_images_of_both_labels(phantoms, monkeypatch):
    manifest = load_manifest(phantoms)
    arrays = ImageArrays(manifest.root, manifest.split("train"), manifest.split("test"), Preprocessing(size=32))
    batches = ImageDataModule(arrays, batch=8, seed=3, augmentation=AugmentationOptions(border_swap=1))
    batches.setup("fit")
    plain = ImageDataModule(arrays, batch=8, seed=3, augmentation=AugmentationOptions())
    plain.setup("fit")
    labels = {
        image.numpy().tobytes(): bool(label)
        for batch in plain.train_dataloader()
        for image, label in zip(batch.images, batch.labels, strict=True)
    }
    assert len(labels) == len(arrays.train)
    seen = []
    monkeypatch.setattr(
        "pneumoscope.training.data_module.augment",
        lambda images, options, seeds, borders: seen.append((images, borders)) or images.float(),
    )
    for _ in batches.train_dataloader():
        pass

    pairs = [
        (labels[image.numpy().tobytes()], labels[border.numpy().tobytes()])
        for images, borders in seen
        for image, border in zip(images, borders, strict=True)
    ]
    assert len(pairs) == len(arrays.train)
    assert set(pairs) == {(False, False), (False, True), (True, False), (True, True)}
