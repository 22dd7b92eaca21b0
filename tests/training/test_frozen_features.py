"""Frozen convolutions: features are computed once, only the rest trains, and the run is as good as any other."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import small

from pneumoscope.data.cache import preprocess_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.models.factory import create_model
from pneumoscope.runs.run_folder import WEIGHTS_FILE
from pneumoscope.training import frozen_features as frozen
from pneumoscope.training.frozen_features import keep_features
from pneumoscope.training.train import train

pytestmark = pytest.mark.training


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(9)
    save_file(create_model("vgg19", image_size=32).state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def recipe(start):
    return small(network={"name": "vgg19", "dropout": 0.0, "weights": str(start), "freeze": "convolutions"})


def test_convolutions_stay_and_the_head_moves(phantoms, tmp_path, start):
    train(recipe(start), phantoms, tmp_path / "run")
    before, after = load_file(start), load_file(tmp_path / "run" / WEIGHTS_FILE)

    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved == {"head"}


def test_features_are_the_networks_own_and_are_computed_once(phantoms, tmp_path, start, monkeypatch):
    manifest = load_manifest(phantoms)
    network = create_model("vgg19", image_size=32, weights=str(start))
    images = preprocess_images(manifest.root, manifest.images, small().preprocessing)
    calls = []
    original = frozen._features
    monkeypatch.setattr(frozen, "_features", lambda net, part: calls.append(len(part)) or original(net, part))

    kept = keep_features(network, images)
    first = list(calls)
    again = keep_features(network, images)

    assert sum(first) == 1 + len(images.pixels)
    assert calls[len(first) :] == [1]
    assert kept == again
    from pneumoscope.data.cache import load_array

    array = load_array(kept.name, kept.shape, np.float32)
    with torch.inference_mode():
        expected = network.eval().forward_features(network.normalize(torch.from_numpy(np.array(images.pixels[:3]))))
    np.testing.assert_allclose(array[:3], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_other_weights_have_other_features(phantoms, start):
    manifest = load_manifest(phantoms)
    images = preprocess_images(manifest.root, manifest.images, small().preprocessing)
    torch.manual_seed(1)

    names = {keep_features(create_model("vgg19", image_size=32), images).name for _ in range(2)}

    assert len(names) == 2


def test_features_of_images_with_a_black_edge_are_kept_apart(phantoms, start):
    manifest = load_manifest(phantoms)
    images = preprocess_images(manifest.root, manifest.images, small().preprocessing)
    names = {
        keep_features(create_model("vgg19", image_size=32, weights=str(start), border_mask=border_mask), images).name
        for border_mask in (0, 2)
    }
    assert len(names) == 2
