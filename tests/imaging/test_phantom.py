"""Phantoms: only the lungs depend on the label."""

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
from pneumoscope.imaging.phantom import draw_opacity_mask, draw_phantom

# Mean gray levels of 8 x 8 blocks of draw_phantom(7, True, etiology="bacteria", size=64), every second row and column.
GOLDEN = [[0.0, 13.3, 110.1, 0.0], [30.8, 37.7, 114.6, 77.1], [3.8, 83.3, 197.6, 89.3], [0.7, 136.4, 152.2, 124.2]]


def test_drawings_have_the_size_and_the_range_of_a_radiograph() -> None:
    image = draw_phantom(0, False)
    assert (image.shape, image.dtype) == ((224, 224), np.dtype(np.uint8))
    assert image.min() < 10
    assert image.max() > 200
    assert draw_phantom(0, True, size=32).shape == (32, 32)


def test_the_same_seed_draws_the_same_image_on_every_machine() -> None:
    image = draw_phantom(7, True, etiology="bacteria", size=64)
    assert np.array_equal(image, draw_phantom(7, True, etiology="bacteria", size=64))
    blocks = image.reshape(8, 8, 8, 8).mean(axis=(1, 3))[::2, ::2]
    assert np.abs(blocks - GOLDEN).max() < 1.5


def test_seeds_images_and_etiologies_differ() -> None:
    images = [draw_phantom(1, True), draw_phantom(2, True), draw_phantom(1, True, image=1), draw_phantom(1, False)]
    images += [
        draw_phantom(
            1,
            True,
            etiology="bacteria" if np.array_equal(draw_phantom(1, True, etiology="virus"), images[0]) else "virus",
        )
    ]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert np.abs(one.astype(int) - other).mean() > 0.5


def test_the_seed_chooses_the_etiology_if_none_is_given() -> None:
    is_virus = [
        np.array_equal(draw_phantom(seed, True, size=32), draw_phantom(seed, True, etiology="virus", size=32))
        for seed in range(40)
    ]
    assert 10 <= sum(is_virus) <= 30
    assert all(
        is_virus[seed]
        or np.array_equal(draw_phantom(seed, True, size=32), draw_phantom(seed, True, etiology="bacteria", size=32))
        for seed in range(40)
    )


@pytest.mark.parametrize("etiology", ["bacteria", "virus"])
def test_pneumonia_changes_only_the_lungs(etiology: Any) -> None:
    for seed in range(6):
        without, with_pneumonia = (
            draw_phantom(seed, False).astype(int),
            draw_phantom(seed, True, etiology=etiology).astype(int),
        )
        changed = without != with_pneumonia
        assert 0.02 < changed.mean() < 0.4, seed
        border = np.ones((224, 224), dtype=bool)
        border[20:-20, 20:-20] = False
        assert not changed[border].any(), seed
        spine = changed[:, 108:116]
        assert spine.mean() < changed.mean(), seed


def test_bacterial_opacities_are_unilateral_and_viral_ones_bilateral() -> None:
    fractions = {"bacteria": [], "virus": []}
    for seed in range(30):
        without = draw_phantom(seed, False, size=64).astype(float)
        for etiology, smaller_side in fractions.items():
            added = draw_phantom(seed, True, etiology=etiology, size=64) - without
            halves = sorted((added[:, :32].sum(), added[:, 32:].sum()))
            smaller_side.append(halves[0] / sum(halves))
    assert np.median(fractions["bacteria"]) < 0.1
    assert np.median(fractions["virus"]) > 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1, "pneumonia": True}, "0 or more, not -1 and 0"),
        ({"seed": 0, "pneumonia": True, "image": -2}, "0 or more, not 0 and -2"),
        ({"seed": 0, "pneumonia": True, "size": 31}, "32 to 2,048 pixels, not 31"),
        ({"seed": 0, "pneumonia": True, "size": 2049}, "not 2049"),
        ({"seed": 0, "pneumonia": True, "etiology": "fungus"}, "unknown etiology 'fungus'"),
        (
            {"seed": 0, "pneumonia": False, "etiology": "virus"},
            "etiology 'virus' is given for an image without pneumonia",
        ),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_phantom(**arguments)


@pytest.fixture(scope="module")
def images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return one image each of 400 patients, averaged from 64 x 64 to 32 x 32 pixels, and the labels."""
    labels = np.arange(400) % 5 < 3
    pixels = np.stack([draw_phantom(1000 + i, bool(label), size=64) for i, label in enumerate(labels)])
    return pixels.reshape(400, 32, 2, 32, 2).mean(axis=(2, 4)), labels


def auroc(model: Any, features: npt.NDArray[np.float64], labels: npt.NDArray[np.bool_]) -> float:
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")[:, 1]
    return float(roc_auc_score(labels, scores))


def linear(strength: float = 0.01) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))


def test_the_border_does_not_predict_the_label(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    ring = np.ones((32, 32), dtype=bool)
    ring[5:-5, 5:-5] = False  # the outer 15% on each side
    assert 0.4 < auroc(linear(), pixels[:, ring], labels) < 0.6


def test_the_mean_gray_level_hardly_predicts_the_label(
    images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]],
) -> None:
    pixels, labels = images
    assert 0.4 < roc_auc_score(labels, pixels.mean(axis=(1, 2))) < 0.75


def test_the_lungs_predict_the_label(images: tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]) -> None:
    pixels, labels = images
    lungs = pixels[:, 6:24, 5:-5].reshape(len(pixels), -1)
    lungs = (lungs - lungs.mean(axis=1, keepdims=True)) / lungs.std(axis=1, keepdims=True)
    assert auroc(make_pipeline(PCA(60, random_state=0), linear(0.1)), lungs, labels) > 0.8


def test_mask_is_where_the_opacity_changes_the_image() -> None:
    for etiology in ("bacteria", "virus"):
        for seed in range(5):
            mask = draw_opacity_mask(seed, etiology=etiology, size=96)
            sick = draw_phantom(seed, True, etiology=etiology, size=96).astype(int)
            difference = np.abs(sick - draw_phantom(seed, False, size=96))
            assert mask.shape == (96, 96)
            assert 0.005 < mask.mean() < 0.4
            # Outside the mask the opacity is too faint to see; inside, it brightens the image, unless that is white already.
            assert difference[mask].mean() > 4 * difference[~mask].mean()
            assert difference[~mask].max() <= 30
