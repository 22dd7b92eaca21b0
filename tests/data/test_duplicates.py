"""Exact duplicates and near-duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pneumoscope.data.duplicates import MAX_DISTANCE, exact_duplicates, near_duplicates
from pneumoscope.data.inspection import inspect_images
from pneumoscope.data.layouts import load_manifest
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.imaging.decode import decode


def _image(path: str, sha256: str, patient: str = "") -> LabeledImage:
    return LabeledImage(path, "NORMAL", "", patient, "", sha256)


def test_exact_duplicates_are_groups_of_equal_hashes() -> None:
    images = [
        _image("a", "1"),
        _image("b", "2"),
        _image("c", "1"),
        _image("d", "3"),
        _image("e", "1"),
        _image("f", "3"),
    ]
    assert exact_duplicates(images) == (("a", "c", "e"), ("d", "f"))
    assert exact_duplicates(images[:2]) == ()


def test_pairs_match_a_brute_force_search() -> None:
    random = np.random.default_rng(3)
    bits = random.integers(0, 2, size=(1500, 256)).astype(bool)
    for number in range(60):  # copies at known distances
        source, target = random.choice(1500, 2, replace=False)
        bits[target] = bits[source]
        bits[target, random.choice(256, number, replace=False)] ^= True
    images = [_image(str(number), str(number)) for number in range(1500)]
    found = near_duplicates(images, bits, ["train"] * 1500, ["train"])
    expected = {}
    for i in range(1500):
        different = (bits[i] != bits[i + 1 :]).sum(axis=1)
        expected |= {(str(i), str(i + 1 + j)): int(different[j]) for j in np.flatnonzero(different <= MAX_DISTANCE)}
    assert {(pair.a, pair.b): pair.hamming_distance for pair in found.listed} == expected
    assert found.pairs == len(expected) > 20
    assert max(expected.values()) == MAX_DISTANCE


def test_pairs_are_counted_by_split_patient_and_content() -> None:
    same = np.zeros((5, 256), dtype=bool)
    images = [
        _image("a", "1", "P"),
        _image("b", "1", "P"),
        _image("c", "2", "Q"),
        _image("d", "3", ""),
        _image("e", "4", "Q"),
    ]
    same[4, :100] = True
    found = near_duplicates(images, same, ["train", "train", "test", "val", "test"], ["train", "val", "test"])
    assert found.pairs == 6
    assert found.identical == 1
    assert dict(found.within) == {"train": 1, "val": 0, "test": 0}
    assert dict(found.across) == {"train/val": 2, "train/test": 2, "val/test": 1}
    assert found.different_patients == 2
    first, last = found.listed[0], found.listed[-1]
    assert (first.a, first.b, first.split_a, first.split_b) == ("a", "c", "train", "test")
    assert (last.a, last.b, last.identical, last.same_patient) == ("a", "b", True, True)
    assert found.method == "perceptual hash of 256 bits, Hamming distance at most 28"


def test_all_pairs_are_counted_but_only_500_are_listed() -> None:
    images = [_image(str(number), "1") for number in range(100)]
    found = near_duplicates(images, np.ones((100, 256), dtype=bool), ["all"] * 100, ["all"])
    assert found.pairs == 100 * 99 // 2
    assert len(found.listed) == 500


@pytest.mark.real_data
def test_threshold_separates_copies_from_different_images(real_images: Path, tmp_path: Path) -> None:
    manifest = load_manifest(real_images)
    sample = manifest.images[::146]
    for number, row in enumerate(sample):
        image = Image.fromarray(decode(real_images / row.path).pixels)
        stem = f"{number:03}"
        image.save(tmp_path / f"{stem}-a-original.png")
        image.save(tmp_path / f"{stem}-b-saved.jpeg", quality=50)
        image.resize((112, 112)).save(tmp_path / f"{stem}-c-half.png")
        ImageEnhance.Brightness(image).enhance(1.2).save(tmp_path / f"{stem}-d-bright.png")
        ImageEnhance.Contrast(image).enhance(1.3).save(tmp_path / f"{stem}-e-contrast.png")
    images = [_image(path.name, path.name) for path in sorted(tmp_path.iterdir())]
    inspected, _ = inspect_images(tmp_path, images)
    hashes = np.array([item.perceptual_hash for item in inspected])
    found = near_duplicates(images, hashes, ["all"] * len(images), ["all"])
    assert all(pair.a[:3] == pair.b[:3] for pair in found.listed)
    with_original = {(pair.a[:3], pair.b[4]) for pair in found.listed if pair.a[4] == "a"}
    assert with_original == {(f"{number:03}", copy) for number in range(len(sample)) for copy in "bcde"}
