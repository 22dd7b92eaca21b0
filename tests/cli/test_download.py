"""`pneumoscope download`, from a local HTTP server."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pneumoscope.cli.download import command
from pneumoscope.core.errors import DownloadError, UsageError


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A served ZIP archive: its path and the URL of its folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    with zipfile.ZipFile(folder / "more images.zip", "w") as zipped:
        zipped.writestr("chest_xray/train/NORMAL/a.jpeg", b"image")
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder / "more images.zip", f"http://127.0.0.1:{listening.server_address[1]}"
        listening.shutdown()
        thread.join(60)


def test_prints_the_folder_of_the_images(served: tuple[Path, str], tmp_path: Path) -> None:
    result = _run(tmp_path / "data", "--from", f"{served[1]}/more%20images.zip?download=1")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'data' / 'more20images'}\n"
    assert result.stderr == ""
    assert (tmp_path / "data/more20images/chest_xray/train/NORMAL/a.jpeg").read_bytes() == b"image"


def test_archive_is_verified_by_the_given_hash(served: tuple[Path, str], tmp_path: Path) -> None:
    address = f"{served[1]}/more%20images.zip"
    sha256 = hashlib.sha256(served[0].read_bytes()).hexdigest()
    assert _run(tmp_path / "a", "--from", address, "--sha256", sha256.upper()).exit_code == 0
    result = _run(tmp_path / "b", "--from", address, "--sha256", "0" * 64)
    assert isinstance(result.exception, DownloadError)
    assert f"expected {'0' * 64} but got {sha256}" in str(result.exception)
    assert list((tmp_path / "b").iterdir()) == []


def test_missing_archive_and_unsupported_scheme_are_errors(served: tuple[Path, str], tmp_path: Path) -> None:
    result = _run(tmp_path / "data", "--from", f"{served[1]}/gone.zip")
    assert isinstance(result.exception, DownloadError)
    assert "gone.zip answers HTTP 404" in str(result.exception)
    result = _run(tmp_path / "data", "--from", "file:///images.zip")
    assert isinstance(result.exception, UsageError)
