"""Downloads from a local server that misbehaves, and hostile zip files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import resource
import stat
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pneumoscope.core.errors import DownloadError, StorageError, UsageError
from pneumoscope.data.download import KERMANY_2018, Archive, Limits, download, unpack


def zip_bytes(*, seed: int = 0, name: str = "chest_xray/train/NORMAL/a.jpeg") -> bytes:
    out = io.BytesIO()
    content = b"".join(hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(4000))
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr(name, content)
    return out.getvalue()


@dataclasses.dataclass
class Server:
    """Behavior of the server, and the requests that it received.

    Attributes:
        data: the file.
        cut: bytes sent before the connection is closed, one number for each request; then whole answers.
        ranges: supports Range requests.
        length: replaces the right Content-Length.
        stall: seconds before each answer, one number for each request.
        status: of each answer, if not 200 or 206.
        requests: the Range header of each request.
    """

    data: bytes
    cut: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    length: int | None = None
    stall: list[float] = dataclasses.field(default_factory=list)
    status: list[int] = dataclasses.field(default_factory=list)
    requests: list[str | None] = dataclasses.field(default_factory=list)
    url: str = ""

    def archive(self, **changes: object) -> Archive:
        known = Archive("images.zip", self.url, len(self.data), hashlib.sha256(self.data).hexdigest(), Limits())
        return dataclasses.replace(known, **changes)  # type: ignore[arg-type]


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.requests.append(wanted)
            if server.stall:
                time.sleep(server.stall.pop(0))
            if server.status and (status := server.status.pop(0)):
                self.send_error(status)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
            if start >= len(server.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = server.data[start:]
            self.send_response(206 if wanted and server.ranges else 200)
            if wanted and server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
            self.send_header("Content-Length", str(len(body) if server.length is None else server.length - start))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have gone
                self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(zip_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as listening:
        state.url = f"http://127.0.0.1:{listening.server_address[1]}/file_downloaded"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join(60)


def image(folder: Path) -> bytes:
    return (folder / "images" / "chest_xray" / "train" / "NORMAL" / "a.jpeg").read_bytes()


def content(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        return zipped.read(zipped.namelist()[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Refuse to let a file grow beyond `most` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- download --------------------------------------------------------------------------------------------------------


def test_download_unpacks_the_images_and_reports_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    images = download(folder, server.archive(), progress=lambda done, total: seen.append((done, total)))
    assert images == folder / "images"
    assert image(folder) == content(server.data)
    assert names(folder) == ["images", "images.zip"]
    assert seen[-1] == (len(server.data), len(server.data))
    assert len(seen) > 1
    assert server.requests == [None]


def test_second_download_requests_nothing_but_verifies_the_archive(server: Server, tmp_path: Path) -> None:
    download(tmp_path, server.archive())
    download(tmp_path, server.archive())
    assert server.requests == [None]
    (tmp_path / "images.zip").write_bytes(b"altered")
    found = hashlib.sha256(b"altered").hexdigest()
    with pytest.raises(DownloadError, match=f"has the SHA-256 {found}, expected {server.archive().sha256}"):
        download(tmp_path, server.archive())
    assert (tmp_path / "images.zip").read_bytes() == b"altered", "a file of the user is never overwritten"


def test_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.cut = [1000, 50_000, 0]
    download(tmp_path, server.archive(), wait=0)
    assert server.requests == [None, "bytes=1000-", "bytes=51000-", "bytes=51000-"]
    assert image(tmp_path) == content(server.data)
    assert names(tmp_path) == ["images", "images.zip"]


def test_later_call_resumes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(server.data[:700])
    download(tmp_path, server.archive())
    assert server.requests == ["bytes=700-"]
    assert image(tmp_path) == content(server.data)


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut = False, [1000]
    download(tmp_path, server.archive(), wait=0)
    assert server.requests == [None, "bytes=1000-"]
    assert image(tmp_path) == content(server.data)


def test_download_gives_up_after_5_attempts_without_a_byte(server: Server, tmp_path: Path) -> None:
    server.cut = [500, *[0] * 20]
    with pytest.raises(DownloadError, match=r"sent nothing in 5 consecutive attempts \(.*\); 500 bytes are kept"):
        download(tmp_path, server.archive(), wait=0)
    assert (tmp_path / "images.zip.part").read_bytes() == server.data[:500]
    assert len(server.requests) == 6


def test_unreachable_server_is_an_error(tmp_path: Path) -> None:
    archive = Archive("images.zip", "http://127.0.0.1:9/images.zip", None, None, Limits())
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/images.zip sent nothing in 5 .*refused"):
        download(tmp_path, archive, wait=0)


def test_waits_double_between_attempts(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("pneumoscope.data.download.time.sleep", waits.append)
    server.status = [503, 429, 500]
    download(tmp_path, server.archive(), wait=0.25)
    assert waits == [0.5, 1.0, 2.0]


def test_silent_server_times_out_and_is_retried(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pneumoscope.data.download._TIMEOUT", 2)  # which the second answer must not take
    server.stall = [4]
    download(tmp_path, server.archive(), wait=0)
    assert server.requests == [None, None]
    assert image(tmp_path) == content(server.data)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_client_errors_are_not_retried(server: Server, tmp_path: Path, status: int) -> None:
    server.status = [status]
    with pytest.raises(DownloadError, match=f"answers HTTP {status}"):
        download(tmp_path, server.archive())
    assert len(server.requests) == 1


@pytest.mark.parametrize("known", [True, False])
def test_content_length_that_is_too_long_does_no_harm(server: Server, tmp_path: Path, known: bool) -> None:
    server.length = len(server.data) + 5000
    archive = server.archive() if known else server.archive(size=None, sha256=None)
    download(tmp_path, archive, wait=0)
    assert image(tmp_path) == content(server.data)


def test_content_length_that_is_too_short_is_resumed(server: Server, tmp_path: Path) -> None:
    server.length, server.cut = 1000, [1000]

    def correct_length(done: int, total: int | None) -> None:
        server.length = None

    download(tmp_path, server.archive(), wait=0, progress=correct_length)
    assert server.requests == [None, "bytes=1000-"]
    assert image(tmp_path) == content(server.data)


def test_body_beyond_the_size_limit_is_rejected(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="sends more than 1,000 bytes"):
        download(tmp_path, server.archive(size=1000))
    with pytest.raises(DownloadError, match="sends more than 2,000 bytes"):
        download(tmp_path, server.archive(size=None, limits=Limits(bytes=2000)))
    assert names(tmp_path) == []


def test_part_longer_than_the_servers_file_is_discarded(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(bytes(len(server.data) + 1))
    download(tmp_path, server.archive(size=None, sha256=None), wait=0)
    assert server.requests == [f"bytes={len(server.data) + 1}-", None]
    assert image(tmp_path) == content(server.data)


@pytest.mark.parametrize(("known", "requests"), [(True, 0), (False, 1)])
def test_complete_part_is_not_downloaded_again(server: Server, tmp_path: Path, known: bool, requests: int) -> None:
    (tmp_path / "images.zip.part").write_bytes(server.data)
    download(tmp_path, server.archive() if known else server.archive(size=None, sha256=None))
    assert server.requests == [f"bytes={len(server.data)}-"] * requests
    assert image(tmp_path) == content(server.data)


def test_archive_with_another_hash_is_rejected_and_removed(server: Server, tmp_path: Path) -> None:
    right = server.archive()
    server.data = zip_bytes(seed=1)
    found = hashlib.sha256(server.data).hexdigest()
    with pytest.raises(DownloadError, match=f"expected {right.sha256} but got {found}"):
        download(tmp_path, right)
    assert names(tmp_path) == []
    assert len(server.requests) == 1


def test_hash_of_the_first_download_is_kept_where_none_is_known(server: Server, tmp_path: Path) -> None:
    unknown = server.archive(size=None, sha256=None)
    download(tmp_path, unknown)
    first = hashlib.sha256(server.data).hexdigest()
    assert (tmp_path / "images.zip.sha256").read_text() == f"{first}  images.zip\n"
    (tmp_path / "images.zip").write_bytes(zip_bytes(seed=1))
    with pytest.raises(DownloadError, match=f"expected {first}"):
        download(tmp_path, unknown)


def test_hostile_archive_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    server.data = zip_bytes(name="../../evil")
    folder = tmp_path / "a" / "b"
    with pytest.raises(DownloadError, match=r"images.zip was rejected: '../../evil' is outside the folder"):
        download(folder, server.archive())
    assert names(folder) == []
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.zip", "images.zip"])
def test_only_http_and_https_are_accepted(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match=f"'{url}' is neither an http nor an https address"):
        download(tmp_path, Archive("images.zip", url, None, None, Limits()))


def test_full_disk_keeps_the_bytes_downloaded_so_far(server: Server, tmp_path: Path) -> None:
    with full_disk(100_000), pytest.raises(StorageError, match=r"cannot write to .*: File too large"):
        download(tmp_path, server.archive())
    assert names(tmp_path) == ["images.zip.part"]
    download(tmp_path, server.archive())
    assert len(server.requests) == 2
    assert server.requests[1] != "bytes=0-"
    assert image(tmp_path) == content(server.data)


def test_folder_that_cannot_be_created_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match=r"cannot write to .*taken"):
        download(tmp_path / "taken", server.archive())


def test_public_archive_has_an_address_and_a_hash() -> None:
    assert KERMANY_2018.url.startswith("https://data.mendeley.com/")
    assert "/datasets/rscbjbr9sj/" in KERMANY_2018.url
    assert KERMANY_2018.sha256 is not None
    assert len(bytes.fromhex(KERMANY_2018.sha256)) == 32


# --- unpack: hostile zip files, some written byte by byte because zipfile would not write them -----------------------


def write_zip(
    file: Path, *entries: tuple[str | zipfile.ZipInfo, str | bytes], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(file, "w", method) as zipped:
        for name, data in entries:
            zipped.writestr(name, data)
    return file


def test_unpack_writes_all_files_except_metadata_of_operating_systems(tmp_path: Path) -> None:
    archive = write_zip(
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
    assert names(tmp_path) == ["a.zip", "images"]


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "C:/evil", "C:evil", "..\\evil", "\\\\host\\evil", "a\\evil"]
)
def test_path_outside_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = write_zip(inner / "a.zip", ("good", b"image"), (name, b"evil"))
    with pytest.raises(DownloadError, match=r"a\.zip was rejected: .*evil' is outside the folder"):
        unpack(archive, inner / "images", Limits())
    assert names(inner) == ["a.zip"]
    assert names(tmp_path) == ["inner"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_link_or_device_is_rejected(tmp_path: Path, kind: int) -> None:
    link = zipfile.ZipInfo("images/link")
    link.create_system = 3
    link.external_attr = (kind | 0o777) << 16
    archive = write_zip(tmp_path / "a.zip", (link, "/etc"), ("images/link/passwd", b"evil"))
    with pytest.raises(DownloadError, match="'images/link' is a link or a device"):
        unpack(archive, tmp_path / "images", Limits())
    assert names(tmp_path) == ["a.zip"]


def test_zip_bomb_is_stopped_by_the_compression_ratio(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", ("zeros", bytes(50_000_000)))
    assert archive.stat().st_size < 100_000
    with pytest.raises(DownloadError, match=f"it unpacks to more than {20 * archive.stat().st_size:,} bytes"):
        unpack(archive, tmp_path / "images", Limits())
    assert names(tmp_path) == ["a.zip"]


def test_size_limit_counts_all_files_together(tmp_path: Path) -> None:
    archive = write_zip(
        tmp_path / "a.zip", *((f"{n}", bytes([n]) * 1000) for n in range(11)), method=zipfile.ZIP_STORED
    )
    unpack(archive, tmp_path / "enough", Limits(bytes=11_000))
    with pytest.raises(DownloadError, match="it unpacks to more than 10,999 bytes"):
        unpack(archive, tmp_path / "images", Limits(bytes=10_999))


def test_too_many_files_are_rejected(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", *((f"{n}", b"") for n in range(4)))
    with pytest.raises(DownloadError, match="it holds 4 files, more than 3"):
        unpack(archive, tmp_path / "images", Limits(files=3))


def test_size_stated_in_the_header_is_not_trusted(tmp_path: Path) -> None:
    """The header says 10 bytes; the file has 50,000."""
    archive = write_zip(tmp_path / "a.zip", ("image", bytes(50_000)))
    data = bytearray(archive.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", data, data.index(magic) + offset, 10)
    archive.write_bytes(data)
    with pytest.raises(DownloadError, match="not a valid zip file"):
        unpack(archive, tmp_path / "images", Limits())
    assert names(tmp_path) == ["a.zip"]


def no_zip(data: bytes) -> bytes:
    return b"no zip"


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def one_byte_changed(data: bytes) -> bytes:
    place = data.index(b"image") + 10
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [no_zip, truncated, one_byte_changed])
def test_damaged_zip_is_rejected(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    archive = write_zip(tmp_path / "a.zip", ("name", b"image " * 100), method=zipfile.ZIP_STORED)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DownloadError, match="not a valid zip file"):
        unpack(archive, tmp_path / "images", Limits())
    assert names(tmp_path) == ["a.zip"]


def test_encrypted_or_unsupported_entry_is_rejected(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", ("image", b"x"), method=zipfile.ZIP_LZMA)
    with pytest.raises(DownloadError, match="'image' is encrypted or compressed by an unsupported method"):
        unpack(archive, tmp_path / "images", Limits())
    data = bytearray(write_zip(tmp_path / "b.zip", ("image", b"x")).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(DownloadError, match="'image' is encrypted or compressed by an unsupported method"):
        unpack(tmp_path / "b.zip", tmp_path / "images", Limits())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["image", "image/below"])
def test_duplicate_names_are_rejected(tmp_path: Path, second: str) -> None:
    archive = write_zip(tmp_path / "a.zip", ("image", b"a"), (second, b"b"))
    with pytest.raises(DownloadError, match=f"'{second}' is a duplicate name"):
        unpack(archive, tmp_path / "images", Limits())


def test_leftovers_of_a_killed_process_are_replaced(tmp_path: Path) -> None:
    (tmp_path / ".images.part").mkdir()
    (tmp_path / ".images.part" / "old").touch()
    unpack(write_zip(tmp_path / "a.zip", ("image", b"a")), tmp_path / "images", Limits())
    assert names(tmp_path / "images") == ["image"]
    assert names(tmp_path) == ["a.zip", "images"]


def test_full_disk_while_unpacking_leaves_nothing_half_written(tmp_path: Path) -> None:
    large = b"".join(struct.pack("<Q", number * 2654435761) for number in range(40_000))
    archive = write_zip(tmp_path / "a.zip", ("small", b"image"), ("large", large))
    with full_disk(100_000), pytest.raises(OSError, match="File too large"):
        unpack(archive, tmp_path / "images", Limits())
    assert names(tmp_path) == ["a.zip"]
    unpack(archive, tmp_path / "images", Limits())
    assert (tmp_path / "images" / "large").stat().st_size == 320_000
