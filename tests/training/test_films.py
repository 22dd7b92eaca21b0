"""Batches: every film once an epoch, in an order that depends on seed and epoch alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pneumoscope.training.films import derive_seed, epoch_order


@given(st.integers(2, 300), st.integers(8, 70), st.integers(0, 5), st.integers(1, 4))
def test_every_film_is_in_one_batch_and_no_batch_is_too_small(count, batch, epoch, world):
    batches = epoch_order(count, batch, seed=7, epoch=epoch, world=world)

    assert sorted(place for places in batches for place in places) == list(range(count))
    assert all(len(places) >= 2 * world for places in batches) or len(batches) == 1
    assert all(len(places) == batch for places in batches[:-1])
    assert len(batches[-1]) < batch + 2 * world


def test_the_reports_epoch_has_70_steps_of_64_or_139_of_32():
    assert len(epoch_order(4434, 64, 0, 0)) == 70
    assert len(epoch_order(4434, 32, 0, 0)) == 139


def test_order_changes_with_the_epoch_and_the_seed_and_comes_back():
    first = epoch_order(50, 8, seed=0, epoch=0)

    assert first == epoch_order(50, 8, seed=0, epoch=0)
    assert first != epoch_order(50, 8, seed=0, epoch=1)
    assert first != epoch_order(50, 8, seed=1, epoch=0)


def test_a_last_film_alone_joins_the_batch_before():
    # Batch normalisation cannot train on one film.
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
