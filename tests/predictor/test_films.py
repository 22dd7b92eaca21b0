"""Which films are meant: in the order named, sorted below a folder, and what is left out is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pneumoscope.predictor.films import find_films
from pneumoscope.radiograph.decode import EXTENSIONS

DICOM = b"\0" * 128 + b"DICM"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str, content: bytes = b"x") -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_files_come_as_they_were_named(folder: Path) -> None:
    make("b.png", "a.txt")
    named = ["./b.png", "a.txt", "gone.jpeg", "b.png"]
    assert find_films(named) == (tuple(named), 0)


def test_a_folder_gives_its_films_sorted_from_every_depth(folder: Path) -> None:
    make("films/b.png", "films/a/2.jpeg", "films/a/10.jpeg", "films/a.png", "films/c/d/e.dcm")
    found = find_films(["films"])
    assert found.skipped == 0
    assert found.paths == tuple(str(path) for path in sorted(Path("films").rglob("*.*")))
    assert found.paths[0] == "films/a/10.jpeg"


def test_a_folder_is_named_as_the_caller_named_it(folder: Path) -> None:
    make("films/a.png")
    assert find_films(["./films/"]).paths == ("./films/a.png",)
    assert find_films([str(folder / "films")]).paths == (str(folder / "films" / "a.png"),)


def test_order_is_that_of_the_names(folder: Path) -> None:
    make("z/1.png", "a/2.png", "m.png")
    assert find_films(["z", "m.png", "a"]).paths == ("z/1.png", "m.png", "a/2.png")


def test_other_files_are_left_out_and_counted(folder: Path) -> None:
    make("films/a.png", "films/notes.txt", "films/.hidden.png", "films/.git/b.png", "films/c", "films/d.csv")
    assert find_films(["films"]) == (("films/a.png",), 5)


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_extension_of_a_film_counts_in_either_case(extension: str, folder: Path) -> None:
    make(f"films/lower{extension}", f"films/UPPER{extension.upper()}")
    assert find_films(["films"]) == ((f"films/UPPER{extension.upper()}", f"films/lower{extension}"), 0)


def test_dicom_is_found_under_any_name_but_its_index_is_no_film(folder: Path) -> None:
    make("disc/IM0001", "disc/1.2.840.1", "disc/DICOMDIR", content=DICOM)
    make("disc/README", "disc/short", content=DICOM[:-1])
    assert find_films(["disc"]) == (("disc/1.2.840.1", "disc/IM0001"), 3)


def test_a_pipe_without_a_films_name_is_not_waited_for(folder: Path) -> None:
    make("films/a.png")
    os.mkfifo("films/pipe")
    assert find_films(["films"]) == (("films/a.png",), 1)


def test_a_folder_that_cannot_be_listed_comes_as_a_film_that_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("films/a.png", "films/closed/b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_films(["films"]) == (("films/a.png", "films/closed"), 0)


def test_links_to_folders_are_not_followed(folder: Path) -> None:
    make("films/a.png")
    Path("films/again").symlink_to("..")
    assert find_films(["films"]).paths == ("films/a.png",)


def test_a_link_to_a_folder_is_not_followed_and_counts_as_left_out(folder: Path) -> None:
    make("films/a.png", "elsewhere/b.png")
    Path("films/link").symlink_to("../elsewhere")
    Path("films/round").symlink_to(".")
    assert find_films(["films"]) == (("films/a.png",), 2)
