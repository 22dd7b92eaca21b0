"""MedMNIST archives."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.dataset.contents import hash_films, read_film
from pneumoscope.dataset.layouts import load_manifest
from pneumoscope.dataset.manifest import Film
from pneumoscope.dataset.medmnist import read_archived
from pneumoscope.errors import LayoutError, UnreadableFilmError


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


def test_films_come_with_split_label_and_hash_of_their_pixels(archive: Path) -> None:
    manifest = load_manifest(archive)
    assert manifest.counts() == {
        "train": {"NORMAL": 3, "PNEUMONIA": 3},
        "validation": {"NORMAL": 1, "PNEUMONIA": 1},
        "test": {"NORMAL": 2, "PNEUMONIA": 1},
    }
    film = manifest.films[3]
    assert (film.path, film.label, film.etiology) == ("pneumoniamnist.npz#train/3", "PNEUMONIA", "")
    assert film.sha256 == hashlib.sha256(_arrays()["train_images"][3].tobytes()).hexdigest()
    assert "the patient of 11 of 11 films is unknown" in manifest.notes[0]


def test_a_film_is_its_row(archive: Path) -> None:
    manifest = load_manifest(archive)
    for film, pixels in zip(manifest.split("validation"), _arrays()["val_images"], strict=True):
        assert np.array_equal(read_film(manifest.root, film).pixels, pixels)


def test_a_saved_manifest_of_an_archive_loads_again(archive: Path, tmp_path: Path) -> None:
    manifest = load_manifest(archive)
    manifest.save(tmp_path / "films.csv")
    assert load_manifest(tmp_path / "films.csv").films == manifest.films


def test_an_archive_that_changes_is_read_again(archive: Path) -> None:
    manifest = load_manifest(archive)
    read_film(manifest.root, manifest.films[0])
    np.savez(archive, train_images=np.full((1, 8, 8), 7, np.uint8), train_labels=[0])
    assert read_film(manifest.root, manifest.films[0]).pixels.max() == 7


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("pneumoniamnist.npz#train/6", "the archive has 6 films of that split"),
        ("gone.npz#train/0", "No such file or directory"),
        ("film.png", "not a path into a MedMNIST archive"),
    ],
)
def test_a_path_that_leads_nowhere(archive: Path, path: str, why: str) -> None:
    with pytest.raises(UnreadableFilmError, match=why):
        read_archived(archive.parent, path)


def test_a_broken_archive_is_one_unreadable_film(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no archive")
    films, unreadable = hash_films(tmp_path, [Film("a.npz#train/0", "NORMAL", "", "", "", "")])
    assert films == ()
    assert unreadable[0][0] == "a.npz#train/0"
    assert "is not a NumPy archive" in unreadable[0][1]


def _changed(**changes: Any) -> dict[str, Any]:
    return {**_arrays(), **changes}


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"x": np.zeros(3)}, r"has no train_images \(it holds: x\)"),
        (_changed(train_images=np.zeros((6, 28, 28, 3), np.uint8)), r"train_images has shape \(6, 28, 28, 3\)"),
        (_changed(val_images=np.zeros((2, 28, 28), np.float32)), "val_images has .* type float32"),
        (_changed(test_labels=np.array([0, 1, 2])), r"test_labels has 3 values from \[0, 1, 2\] for 3 films"),
        (_changed(train_labels=np.zeros(5, int)), "train_labels has 5 values from .* for 6 films"),
        (_changed(train_images=np.array([{"a": 1}])), "train_images cannot be read"),
        ({"train_images": np.zeros((1, 8, 8), np.uint8)}, "train_labels cannot be read"),
    ],
)
def test_another_archive_is_refused(tmp_path: Path, arrays: dict[str, Any], why: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(LayoutError, match=why):
        load_manifest(tmp_path / "a.npz")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    with pytest.raises(LayoutError, match="is not a NumPy archive"):
        load_manifest(tmp_path / "a.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(LayoutError, match="is one array, not an archive"):
        load_manifest(tmp_path / "one.npz")
