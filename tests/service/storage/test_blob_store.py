"""The blob store: content-addressed files below the data directory, and the staging area before it."""

from datetime import UTC, datetime

import pytest

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.blob_store import FolderBlobStore, MemoryBlobStore, content_hash


def publish(store, *contents):
    """Stage and publish blobs, and return their hashes."""
    blobs = {content_hash(content): content for content in contents}
    assert store.stage(blobs).failed == {}
    for sha256 in blobs:
        store.publish(sha256)
    return list(blobs)


@pytest.fixture(params=[FolderBlobStore, MemoryBlobStore])
def store(request, tmp_path):
    return FolderBlobStore(tmp_path) if request.param is FolderBlobStore else MemoryBlobStore()


@pytest.mark.parametrize(
    "name", ["", "..", "../" * 8 + "etc/passwd", "ab" * 32 + "/..", "AB" * 32, "ab" * 31, "é" * 64]
)
@pytest.mark.parametrize("method", ["get", "has", "remove", "publish", "discard", "stage"])
def test_names_other_than_a_sha256_are_rejected(tmp_path, name, method):
    store = FolderBlobStore(tmp_path / "data")
    with pytest.raises(ValueError, match="is not a SHA-256"):
        store.stage({name: b"image"}) if method == "stage" else getattr(store, method)(name)
    assert list(tmp_path.iterdir()) == []


def test_hash_is_the_sha256_of_the_standard():
    # FIPS 180-2, appendix B.1
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_blob_is_stored_until_it_is_removed(store):
    first, second = publish(store, b"a", b"b")
    assert (store.get(first), store.get(second)) == (b"a", b"b")
    store.remove(first)
    store.remove(first)
    assert (store.get(first), store.get(second)) == (None, b"b")
    assert (store.has(first), store.has(second)) == (False, True)


def test_staged_blob_is_readable_and_published_once(store):
    key = content_hash(b"a")
    assert store.stage({key: b"a"}) == ([key], {})
    assert (store.get(key), store.has(key), store.staging_files()) == (b"a", True, [key])
    store.publish(key)
    store.publish(key)
    assert (store.get(key), store.staging_files()) == (b"a", [])
    assert store.stage({key: b"a"}) == ([], {})  # it is stored already


def test_staged_blob_can_be_discarded_or_removed(store):
    kept, other, third = *publish(store, b"kept"), content_hash(b"b"), content_hash(b"c")
    store.stage({other: b"b", third: b"c"})
    store.discard(other)
    store.discard(kept)  # which is stored, and not staged
    store.remove(third)
    assert [store.get(key) for key in (kept, other, third)] == [b"kept", None, None]


def test_emptying_the_staging_area_leaves_stored_blobs(tmp_path):
    store = FolderBlobStore(tmp_path)
    store.empty_staging()  # before there is one
    (kept,) = publish(store, b"a")
    store.stage({content_hash(b"b"): b"b"})
    (tmp_path / f"staging/{content_hash(b'c')}.part").write_bytes(b"half")
    assert len(store.staging_files()) == 2
    store.empty_staging()
    assert (store.staging_files(), store.get(kept)) == ([], b"a")


def test_blob_published_during_a_read_is_found(tmp_path, monkeypatch):
    store, key = FolderBlobStore(tmp_path), content_hash(b"a")
    store.stage({key: b"a"})
    read = type(tmp_path).read_bytes

    def published_meanwhile(path):
        if path.parent.name == "staging":
            store.publish(key)
        return read(path)

    monkeypatch.setattr(type(tmp_path), "read_bytes", published_meanwhile)
    assert store.get(key) == b"a"


def test_stored_blobs_are_listed_with_their_time_and_other_files_are_not(tmp_path):
    store = FolderBlobStore(tmp_path)
    (key,) = publish(store, b"a")
    (tmp_path / f"blobs/{key[:2]}/notes.txt").write_bytes(b"not a blob")
    ((found, since),) = store.stored()
    assert found == key
    assert abs((datetime.now(UTC) - since).total_seconds()) < 60


def test_blob_that_cannot_be_written_does_not_affect_others(tmp_path):
    store = FolderBlobStore(tmp_path)
    good, bad = content_hash(b"good"), content_hash(b"bad")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / bad[:2]).write_bytes(b"a file in the place of a directory")
    staged, failed = store.stage({bad: b"bad", good: b"good"})
    assert (staged, list(failed)) == ([good], [bad])
    assert isinstance(failed[bad], StorageError)
    assert not store.has(bad)
    assert store.get(good) == b"good"


@pytest.mark.parametrize("damaged", [b"", b"fil", b"filn"])
def test_damaged_blob_is_detected_and_replaced_when_it_is_posted_again(tmp_path, damaged):
    store = FolderBlobStore(tmp_path)
    (key,) = publish(store, b"image")
    (tmp_path / "blobs" / key[:2] / key).write_bytes(damaged)
    with pytest.raises(StorageError, match="is damaged"):
        store.get(key)
    publish(store, b"image")
    assert store.get(key) == b"image"
