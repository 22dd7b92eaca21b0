"""What counts as an image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pneumoscope.core.errors import UnreadableImageError
from pneumoscope.imaging.decode import MAX_PIXELS as PUBLIC_MAX_PIXELS
from pneumoscope.imaging.decode import Radiograph as PublicRadiograph
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph


def test_width_is_columns_and_height_is_rows() -> None:
    image = Radiograph(np.zeros((3, 5), np.uint8), "a.png", "PNG", "L")
    assert (image.width, image.height) == (5, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        image.source = "b.png"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((3, 5, 3), np.uint8), r"uint8 of shape \(3, 5, 3\)"),
        (np.zeros((0, 5), np.uint8), r"uint8 of shape \(0, 5\)"),
        (np.zeros((3, 5), np.float32), r"float32 of shape \(3, 5\)"),
    ],
)
def test_anything_but_8_bit_grey_is_refused(pixels: np.ndarray, says: str) -> None:
    with pytest.raises(UnreadableImageError, match=rf"cannot read 'a\.png': pixels are {says}, not uint8"):
        Radiograph(pixels, "a.png", "PNG", "L")


def test_the_public_names_are_these() -> None:
    assert PublicRadiograph is Radiograph
    assert PUBLIC_MAX_PIXELS == MAX_PIXELS
