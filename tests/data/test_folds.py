"""Folds of a cross-validation keep patients together and the shares of the labels, and leave test images apart."""

from collections import Counter
from pathlib import Path

import pytest

from pneumoscope.core.errors import DatasetError
from pneumoscope.data.folds import Fold, select_fold
from pneumoscope.data.manifest import LabeledImage, Manifest

COUNT = 4


def image(number, label, patient, *, split="train", sha256=""):
    return LabeledImage(f"{number}.png", label, "", patient, split, sha256 or f"{number:064x}")


@pytest.fixture
def manifest():
    """Patients with one to three images of one label, some unknown, validation and test images among them."""
    images = []
    for patient in range(48):
        label = "NORMAL" if patient % 3 == 0 else "PNEUMONIA"
        for _ in range(1 + patient % 3):
            split = "test" if patient >= 42 else "validation" if patient % 7 == 0 else "train"
            images.append(image(len(images), label, f"p{patient}" if patient % 5 else "", split=split))
    return Manifest(tuple(images), Path("data"))


def folds_of(manifest, seed=0):
    return [select_fold(manifest, Fold(number, COUNT), seed) for number in range(1, COUNT + 1)]


def test_each_training_image_is_once_a_validation_image_and_test_images_never(manifest):
    folds = folds_of(manifest)
    validation = Counter(image.path for fold in folds for image in fold.split("validation"))
    assert validation == Counter(image.path for image in manifest if image.split != "test")
    for fold in folds:
        assert [image.path for image in fold] == [image.path for image in manifest]
        assert fold.split("test") == manifest.split("test")
        assert len(fold.split("train")) + len(fold.split("validation")) + len(fold.split("test")) == len(manifest)
        assert fold.split_by == "patient"


def test_patients_are_in_one_fold(manifest):
    for fold in folds_of(manifest):
        assert fold.leaks() == {}


def test_shares_of_the_labels_are_about_those_of_all_images(manifest):
    pool = [image for image in manifest if image.split != "test"]
    share = sum(image.positive for image in pool) / len(pool)
    for fold in folds_of(manifest):
        images = fold.split("validation")
        assert sum(image.positive for image in images) / len(images) == pytest.approx(share, abs=0.08)
        assert len(images) == pytest.approx(len(pool) / COUNT, abs=3)


def test_seed_determines_the_folds(manifest):
    assert folds_of(manifest, 1) == folds_of(manifest, 1)
    assert folds_of(manifest, 1) != folds_of(manifest, 2)


def test_byte_identical_images_of_different_patients_are_in_one_fold(manifest):
    copies = [image(900 + patient, "PNEUMONIA", f"p{patient}", sha256="ab" * 32) for patient in (1, 4, 8, 11, 13)]
    copies += [image(990, "PNEUMONIA", "", sha256="ab" * 32)]
    changed = Manifest((*manifest, *copies), Path("data"))
    assert len({image.patient for image in copies}) == 6
    for seed in range(5):
        for fold in folds_of(changed, seed):
            fold.check_identical_images("data")
            assert fold.leaks() == {}


def test_label_with_fewer_patients_than_folds_is_an_error(manifest):
    few = [image(number, "NORMAL", f"n{number % 3}") for number in range(100, 110)]
    pneumonias = [each for each in manifest if each.positive and each.split == "train"]
    with pytest.raises(DatasetError, match="4 folds need as many patients of each label; NORMAL has 3 patients"):
        select_fold(Manifest((*few, *pneumonias), Path("data")), Fold(1, COUNT), 0)
