"""The drawing: the same everywhere, nothing outside the lungs knows the label, the lungs do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumoscope.core.errors import UsageError
from pneumoscope.imaging.phantom_drawing import SIZES, draw

# draw(7, True, etiology="bacteria", size=64), mean grey level of 8 x 8 blocks, every second row and column of them
GOLDEN = [[0.0, 13.3, 110.1, 0.0], [30.8, 37.7, 114.6, 77.1], [3.8, 83.3, 197.6, 89.3], [0.7, 136.4, 152.2, 124.2]]


def test_shape_and_range() -> None:
    image = draw(0, False)
    assert (image.shape, image.dtype) == ((224, 224), np.dtype(np.uint8))
    assert image.min() < 10
    assert image.max() > 200
    assert draw(0, True, size=32).shape == (32, 32)


def test_the_same_seed_draws_the_same_image_on_every_machine() -> None:
    image = draw(7, True, etiology="bacteria", size=64)
    assert np.array_equal(image, draw(7, True, etiology="bacteria", size=64))
    blocks = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))[::2, ::2]
    assert np.abs(blocks - GOLDEN).max() < 1.5


def test_seeds_images_and_etiologies_differ() -> None:
    images = [draw(1, True), draw(2, True), draw(1, True, image=1), draw(1, False)]
    images += [
        draw(1, True, etiology="bacteria" if np.array_equal(draw(1, True, etiology="virus"), images[0]) else "virus")
    ]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.abs(one.astype(int) - other).mean() > 0.5


def test_without_an_etiology_the_seed_chooses_one() -> None:
    chosen = [
        np.array_equal(draw(seed, True, size=32), draw(seed, True, etiology="virus", size=32)) for seed in range(40)
    ]
    assert 10 <= sum(chosen) <= 30
    assert all(
        chosen[seed] or np.array_equal(draw(seed, True, size=32), draw(seed, True, etiology="bacteria", size=32))
        for seed in range(40)
    )


@pytest.mark.parametrize("etiology", ["bacteria", "virus"])
def test_pneumonia_changes_the_lungs_and_nothing_else(etiology: Any) -> None:
    for seed in range(6):
        without, with_pneumonia = draw(seed, False).astype(int), draw(seed, True, etiology=etiology).astype(int)
        changed = without != with_pneumonia
        assert 0.02 < changed.mean() < 0.4, seed
        border = np.ones((224, 224), dtype=bool)
        border[20:-20, 20:-20] = False
        assert not changed[border].any(), seed
        spine = changed[:, 108:116]
        assert spine.mean() < changed.mean(), seed


def test_bacteria_are_dense_in_one_place_and_viruses_on_both_sides() -> None:
    shares = {"bacteria": [], "virus": []}
    for seed in range(30):
        without = draw(seed, False, size=64).astype(float)
        for etiology, lesser in shares.items():
            added = draw(seed, True, etiology=etiology, size=64) - without
            halves = sorted((added[:, :32].sum(), added[:, 32:].sum()))
            lesser.append(halves[0] / sum(halves))
    assert np.median(shares["bacteria"]) < 0.1
    assert np.median(shares["virus"]) > 0.2


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"seed": -1, "pneumonia": True}, "0 or more, not -1 and 0"),
        ({"seed": 0, "pneumonia": True, "image": -2}, "0 or more, not 0 and -2"),
        ({"seed": 0, "pneumonia": True, "size": 31}, "32 to 2,048 pixels wide, not 31"),
        ({"seed": 0, "pneumonia": True, "size": 2049}, "not 2049"),
        ({"seed": 0, "pneumonia": True, "etiology": "fungus"}, "no etiology 'fungus' of a phantom"),
        ({"seed": 0, "pneumonia": False, "etiology": "virus"}, "without pneumonia has no etiology, not 'virus'"),
    ],
)
def test_impossible_phantoms(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        draw(**arguments)
    assert SIZES[0] == 32


@pytest.fixture(scope="module")
def images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """400 patients, one image each, at 32 x 32 pixels: averaged from 64 x 64."""
    labels = np.arange(400) % 5 < 3
    pixels = np.stack([draw(1000 + i, bool(label), size=64) for i, label in enumerate(labels)])
    return pixels.reshape(400, 32, 2, 32, 2).mean(axis=(2, 4)), labels


def auroc(model: Any, features: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def linear(strength: float = 0.01) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def test_the_border_knows_nothing(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    ring = np.ones((32, 32), dtype=bool)
    ring[5:-5, 5:-5] = False  # the outer 15% on each side
    assert 0.4 < auroc(linear(), pixels[:, ring], labels) < 0.6


def test_the_mean_grey_level_knows_little(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    assert 0.4 < roc_auc_score(labels, pixels.mean(axis=(1, 2))) < 0.75


def test_the_lungs_can_be_learned(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    lungs = pixels[:, 6:24, 5:-5].reshape(len(pixels), -1)
    lungs = (lungs - lungs.mean(axis=1, keepdims=True)) / lungs.std(axis=1, keepdims=True)
    assert auroc(make_pipeline(PCA(60, random_state=0), linear(0.1)), lungs, labels) > 0.8
