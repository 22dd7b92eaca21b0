"""Folders of phantoms have the layout of the public data set."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.data import phantoms as module
from pneumoscope.data.phantoms import write_phantoms
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import draw_phantom

PNEUMONIA = re.compile(r"person(?P<patient>\d+)_(?P<series>bacteria|virus)_(?P<image>\d+)\.jpeg")
NORMAL = re.compile(r"(?P<series>IM|NORMAL2-IM)-(?P<patient>\d{4})-0001(-(?P<image>\d{4}))?\.jpeg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "deep" / "phantoms"
    write_phantoms(path, train=60, test=30, seed=3, size=48)
    return path


def names(folder: Path) -> dict[tuple[str, str], list[str]]:
    return {
        (split, label): sorted(path.name for path in (folder / split / label).iterdir())
        for split in ("train", "test")
        for label in ("NORMAL", "PNEUMONIA")
    }


def test_folders_and_counts(folder: Path) -> None:
    assert {key: len(file_names) for key, file_names in names(folder).items()} == {
        ("train", "NORMAL"): 24,
        ("train", "PNEUMONIA"): 36,
        ("test", "NORMAL"): 12,
        ("test", "PNEUMONIA"): 18,
    }
    assert sorted(path.name for path in folder.iterdir()) == ["PHANTOMS.txt", "test", "train"]


def test_file_names_are_those_of_the_public_set_and_patients_stay_in_one_split(folder: Path) -> None:
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    images: Counter[tuple[str, str]] = Counter()
    for (split, label), file_names in names(folder).items():
        for name in file_names:
            parsed = (PNEUMONIA if label == "PNEUMONIA" else NORMAL).fullmatch(name)
            assert parsed, name
            key = (parsed["series"], parsed["patient"])
            splits[key].add(split)
            images[key] += 1
    assert all(len(names_of_splits) == 1 for names_of_splits in splits.values())
    assert {series for series, _ in splits} == {"bacteria", "virus", "IM", "NORMAL2-IM"}
    assert Counter(images.values()).keys() == {1, 2, 3}


def test_patients_have_several_images_and_no_image_occurs_twice(folder: Path) -> None:
    normal = folder / "train" / "NORMAL"
    images_of_one_patient = [
        sorted(normal.glob(path.name.replace("-0001.jpeg", "*"))) for path in normal.glob("*-0001-0001.jpeg")
    ]
    assert images_of_one_patient
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpeg")]
    assert len(set(hashes)) == len(hashes) == 90


def test_files_hold_the_drawn_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def draw(seed: int, pneumonia: bool, **options: Any) -> Any:
        calls.append((seed, pneumonia, options))
        return draw_phantom(seed, pneumonia, **options)

    monkeypatch.setattr(module, "draw_phantom", draw)
    write_phantoms(tmp_path, train=60, test=30, seed=3, size=48)
    seconds = [
        number
        for number, (_, pneumonia, options) in enumerate(calls, start=1)
        if pneumonia and options["etiology"] == "virus" and options["image"] == 1
    ]
    (file,) = tmp_path.rglob(f"person*_virus_{seconds[0]}.jpeg")
    seed, *_ = calls[seconds[0] - 1]
    drawn = draw_phantom(seed, True, etiology="virus", image=1, size=48)
    assert np.abs(decode(file).pixels.astype(int) - drawn).mean() < 3  # JPEG
    with Image.open(file) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (48, 48))


def test_the_folder_states_that_the_images_are_synthetic(folder: Path) -> None:
    text = (folder / "PHANTOMS.txt").read_text(encoding="utf-8")
    assert "Every image in this folder is synthetic" in text
    assert "seed 3, 48 x 48 pixels, 60 images in train, 30 in test" in text


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    summary = write_phantoms(tmp_path, train=60, test=30, seed=3, size=48)
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert summary.images == {"train": {"NORMAL": 24, "PNEUMONIA": 36}, "test": {"NORMAL": 12, "PNEUMONIA": 18}}
    patients = {re.sub(r"(-0001.*|_\d+\.jpeg)$", "", path.name) for path in (folder / "train").rglob("*.jpeg")}
    assert summary.patients["train"] == len(patients) < 60
    other = write_phantoms(tmp_path / "other", train=60, test=30, seed=4, size=48)
    assert other.patients != summary.patients or names(tmp_path / "other") != names(folder)


def test_progress_counts_all_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_phantoms(tmp_path / "few", train=3, test=2, size=32, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert {key: len(file_names) for key, file_names in names(tmp_path / "few").items()} == {
        ("train", "NORMAL"): 1,
        ("train", "PNEUMONIA"): 2,
        ("test", "NORMAL"): 1,
        ("test", "PNEUMONIA"): 1,
    }


def test_a_folder_that_is_not_empty_is_rejected_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "image.jpeg").write_bytes(b"a radiograph")
    with pytest.raises(UsageError, match=r"is not empty \(1 entries\)\. Name a folder that does not exist yet"):
        write_phantoms(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image.jpeg"]


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="Not a directory"):
        write_phantoms(tmp_path / "file")
    with pytest.raises(UsageError, match="Not a directory"):
        write_phantoms(tmp_path / "file" / "below")


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(StorageError, match=r"cannot write phantoms to '.*x': No space left on device"):
        write_phantoms(tmp_path / "x", train=2, test=2, size=32)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"train": 1}, "not 1 in train and 100 in test"),
        ({"test": 0}, "not 200 in train and 0 in test"),
        ({"seed": -1}, "the seed must be 0 or more, not -1"),
        ({"size": 8}, "32 to 2,048 pixels, not 8"),
    ],
)
def test_numbers_out_of_range_are_rejected(numbers: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        write_phantoms(tmp_path / "x", **numbers)
    assert not (tmp_path / "x").exists()


def test_masks_are_written_for_images_with_pneumonia(tmp_path: Path) -> None:
    summary = write_phantoms(tmp_path / "images", train=10, test=5, size=48, masks=tmp_path / "masks")

    images = {
        path.relative_to(tmp_path / "images").with_suffix("") for path in (tmp_path / "images").glob("*/PNEUMONIA/*")
    }
    masks = {path.relative_to(tmp_path / "masks") for path in (tmp_path / "masks").rglob("*.*")}
    assert summary.masks == str(tmp_path / "masks")
    assert {path.with_suffix("") for path in masks} == images
    assert {path.suffix for path in masks} == {".png"}
    pixels = np.array(Image.open(tmp_path / "masks" / min(masks)))
    assert pixels.shape == (48, 48)
    assert pixels.any()
    assert not pixels.all()


def test_masks_need_an_empty_folder_outside_the_images(tmp_path: Path) -> None:
    for masks in (tmp_path / "images" / "masks", tmp_path / "images", tmp_path):
        with pytest.raises(UsageError, match="contain each other"):
            write_phantoms(tmp_path / "images", train=2, test=2, size=48, masks=masks)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        write_phantoms(tmp_path / "images", train=2, test=2, size=48, masks=tmp_path / "other")
    assert not (tmp_path / "images").exists()
