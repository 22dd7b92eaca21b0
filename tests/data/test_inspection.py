"""Image properties for the data set check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from pneumoscope.data.inspection import inspect_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LabeledImage

Draw = Callable[..., Path]


def _image(path: str) -> LabeledImage:
    return LabeledImage(path, "NORMAL", "", "", "", "0" * 64)


def test_properties_hash_and_thumbnail(tmp_path: Path, draw_image: Draw) -> None:
    draw_image(tmp_path / "a.png", size=(60, 50))
    with Image.open(tmp_path / "a.png") as image:
        image.save(tmp_path / "fine.jpeg", quality=95)
        image.convert("RGB").save(tmp_path / "coarse.jpeg", quality=30)
        gray = image.convert("L")
    (png, fine, coarse), unreadable = inspect_images(
        tmp_path, [_image("a.png"), _image("fine.jpeg"), _image("coarse.jpeg")]
    )
    assert unreadable == []
    assert (png.width, png.height, png.format, png.mode, png.quantization) == (60, 50, "PNG", "L", 0)
    assert png.bytes == (tmp_path / "a.png").stat().st_size
    assert (fine.format, fine.mode, coarse.mode) == ("JPEG", "L", "RGB")
    with Image.open(tmp_path / "fine.jpeg") as image:
        assert fine.quantization == sum(image.quantization[0])
    assert coarse.quantization > 5 * fine.quantization
    assert np.array_equal(png.perceptual_hash, imagehash.phash(gray, hash_size=16).hash.ravel())
    assert png.thumbnail.shape == (32, 32)
    assert abs(float(png.thumbnail.mean()) - float(np.asarray(gray).mean())) < 3


def test_unreadable_images_are_listed_and_the_others_keep_their_order(tmp_path: Path, draw_image: Draw) -> None:
    names = [f"{number}.png" for number in range(70)]
    for number, name in enumerate(names):
        draw_image(tmp_path / name, seed=number, size=(20, 20))
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:60])
    (tmp_path / "40.png").write_text("not an image")
    (tmp_path / "69.png").unlink()
    calls: list[tuple[int, int]] = []
    inspected, unreadable = inspect_images(
        tmp_path, [_image(name) for name in names], lambda done, total: calls.append((done, total))
    )
    assert [path for path, _ in unreadable] == ["5.png", "40.png", "69.png"]
    assert dict(unreadable)["40.png"].startswith("not an image")
    assert dict(unreadable)["69.png"] == "No such file or directory"
    assert [item.image.path for item in inspected] == [name for name in names if name not in dict(unreadable)]
    assert calls[-1] == (70, 70)


def test_images_of_an_archive_have_no_file_size(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "pneumoniamnist.npz", train_images=images, train_labels=[0, 1, 0])
    manifest = load_manifest(tmp_path / "pneumoniamnist.npz")
    inspected, unreadable = inspect_images(manifest.root, manifest.images)
    assert unreadable == []
    assert [(item.bytes, item.width, item.format) for item in inspected] == [(0, 28, "NPZ")] * 3
