"""Augmentation: reproducible, within range, each option alone does what its name says."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pneumoscope.runs.recipe import Augmentation
from pneumoscope.training.augmentation import augment

pytestmark = pytest.mark.training


@pytest.fixture
def images():
    """Six images of 40 pixels, brighter to the right and smooth, with a bright square high on the left."""
    ramp = torch.linspace(40, 160, 40).repeat(40, 1)
    ramp[6:14, 6:14] = 230
    return ramp.to(torch.uint8).repeat(6, 1, 1)


EVERYTHING = Augmentation(
    flip=True,
    rotation=10,
    translation=0.1,
    scale=0.3,
    aspect=0.2,
    brightness=0.3,
    contrast=0.3,
    gamma=0.3,
    blur=1.5,
    noise=0.1,
    jpeg=0.5,
)


def test_the_same_seed_gives_the_same_images_and_another_does_not(images):
    first = augment(images, EVERYTHING, range(6))

    assert torch.equal(first, augment(images, EVERYTHING, range(6)))
    other = augment(images, EVERYTHING, range(6, 12))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_image_looks_the_same_in_any_batch_and_at_any_place_in_it(images):
    whole = augment(images, EVERYTHING, range(6))
    part = augment(images[[4, 1, 3]], EVERYTHING, [4, 1, 3])

    torch.testing.assert_close(part, whole[[4, 1, 3]], rtol=0, atol=1e-3)


def test_an_option_changes_nothing_about_what_another_draws():
    # On an image of one grey, contrast does nothing and brightness is all there is.
    image = torch.full((20, 8, 8), 100, dtype=torch.uint8)

    alone = augment(image, Augmentation(brightness=0.2), range(20))
    both = augment(image, Augmentation(brightness=0.2, contrast=0.3), range(20))

    torch.testing.assert_close(both, alone)


def test_images_of_a_batch_draw_their_own_values(images):
    made = augment(images, EVERYTHING, range(6))

    assert len({image.numpy().tobytes() for image in made}) == len(images)


@pytest.mark.parametrize("name", [name for name in Augmentation.model_fields if name != "flip"])
def test_each_option_alone_changes_images_and_stays_in_range(images, name):
    made = augment(images, Augmentation(**{name: {"blur": 2.0, "jpeg": 0.9}.get(name, 0.3)}), range(6))

    assert made.shape == images.shape
    assert made.dtype == torch.float32
    assert made.min() >= 0
    assert made.max() <= 255
    assert not torch.allclose(made, images.float(), atol=0.6)


def test_a_flip_mirrors_half_of_the_images_and_nothing_else(images):
    many = images[:1].repeat(64, 1, 1)
    made = augment(many, Augmentation(flip=True), range(64))
    flip_averaging = [torch.allclose(image, many[0].flip(1).float(), atol=1e-3) for image in made]
    kept = [torch.allclose(image, many[0].float(), atol=1e-3) for image in made]

    assert all(a != b for a, b in zip(flip_averaging, kept, strict=True))
    assert 20 <= sum(flip_averaging) <= 44


def test_a_rotation_keeps_the_centre_and_moves_the_square():
    image = torch.zeros(1, 41, 41, dtype=torch.uint8)
    image[0, 19:22, 19:22] = 200  # the centre
    image[0, 19:22, 33:38] = 200  # to its right

    made = augment(image.repeat(20, 1, 1), Augmentation(rotation=45), range(20))

    assert (made[:, 20, 20] > 150).all()
    assert (made[:, 20, 35] < 150).any()


def test_a_crop_shows_more_of_less():
    # A square of 10 x 10 in 40 x 40 grows by at most 1 / (1 - scale) in area.
    image = torch.zeros(1, 40, 40, dtype=torch.uint8)
    image[0, 15:25, 15:25] = 255

    made = augment(image.repeat(50, 1, 1), Augmentation(scale=0.4), range(50)) / 255

    areas = made.sum(dim=(1, 2))
    assert areas.max() <= 100 / 0.6 * 1.02
    assert areas.median() > 105


def test_an_aspect_of_three_quarters_squeezes_to_half_and_stretches_to_double():
    # A ratio of 1/4 to 4 at the same area: sides of 1/2 to 2 images, so that a white image fills 1/2 to all of each side.
    made = augment(torch.full((300, 40, 40), 255, dtype=torch.uint8), Augmentation(aspect=0.75), range(300)) / 255

    for side in (1, 2):
        filled = made.amax(dim=side).sum(dim=1)
        assert filled.min() == pytest.approx(20, abs=1)
        assert filled.max() == pytest.approx(40)


def test_brightness_and_contrast_are_what_they_say():
    image = torch.full((200, 4, 4), 100, dtype=torch.uint8)
    image[:, :, 2:] = 140

    bright = augment(image, Augmentation(brightness=0.2), range(200))
    contrast = augment(image, Augmentation(contrast=0.2), range(200))

    assert bright[:, 0, 0].min() >= 79.9
    assert bright[:, 0, 0].max() <= 120.1
    assert bright[:, 0, 0].max() - bright[:, 0, 0].min() > 30
    assert torch.allclose(contrast.mean(dim=(1, 2)), torch.tensor(120.0), atol=1e-3)
    assert (contrast[:, 0, 3] - contrast[:, 0, 0]).min() >= 40 * 0.8 - 0.1


def test_jpeg_is_written_at_qualities_down_to_the_one_asked_for(images):
    made = augment(images, Augmentation(jpeg=0.6), range(6)).to(torch.uint8)

    qualities = [_quality_of(image, before) for image, before in zip(made, images, strict=True)]
    assert min(qualities) >= 40
    assert max(qualities) - min(qualities) > 20


def _quality_of(image, before):
    """The quality at which Pillow's JPEG of `before` is nearest to `image`, which it must nearly be."""

    def distance(quality):
        file = io.BytesIO()
        Image.fromarray(before.numpy()).save(file, "JPEG", quality=quality)
        return float(np.abs(np.asarray(Image.open(file)).astype(float) - image.numpy()).mean())

    best = min(range(1, 101), key=distance)
    assert distance(best) < 0.5
    return best
