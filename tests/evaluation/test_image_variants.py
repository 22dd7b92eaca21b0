"""Variants of an image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pneumoscope.evaluation.image_variants import CHANGES, CORRUPTIONS, FORMATS, encode_dicom
from pneumoscope.imaging.decode import decode

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 30)).astype(np.uint8)


@pytest.mark.parametrize("name", FORMATS)
def test_file_formats_preserve_every_pixel(name: str) -> None:
    np.testing.assert_array_equal(decode(FORMATS[name](IMAGE)).pixels, IMAGE)


def test_files_have_the_named_format() -> None:
    assert decode(FORMATS["PNG, 16 bits"](IMAGE)).mode == "I;16"
    assert decode(encode_dicom(IMAGE)).mode == "MONOCHROME2, 12 bits"
    assert decode(encode_dicom(IMAGE, inverted=True)).mode == "MONOCHROME1, 12 bits"
    assert Image.open(io.BytesIO(CHANGES["JPEG quality 50"](IMAGE))).format == "JPEG"


def test_brightness_is_scaled_and_clipped() -> None:
    gray = np.array([[100, 250]], np.uint8)
    assert CHANGES["20% brighter"](gray).tolist() == [[120, 255]]
    assert CHANGES["20% darker"](gray).tolist() == [[80, 200]]


def test_center_crop_keeps_the_given_area() -> None:
    image = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert CORRUPTIONS["center crop, 25% of the area"](image).tolist() == [[5, 6], [9, 10]]


def test_rotation_is_about_the_center() -> None:
    dot = np.zeros((41, 41), np.uint8)
    dot[20, 40] = 255  # the middle of the right edge rises in a counterclockwise rotation
    rows, _ = np.nonzero(CHANGES["rotated 10° counterclockwise"](dot))
    assert set(rows.tolist()) <= {16, 17}
    corner = np.array([[1, 2], [3, 4]], np.uint8)
    assert CORRUPTIONS["rotated 90° counterclockwise"](corner).tolist() == [[2, 4], [1, 3]]
    assert CORRUPTIONS["rotated 90° clockwise"](corner).tolist() == [[3, 1], [4, 2]]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_change_the_image(name: str) -> None:
    assert not np.array_equal(CORRUPTIONS[name](IMAGE), IMAGE)
