"""The crop and the resize, against Pillow, numpy and the public data set's own small copies."""

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

from pneumoscope.imaging.decode import Radiograph, decode
from pneumoscope.imaging.phantom import draw_phantom
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing, preprocess


def image(pixels: npt.NDArray[np.uint8]) -> Radiograph:
    return Radiograph(pixels, "image", "PNG", "L")


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


crops = st.sampled_from(["squash", "centre"])
sides = st.integers(1, 300)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(16, 256), crops)
def test_any_image_becomes_the_square(height: int, width: int, size: int, crop: Literal["squash", "centre"]) -> None:
    prepared = preprocess(image(noise(height, width)), Preprocessing(size=size, crop=crop))
    assert prepared.shape == (size, size)
    assert prepared.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(0, 255), crops)
def test_a_constant_image_stays_constant(
    height: int, width: int, level: int, crop: Literal["squash", "centre"]
) -> None:
    prepared = preprocess(image(np.full((height, width), level, np.uint8)), Preprocessing(size=64, crop=crop))
    assert np.all(prepared == level)


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.integers(0, 99))
def test_the_mirrored_image_gives_the_mirrored_input(height: int, width: int, seed: int) -> None:
    pixels, preprocessing = noise(height, width, seed), Preprocessing(size=64)
    straight = preprocess(image(pixels), preprocessing)
    mirrored = preprocess(image(np.ascontiguousarray(np.fliplr(pixels))), preprocessing)
    assert np.abs(np.fliplr(straight).astype(int) - mirrored).max() <= 1


def test_squash_averages_what_it_shrinks() -> None:
    # Halving, a pixel takes weights 1, 3, 3, 1 over 8 from the four that it covers (a triangle two output pixels wide).
    row = np.array([0, 0, 80, 160, 240, 0, 0, 0] * 4, dtype=np.uint8)
    prepared = preprocess(image(np.tile(row, (32, 1))), Preprocessing(size=16))
    # (1 * 0 + 3 * 80 + 3 * 160 + 1 * 240) / 8 = 120, (1 * 160 + 3 * 240) / 8 = 110
    assert prepared[8, 1:3].tolist() == [120, 110]


@pytest.mark.parametrize(("height", "width"), [(100, 180), (180, 100), (224, 301)])
def test_centre_is_the_square_that_numpy_cuts(height: int, width: int) -> None:
    pixels, side = noise(height, width), min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cut = np.ascontiguousarray(pixels[top : top + side, left : left + side])
    centre = preprocess(image(pixels), Preprocessing(size=96, crop="centre"))
    assert np.array_equal(centre, preprocess(image(cut), Preprocessing(size=96)))
    assert not np.array_equal(centre, preprocess(image(pixels), Preprocessing(size=96)))


def test_centre_without_a_resize_is_the_cut_itself() -> None:
    pixels = noise(64, 100)
    assert np.array_equal(preprocess(image(pixels), Preprocessing(size=64, crop="centre")), pixels[:, 18:82])


@pytest.mark.parametrize("crop", ["squash", "centre"])
@pytest.mark.parametrize("side", [64, 100])
def test_the_result_is_never_a_view_of_the_image(crop: Literal["squash", "centre"], side: int) -> None:
    pixels = noise(side, side)
    before = pixels.copy()
    prepared = preprocess(image(pixels), Preprocessing(size=64, crop=crop))
    assert not np.shares_memory(prepared, pixels)
    prepared[:] = 7
    assert np.array_equal(pixels, before)


def test_a_image_of_the_right_size_is_left_alone() -> None:
    pixels = draw_phantom(3, True)
    assert np.array_equal(preprocess(image(pixels), Preprocessing()), pixels)


def test_preparation_is_frozen_checked_data() -> None:
    assert msgspec.to_builtins(Preprocessing()) == {"size": 224, "crop": "squash", "version": PREPROCESSING_VERSION}
    assert (
        msgspec.json.decode(msgspec.json.encode(Preprocessing(size=64, crop="centre")), type=Preprocessing).size == 64
    )
    for wrong in ({"size": 15}, {"size": 1025}, {"crop": "pad"}, {"colour": 3}):
        with pytest.raises(msgspec.ValidationError, match=next(iter(wrong))):
            msgspec.convert(wrong, Preprocessing)
    with pytest.raises(AttributeError, match="immutable"):
        Preprocessing().size = 32  # type: ignore[misc]


def _folder(variable: str) -> Path:
    if not os.environ.get(variable):
        pytest.skip(f"{variable} is unset: no radiographs here")
    return Path(os.environ[variable])


@pytest.mark.real_data
def test_full_size_images_come_near_the_small_copies_of_the_public_set(
    record_property: Callable[[str, object], None],
) -> None:
    originals, small = _folder("PNEUMOSCOPE_ORIGINALS"), _folder("PNEUMOSCOPE_DATA")
    copies = {path.name: path for path in small.rglob("*.jpeg")}
    differences = []
    for path in sorted(originals.rglob("*.jpeg")):
        original = decode(path)
        ours = preprocess(original, Preprocessing()).astype(int)
        theirs = decode(copies[path.name]).pixels.astype(int)
        assert theirs.shape == ours.shape
        differences.append(np.abs(ours - theirs).mean())
    record_property("mean absolute difference, grey levels", float(np.mean(differences)))
    print(f"{len(differences)} images: mean |difference| {np.mean(differences):.2f}, worst {max(differences):.2f}")
    assert len(differences) > 0
    assert np.mean(differences) < 3
    assert max(differences) < 8


@pytest.mark.real_data
def test_images_decoded_smaller_come_near_those_decoded_whole() -> None:
    differences = []
    for path in sorted(_folder("PNEUMOSCOPE_ORIGINALS").rglob("*.jpeg")):
        whole, smaller = decode(path), decode(path, least_side=Preprocessing().least_side)
        if smaller.reduced_from:
            assert smaller.reduced_from == (whole.width, whole.height)
            apart = np.abs(preprocess(whole, Preprocessing()).astype(int) - preprocess(smaller, Preprocessing()))
            differences.append(apart.mean())
    print(f"{len(differences)} images: mean |difference| {np.mean(differences):.2f}, worst {max(differences):.2f}")
    assert len(differences) > 0
    assert np.mean(differences) < 0.5
    assert max(differences) < 2


@pytest.mark.real_data
def test_images_of_the_public_set_are_small_enough_to_be_decoded_whole() -> None:
    for path in sorted(_folder("PNEUMOSCOPE_DATA").rglob("*.jpeg"))[::50]:
        assert np.array_equal(decode(path, least_side=Preprocessing().least_side).pixels, decode(path).pixels)


def test_bilinear_is_pillows_own() -> None:
    pixels = noise(150, 90)
    theirs = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(preprocess(image(pixels), Preprocessing(size=32)), np.asarray(theirs))
