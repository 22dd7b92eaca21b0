"""S3, of moto's server on the loopback interface, which may answer 503; and a web server."""

from __future__ import annotations

import functools
import http.server
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.archive.archives import contents, draw_images, run_cli, score_command, table
from tests.images import png

pytest.importorskip("moto", reason="moto is not installed (the extra [dev])")
pytest.importorskip("s3fs", reason="s3fs is not installed (the extra [archive])")

import fsspec

from pneumoscope.archive import readers
from pneumoscope.archive.readers import RemoteReader
from pneumoscope.archive.score import Scored, score_archive
from pneumoscope.archive.sources import open_source
from pneumoscope.archive.verify import verify_archive
from pneumoscope.core.errors import StorageError, UnreadableImageError

# boto's clients leave sockets and use deprecated functions.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class FlakyStore:
    """A server of S3 that answers 503 to some requests for objects.

    Attributes:
        is_busy: Decides by the path of a request whether it is answered 503.
        requests: Paths of the requests for objects.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.is_busy: Callable[[str], bool] = lambda path: False
        self.requests: list[str] = []
        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environment: dict[str, Any], start_response: Any) -> Any:
        path = environment["PATH_INFO"]
        if environment["REQUEST_METHOD"] in {"GET", "HEAD"} and path.count("/") > 1:
            self.requests.append(path)
            if self.is_busy(path):
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"]
        return self._application(environment, start_response)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    server = FlakyStore()
    for name, value in {
        "AWS_ENDPOINT_URL": server.address,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(readers, "_DELAYS", (0.0, 0.0))
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    forget_clients()
    reset = urllib.request.Request(
        f"{server.address}/moto-api/reset", method="POST"
    )  # moto's state is that of the process
    urllib.request.urlopen(reset, timeout=10).close()
    yield server
    server.close()
    forget_clients()


def forget_clients() -> None:
    readers.file_system.cache_clear()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def bucket(store: FlakyStore, tmp_path: Path) -> str:
    """A bucket with the images of a folder, below a prefix."""
    system = fsspec.filesystem("s3")
    system.mkdir("archive")
    for path in draw_images(tmp_path / "images", 11).iterdir():
        system.pipe_file(f"archive/chest/{path.name}", path.read_bytes())
    system.pipe_file("archive/elsewhere.png", png(100))
    forget_clients()
    return "s3://archive/chest"


def score_bucket(source: str, out: Path, bundle: Path) -> Scored:
    return score_archive(open_source(source), out, model={"bundle": bundle}, shard_size=4, workers=1)


def test_a_bucket_has_the_predictions_of_a_folder(tmp_path: Path, bucket: str, bundle: Path) -> None:
    score_bucket(bucket, tmp_path / "out", bundle)
    score_archive(open_source(str(tmp_path / "images")), tmp_path / "local", model={"bundle": bundle}, shard_size=4)
    assert table(tmp_path / "out") == table(tmp_path / "local")


def test_objects_are_images_by_name_or_content(tmp_path: Path, bucket: str, store: FlakyStore) -> None:
    system = fsspec.filesystem("s3")
    for name, content in {
        "notes.txt": b"nothing",
        "unnamed": png(90),
        "a/.hidden.png": png(90),
        "text.jpg": b"text",
        "empty.png": b"",
    }.items():
        system.pipe_file(f"archive/chest/{name}", content)
    forget_clients()
    store.requests.clear()
    source = open_source(bucket)
    images = list(source.images())
    assert [(image.name, image.size) for image in images[-3:-1]] == [("empty.png", 0), ("text.jpg", 4)]
    assert images[-1].name == "unnamed"
    assert len(images) == 14
    assert sorted(source.skipped) == [("a/.hidden.png", "hidden"), ("notes.txt", "not an image")]
    assert {path.rpartition("/")[2] for path in store.requests} == {"notes.txt", "unnamed"}  # no other object is read


def test_only_new_and_changed_objects_are_scored_by_the_next_run(tmp_path: Path, bucket: str, bundle: Path) -> None:
    score_bucket(bucket, tmp_path / "out", bundle)
    forget_clients()
    system = fsspec.filesystem("s3")
    system.pipe_file("archive/chest/0900.png", png(120))
    system.pipe_file("archive/chest/0003.png", png(199, height=40))
    forget_clients()
    assert score_bucket(bucket, tmp_path / "out", bundle).rows == 13
    assert [row["source"] for row in table(tmp_path / "out")[11:]] == ["0003.png", "0900.png"]


def test_answers_503_are_repeated_and_change_nothing(
    tmp_path: Path, bucket: str, store: FlakyStore, bundle: Path
) -> None:
    score_bucket(bucket, tmp_path / "undisturbed", bundle)
    forget_clients()
    seen: set[str] = set()

    def busy_once(path: str) -> bool:
        is_first = path not in seen
        seen.add(path)
        return is_first

    store.is_busy = busy_once
    assert score_bucket(bucket, tmp_path / "out", bundle).failed == 0
    assert len(seen) == 11
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_bucket_that_keeps_answering_503_stops_the_run_and_no_image_is_lost(
    tmp_path: Path, bucket: str, store: FlakyStore, bundle: Path
) -> None:
    score_bucket(bucket, tmp_path / "undisturbed", bundle)
    forget_clients()
    store.is_busy = lambda path: path.endswith("0006.png")
    with pytest.raises(
        StorageError, match=r"the source 's3://archive/chest' does not answer: .*Finished shards are kept"
    ):
        score_bucket(bucket, tmp_path / "out", bundle)
    assert verify_archive(tmp_path / "out").found == 4
    forget_clients()
    store.is_busy = lambda path: False
    score_bucket(bucket, tmp_path / "out", bundle)
    assert verify_archive(tmp_path / "out").problems == ()
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_an_object_that_is_deleted_is_a_row_and_a_deleted_bucket_is_not(tmp_path: Path, bucket: str) -> None:
    reader = RemoteReader(bucket)
    with pytest.raises(UnreadableImageError) as caught:
        reader.read("missing.png")
    assert caught.value.reason.code == "file_not_found"
    assert reader.is_available()
    assert not RemoteReader("s3://no-such-bucket/x").is_available()
    with pytest.raises(StorageError, match="cannot list 's3://no-such-bucket/x'"):
        list(RemoteReader("s3://no-such-bucket/x").images())


def test_the_command_scores_a_bucket(tmp_path: Path, bucket: str, bundle: Path) -> None:
    done = run_cli(
        *score_command(Path(bucket), tmp_path / "x", bundle)[4:5], bucket, "--out", tmp_path / "out", "--model", bundle
    )
    assert done.returncode == 0, done.stderr
    assert len(table(tmp_path / "out")) == 11


def test_a_web_server_that_states_no_size_or_a_small_one_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to HEAD states no size, or 7 bytes; the answer to GET goes on and on."""
    monkeypatch.setattr(readers, "MAX_BYTES", 1000)
    monkeypatch.setattr("pneumoscope.imaging.decode.MAX_BYTES", 1000)
    sent = 0

    class Endless(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            if "stated" in self.path:
                self.send_header("Content-Length", "7")
            self.end_headers()

        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(10_000):
                    self.wfile.write(bytes(65_536))
                    sent += 65_536
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for name in ("stated.png", "unknown.png"):
            with pytest.raises(UnreadableImageError) as caught:
                RemoteReader(f"http://127.0.0.1:{server.server_port}/images").read(name)
            assert caught.value.reason is not None
            assert caught.value.reason.code == "file_too_large"
        server.shutdown()
        thread.join(10)
    assert sent < 50_000_000  # of 650 MB for each; buffers of the sockets hold some


def test_an_empty_object_is_unreadable_and_costs_nothing_else(tmp_path: Path, bucket: str, bundle: Path) -> None:
    fsspec.filesystem("s3").pipe_file("archive/chest/0005.png", b"")
    forget_clients()
    assert score_bucket(bucket, tmp_path / "out", bundle).failed == 1
    assert table(tmp_path / "out")[5]["failure_reason"] == "empty_file"


def test_a_web_server_with_an_index_is_a_source(tmp_path: Path, bundle: Path) -> None:
    draw_images(tmp_path / "images", 5)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        score_bucket(f"http://127.0.0.1:{server.server_port}/images", tmp_path / "out", bundle)
        server.shutdown()
        thread.join(10)
    score_archive(open_source(str(tmp_path / "images")), tmp_path / "local", model={"bundle": bundle}, shard_size=4)
    assert [row["sha256"] for row in table(tmp_path / "out")] == [row["sha256"] for row in table(tmp_path / "local")]
