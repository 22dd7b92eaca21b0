"""The record of a decoded image."""

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
    ("pixels", "description"),
    [
        (np.zeros((3, 5, 3), np.uint8), r"uint8 of shape \(3, 5, 3\)"),
        (np.zeros((0, 5), np.uint8), r"uint8 of shape \(0, 5\)"),
        (np.zeros((3, 5), np.float32), r"float32 of shape \(3, 5\)"),
    ],
)
def test_other_arrays_than_8_bit_gray_are_rejected(pixels: np.ndarray, description: str) -> None:
    with pytest.raises(UnreadableImageError, match=rf"cannot read 'a\.png': pixels are {description}, not uint8"):
        Radiograph(pixels, "a.png", "PNG", "L")


def test_decode_exports_the_record() -> None:
    assert PublicRadiograph is Radiograph
    assert PUBLIC_MAX_PIXELS == MAX_PIXELS
