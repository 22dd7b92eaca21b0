"""Batches: every image once an epoch, in an order that depends on seed and epoch alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.data.layouts import load_manifest
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.runs.recipe import Augmentation
from pneumoscope.training.data_module import ImageArrays, ImageDataModule, derive_seed, epoch_order

pytestmark = pytest.mark.training


@given(st.integers(2, 300), st.integers(8, 70), st.integers(0, 5), st.integers(1, 4))
def test_every_image_is_in_one_batch_and_no_batch_is_too_small(count, batch, epoch, world):
    batches = epoch_order(count, batch, seed=7, epoch=epoch, world=world)

    assert sorted(place for places in batches for place in places) == list(range(count))
    assert all(len(places) >= max(2, world) for places in batches) or len(batches) == 1
    assert all(len(places) == batch for places in batches[:-1])
    assert len(batches[-1]) < batch + max(2, world)
    if 2 <= count % batch < world:  # too few images to go round, which only many devices can meet
        assert len(batches[-1]) == batch + count % batch or len(batches) == 1
    else:
        assert batches == epoch_order(count, batch, seed=7, epoch=epoch)


def test_the_reports_epoch_has_70_steps_of_64_or_139_of_32():
    assert len(epoch_order(4434, 64, 0, 0)) == 70
    assert len(epoch_order(4434, 32, 0, 0)) == 139


def test_order_changes_with_the_epoch_and_the_seed_and_comes_back():
    first = epoch_order(50, 8, seed=0, epoch=0)

    assert first == epoch_order(50, 8, seed=0, epoch=0)
    assert first != epoch_order(50, 8, seed=0, epoch=1)
    assert first != epoch_order(50, 8, seed=1, epoch=0)


def test_a_last_image_alone_joins_the_batch_before():
    # Batch normalisation cannot train on one image.
    assert [len(places) for places in epoch_order(17, 8, 0, 0)] == [8, 9]


def test_derived_seeds_are_numpys_and_differ_by_part():
    expected = int(np.random.SeedSequence((3, 1)).generate_state(1, np.uint64)[0]) >> 1

    assert derive_seed(3, 1) == expected
    assert len({derive_seed(a, b) for a in range(20) for b in range(20)}) == 400
    assert torch.Generator().manual_seed(derive_seed(3, 1)).initial_seed() == expected


@pytest.mark.parametrize("world", [1, 2, 3])
def test_devices_share_a_batch_without_overlap(world):
    places = epoch_order(40, 12, 0, 0, world=world)[0]

    shares = [places[rank::world] for rank in range(world)]

    assert sorted(place for share in shares for place in share) == sorted(places)


def epoch_images(phantoms, world, epoch):
    """{place: image} and {place: batch} of one epoch, as all devices together see them."""
    manifest = load_manifest(phantoms)
    images, test = manifest.split("train"), manifest.split("test")
    arrays = ImageArrays(manifest.root, images, test, Preprocessing(size=32))
    how = Augmentation(flip=True, rotation=10, brightness=0.3, noise=0.1)
    seen, batch_of = {}, {}
    for rank in range(world):
        batches = ImageDataModule(arrays, batch=7, seed=3, augmentation=how)
        batches.setup("fit")
        batches.trainer = SimpleNamespace(global_rank=rank, world_size=world, current_epoch=epoch)
        for number, batch in enumerate(batches.train_dataloader()):
            for place, image in zip(batch.places.tolist(), batch.images, strict=True):
                assert place not in seen
                seen[place], batch_of[place] = image, number
    assert sorted(seen) == list(range(len(images)))
    return seen, batch_of


def test_a_image_looks_the_same_on_any_number_of_devices_and_otherwise_in_the_next_epoch(phantoms):
    one, batches = epoch_images(phantoms, 1, 0)
    later, _ = epoch_images(phantoms, 1, 1)

    for world in (2, 3):
        several, shared = epoch_images(phantoms, world, 0)
        assert shared == batches
        for place, image in one.items():
            torch.testing.assert_close(several[place], image, rtol=0, atol=1e-3)
    assert not any(torch.allclose(later[place], image, atol=1) for place, image in one.items())
