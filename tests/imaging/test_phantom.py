"""A folder of phantoms: its layout, its names, its counts, and what it refuses."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.core.errors import StorageError, UsageError
from pneumoscope.imaging import phantom as module
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.phantom import draw, phantom

PNEUMONIA = re.compile(r"person(?P<patient>\d+)_(?P<series>bacteria|virus)_(?P<image>\d+)\.jpeg")
NORMAL = re.compile(r"(?P<series>IM|NORMAL2-IM)-(?P<patient>\d{4})-0001(-(?P<image>\d{4}))?\.jpeg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "deep" / "phantoms"
    phantom(path, train=60, test=30, seed=3, size=48)
    return path


def names(folder: Path) -> dict[tuple[str, str], list[str]]:
    return {
        (split, label): sorted(path.name for path in (folder / split / label).iterdir())
        for split in ("train", "test")
        for label in ("NORMAL", "PNEUMONIA")
    }


def test_layout_and_counts(folder: Path) -> None:
    assert {key: len(found) for key, found in names(folder).items()} == {
        ("train", "NORMAL"): 24,
        ("train", "PNEUMONIA"): 36,
        ("test", "NORMAL"): 12,
        ("test", "PNEUMONIA"): 18,
    }
    assert sorted(path.name for path in folder.iterdir()) == ["PHANTOMS.txt", "test", "train"]


def test_names_are_the_public_sets_and_patients_stay_in_one_split(folder: Path) -> None:
    splits: dict[tuple[str, str], set[str]] = defaultdict(set)
    images: Counter[tuple[str, str]] = Counter()
    for (split, label), found in names(folder).items():
        for name in found:
            parsed = (PNEUMONIA if label == "PNEUMONIA" else NORMAL).fullmatch(name)
            assert parsed, name
            key = (parsed["series"], parsed["patient"])
            splits[key].add(split)
            images[key] += 1
    assert all(len(found) == 1 for found in splits.values())
    assert {series for series, _ in splits} == {"bacteria", "virus", "IM", "NORMAL2-IM"}
    assert Counter(images.values()).keys() == {1, 2, 3}


def test_siblings_share_their_anatomy_and_nothing_is_drawn_twice(folder: Path) -> None:
    normal = folder / "train" / "NORMAL"
    siblings = [sorted(normal.glob(path.name.replace("-0001.jpeg", "*"))) for path in normal.glob("*-0001-0001.jpeg")]
    assert siblings
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.jpeg")]
    assert len(set(hashes)) == len(hashes) == 90


def test_images_are_what_draw_draws(folder: Path) -> None:
    plan = list(module._plan(np.random.Generator(np.random.PCG64(3)), {"train": 60, "test": 30}))
    row = next(row for row in plan if row.etiology == "virus" and row.image == 1)
    pixels = decode(folder / row.split / row.label / row.name).pixels
    drawn = draw(row.seed, True, etiology="virus", image=1, size=48)
    assert np.abs(pixels.astype(int) - drawn).mean() < 3  # JPEG
    with Image.open(folder / row.split / row.label / row.name) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "L", (48, 48))


def test_the_folder_says_that_it_is_synthetic(folder: Path) -> None:
    text = (folder / "PHANTOMS.txt").read_text(encoding="utf-8")
    assert "Every image in this folder is synthetic" in text
    assert "seed 3, 48 x 48 pixels, 60 images in train, 30 in test" in text


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    summary = phantom(tmp_path, train=60, test=30, seed=3, size=48)
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert summary.images == {"train": {"NORMAL": 24, "PNEUMONIA": 36}, "test": {"NORMAL": 12, "PNEUMONIA": 18}}
    patients = {re.sub(r"(-0001.*|_\d+\.jpeg)$", "", path.name) for path in (folder / "train").rglob("*.jpeg")}
    assert summary.patients["train"] == len(patients) < 60
    other = phantom(tmp_path / "other", train=60, test=30, seed=4, size=48)
    assert other.patients != summary.patients or names(tmp_path / "other") != names(folder)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    phantom(tmp_path / "few", train=3, test=2, size=32, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    assert {key: len(found) for key, found in names(tmp_path / "few").items()} == {
        ("train", "NORMAL"): 1,
        ("train", "PNEUMONIA"): 2,
        ("test", "NORMAL"): 1,
        ("test", "PNEUMONIA"): 1,
    }


def test_a_folder_that_holds_anything_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "image.jpeg").write_bytes(b"a real image")
    with pytest.raises(UsageError, match=r"is not empty \(1 entries\)\. Name a folder that does not exist yet"):
        phantom(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image.jpeg"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="Not a directory"):
        phantom(tmp_path / "file")
    with pytest.raises(UsageError, match="Not a directory"):
        phantom(tmp_path / "file" / "below")


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match=r"cannot write phantoms to '.*x': No space left on device"):
        phantom(tmp_path / "x", train=2, test=2, size=32)


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"train": 1}, "not train 1 and test 100"),
        ({"test": 0}, "not train 200 and test 0"),
        ({"seed": -1}, "a seed is 0 or more, not -1"),
        ({"size": 8}, "32 to 2,048 pixels wide, not 8"),
    ],
)
def test_impossible_numbers_write_nothing(numbers: dict[str, int], why: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=why):
        phantom(tmp_path / "x", **numbers)
    assert not (tmp_path / "x").exists()
