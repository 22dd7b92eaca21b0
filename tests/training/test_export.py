"""Augmentation of the validation images that a bundle is fitted on."""

import numpy as np
import pytest
import torch

from pneumoscope.runs.recipe_files import read_recipe
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import derive_seed
from pneumoscope.training.export import augmented_batches

pytestmark = pytest.mark.training


def test_each_validation_image_is_augmented_once_with_its_own_seed():
    images = np.random.default_rng(3).integers(0, 200, (40, 64, 64), dtype=np.uint8)  # more than one batch
    options = read_recipe("quick").augmentation

    batches = list(augmented_batches(images, options, 5))

    assert [len(batch) for batch in batches] == [32, 8]
    seeds = [derive_seed(5, i, 9) for i in range(40)]
    expected = augment(torch.from_numpy(images), options, seeds).round().to(torch.uint8).numpy()
    difference = np.abs(np.concatenate(batches).astype(int) - expected)
    assert difference.max() <= 1  # rounding differs between batch sizes
    assert difference.mean() < 0.01
    assert np.abs(np.concatenate(batches).astype(int) - images).mean() > 1
