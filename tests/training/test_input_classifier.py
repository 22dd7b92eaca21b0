"""What the gate is shown is what its name says, drawn anew from a seed; and it learns to tell the kinds apart."""

import numpy as np
import pytest
import torch
from PIL import Image

from pneumoscope.bundle.card import INPUT_CLASSES
from pneumoscope.imaging.phantom_drawing import draw
from pneumoscope.training import input_classifier as module
from pneumoscope.training import negative_images as others
from pneumoscope.training.input_classifier import SIDE, draw_examples, train_input_classifier
from pneumoscope.training.negative_images import negative_image

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def images():
    """Phantoms stand for images here, which the gate itself is to refuse: they are left out of the other pictures below."""
    return np.stack([draw(seed, seed % 2 == 0, size=96) for seed in range(40)])


def test_pictures_are_of_every_kind_and_repeat_with_their_seed(images):
    pictures, input_classes = draw_examples(images, np.arange(40), 200, 5)
    again, kinds_again = draw_examples(images, np.arange(40), 200, 5)
    other, _ = draw_examples(images, np.arange(40), 200, 6)

    assert (pictures.shape, pictures.dtype) == ((200, SIDE, SIDE), torch.float32)
    assert (pictures.min() >= 0, pictures.max() <= 255) == (True, True)
    assert torch.equal(pictures, again)
    assert torch.equal(input_classes, kinds_again)
    assert not torch.equal(pictures, other)
    counts = torch.bincount(input_classes, minlength=len(INPUT_CLASSES))
    assert counts.min() > 8
    assert counts.argmax() == INPUT_CLASSES.index("image")


def test_only_the_rows_named_are_shown(images):
    """Of images that are each one grey, no other grey comes out in the middle but what brightness and contrast make of it."""
    flat = np.stack([np.full((32, 32), grey, np.uint8) for grey in (40, 250)])
    pictures, input_classes = draw_examples(flat, np.array([0]), 300, 0)
    images = pictures[input_classes == INPUT_CLASSES.index("image")]
    assert images[:, SIDE // 2, SIDE // 2].median() < 80


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("image", [[0, 1], [2, 3]]),
        ("mirrored", [[1, 0], [3, 2]]),
        ("upside_down", [[3, 2], [1, 0]]),
        ("rotated_90", [[1, 3], [0, 2]]),
        ("inverted", [[255, 254], [253, 252]]),
        ("cropped", [[0, 1], [2, 3]]),
        ("other", [[0, 1], [2, 3]]),
    ],
)
def test_a_image_is_spoilt_as_its_kind_says(kind, expected):
    """A half turn or a quarter turn may be mirrored besides; then it is another of its kind."""
    image = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    found = [module._spoil(image.clone(), kind, np.random.default_rng(seed)).tolist() for seed in range(30)]
    assert expected in found
    different = {"image": 1, "mirrored": 1, "cropped": 1, "other": 1, "upside_down": 2, "rotated_90": 4, "inverted": 8}
    assert len({str(one) for one in found}) <= different[kind]
    if kind == "upside_down":
        assert [[0, 1], [2, 3]] not in found
        assert {str(one) for one in found} == {"[[3.0, 2.0], [1.0, 0.0]]", "[[2.0, 3.0], [0.0, 1.0]]"}


def test_a_cropped_image_has_lost_most_of_its_area():
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = module._cut(np.zeros((200, 200), np.uint8), random).shape
        assert 0.05 < height * width / 200**2 <= module._CUT
        assert 0.4 < height / width < 2.5


def test_other_pictures_come_in_every_sort_and_none_is_the_image(images):
    random = np.random.default_rng(0)
    image = np.asarray(Image.fromarray(images[0]).resize((SIDE, SIDE)))
    made = [negative_image(random, image) for _ in range(100)]
    assert {(picture.shape, picture.dtype.name) for picture in made} == {((SIDE, SIDE), "uint8")}
    assert len({picture.tobytes() for picture in made}) > 80
    likeness = [np.corrcoef(picture.ravel(), image.ravel())[0, 1] for picture in made if picture.std() > 0]
    assert np.median(likeness) < 0.3


def test_photographs_are_there_wherever_training_is():
    assert len(others._photographs()) >= 9
    assert min(picture.std() for picture in others._photographs()) > 10


def test_the_same_seed_gives_the_same_gate_and_another_does_not(images):
    first, again, other = (
        train_input_classifier(images, np.arange(30), steps=3, seed=seed).state_dict() for seed in (1, 1, 2)
    )

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_gate_learns_what_is_wrong_with_a_image(images, monkeypatch):
    monkeypatch.setattr(others, "_phantom", others._photograph)
    rows = np.arange(30)
    gate = train_input_classifier(images, rows, steps=60, seed=1)

    assert not gate.training
    pictures, input_classes = draw_examples(images, np.arange(30, 40), 300, 77)
    with torch.no_grad():
        right = gate(pictures).argmax(1) == input_classes
    # Guessing the commonest kind would be right for a third.
    assert right.float().mean() > 0.6
