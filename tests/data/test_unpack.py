"""Hostile zips. Each is written here, byte by byte where the library would not write it."""

from __future__ import annotations

import io
import resource
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pneumoscope.core.errors import DownloadError
from pneumoscope.data.unpack import Limits, unpack

Content = str | bytes


def _zip(file: Path, *entries: tuple[str | zipfile.ZipInfo, Content], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return file


def _nothing_but(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_images_arrive_whole_and_litter_does_not(tmp_path: Path) -> None:
    archive = _zip(
        tmp_path / "a.zip",
        ("chest_xray/", ""),
        ("chest_xray/train/NORMAL/a.jpeg", b"image a"),
        ("chest_xray/train/.DS_Store", b"x"),
        ("__MACOSX/chest_xray/._a.jpeg", b"x"),
        ("chest_xray/test/NORMAL/", ""),
    )
    unpack(archive, tmp_path / "images", Limits())
    found = sorted(path.relative_to(tmp_path / "images").as_posix() for path in (tmp_path / "images").rglob("*"))
    assert found == [
        "chest_xray",
        "chest_xray/test",
        "chest_xray/test/NORMAL",
        "chest_xray/train",
        "chest_xray/train/NORMAL",
        "chest_xray/train/NORMAL/a.jpeg",
    ]
    assert (tmp_path / "images/chest_xray/train/NORMAL/a.jpeg").read_bytes() == b"image a"
    _nothing_but(tmp_path, "a.zip", "images")


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:/evil", "C:evil", "..\\evil", "\\\\host\\evil", "a\\b"]
)
def test_a_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = _zip(inner / "a.zip", ("good", b"image"), (name, b"evil"))
    with pytest.raises(
        DownloadError, match=r"a\.zip is refused: .*evil.* leads out|a\.zip is refused: 'a.*b' leads out"
    ):
        unpack(archive, inner / "images", Limits())
    _nothing_but(inner, "a.zip")
    _nothing_but(tmp_path, "inner")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_is_refused(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("images/link")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    archive = _zip(tmp_path / "a.zip", (link, "/etc"), ("images/link/passwd", b"evil"))
    with pytest.raises(DownloadError, match="'images/link' is a link or a device"):
        unpack(archive, tmp_path / "images", Limits())
    _nothing_but(tmp_path, "a.zip")


def test_a_bomb_is_stopped_by_its_ratio(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", ("zeros", bytes(50_000_000)))
    assert archive.stat().st_size < 100_000
    with pytest.raises(DownloadError, match=f"it unpacks to more than {20 * archive.stat().st_size:,} bytes"):
        unpack(archive, tmp_path / "images", Limits())
    _nothing_but(tmp_path, "a.zip")


def test_a_bomb_of_many_files_is_stopped_by_their_sum(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", *((f"{n}", bytes([n]) * 1000) for n in range(11)), method=zipfile.ZIP_STORED)
    unpack(archive, tmp_path / "enough", Limits(bytes=11_000))
    with pytest.raises(DownloadError, match="it unpacks to more than 10,999 bytes"):
        unpack(archive, tmp_path / "images", Limits(bytes=10_999))


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", *((f"{n}", b"") for n in range(4)))
    with pytest.raises(DownloadError, match="it holds 4 files, more than 3"):
        unpack(archive, tmp_path / "images", Limits(files=3))


def test_what_the_header_claims_is_not_believed(tmp_path: Path) -> None:
    """The directory says 10 bytes where 50,000 are."""
    archive = _zip(tmp_path / "a.zip", ("image", bytes(50_000)))
    data = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(magic) + offset, 10)
    archive.write_bytes(data)
    with pytest.raises(DownloadError, match="it is not a sound zip"):
        unpack(archive, tmp_path / "images", Limits())
    _nothing_but(tmp_path, "a.zip")


def _no_zip(data: bytes) -> bytes:
    return b"no zip"


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    place = data.index(b"image") + 10
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [_no_zip, _cut, _flipped])
def test_a_damaged_zip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    archive = _zip(tmp_path / "a.zip", ("name", b"image " * 100), method=zipfile.ZIP_STORED)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DownloadError, match="it is not a sound zip"):
        unpack(archive, tmp_path / "images", Limits())
    _nothing_but(tmp_path, "a.zip")


def test_an_encrypted_or_unusual_entry_is_refused(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", ("image", b"x"), method=zipfile.ZIP_LZMA)
    with pytest.raises(DownloadError, match="'image' is encrypted or compressed in an unusual way"):
        unpack(archive, tmp_path / "images", Limits())
    data = bytearray(_zip(tmp_path / "b.zip", ("image", b"x")).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(DownloadError, match="'image' is encrypted or compressed in an unusual way"):
        unpack(tmp_path / "b.zip", tmp_path / "images", Limits())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["image", "image/below"])
def test_two_entries_for_one_place_are_refused(tmp_path: Path, second: str) -> None:
    archive = _zip(tmp_path / "a.zip", ("image", b"a"), (second, b"b"))
    with pytest.raises(DownloadError, match=f"'{second}' is in it twice"):
        unpack(archive, tmp_path / "images", Limits())


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".images.part").mkdir()
    (tmp_path / ".images.part" / "old").touch()
    unpack(_zip(tmp_path / "a.zip", ("image", b"a")), tmp_path / "images", Limits())
    _nothing_but(tmp_path / "images", "image")
    _nothing_but(tmp_path, "a.zip", "images")


@contextmanager
def _full_disk(most: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system refuses to write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_nothing_half_made(tmp_path: Path) -> None:
    content = io.BytesIO()
    for number in range(40_000):
        content.write(struct.pack("<Q", number * 2654435761))
    archive = _zip(tmp_path / "a.zip", ("small", b"image"), ("large", content.getvalue()))
    with _full_disk(100_000), pytest.raises(OSError, match="File too large"):
        unpack(archive, tmp_path / "images", Limits())
    _nothing_but(tmp_path, "a.zip")
    unpack(archive, tmp_path / "images", Limits())
    assert (tmp_path / "images" / "large").stat().st_size == 320_000
