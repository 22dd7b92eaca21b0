"""Frozen convolutions: features are computed once, only the rest trains, and the run is as good as any other."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.conftest import small

from pneumoscope.dataset.cache import prepare_films
from pneumoscope.dataset.layouts import load_manifest
from pneumoscope.networks.build import build
from pneumoscope.training import frozen
from pneumoscope.training.checkpoints import BEST
from pneumoscope.training.fit import train
from pneumoscope.training.frozen import keep_features


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(9)
    save_file(build("vgg19", image_size=32).state_dict(), tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


def recipe(start):
    return small(network={"name": "vgg19", "dropout": 0.0, "weights": str(start), "freeze": "convolutions"})


def test_convolutions_stay_and_the_head_moves(phantoms, tmp_path, start):
    train(recipe(start), phantoms, tmp_path / "run")
    before, after = load_file(start), load_file(tmp_path / "run" / BEST)

    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}

    assert moved == {"head"}


def test_features_are_the_networks_own_and_are_computed_once(phantoms, tmp_path, start, monkeypatch):
    manifest = load_manifest(phantoms)
    network = build("vgg19", image_size=32, weights=str(start))
    films = prepare_films(manifest.root, manifest.films, small().preparation)
    calls = []
    original = frozen._features
    monkeypatch.setattr(frozen, "_features", lambda net, part: calls.append(len(part)) or original(net, part))

    kept = keep_features(network, films)
    first = list(calls)
    again = keep_features(network, films)

    assert sum(first) == 1 + len(films.pixels)
    assert calls[len(first) :] == [1]
    assert kept == again
    from pneumoscope.dataset.cache import kept_array

    array = kept_array(kept.name, kept.shape, np.float32)
    with torch.inference_mode():
        expected = network.eval().features(network.image(torch.from_numpy(np.array(films.pixels[:3]))))
    np.testing.assert_allclose(array[:3], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_other_weights_have_other_features(phantoms, start):
    manifest = load_manifest(phantoms)
    films = prepare_films(manifest.root, manifest.films, small().preparation)
    torch.manual_seed(1)

    names = {keep_features(build("vgg19", image_size=32), films).name for _ in range(2)}

    assert len(names) == 2


def test_features_of_films_with_a_black_edge_are_kept_apart(phantoms, start):
    manifest = load_manifest(phantoms)
    films = prepare_films(manifest.root, manifest.films, small().preparation)
    names = {keep_features(build("vgg19", image_size=32, weights=str(start), edge=edge), films).name for edge in (0, 2)}
    assert len(names) == 2
