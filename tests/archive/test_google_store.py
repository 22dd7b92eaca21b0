"""`gs://`, of an emulator on the loopback interface. Neither package is in [dev], since both bring many others."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.archive.archives import draw_images, table
from tests.processes import free_port

from pneumoscope.archive import readers
from pneumoscope.archive.score import score_archive
from pneumoscope.archive.sources import open_source
from pneumoscope.core.errors import UnreadableImageError, UsageError

# The clients leave sockets, and use deprecated functions.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket with the images of a folder, below a prefix."""
    pytest.importorskip(
        "gcp_storage_emulator", reason="gcp-storage-emulator is not installed (pip install it and gcsfs)"
    )
    monkeypatch.setenv(
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
    )  # which speaks a protocol that the emulator has not
    gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed (pip install it)")
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="archive")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    readers.file_system.cache_clear()
    system = gcsfs.GCSFileSystem(token="anon")
    for path in draw_images(tmp_path / "images", 11).iterdir():
        system.pipe_file(f"archive/chest/{path.name}", path.read_bytes())
    system.pipe_file("archive/elsewhere.png", b"")
    yield "gs://archive/chest"
    server.stop()
    readers.file_system.cache_clear()
    gcsfs.GCSFileSystem.clear_instance_cache()


def test_a_bucket_of_google_has_the_predictions_of_a_folder(tmp_path: Path, bucket: str, bundle: Path) -> None:
    for source, out in ((bucket, "out"), (str(tmp_path / "images"), "local")):
        score_archive(open_source(source), tmp_path / out, model={"bundle": bundle}, shard_size=4, workers=1)
    assert table(tmp_path / "out") == table(tmp_path / "local")
    assert len(table(tmp_path / "out")) == 11
    with pytest.raises(UnreadableImageError) as caught:
        open_source(bucket).reader.read("missing.png")
    assert caught.value.reason is not None
    assert caught.value.reason.code == "file_not_found"


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_missing_client_is_named() -> None:
    readers.file_system.cache_clear()
    with pytest.raises(UsageError, match=r"'gs://archive/chest' cannot be read: .*gcsfs") as error:
        list(open_source("gs://archive/chest").images())
    assert "Install the package that the message names" in error.value.hint
