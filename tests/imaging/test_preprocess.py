"""Crop and resize, checked against Pillow, NumPy and the small copies of the public data set."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pneumoscope.core.prediction import Rejection
from pneumoscope.imaging.decode import Radiograph, decode
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing, preprocess, preprocess_image


def image(pixels: npt.NDArray[np.uint8]) -> Radiograph:
    return Radiograph(pixels, "image", "PNG", "L")


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


crops = st.sampled_from(["squash", "center"])
sides = st.integers(1, 300)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(16, 256), crops)
def test_images_of_any_size_become_squares(
    height: int, width: int, size: int, crop: Literal["squash", "center"]
) -> None:
    prepared = preprocess(image(noise(height, width)), Preprocessing(size=size, crop=crop))
    assert prepared.shape == (size, size)
    assert prepared.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(0, 255), crops)
def test_a_constant_image_stays_constant(
    height: int, width: int, level: int, crop: Literal["squash", "center"]
) -> None:
    prepared = preprocess(image(np.full((height, width), level, np.uint8)), Preprocessing(size=64, crop=crop))
    assert np.all(prepared == level)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(0, 99))
def test_mirrored_images_give_mirrored_results(height: int, width: int, seed: int) -> None:
    pixels, preprocessing = noise(height, width, seed), Preprocessing(size=64)
    straight = preprocess(image(pixels), preprocessing)
    mirrored = preprocess(image(np.ascontiguousarray(np.fliplr(pixels))), preprocessing)
    assert np.abs(np.fliplr(straight).astype(int) - mirrored).max() <= 1


def test_reduction_averages_pixels() -> None:
    # At half size a pixel has the weights 1, 3, 3, 1 over 8 (a triangle two output pixels wide).
    row = np.array([0, 0, 80, 160, 240, 0, 0, 0] * 4, dtype=np.uint8)
    prepared = preprocess(image(np.tile(row, (32, 1))), Preprocessing(size=16))
    # (1 * 0 + 3 * 80 + 3 * 160 + 1 * 240) / 8 = 120, (1 * 160 + 3 * 240) / 8 = 110
    assert prepared[8, 1:3].tolist() == [120, 110]


@pytest.mark.parametrize(("height", "width"), [(100, 180), (180, 100), (224, 301)])
def test_center_crops_the_central_square(height: int, width: int) -> None:
    pixels, side = noise(height, width), min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cropped = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    center = preprocess(image(pixels), Preprocessing(size=96, crop="center"))
    assert np.array_equal(center, preprocess(image(cropped), Preprocessing(size=96)))
    assert not np.array_equal(center, preprocess(image(pixels), Preprocessing(size=96)))


def test_center_without_a_resize_keeps_the_pixels() -> None:
    pixels = noise(64, 100)
    assert np.array_equal(preprocess(image(pixels), Preprocessing(size=64, crop="center")), pixels[:, 18:82])


@pytest.mark.parametrize("crop", ["squash", "center"])
@pytest.mark.parametrize("side", [64, 100])
def test_the_result_is_not_a_view_of_the_image(crop: Literal["squash", "center"], side: int) -> None:
    pixels = noise(side, side)
    before = pixels.copy()
    prepared = preprocess(image(pixels), Preprocessing(size=64, crop=crop))
    assert not np.shares_memory(prepared, pixels)
    prepared[:] = 7
    assert np.array_equal(pixels, before)


def test_images_of_the_target_size_are_unchanged() -> None:
    pixels = draw_phantom(3, True)
    assert np.array_equal(preprocess(image(pixels), Preprocessing()), pixels)


def test_options_are_immutable_and_validated() -> None:
    assert msgspec.to_builtins(Preprocessing()) == {"size": 224, "crop": "squash", "version": PREPROCESSING_VERSION}
    assert (
        msgspec.json.decode(msgspec.json.encode(Preprocessing(size=64, crop="center")), type=Preprocessing).size == 64
    )
    for invalid in ({"size": 15}, {"size": 1025}, {"crop": "pad"}, {"color": 3}):
        with pytest.raises(msgspec.ValidationError, match=next(iter(invalid))):
            msgspec.convert(invalid, Preprocessing)
    with pytest.raises(AttributeError, match="immutable"):
        Preprocessing().size = 32  # type: ignore[misc]


def test_a_rejection_by_the_header_takes_precedence_over_the_input_checks() -> None:
    rejection = Rejection("lateral_view", {"view": "LL"})
    blank = np.zeros((100, 100), np.uint8)
    rejected = Radiograph(blank, "image", "DICOM", "MONOCHROME2, 8 bits", rejections=(rejection,))
    by_header, by_pixels = preprocess_image(rejected, Preprocessing(size=64)).rejections
    assert (by_header, by_pixels.code) == (rejection, "blank")
    assert preprocess_image(image(blank), Preprocessing(size=64)).rejections == (by_pixels,)


def data_folder(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is unset")
    return Path(os.environ[variable])


@pytest.mark.real_data
def test_full_size_images_match_the_small_copies_of_the_public_set(
    record_property: Callable[[str, object], None],
) -> None:
    originals, small = data_folder("PNEUMOSCOPE_ORIGINALS"), data_folder("PNEUMOSCOPE_DATA")
    copies = {path.name: path for path in small.rglob("*.jpeg")}
    differences = []
    for path in sorted(originals.rglob("*.jpeg")):
        original = decode(path)
        result = preprocess(original, Preprocessing()).astype(int)
        reference = decode(copies[path.name]).pixels.astype(int)
        assert reference.shape == result.shape
        differences.append(np.abs(result - reference).mean())
    record_property("mean absolute difference, gray levels", float(np.mean(differences)))
    print(f"{len(differences)} images: mean |difference| {np.mean(differences):.2f}, worst {max(differences):.2f}")
    assert len(differences) > 0
    assert np.mean(differences) < 3
    assert max(differences) < 8


@pytest.mark.real_data
def test_images_decoded_at_reduced_size_match_those_decoded_at_full_size() -> None:
    differences = []
    for path in sorted(data_folder("PNEUMOSCOPE_ORIGINALS").rglob("*.jpeg")):
        full, reduced = decode(path), decode(path, min_side=Preprocessing().min_side)
        if reduced.reduced_from:
            assert reduced.reduced_from == (full.width, full.height)
            difference = np.abs(preprocess(full, Preprocessing()).astype(int) - preprocess(reduced, Preprocessing()))
            differences.append(difference.mean())
    print(f"{len(differences)} images: mean |difference| {np.mean(differences):.2f}, worst {max(differences):.2f}")
    assert len(differences) > 0
    assert np.mean(differences) < 0.5
    assert max(differences) < 2


@pytest.mark.real_data
def test_images_of_the_public_set_are_not_reduced() -> None:
    for path in sorted(data_folder("PNEUMOSCOPE_DATA").rglob("*.jpeg"))[::50]:
        assert np.array_equal(decode(path, min_side=Preprocessing().min_side).pixels, decode(path).pixels)


def test_resize_agrees_with_pillow() -> None:
    pixels = noise(150, 90)
    reference = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(preprocess(image(pixels), Preprocessing(size=32)), np.asarray(reference))
