"""Frozen convolutions: their features are computed once, and only the head is trained."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import small

from pneumoscope.data.cache import load_array, preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.models.factory import create_model
from pneumoscope.runs.run_folder import WEIGHTS_FILE
from pneumoscope.training.frozen_features import cache_features
from pneumoscope.training.train import train_run

pytestmark = pytest.mark.training


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(9)
    save_file(create_model("vgg19", image_size=32).state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def recipe(start):
    return small(network={"name": "vgg19", "dropout": 0.0, "weights": str(start), "freeze": "convolutions"})


@pytest.mark.usefixtures("without_bundle")
def test_only_the_head_is_trained(phantoms, tmp_path, start):
    train_run(recipe(start), phantoms, tmp_path / "run")
    before, after = load_file(start), load_file(tmp_path / "run" / WEIGHTS_FILE)

    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert changed == {"head"}


def test_features_are_those_of_the_network_and_computed_once(phantoms, tmp_path, start, monkeypatch):
    manifest = load_manifest(phantoms)
    network = create_model("vgg19", image_size=32, weights=str(start))
    images = preprocess_images(manifest.root, manifest.images, small().preprocessing)
    calls = []
    forward = network.forward_features
    monkeypatch.setattr(network, "forward_features", lambda part: calls.append(len(part)) or forward(part))

    first = cache_features(network, images)
    first_calls = list(calls)
    second = cache_features(network, images)

    assert sum(first_calls) == 1 + len(images.pixels)
    assert calls[len(first_calls) :] == [1]
    assert first == second
    array = load_array(first.name, first.shape, np.float32)
    with torch.inference_mode():
        expected = network.eval().forward_features(network.normalize(torch.from_numpy(np.array(images.pixels[:3]))))
    np.testing.assert_allclose(array[:3], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_features_of_other_weights_have_another_name(phantoms, start):
    manifest = load_manifest(phantoms)
    images = preprocess_images(manifest.root, manifest.images, small().preprocessing)
    torch.manual_seed(1)

    names = {cache_features(create_model("vgg19", image_size=32), images).name for _ in range(2)}

    assert len(names) == 2


def test_features_with_a_border_mask_have_another_name(phantoms, start):
    manifest = load_manifest(phantoms)
    images = preprocess_images(manifest.root, manifest.images, small().preprocessing)
    names = {
        cache_features(create_model("vgg19", image_size=32, weights=str(start), border_mask=border_mask), images).name
        for border_mask in (0, 2)
    }
    assert len(names) == 2
