"""A data folder that is moved, removed or exchanged under the service: images are refused, and nothing is lost or made anew."""

import shutil

import pytest
from tests.service.conftest import add

from pneumoscope.core.errors import StorageError
from pneumoscope.service.audit.verification import verify
from pneumoscope.service.storage.database import DATABASE_FILE
from pneumoscope.service.storage.repository import PredictionRepository


def told(repository):
    with pytest.raises(StorageError, match="was moved, removed or replaced while in use"):
        add(repository, b"new")
    with pytest.raises(StorageError, match="was moved, removed or replaced"):
        repository.check_writable()


def test_of_a_folder_that_was_moved_nothing_is_made_in_its_old_place(tmp_path, database):
    data, moved = tmp_path / "data", tmp_path / "moved"
    repository = PredictionRepository(data, database)
    record, _ = add(repository, b"old")
    data.rename(moved)
    told(repository)
    with pytest.raises(StorageError):
        repository.review(record.id, agrees=True, note="", user="me")
    assert not data.exists()

    moved.rename(data)  # it goes on by itself
    repository.check_writable()
    add(repository, b"new")
    assert verify(repository.engine, images=repository.blobs).images == 2
    repository.close()


@pytest.mark.parametrize("restored", [False, True])
def test_another_folder_in_its_place_is_not_taken_for_it(tmp_path, restored):
    data = tmp_path / "data"
    repository = PredictionRepository(data)
    add(repository, b"old")
    data.rename(tmp_path / "before")
    if restored:
        shutil.copytree(tmp_path / "before", data)
    else:
        data.mkdir()
    there = sorted(data.rglob("*"))
    told(repository)
    assert sorted(data.rglob("*")) == there
    repository.close()


def test_a_database_that_was_removed_is_noticed(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    (tmp_path / "data" / DATABASE_FILE).unlink()
    told(repository)
    assert not list((tmp_path / "data").glob("blobs/*"))
    repository.close()


def test_no_room_is_told_before_a_image_comes(tmp_path, monkeypatch):
    repository = PredictionRepository(tmp_path / "data")
    repository.check_writable()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match="no space left"):
        repository.check_writable()
    repository.close()


def test_images_that_could_not_be_written_are_told_before_one_comes(tmp_path):
    repository = PredictionRepository(tmp_path / "data")
    (tmp_path / "data" / "blobs").write_text("no folder")
    with pytest.raises(StorageError):
        repository.check_writable()
    repository.close()


def test_trying_leaves_nothing(repository, tmp_path):
    repository.check_writable()
    assert list((tmp_path / "data").glob("blobs/*")) == []
    assert verify(repository.engine).rows == 0
