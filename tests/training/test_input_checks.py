"""Input checks: examples of every input class, training of the input classifier, and fitting of the OOD detector."""

import numpy as np
import pytest
import torch
from PIL import Image

from pneumoscope.bundle.card import INPUT_CLASSES
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.training import input_checks, negative_images
from pneumoscope.training.augmentation import augment
from pneumoscope.training.data_module import derive_seed
from pneumoscope.training.input_checks import (
    PLAUSIBLE,
    SIDE,
    draw_examples,
    fit_input_checks,
    train_input_classifier,
)
from pneumoscope.training.negative_images import negative_image

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def images():
    """Phantoms in place of radiographs; they are therefore not used as negative images below."""
    return np.stack([draw_phantom(seed, seed % 2 == 0, size=96) for seed in range(40)])


def test_examples_have_every_class_and_depend_on_the_seed(images):
    examples, classes = draw_examples(images, np.arange(40), 200, 5)
    again, classes_again = draw_examples(images, np.arange(40), 200, 5)
    other, _ = draw_examples(images, np.arange(40), 200, 6)

    assert (examples.shape, examples.dtype) == ((200, SIDE, SIDE), torch.float32)
    assert (examples.min() >= 0, examples.max() <= 255) == (True, True)
    assert torch.equal(examples, again)
    assert torch.equal(classes, classes_again)
    assert not torch.equal(examples, other)
    counts = torch.bincount(classes, minlength=len(INPUT_CLASSES))
    assert counts.min() > 8
    assert counts.argmax() == INPUT_CLASSES.index("upright")


def test_examples_are_made_from_training_images_only(images):
    # Two uniform images, of which only the dark one is a training image.
    flat = np.stack([np.full((32, 32), level, np.uint8) for level in (40, 250)])
    examples, classes = draw_examples(flat, np.array([0]), 300, 0)
    upright = examples[classes == INPUT_CLASSES.index("upright")]
    assert upright[:, SIDE // 2, SIDE // 2].median() < 80


@pytest.mark.parametrize(
    ("input_class", "expected"),
    [
        ("upright", [[0, 1], [2, 3]]),
        ("mirrored", [[1, 0], [3, 2]]),
        ("upside_down", [[3, 2], [1, 0]]),
        ("rotated_90", [[1, 3], [0, 2]]),
        ("inverted", [[255, 254], [253, 252]]),
        ("cropped", [[0, 1], [2, 3]]),
        ("not_a_chest_radiograph", [[0, 1], [2, 3]]),
    ],
)
def test_image_is_transformed_to_its_class(input_class, expected):
    # Rotated images may be mirrored as well, which gives further results.
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    results = [
        input_checks.transform_to_class(image.clone(), input_class, np.random.default_rng(seed)).tolist()
        for seed in range(30)
    ]
    assert expected in results
    max_results = {"upside_down": 2, "rotated_90": 4, "inverted": 8}.get(input_class, 1)
    assert len({str(result) for result in results}) <= max_results
    if input_class == "upside_down":
        assert [[0, 1], [2, 3]] not in results
        assert {str(result) for result in results} == {"[[3.0, 2.0], [1.0, 0.0]]", "[[2.0, 3.0], [0.0, 1.0]]"}


def test_cropped_image_has_lost_most_of_its_area():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = input_checks.crop_image(np.zeros((200, 200), np.uint8), rng).shape
        assert 0.05 < height * width / 200**2 <= input_checks.MAX_CROPPED_AREA
        assert 0.4 < height / width < 2.5


def test_negative_images_vary_and_differ_from_the_radiograph(images):
    rng = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(images[0]).resize((SIDE, SIDE)))
    negatives = [negative_image(rng, image) for _ in range(100)]
    assert {(negative.shape, negative.dtype.name) for negative in negatives} == {((SIDE, SIDE), "uint8")}
    assert len({negative.tobytes() for negative in negatives}) > 80
    correlation = [np.corrcoef(each.ravel(), image.ravel())[0, 1] for each in negatives if each.std() > 0]
    assert np.median(correlation) < 0.3


def test_photographs_are_found_in_installed_libraries():
    assert len(negative_images.installed_photographs()) >= 9
    assert min(photograph.std() for photograph in negative_images.installed_photographs()) > 10


def test_same_seed_gives_the_same_classifier_and_another_seed_a_different_one(images):
    first, again, other = (
        train_input_classifier(images, np.arange(30), steps=3, seed=seed).state_dict() for seed in (1, 1, 2)
    )

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_classifier_learns_the_classes(images, monkeypatch):
    monkeypatch.setattr(negative_images, "_phantom", negative_images._photograph)
    rows = np.arange(30)
    classifier = train_input_classifier(images, rows, steps=60, seed=1)

    assert not classifier.training
    examples, classes = draw_examples(images, np.arange(30, 40), 300, 77)
    with torch.no_grad():
        correct = classifier(examples).argmax(1) == classes
    # The most frequent class alone would give a third.
    assert correct.float().mean() > 0.6


def test_ood_detector_is_fitted_on_originals_and_four_augmented_copies():
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32)).astype(np.uint8)
    checks = fit_input_checks(images, np.arange(40), steps=1, seed=5)

    originals = torch.from_numpy(images)
    copies = [augment(originals, PLAUSIBLE, [derive_seed(5, i, copy, 10) for i in range(40)]) for copy in range(4)]
    with torch.no_grad():
        mean = torch.cat([checks.extractor(batch) for batch in (originals, *copies)]).mean(0)
    torch.testing.assert_close(checks.detector.mean, mean, rtol=1e-4, atol=1e-5)
