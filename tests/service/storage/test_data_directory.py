"""A data directory that is moved, removed or replaced while it is in use: nothing is written."""

import shutil

import pytest
from tests.service.conftest import add

from pneumoscope.core.errors import StorageError
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import DATABASE_FILE
from pneumoscope.service.storage.repository import PredictionRepository


def assert_rejected(repository):
    with pytest.raises(StorageError, match="was moved, removed or replaced while in use"):
        add(repository, b"new")
    with pytest.raises(StorageError, match="was moved, removed or replaced"):
        repository.storage.check_writable()


def test_moved_directory_is_detected_and_not_recreated(tmp_path, database):
    data, moved = tmp_path / "data", tmp_path / "moved"
    repository = PredictionRepository(data, database)
    record, _ = add(repository, b"old")
    data.rename(moved)
    assert_rejected(repository)
    with pytest.raises(StorageError):
        repository.review(record.id, "pneumonia", user="me")
    assert not data.exists()

    moved.rename(data)  # the repository works again
    repository.storage.check_writable()
    add(repository, b"new")
    assert verify(repository.engine, images=repository.storage.blobs).images == 2
    repository.close()


@pytest.mark.parametrize("restored", [False, True])
def test_replaced_directory_is_detected(tmp_path, restored):
    data = tmp_path / "data"
    repository = PredictionRepository(data)
    add(repository, b"old")
    data.rename(tmp_path / "before")
    if restored:
        shutil.copytree(tmp_path / "before", data)
    else:
        data.mkdir()
    there = sorted(data.rglob("*"))
    assert_rejected(repository)
    assert sorted(data.rglob("*")) == there
    repository.close()


def test_removed_database_is_detected(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    (tmp_path / "data" / DATABASE_FILE).unlink()
    assert_rejected(repository)
    assert not list((tmp_path / "data").glob("blobs/*"))
    repository.close()


def test_full_disk_fails_the_check(tmp_path, monkeypatch):
    repository = PredictionRepository(tmp_path / "data")
    repository.storage.check_writable()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match="no space left"):
        repository.storage.check_writable()
    repository.close()


def test_unwritable_blob_store_fails_the_check(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    (tmp_path / "data" / "blobs").write_text("no folder")
    with pytest.raises(StorageError):
        repository.storage.check_writable()
    repository.close()


def test_check_writes_no_file_and_no_row(repository, tmp_path):
    repository.storage.check_writable()
    assert list((tmp_path / "data").glob("blobs/*")) == []
    assert verify(repository.engine).rows == 0
