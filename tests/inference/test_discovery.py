"""Which images are meant: in the order named, sorted below a folder, and what is left out is counted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pneumoscope.imaging.decode import EXTENSIONS
from pneumoscope.inference.discovery import discover_images

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


def test_file_arguments_are_returned_unchanged(folder: Path) -> None:
    make("b.png", "a.txt")
    named = ["./b.png", "a.txt", "gone.jpeg", "b.png"]
    assert discover_images(named) == (tuple(named), 0)


def test_folder_is_searched_recursively_in_sorted_order(folder: Path) -> None:
    make("images/b.png", "images/a/2.jpeg", "images/a/10.jpeg", "images/a.png", "images/c/d/e.dcm")
    found = discover_images(["images"])
    assert found.skipped == 0
    assert found.paths == tuple(str(path) for path in sorted(Path("images").rglob("*.*")))
    assert found.paths[0] == "images/a/10.jpeg"


def test_paths_keep_the_form_of_the_argument(folder: Path) -> None:
    make("images/a.png")
    assert discover_images(["./images/"]).paths == ("./images/a.png",)
    assert discover_images([str(folder / "images")]).paths == (str(folder / "images" / "a.png"),)


def test_order_follows_the_arguments(folder: Path) -> None:
    make("z/1.png", "a/2.png", "m.png")
    assert discover_images(["z", "m.png", "a"]).paths == ("z/1.png", "m.png", "a/2.png")


def test_other_files_are_skipped_and_counted(folder: Path) -> None:
    make("images/a.png", "images/notes.txt", "images/.hidden.png", "images/.git/b.png", "images/c", "images/d.csv")
    assert discover_images(["images"]) == (("images/a.png",), 5)


@pytest.mark.parametrize("extension", sorted(EXTENSIONS))
def test_every_image_extension_is_recognized_in_either_case(extension: str, folder: Path) -> None:
    make(f"images/lower{extension}", f"images/UPPER{extension.upper()}")
    assert discover_images(["images"]) == ((f"images/UPPER{extension.upper()}", f"images/lower{extension}"), 0)


def test_dicom_is_found_under_any_name_except_dicomdir(folder: Path) -> None:
    make("disc/IM0001", "disc/1.2.840.1", "disc/DICOMDIR", content=DICOM)
    make("disc/README", "disc/short", content=DICOM[:-1])
    assert discover_images(["disc"]) == (("disc/1.2.840.1", "disc/IM0001"), 3)


def test_pipe_without_an_image_extension_is_skipped(folder: Path) -> None:
    make("images/a.png")
    os.mkfifo("images/pipe")
    assert discover_images(["images"]) == (("images/a.png",), 1)


def test_unlistable_folder_is_returned_as_an_unreadable_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("images/a.png", "images/closed/b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert discover_images(["images"]) == (("images/a.png", "images/closed"), 0)


def test_links_to_folders_are_not_followed(folder: Path) -> None:
    make("images/a.png")
    Path("images/again").symlink_to("..")
    assert discover_images(["images"]).paths == ("images/a.png",)


def test_linked_folder_counts_as_skipped(folder: Path) -> None:
    make("images/a.png", "elsewhere/b.png")
    Path("images/link").symlink_to("../elsewhere")
    Path("images/round").symlink_to(".")
    assert discover_images(["images"]) == (("images/a.png",), 2)
