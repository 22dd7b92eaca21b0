"""Hashes and films behind the rows of a manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.dataset.contents import hash_films, read_film
from pneumoscope.dataset.manifest import Film
from pneumoscope.errors import ManifestError, UnreadableFilmError


def _film(path: str, sha256: str = "") -> Film:
    return Film(path, "NORMAL", "", "", "", sha256)


def test_reads_the_pixels_of_a_file(tmp_path: Path, draw_film: Callable[..., Path]) -> None:
    draw_film(tmp_path / "a.png", size=(30, 20))
    radiograph = read_film(tmp_path, _film("a.png"))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(radiograph.pixels, np.asarray(image))
    assert radiograph.source == "a.png"


def test_a_file_that_is_no_image_names_the_film(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UnreadableFilmError, match=r"cannot read 'a.png': not an image \(5 bytes\)"):
        read_film(tmp_path, _film("a.png"))


def test_hashes_keep_the_order_over_many_chunks(tmp_path: Path) -> None:
    films = []
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(b"" if number % 50 == 7 else bytes([number]))
        films.append(_film(f"{number}.png"))
    hashed, unreadable = hash_films(tmp_path, films)
    assert [path for path, _ in unreadable] == ["7.png", "57.png", "107.png", "157.png"]
    assert {film.path: film.sha256 for film in hashed} == {
        f"{number}.png": hashlib.sha256(bytes([number])).hexdigest() for number in range(200) if number % 50 != 7
    }
    assert [film.path for film in hashed] == [film.path for film in films if film.path not in dict(unreadable)]


def test_a_stated_hash_is_checked_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"film")
    right = hashlib.sha256(b"film").hexdigest()
    (film,), _ = hash_films(tmp_path, [_film("a.png", right.upper())])
    assert film.sha256 == right
    with pytest.raises(ManifestError, match=f"'a.png' is not the film that m.csv lists: its SHA-256 is {right[:12]}"):
        hash_films(tmp_path, [_film("a.png", "0" * 64)], where="m.csv")
