"""The model that comes with the package is what its card says, phantoms and real images included."""

import os
from pathlib import Path

import numpy as np
import pytest

from pneumoscope import load_model
from pneumoscope.imaging.phantom_drawing import draw
from pneumoscope.inference.session import BundleSession
from pneumoscope.runs.recipe import check, read_recipe
from pneumoscope.runs.run_folder import find_bundle

# Public images at full size.
ORIGINALS = Path(os.environ.get("PNEUMOSCOPE_ORIGINALS", "none"))


@pytest.fixture(scope="module")
def model():
    return load_model()


def test_it_is_small_and_shows_why():
    assert sum(file.stat().st_size for file in find_bundle().rglob("*")) < 20e6
    assert BundleSession.load(find_bundle()).explains


def test_its_recipe_is_the_shipped_one(model):
    assert check(model.card.recipe, "card") == read_recipe("default")


def test_the_card_has_what_a_user_picks_from(model):
    assert set(model.card.operating_points) == {"half", "balanced", "rule_out", "rule_in"}
    assert model.card.operating_points["rule_out"].sensitivity.value >= 0.99
    assert model.card.operating_points["rule_in"].specificity.value >= 0.99


@pytest.mark.parametrize("sick", [False, True])
def test_phantoms_are_refused(model, sick):
    drawn = [draw(seed, sick, image=0, size=224) for seed in range(20_000, 20_010)]
    assert {found.decision for found in model.predict_many(drawn)} == {"rejected"}


@pytest.mark.real_data
@pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason="PNEUMOSCOPE_ORIGINALS is not set: the images at full size are not there"
)
def test_full_size_images_are_read_as_their_labels_and_refused_where_they_are_spoilt(model):
    from pneumoscope.imaging.decode import decode

    images = [path for label in ("NORMAL", "PNEUMONIA") for path in sorted((ORIGINALS / label).iterdir())[:20]]
    found = list(model.predict_many(images))
    # Most of these were learned from: that the whole way works is tested here, how well is in the evaluation.
    right = [str(each.decision).upper() == path.parent.name for each, path in zip(found, images, strict=True)]
    assert np.mean(right) > 0.85
    inverted = [255 - decode(path).pixels for path in images[::4]]
    assert {each.decision for each in model.predict_many(inverted)} == {"rejected"}
