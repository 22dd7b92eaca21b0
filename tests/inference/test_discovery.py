"""Images are found by content, in the order named and sorted below a folder; what is skipped is counted and named."""

from __future__ import annotations

import contextlib
import io
import os
import random
from pathlib import Path

import pytest
from PIL import Image
from tests.images import dicom, dicomdir, png

from pneumoscope.inference.discovery import SkippedFile, discover_images, iter_folder

DICOM = dicom(100)
PNG = png(100)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str, content: bytes = PNG) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_file_arguments_are_returned_unchanged(folder: Path) -> None:
    make("b.png", "a.txt")
    named = ["./b.png", "a.txt", "gone.jpeg", "b.png"]
    assert discover_images(named) == (tuple(named), ())


def test_folder_is_searched_recursively_in_sorted_order(folder: Path) -> None:
    make("images/b.png", "images/a/2.jpeg", "images/a/10.jpeg", "images/a.png", "images/c/d/e.dcm")
    found = discover_images(["images"])
    assert found.skipped == ()
    assert found.paths == tuple(str(path) for path in sorted(Path("images").rglob("*.*")))
    assert found.paths[0] == "images/a/10.jpeg"


def test_paths_keep_the_form_of_the_argument(folder: Path) -> None:
    make("images/a.png")
    assert discover_images(["./images/"]).paths == ("./images/a.png",)
    assert discover_images([str(folder / "images")]).paths == (str(folder / "images" / "a.png"),)


def test_order_follows_the_arguments(folder: Path) -> None:
    make("z/1.png", "a/2.png", "m.png")
    assert discover_images(["z", "m.png", "a"]).paths == ("z/1.png", "m.png", "a/2.png")


def test_images_are_recognized_by_content_under_any_name(folder: Path) -> None:
    make("mixed/IM0001", "mixed/a.dicom", "mixed/b.ima", "mixed/1.2.840", content=DICOM)
    make("mixed/no_preamble", content=DICOM[132:])
    make("mixed/jpeg", "mixed/scan.xyz", "mixed/c.jfif")
    found = discover_images(["mixed"])
    assert found.skipped == ()
    assert len(found.paths) == 8


def test_other_files_are_skipped_and_named(folder: Path) -> None:
    make("images/a.png", "images/.hidden.png", "images/.git/b.png")
    make("images/notes.txt", "images/d.csv", "images/empty", content=b"")
    make("images/all.zip", content=b"PK\x03\x04")
    make("images/report.pdf", content=b"%PDF-1.7")
    found = discover_images(["images"])
    assert found.paths == ("images/a.png",)
    assert dict(found.skipped) == {
        "images/.git": "hidden",
        "images/.hidden.png": "hidden",
        "images/all.zip": "a zip archive",
        "images/d.csv": "not an image",
        "images/empty": "not an image",
        "images/notes.txt": "not an image",
        "images/report.pdf": "a PDF document",
    }
    assert found.skipped_summary() == (
        "Skipped 7 files. Not an image: 3 (d.csv, empty, notes.txt). Hidden: 2 (.git, .hidden.png)."
        " A PDF document: 1 (report.pdf). A zip archive: 1 (all.zip)"
    )
    assert discover_images(["images/a.png"]).skipped_summary() == ""


def test_files_that_claim_to_be_images_are_not_skipped(folder: Path) -> None:
    make("images/broken.JPG", "images/text.dcm", content=b"no image")
    make("images/pointer", content=b"version https://git-lfs.github.com/spec/v1\n")
    file = io.BytesIO()
    Image.new("L", (9, 9)).save(file, "GIF")
    make("images/animation", content=file.getvalue())
    assert len(discover_images(["images"]).paths) == 4


def test_file_that_cannot_be_opened_is_not_skipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("images/IM0001", "images/IM0002", content=DICOM)
    original = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path.name == "IM0002":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "open", refuse)
    assert discover_images(["images"]) == (("images/IM0001", "images/IM0002"), ())


def test_long_lists_of_skipped_files_are_shortened(folder: Path) -> None:
    make(*(f"images/{i}.txt" for i in range(9)), content=b"x")
    assert discover_images(["images"]).skipped_summary() == "Skipped 9 files. Not an image: 9 (0.txt, 1.txt, 2.txt, …)"


@pytest.mark.parametrize("name", ["DICOMDIR", "dicomdir"])
def test_dicomdir_stands_for_the_images_that_it_lists(folder: Path, name: str) -> None:
    make("disc/IMAGES/IM1", "disc/IMAGES/IM2", content=DICOM)
    dicomdir(f"disc/{name}", ("IMAGES", "IM2"), ("IMAGES", "IM1"))
    assert discover_images([f"disc/{name}"]) == (("disc/IMAGES/IM2", "disc/IMAGES/IM1"), ())
    assert discover_images(["disc"]) == (("disc/IMAGES/IM1", "disc/IMAGES/IM2"), ())


def test_dicomdir_finds_files_of_media_that_changed_case(folder: Path) -> None:
    make("disc/images/im1", content=DICOM)
    dicomdir("disc/DICOMDIR", ("IMAGES", "IM1"))
    assert discover_images(["disc/DICOMDIR"]).paths == ("disc/images/im1",)


def test_missing_file_of_a_dicomdir_is_reported(folder: Path) -> None:
    make("disc/IM1", content=DICOM)
    dicomdir("disc/DICOMDIR", ("IM1",), ("IM2",))
    assert discover_images(["disc"]).paths == ("disc/IM1", "disc/IM2")


@pytest.mark.parametrize("part", ["..", "/etc/passwd", "C:", "A\\\\B", ""])
@pytest.mark.filterwarnings("ignore")  # pydicom warns of such values
def test_dicomdir_that_lists_a_file_outside_its_folder_is_unreadable(folder: Path, part: str) -> None:
    make("IM1", content=DICOM)
    dicomdir("disc/DICOMDIR", (part, "IM1"))
    assert discover_images(["disc/DICOMDIR"]).paths == ("disc/DICOMDIR",)


def test_dicomdir_on_media_that_changed_case_lists_each_image_once(folder: Path) -> None:
    make("disc/images/im1", "disc/images/im2", content=DICOM)
    dicomdir("disc/dicomdir", ("IMAGES", "IM1"), ("IMAGES", "IM2"))
    assert discover_images(["disc"]).paths == ("disc/images/im1", "disc/images/im2")


def test_folders_of_a_dicomdir_are_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(*(f"disc/images/im{i}" for i in range(50)), content=DICOM)
    dicomdir("disc/DICOMDIR", *(("IMAGES", f"IM{i}") for i in range(50)))
    listed = []
    original = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(path) or original(path))
    assert len(discover_images(["disc/DICOMDIR"]).paths) == 50
    assert len(listed) == 2


def test_huge_dicomdir_is_not_parsed(folder: Path) -> None:
    dicomdir("disc/DICOMDIR", ("IM1",))
    path = Path("disc/DICOMDIR")
    with path.open("r+b") as file:
        file.truncate(2**26 + 1)  # sparse
    assert discover_images(["disc/DICOMDIR"]).paths == ("disc/DICOMDIR",)


def test_broken_link_is_skipped_unless_it_is_named_like_an_image(folder: Path) -> None:
    make("images/a.png")
    Path("images/README").symlink_to("gone")
    Path("images/b.png").symlink_to("gone")
    assert discover_images(["images"]) == (
        ("images/a.png", "images/b.png"), (SkippedFile("images/README", "a broken link"),),
    )  # fmt: skip


def test_damaged_dicomdir_is_unreadable(folder: Path) -> None:
    dicomdir("disc/DICOMDIR", ("IM1",))
    path = Path("disc/DICOMDIR")
    path.write_bytes(path.read_bytes()[:250])
    assert discover_images(["disc"]).paths == ("disc/DICOMDIR",)


def test_pipe_is_skipped_without_waiting(folder: Path) -> None:
    make("images/a.png")
    os.mkfifo("images/pipe")
    assert discover_images(["images"]) == (
        ("images/a.png",),
        (SkippedFile("images/pipe", "not a regular file"),),
    )


def test_unlistable_folder_is_returned_as_an_unreadable_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("images/a.png", "images/closed/b.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert discover_images(["images"]) == (("images/a.png", "images/closed"), ())


def test_links_to_folders_are_skipped(folder: Path) -> None:
    make("images/a.png", "elsewhere/b.png")
    Path("images/link").symlink_to("../elsewhere")
    Path("images/round").symlink_to(".")
    assert discover_images(["images"]) == (
        ("images/a.png",),
        (SkippedFile("images/link", "a link to a folder"), SkippedFile("images/round", "a link to a folder")),
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_folder_one_at_a_time_has_the_same_images_in_the_same_order(tmp_path: Path, seed: int) -> None:
    """Random trees, with names that sort differently as paths and as parts."""
    draw = random.Random(seed)
    folders = [tmp_path / "root"]
    for _ in range(8):
        folders.append(draw.choice(folders) / draw.choice(["a", "a.b", "a b", "A", ".h", "b-", "\udcff"]))
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        for name in draw.sample(["a.png", "a", "a-1.png", "a.b", "note.txt", ".x.png", "z.jpg", "\udcfe.png"], 4):
            with contextlib.suppress(OSError):
                (folder / name).write_bytes(draw.choice([png(100), b"text"]))
    if seed % 2:
        (folders[0] / "link").symlink_to(folders[-1])
        (folders[0] / "broken.png").symlink_to(folders[0] / "nowhere")
    expected = discover_images([str(folders[0])])
    found = list(iter_folder(str(folders[0])))
    assert [path for path, reason in found if not reason] == list(expected.paths)
    assert sorted((path, reason) for path, reason in found if reason) == list(expected.skipped)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_a_folder_one_at_a_time_follows_a_dicomdir(tmp_path: Path) -> None:
    for name in ("a/1.dcm", "a/.2.dcm", "a/3.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text" if name.endswith("txt") else dicom(100))
    dicomdir(f"{tmp_path}/DICOMDIR", ("A", "1.DCM"), ("a", ".2.dcm"), ("a", "3.txt"), ("a", "4.dcm"))
    found = [path for path, reason in iter_folder(str(tmp_path)) if not reason]
    assert sorted(found) == sorted(discover_images([str(tmp_path)]).paths)
    assert len(found) == 4
