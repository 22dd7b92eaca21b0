"""The default model: its card, and its predictions on phantoms and full-size radiographs."""

import os
from pathlib import Path

import numpy as np
import pytest

from pneumoscope import load_model
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.recipe_files import parse_recipe, read_recipe
from pneumoscope.runs.run_folder import find_bundle

# Folder of public radiographs at full size.
ORIGINALS = Path(os.environ.get("PNEUMOSCOPE_ORIGINALS", "none"))


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_default_bundle_is_small_and_has_heatmaps():
    assert sum(file.stat().st_size for file in find_bundle().rglob("*")) < 35e6
    assert BundleSession.load(find_bundle()).has_heatmaps


def test_recipe_on_the_card_is_the_shipped_recipe(model):
    """The population was stated after the training, by `pneumoscope export --population default`."""
    shipped = read_recipe("default")

    trained = parse_recipe(model.card.recipe, "card")

    assert trained.model_copy(update={"population": shipped.population}) == shipped
    assert model.card.population == shipped.declared_population()
    assert model.notice.endswith("Trained on AP radiographs of children of 1 to 5 years from one hospital.")


def test_card_has_all_operating_points(model):
    assert set(model.card.operating_points) == {"half", "balanced", "rule_out", "rule_in"}
    assert model.card.operating_points["rule_out"].sensitivity.value >= 0.99
    assert model.card.operating_points["rule_in"].specificity.value >= 0.99


def test_card_states_how_many_outliers_pass(model):
    limits = model.card.rejection_limits
    assert limits.max_age_score >= 0.5
    for group in limits.outliers.values():
        assert group.passed.value <= 0.02
        assert set(group.passed_alone) == {"input_classifier", "age_classifier", "ood_detector"}


@pytest.mark.parametrize("pneumonia", [False, True])
def test_phantoms_are_rejected(model, pneumonia):
    phantoms = [draw_phantom(seed, pneumonia, image=0, size=224) for seed in range(20_000, 20_010)]
    assert {prediction.decision for prediction in model.predict_many(phantoms)} == {"rejected"}


@pytest.mark.real_data
@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="PNEUMOSCOPE_ORIGINALS is not set")
def test_full_size_images_are_classified_and_inverted_ones_rejected(model):
    from pneumoscope.imaging.decode import decode

    images = [path for label in ("NORMAL", "PNEUMONIA") for path in sorted((ORIGINALS / label).iterdir())[:20]]
    predictions = list(model.predict_many(images))
    # Most of these are training images: this tests the pipeline; the evaluation measures performance.
    expected = {"NORMAL": "no_pneumonia", "PNEUMONIA": "pneumonia"}
    correct = [
        prediction.decision == expected[path.parent.name] for prediction, path in zip(predictions, images, strict=True)
    ]
    assert np.mean(correct) > 0.85
    inverted = [255 - decode(path).pixels for path in images[::4]]
    assert {prediction.decision for prediction in model.predict_many(inverted)} == {"rejected"}
