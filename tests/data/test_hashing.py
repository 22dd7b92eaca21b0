"""Reading and hashing the images of a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.imaging.dicom_images import image, written

from pneumoscope.core.errors import ManifestError, UnreadableImageError
from pneumoscope.data.hashing import hash_images, read_image
from pneumoscope.data.manifest import LabeledImage


def _image(path: str, sha256: str = "") -> LabeledImage:
    return LabeledImage(path, "NORMAL", "", "", "", sha256)


def test_image_is_read_by_its_path_in_the_manifest(tmp_path: Path, draw_image: Callable[..., Path]) -> None:
    draw_image(tmp_path / "a.png", size=(30, 20))
    radiograph = read_image(tmp_path, _image("a.png"))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(radiograph.pixels, np.asarray(image))
    assert radiograph.source == "a.png"


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UnreadableImageError, match=r"cannot read 'a.png': not an image \(5 bytes\)"):
        read_image(tmp_path, _image("a.png"))


def test_image_rejected_by_its_dicom_header_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(written(image(ViewPosition="LL")))
    with pytest.raises(UnreadableImageError, match=r"cannot read 'a\.dcm': the DICOM header specifies the view LL"):
        read_image(tmp_path, _image("a.dcm"))


def test_hashes_keep_the_order_of_the_images(tmp_path: Path) -> None:
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


def test_existing_hash_is_verified_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    expected = hashlib.sha256(b"image").hexdigest()
    (image,), _ = hash_images(tmp_path, [_image("a.png", expected.upper())])
    assert image.sha256 == expected
    with pytest.raises(
        ManifestError, match=f"'a.png' has changed since m.csv was written: its SHA-256 is {expected[:12]}"
    ):
        hash_images(tmp_path, [_image("a.png", "0" * 64)], manifest_name="m.csv")
