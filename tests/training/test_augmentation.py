"""Augmentation is reproducible and stays in range, and each option has its documented effect."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pneumoscope.runs.recipe import AugmentationOptions
from pneumoscope.training.augmentation import augment

pytestmark = pytest.mark.training


@pytest.fixture
def images():
    """Six images of 40 pixels, brighter to the right, with a bright square in the upper left."""
    ramp = torch.linspace(40, 160, 40).repeat(40, 1)
    ramp[6:14, 6:14] = 230
    return ramp.to(torch.uint8).repeat(6, 1, 1)


ALL_OPTIONS = AugmentationOptions(
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
    border_swap=0.5,
)


def test_same_seed_gives_the_same_images_and_another_seed_different_ones(images):
    first = augment(images, ALL_OPTIONS, range(6))

    assert torch.equal(first, augment(images, ALL_OPTIONS, range(6)))
    other = augment(images, ALL_OPTIONS, range(6, 12))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_augmentation_of_an_image_does_not_depend_on_the_batch(images):
    whole = augment(images, ALL_OPTIONS, range(6))
    part = augment(images[[4, 1, 3]], ALL_OPTIONS, [4, 1, 3])

    torch.testing.assert_close(part, whole[[4, 1, 3]], rtol=0, atol=1e-3)


def test_options_draw_independent_random_numbers():
    # On a uniform image, contrast has no effect.
    image = torch.full((20, 8, 8), 100, dtype=torch.uint8)

    alone = augment(image, AugmentationOptions(brightness=0.2), range(20))
    both = augment(image, AugmentationOptions(brightness=0.2, contrast=0.3), range(20))

    torch.testing.assert_close(both, alone)


def test_images_of_a_batch_are_augmented_differently(images):
    augmented = augment(images, ALL_OPTIONS, range(6))

    assert len({image.numpy().tobytes() for image in augmented}) == len(images)


@pytest.mark.parametrize("name", [name for name in AugmentationOptions.model_fields if name != "flip"])
def test_each_option_changes_images_and_keeps_the_range(images, name):
    options = AugmentationOptions(**{name: {"blur": 2.0, "jpeg": 0.9}.get(name, 0.3)})
    augmented = augment(images, options, range(6), borders=255 - images)

    assert augmented.shape == images.shape
    assert augmented.dtype == torch.float32
    assert augmented.min() >= 0
    assert augmented.max() <= 255
    assert not torch.allclose(augmented, images.float(), atol=0.6)


def test_border_swap_keeps_the_center_and_takes_the_border_from_the_other_image():
    images, borders = torch.full((200, 40, 40), 50, dtype=torch.uint8), torch.full((200, 40, 40), 90, dtype=torch.uint8)
    augmented = augment(images, AugmentationOptions(border_swap=0.5), range(200), borders)
    swapped = augmented[:, 0, 0] == 90

    assert 75 <= swapped.sum() <= 125
    assert (augmented[~swapped] == 50).all()
    kept = augmented[swapped] == 50
    assert ((augmented == 50) | (augmented == 90)).all()
    assert kept[:, 8:32, 8:32].all()  # the central 0.6 of each side
    assert not kept[:, [0, 39]].any()  # outside of the central 0.95
    assert not kept[:, :, [0, 39]].any()
    rows, columns = kept.any(2).sum(1), kept.any(1).sum(1)
    assert torch.equal(kept.sum((1, 2)), rows * columns)  # a rectangle
    for sides in (rows, columns):
        assert sides.min() <= 26
        assert sides.max() >= 36
    assert not torch.equal(rows, columns)


def test_border_swap_has_no_effect_without_other_images(images):
    assert torch.equal(augment(images, AugmentationOptions(border_swap=1), range(6)), images.float())


def test_flip_mirrors_half_of_the_images(images):
    many = images[:1].repeat(64, 1, 1)
    augmented = augment(many, AugmentationOptions(flip=True), range(64))
    mirrored = [torch.allclose(image, many[0].flip(1).float(), atol=1e-3) for image in augmented]
    unchanged = [torch.allclose(image, many[0].float(), atol=1e-3) for image in augmented]

    assert all(a != b for a, b in zip(mirrored, unchanged, strict=True))
    assert 20 <= sum(mirrored) <= 44


def test_rotation_keeps_the_center():
    image = torch.zeros(1, 41, 41, dtype=torch.uint8)
    image[0, 19:22, 19:22] = 200  # the center
    image[0, 19:22, 33:38] = 200  # to its right

    augmented = augment(image.repeat(20, 1, 1), AugmentationOptions(rotation=45), range(20))

    assert (augmented[:, 20, 20] > 150).all()
    assert (augmented[:, 20, 35] < 150).any()


def test_scale_magnifies_by_at_most_its_inverse_area():
    # A square of 10 x 10 in 40 x 40 grows by at most 1 / (1 - scale) in area.
    image = torch.zeros(1, 40, 40, dtype=torch.uint8)
    image[0, 15:25, 15:25] = 255

    augmented = augment(image.repeat(50, 1, 1), AugmentationOptions(scale=0.4), range(50)) / 255

    areas = augmented.sum(dim=(1, 2))
    assert areas.max() <= 100 / 0.6 * 1.02
    assert areas.median() > 105


def test_aspect_changes_the_sides_by_its_square_root():
    # A ratio of 1/4 to 4 at the same area: sides of 1/2 to 2 images, so that a white image fills 1/2 to all of each side.
    augmented = (
        augment(torch.full((300, 40, 40), 255, dtype=torch.uint8), AugmentationOptions(aspect=0.75), range(300)) / 255
    )

    for side in (1, 2):
        filled = augmented.amax(dim=side).sum(dim=1)
        assert filled.min() == pytest.approx(20, abs=1)
        assert filled.max() == pytest.approx(40)


def test_brightness_and_contrast_stay_in_their_ranges():
    image = torch.full((200, 4, 4), 100, dtype=torch.uint8)
    image[:, :, 2:] = 140

    bright = augment(image, AugmentationOptions(brightness=0.2), range(200))
    contrast = augment(image, AugmentationOptions(contrast=0.2), range(200))

    assert bright[:, 0, 0].min() >= 79.9
    assert bright[:, 0, 0].max() <= 120.1
    assert bright[:, 0, 0].max() - bright[:, 0, 0].min() > 30
    assert torch.allclose(contrast.mean(dim=(1, 2)), torch.tensor(120.0), atol=1e-3)
    assert (contrast[:, 0, 3] - contrast[:, 0, 0]).min() >= 40 * 0.8 - 0.1


def test_jpeg_quality_stays_above_its_minimum(images):
    augmented = augment(images, AugmentationOptions(jpeg=0.6), range(6)).to(torch.uint8)

    qualities = [_quality_of(image, before) for image, before in zip(augmented, images, strict=True)]
    assert min(qualities) >= 40
    assert max(qualities) - min(qualities) > 20


def _quality_of(image, before):
    """Return the quality at which Pillow's JPEG of `before` is closest to `image`; it must be close."""

    def distance(quality):
        file = io.BytesIO()
        Image.fromarray(before.numpy()).save(file, "JPEG", quality=quality)
        return float(np.abs(np.asarray(Image.open(file)).astype(float) - image.numpy()).mean())

    best = min(range(1, 101), key=distance)
    assert distance(best) < 0.5
    return best


def test_border_swap_does_not_change_the_noise(images):
    plain = augment(images, AugmentationOptions(noise=0.1, jpeg=0.5), range(6))
    swapped = augment(images, AugmentationOptions(noise=0.1, jpeg=0.5, border_swap=1), range(6), images)
    assert torch.equal(plain, swapped)  # the other image is the same image
