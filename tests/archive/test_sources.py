"""Images of folders, lists, manifests and Parquet files, in a fixed order."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.images import png

from pneumoscope.archive.readers import LocalReader
from pneumoscope.archive.sources import open_source
from pneumoscope.core.errors import ManifestError, UnreadableImageError, UsageError
from pneumoscope.inference.discovery import discover_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/1.png", "a.png", "b.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(100))
    (tmp_path / "images" / "notes.txt").write_text("nothing")
    return tmp_path / "images"


def names(location: Path, **options: str) -> list[str]:
    return [image.name for image in open_source(str(location), **options).images()]


def test_a_folder_has_the_images_that_predict_finds(folder: Path) -> None:
    source = open_source(str(folder))
    found = [image.name for image in source.images()]

    assert found == ["a.png", "b/1.png", "b/2.png", "b.png"]
    assert [str(folder / name) for name in found] == list(discover_images([str(folder)]).paths)
    assert [(Path(path).name, reason) for path, reason in source.skipped] == [("notes.txt", "not an image")]


def test_an_image_has_its_size_and_its_time(folder: Path) -> None:
    os.utime(folder / "a.png", ns=(5, 1_234_567_891_000_000_123))
    image = next(open_source(str(folder)).images())
    assert image == ("a.png", len(png(100)), 1_234_567_891_000_000_123)


def test_a_list_keeps_its_order_and_names_that_are_not_valid_text(folder: Path) -> None:
    (folder / "paths.txt").write_bytes(b"b/2.png\r\n\nmissing.png\na.png\n\xff.png\nb/2.png\n")
    source = open_source(str(folder / "paths.txt"))

    assert [image.name for image in source.images()] == ["b/2.png", "missing.png", "a.png", "\udcff.png"]
    assert source.skipped == [("b/2.png", "listed twice")]
    assert [image.size for image in source.images()][1] == -1


def test_a_manifest_lists_the_column_path(folder: Path) -> None:
    (folder / "images.csv").write_text("label,path\nNORMAL,b/1.png\nPNEUMONIA,a.png\n", encoding="utf-8-sig")
    assert names(folder / "images.csv") == ["b/1.png", "a.png"]


def test_a_parquet_file_lists_any_column(folder: Path) -> None:
    pq.write_table(pa.table({"file": ["b.png", None, "a.png"], "path": ["x", "y", "z"]}), folder / "images.parquet")
    assert names(folder / "images.parquet", path_column="file") == ["b.png", "a.png"]


@pytest.mark.parametrize("name", ["images.csv", "images.parquet"])
def test_a_missing_column_names_those_that_exist(folder: Path, name: str) -> None:
    if name.endswith("csv"):
        (folder / name).write_text("file,label\na.png,NORMAL\n")
    else:
        pq.write_table(pa.table({"file": ["a.png"], "label": ["NORMAL"]}), folder / name)
    with pytest.raises(ManifestError, match=r"has no column 'path' \(its columns: file, label\).*--path-column"):
        names(folder / name)


def test_a_damaged_parquet_file_is_reported(folder: Path) -> None:
    (folder / "images.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(ManifestError, match=r"cannot read .*images\.parquet"):
        names(folder / "images.parquet")


def test_a_missing_source_and_a_single_image_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="'nowhere' does not exist"):
        open_source("nowhere")
    with pytest.raises(UsageError, match=r"is an image or a DICOMDIR, not an archive.*pneumoscope predict"):
        open_source(str(folder / "a.png"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://", "the address 's3://' has no bucket"),
        ("https://jane:secret@host/images", "has a user name or password"),
    ],
)
def test_an_address_without_a_bucket_or_with_credentials_is_refused(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        open_source(address)
    assert "secret" not in str(raised.value)


def test_a_reader_notices_a_folder_that_is_no_longer_mounted(tmp_path: Path, folder: Path) -> None:
    assert LocalReader(str(folder)).is_available()
    (tmp_path / "empty").mkdir()
    assert not LocalReader(str(tmp_path / "empty")).is_available()
    assert not LocalReader(str(tmp_path / "missing")).is_available()


def test_a_reader_does_not_open_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UnreadableImageError) as caught:
        LocalReader(str(folder)).read("pipe.png")
    assert caught.value.reason.code == "not_a_regular_file"
