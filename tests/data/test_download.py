"""Fetching from a server on this machine that cuts, lies, refuses and serves what it should not."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import resource
import threading
import time
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumoscope.core.errors import DownloadError, StorageError, UsageError
from pneumoscope.data.download import KERMANY_2018, Archive, download
from pneumoscope.data.unpack import Limits


def _zipped(*, seed: int = 0, name: str = "chest_xray/train/NORMAL/a.jpeg") -> bytes:
    out = io.BytesIO()
    content = b"".join(hashlib.sha256(f"{seed} {n}".encode()).digest() for n in range(4000))
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr(name, content)
    return out.getvalue()


@dataclasses.dataclass
class Server:
    """What the server does, and what it was asked.

    Attributes:
        data: the file.
        cut: bytes sent before the line is cut, one number a request; whole where the list is used up.
        ranges: answers requests for a part with a part.
        length: what Content-Length claims, if not the truth.
        stall: seconds before each answer, one number a request.
        status: of each answer, if not 200 or 206.
        asked: the Range header of each request.
    """

    data: bytes
    cut: list[int] = dataclasses.field(default_factory=list)
    ranges: bool = True
    length: int | None = None
    stall: list[float] = dataclasses.field(default_factory=list)
    status: list[int] = dataclasses.field(default_factory=list)
    asked: list[str | None] = dataclasses.field(default_factory=list)
    url: str = ""

    def archive(self, **changes: object) -> Archive:
        known = Archive("images.zip", self.url, len(self.data), hashlib.sha256(self.data).hexdigest(), Limits())
        return dataclasses.replace(known, **changes)  # type: ignore[arg-type]


def _handler(server: Server) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.asked.append(asked)
            if server.stall:
                time.sleep(server.stall.pop(0))
            if server.status and (status := server.status.pop(0)):
                self.send_error(status)
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
            if start >= len(server.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = server.data[start:]
            self.send_response(206 if asked and server.ranges else 200)
            if asked and server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(server.data) - 1}/{len(server.data)}")
            self.send_header("Content-Length", str(len(body) if server.length is None else server.length - start))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the asker may have gone
                self.wfile.write(body[: server.cut.pop(0)] if server.cut else body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            return

    return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server(_zipped())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(state)) as listening:
        state.url = f"http://127.0.0.1:{listening.server_address[1]}/file_downloaded"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


def _image(folder: Path) -> bytes:
    return (folder / "images" / "chest_xray" / "train" / "NORMAL" / "a.jpeg").read_bytes()


def _content(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        return zipped.read(zipped.namelist()[0])


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_and_the_measured_hash_arrive(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "folder"
    images = download(folder, server.archive(), progress=lambda done, total: seen.append((done, total)))
    assert images == folder / "images"
    assert _image(folder) == _content(server.data)
    assert _names(folder) == ["images", "images.zip", "images.zip.sha256"]
    assert (folder / "images.zip.sha256").read_text() == f"{hashlib.sha256(server.data).hexdigest()}  images.zip\n"
    assert seen[-1] == (len(server.data), len(server.data))
    assert server.asked == [None]


def test_a_second_call_downloads_nothing_and_still_checks(server: Server, tmp_path: Path) -> None:
    download(tmp_path, server.archive())
    download(tmp_path, server.archive())
    assert server.asked == [None]
    (tmp_path / "images.zip").write_bytes(b"altered")
    with pytest.raises(DownloadError, match=f"images.zip has 7 bytes and should have {len(server.data):,}"):
        download(tmp_path, server.archive())
    assert _names(tmp_path) == ["images"]


def test_a_cut_line_is_resumed_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.cut = [1000, 50_000, 0]
    download(tmp_path, server.archive(), wait=0)
    assert server.asked == [None, "bytes=1000-", "bytes=51000-", "bytes=51000-"]
    assert _image(tmp_path) == _content(server.data)


def test_another_call_resumes_too(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(server.data[:700])
    download(tmp_path, server.archive())
    assert server.asked == ["bytes=700-"]
    assert _image(tmp_path) == _content(server.data)


def test_a_server_without_ranges_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut = False, [1000]
    download(tmp_path, server.archive(), wait=0)
    assert server.asked == [None, "bytes=1000-"]
    assert _image(tmp_path) == _content(server.data)


def test_a_line_that_is_always_cut_is_given_up_and_kept(server: Server, tmp_path: Path) -> None:
    server.cut = [500, *[0] * 20]
    with pytest.raises(DownloadError, match=r"brought nothing in 5 tries in a row \(.*\); 500 bytes are there"):
        download(tmp_path, server.archive(), wait=0)
    assert (tmp_path / "images.zip.part").read_bytes() == server.data[:500]
    assert len(server.asked) == 6


def test_no_server_is_given_up(tmp_path: Path) -> None:
    archive = Archive("images.zip", "http://127.0.0.1:9/images.zip", None, None, Limits())
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/images.zip brought nothing in 5 tries .*refused"):
        download(tmp_path, archive, wait=0)


def test_waits_grow_between_tries(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("pneumoscope.data.download.time.sleep", waits.append)
    server.status = [503, 429, 500]
    download(tmp_path, server.archive(), wait=0.25)
    assert waits == [0.5, 1.0, 2.0]


def test_a_server_that_says_nothing_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pneumoscope.data.download._TIMEOUT", 0.2)
    server.stall = [0.6]
    download(tmp_path, server.archive(), wait=0)
    assert server.asked == [None, None]
    assert _image(tmp_path) == _content(server.data)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_file_that_is_not_there_is_not_asked_for_again(server: Server, tmp_path: Path, status: int) -> None:
    server.status = [status]
    with pytest.raises(DownloadError, match=f"answers HTTP {status}"):
        download(tmp_path, server.archive())
    assert len(server.asked) == 1


def test_the_connection_of_a_refusal_is_closed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    close = urllib.error.HTTPError.close

    def spy(error: urllib.error.HTTPError) -> None:
        closed.append(error.code)
        close(error)

    monkeypatch.setattr(urllib.error.HTTPError, "close", spy)
    server.status = [503, 404]
    with pytest.raises(DownloadError, match="answers HTTP 404"):
        download(tmp_path, server.archive(), wait=0)
    assert closed[:2] == [503, 404]


def test_a_length_that_is_too_long_does_not_matter_where_the_size_is_known(server: Server, tmp_path: Path) -> None:
    server.length = len(server.data) + 5000
    download(tmp_path, server.archive(), wait=0)
    assert _image(tmp_path) == _content(server.data)


def test_a_length_that_is_too_long_ends_where_the_server_says_so(server: Server, tmp_path: Path) -> None:
    server.length = len(server.data) + 5000
    download(tmp_path, server.archive(size=None, sha256=None), wait=0)
    assert server.asked == [None, f"bytes={len(server.data)}-"]
    assert _image(tmp_path) == _content(server.data)


def test_a_length_that_is_too_short_is_resumed(server: Server, tmp_path: Path) -> None:
    server.length = 1000
    server.cut = [1000]
    archive = server.archive()

    def honest(done: int, total: int | None) -> None:
        server.length = None

    download(tmp_path, archive, wait=0, progress=honest)
    assert server.asked == [None, "bytes=1000-"]
    assert _image(tmp_path) == _content(server.data)


def test_more_than_there_should_be_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="sends more than 1,000 bytes"):
        download(tmp_path, server.archive(size=1000))
    with pytest.raises(DownloadError, match="sends more than 2,000 bytes"):
        download(tmp_path, server.archive(size=None, limits=Limits(bytes=2000)))


def test_more_bytes_than_the_server_has_are_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(bytes(len(server.data) + 1))
    with pytest.raises(DownloadError, match=f"has fewer than the {len(server.data) + 1:,} bytes that were downloaded"):
        download(tmp_path, server.archive(size=None, sha256=None))
    assert not list(tmp_path.iterdir())
    download(tmp_path, server.archive())


def test_a_whole_part_needs_no_more_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / "images.zip.part").write_bytes(server.data)
    download(tmp_path, server.archive())
    assert server.asked == [f"bytes={len(server.data)}-"]
    assert _image(tmp_path) == _content(server.data)


def test_an_altered_file_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    right = server.archive()
    server.data = _zipped(seed=1)
    found = hashlib.sha256(server.data).hexdigest()
    with pytest.raises(DownloadError, match=f"images.zip has the SHA-256 {found} and should have {right.sha256}"):
        download(tmp_path, right)
    assert _names(tmp_path) == []


def test_a_file_that_changes_after_the_first_download_is_refused(server: Server, tmp_path: Path) -> None:
    unknown = server.archive(size=None, sha256=None)
    download(tmp_path, unknown)
    (tmp_path / "images.zip").write_bytes(_zipped(seed=1))
    with pytest.raises(DownloadError, match=f"had when it was downloaded {hashlib.sha256(server.data).hexdigest()}"):
        download(tmp_path, unknown)


def test_a_hostile_zip_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.data = _zipped(name="../../evil")
    folder = tmp_path / "a" / "b"
    with pytest.raises(DownloadError, match=r"images.zip is refused: '../../evil' leads out of the folder"):
        download(folder, server.archive())
    assert _names(folder) == []
    assert _names(tmp_path) == ["a"]


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.zip", "images.zip"])
def test_another_kind_of_address_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match=f"'{url}' is neither an http nor an https address"):
        download(tmp_path, Archive("images.zip", url, None, None, Limits()))


def test_a_full_disk_while_downloading_keeps_what_is_there(server: Server, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot write in .*: File too large"):
            download(tmp_path, server.archive())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert _names(tmp_path) == ["images.zip.part"]
    download(tmp_path, server.archive())
    assert _image(tmp_path) == _content(server.data)


def test_a_folder_that_cannot_be_made_is_a_storage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(StorageError, match=r"cannot write in .*taken"):
        download(tmp_path / "taken", server.archive())


def test_the_public_archive_is_named_by_its_record() -> None:
    assert "/datasets/rscbjbr9sj/" in KERMANY_2018.url
    assert KERMANY_2018.url.startswith("https://data.mendeley.com/")
    assert KERMANY_2018.sha256 is not None
    assert len(bytes.fromhex(KERMANY_2018.sha256)) == 32
