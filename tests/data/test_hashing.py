"""Hashes and images behind the rows of a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import ManifestError, UnreadableImageError
from pneumoscope.data.hashing import hash_images, read_image
from pneumoscope.data.manifest import LabelledImage


def _image(path: str, sha256: str = "") -> LabelledImage:
    return LabelledImage(path, "NORMAL", "", "", "", sha256)


def test_reads_the_pixels_of_a_file(tmp_path: Path, draw_image: Callable[..., Path]) -> None:
    draw_image(tmp_path / "a.png", size=(30, 20))
    radiograph = read_image(tmp_path, _image("a.png"))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(radiograph.pixels, np.asarray(image))
    assert radiograph.source == "a.png"


def test_a_file_that_is_no_image_names_the_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UnreadableImageError, match=r"cannot read 'a.png': not an image \(5 bytes\)"):
        read_image(tmp_path, _image("a.png"))


def test_hashes_keep_the_order_over_many_chunks(tmp_path: Path) -> None:
    images = []
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(b"" if number % 50 == 7 else bytes([number]))
        images.append(_image(f"{number}.png"))
    hashed, unreadable = hash_images(tmp_path, images)
    assert [path for path, _ in unreadable] == ["7.png", "57.png", "107.png", "157.png"]
    assert {image.path: image.sha256 for image in hashed} == {
        f"{number}.png": hashlib.sha256(bytes([number])).hexdigest() for number in range(200) if number % 50 != 7
    }
    assert [image.path for image in hashed] == [image.path for image in images if image.path not in dict(unreadable)]


def test_a_stated_hash_is_checked_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    right = hashlib.sha256(b"image").hexdigest()
    (image,), _ = hash_images(tmp_path, [_image("a.png", right.upper())])
    assert image.sha256 == right
    with pytest.raises(ManifestError, match=f"'a.png' is not the image that m.csv lists: its SHA-256 is {right[:12]}"):
        hash_images(tmp_path, [_image("a.png", "0" * 64)], where="m.csv")
