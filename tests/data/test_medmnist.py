"""MedMNIST archives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.core.errors import DatasetError, LayoutError, UnreadableImageError
from pneumoscope.data.hashing import hash_images, read_image
from pneumoscope.data.label_mapping import LabelMapping
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.data.medmnist import read_archive_image


def _arrays() -> dict[str, Any]:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, n in (("train", 6), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = random.integers(0, 256, size=(n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2)[:, None]
    return arrays


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    file = tmp_path / "pneumoniamnist.npz"
    np.savez_compressed(file, **_arrays())
    return file


def test_manifest_has_split_label_and_pixel_hash(archive: Path) -> None:
    manifest = load_manifest(archive)
    assert manifest.counts() == {
        "train": {"NORMAL": 3, "PNEUMONIA": 3},
        "validation": {"NORMAL": 1, "PNEUMONIA": 1},
        "test": {"NORMAL": 2, "PNEUMONIA": 1},
    }
    image = manifest.images[3]
    assert (image.path, image.label, image.etiology) == ("pneumoniamnist.npz#train/3", "PNEUMONIA", "")
    assert image.sha256 == hashlib.sha256(_arrays()["train_images"][3].tobytes()).hexdigest()
    assert "the patient of 11 of 11 images is unknown" in manifest.notes[0]


def test_images_are_rows_of_the_array(archive: Path) -> None:
    manifest = load_manifest(archive)
    for image, pixels in zip(manifest.split("validation"), _arrays()["val_images"], strict=True):
        assert np.array_equal(read_image(manifest.root, image).pixels, pixels)


def test_saved_manifest_of_an_archive_loads_again(archive: Path, tmp_path: Path) -> None:
    manifest = load_manifest(archive)
    manifest.save(tmp_path / "images.csv")
    assert load_manifest(tmp_path / "images.csv").images == manifest.images


def test_changed_archive_is_read_again(archive: Path) -> None:
    manifest = load_manifest(archive)
    read_image(manifest.root, manifest.images[0])
    np.savez(archive, train_images=np.full((1, 8, 8), 7, np.uint8), train_labels=[0])
    assert read_image(manifest.root, manifest.images[0]).pixels.max() == 7


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("pneumoniamnist.npz#train/6", "the archive has 6 images in that split"),
        ("gone.npz#train/0", "No such file or directory"),
        ("image.png", "not a path of a MedMNIST image"),
    ],
)
def test_path_without_an_image_is_an_error(archive: Path, path: str, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        read_archive_image(archive.parent, path)


def test_broken_archive_makes_its_images_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"not an archive")
    images, unreadable = hash_images(tmp_path, [LabeledImage("a.npz#train/0", "NORMAL", "", "", "", "")])
    assert images == ()
    assert unreadable[0][0] == "a.npz#train/0"
    assert "is not a NumPy archive" in unreadable[0][1]


def _changed(**changes: Any) -> dict[str, Any]:
    return {**_arrays(), **changes}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"x": np.zeros(3)}, r"has no train_images \(it contains: x\)"),
        (_changed(train_images=np.zeros((6, 28, 28, 3), np.uint8)), r"train_images has shape \(6, 28, 28, 3\)"),
        (_changed(val_images=np.zeros((2, 28, 28), np.float32)), "val_images has .* type float32"),
        (_changed(test_labels=np.array([0, 1, -2])), r"test_labels has 3 values from \[-2, 0, 1\] for 3 images"),
        (_changed(test_labels=np.array([0, 1, 0.5])), r"test_labels has 3 values from \[0.0, 0.5, 1.0\] for 3 images"),
        (
            _changed(train_labels=np.zeros((6, 14), int)),
            "train_labels has 14 labels for each image, and an image has one",
        ),
        (_changed(train_labels=np.zeros(5, int)), "train_labels has 5 values from .* for 6 images"),
        (_changed(train_images=np.array([{"a": 1}])), "cannot read train_images"),
        ({"train_images": np.zeros((1, 8, 8), np.uint8)}, "cannot read train_labels"),
    ],
)
def test_archive_with_other_arrays_is_rejected(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(LayoutError, match=reason):
        load_manifest(tmp_path / "a.npz")


def test_other_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK not a zip")
    with pytest.raises(LayoutError, match="is not a NumPy archive"):
        load_manifest(tmp_path / "a.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(LayoutError, match="is one array, not an archive"):
        load_manifest(tmp_path / "one.npz")


def _with_labels(file: Path, *numbers: int) -> None:
    arrays = _arrays()
    arrays["train_labels"] = np.resize(numbers, (6, 1))
    np.savez(file, **arrays)


def test_archive_of_other_classes_has_their_names_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    _with_labels(tmp_path / "octmnist_64.npz", 0, 1, 2, 3)
    manifest = load_manifest(tmp_path / "octmnist_64.npz")
    assert manifest.classes == ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal")
    assert [image.label for image in manifest.split("train")] == [*manifest.classes, *manifest.classes[:2]]
    assert not manifest.binary


def test_archive_of_two_other_classes_is_not_binary(tmp_path: Path) -> None:
    _with_labels(tmp_path / "breastmnist.npz", 0, 1)
    assert load_manifest(tmp_path / "breastmnist.npz").classes == ("malignant", "normal, benign")


def test_archive_of_unknown_classes_has_numbers_as_names(tmp_path: Path) -> None:
    _with_labels(tmp_path / "other.npz", 0, 2, 10)
    manifest = load_manifest(tmp_path / "other.npz")
    assert manifest.classes == ("0", "1", "2", "10")
    assert [manifest.target(image) for image in manifest.split("train")] == [0, 2, 3, 0, 2, 3]


def test_zeros_and_ones_of_an_unknown_archive_are_an_error_until_they_are_mapped(tmp_path: Path) -> None:
    file = tmp_path / "other.npz"
    np.savez(file, **_arrays())
    with pytest.raises(DatasetError, match="the classes '0' and '1' look like NORMAL and PNEUMONIA") as raised:
        load_manifest(file)
    assert "--map 0=NORMAL --map 1=PNEUMONIA" in raised.value.hint
    for mapping in (LabelMapping(renamed=(("0", "NORMAL"), ("1", "PNEUMONIA"))), LabelMapping(positive="1")):
        manifest = load_manifest(file, labels=mapping)
        assert manifest.binary
        assert [image.label for image in manifest.split("validation")] == ["NORMAL", "PNEUMONIA"]
    assert load_manifest(file, labels=LabelMapping(classes=("0", "1"))).classes == ("0", "1")


def test_label_without_a_name_is_an_error(tmp_path: Path) -> None:
    _with_labels(tmp_path / "pneumoniamnist.npz", 0, 1, 2)
    with pytest.raises(LayoutError, match=r"has the label 2, and 2 classes: 0 \(NORMAL\) to 1 \(PNEUMONIA\)"):
        load_manifest(tmp_path / "pneumoniamnist.npz")
