"""Images that are too small, too narrow, in color or blank are rejected."""

import io

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.prediction import Rejection
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.input_checks import check_image


def image(height=300, width=300, low=0, high=200, **fields):
    pixels = np.random.default_rng(0).integers(low, high + 1, (height, width)).astype(np.uint8)
    return Radiograph(pixels, "image", "PNG", "L", **fields)


def test_ordinary_images_are_accepted():
    assert check_image(image(), 112) is None
    assert check_image(image(112, 300), 112) is None
    assert check_image(image(100, 400), 50) is None


@pytest.mark.parametrize(
    ("rejected", "code", "parameters"),
    [
        (image(111, 300), "too_small", {"width": 300, "height": 111, "minimum": 112}),
        (image(130, 521), "too_narrow", {"width": 521, "height": 130, "max_aspect": 4.0}),
        (image(521, 130), "too_narrow", {"width": 130, "height": 521, "max_aspect": 4.0}),
        (image(low=90, high=95), "blank", {"levels": 5, "minimum": 12}),
        (image(chroma=12.1), "color", {"chroma": 12.1, "limit": 12.0}),
    ],
)
def test_implausible_images_are_rejected(rejected, code, parameters):
    assert check_image(rejected, 112) == Rejection(code, parameters)


def test_the_size_in_the_file_counts_for_images_decoded_at_reduced_size():
    assert check_image(image(100, 100, reduced_from=(800, 800)), 112) is None


def test_a_small_bright_area_does_not_make_a_blank_image_acceptable():
    pixels = np.full((500, 500), 40, np.uint8)
    pixels[:20, :20] = 255
    assert check_image(Radiograph(pixels, "image", "PNG", "L"), 112).code == "blank"


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def test_chroma_is_measured_in_the_file_and_zero_for_gray_stored_as_color():
    red_and_blue = np.zeros((40, 40, 3), np.uint8)
    red_and_blue[:, :20, 0], red_and_blue[:, 20:, 2] = 200, 200
    image = Image.fromarray(red_and_blue)
    assert decode(encoded(image, format="PNG")).chroma == 200
    assert decode(encoded(image.quantize(4), format="PNG")).chroma == 200
    assert decode(encoded(image.convert("RGBA"), format="PNG")).chroma == 200
    assert decode(encoded(image, format="JPEG", quality=95), min_side=20).chroma > 150
    gray = image.convert("L")
    for other in (
        gray,
        gray.convert("RGB"),
        gray.convert("RGBA"),
        gray.convert("P"),
        gray.convert("LA"),
        gray.convert("1"),
    ):
        assert decode(encoded(other, format="PNG")).chroma == 0
    assert decode(encoded(gray.convert("RGB"), format="JPEG")).chroma < 1
    assert decode(encoded(Image.fromarray(np.full((9, 9), 4000, np.uint16)), format="PNG")).chroma == 0
