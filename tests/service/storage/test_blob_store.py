"""Where images lie: below a folder, each under its hash, and nowhere else."""

from datetime import UTC, datetime

import pytest

from pneumoscope.core.errors import StorageError
from pneumoscope.service.storage.blob_store import FolderBlobStore, MemoryBlobStore, content_hash


@pytest.mark.parametrize(
    "name", ["", "..", "../" * 8 + "etc/passwd", "ab" * 32 + "/..", "AB" * 32, "ab" * 31, "é" * 64]
)
@pytest.mark.parametrize("ask", ["get", "remove", "keep"])
def test_what_is_no_hash_is_no_image(tmp_path, name, ask):
    store = FolderBlobStore(tmp_path / "images")
    with pytest.raises(ValueError, match="is no hash of an image"):
        store.keep({name: b"image"}) if ask == "keep" else getattr(store, ask)(name)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_that_of_the_standard():
    # FIPS 180-2, appendix B.1
    assert content_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("kind", [FolderBlobStore, MemoryBlobStore])
def test_a_image_is_there_until_it_is_removed(tmp_path, kind):
    store = kind(tmp_path / "images") if kind is FolderBlobStore else kind()
    images = {content_hash(image): image for image in (b"a", b"b")}
    assert store.keep(images) == (list(images), {})
    assert store.keep(images) == ([], {})
    assert {key: store.get(key) for key in images} == images
    first, second = images
    store.remove(first)
    store.remove(first)
    assert (store.get(first), store.get(second)) == (None, images[second])
    assert (store.has(first), store.has(second)) == (False, True)


def test_images_are_listed_with_their_time_and_what_was_left_half_way_is_not(tmp_path):
    store = FolderBlobStore(tmp_path / "images")
    key = content_hash(b"a")
    store.keep({key: b"a"})
    half = tmp_path / f"images/{key[:2]}/.{key}-{'0' * 16}"
    other = tmp_path / f"images/{key[:2]}/notes.txt"
    half.write_bytes(b"half")
    other.write_bytes(b"of somebody else")
    ((found, since),) = store.kept()
    assert found == key
    assert abs((datetime.now(UTC) - since).total_seconds()) < 60
    store.tidy()
    assert not half.exists()
    assert other.exists()
    assert store.get(key) == b"a"


def test_a_image_that_cannot_be_written_keeps_no_other_from_it(tmp_path):
    store = FolderBlobStore(tmp_path / "images")
    good, bad = content_hash(b"good"), content_hash(b"bad")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / bad[:2]).write_bytes(b"a file where a folder should be")
    written, failed = store.keep({bad: b"bad", good: b"good"})
    assert (written, list(failed)) == ([good], [bad])
    assert isinstance(failed[bad], StorageError)
    assert not store.has(bad)
    assert store.get(good) == b"good"


@pytest.mark.parametrize("damaged", [b"", b"fil", b"filn"])
def test_a_damaged_image_is_whole_again_when_it_comes_again(tmp_path, damaged):
    store, key = FolderBlobStore(tmp_path / "images"), content_hash(b"image")
    store.keep({key: b"image"})
    (tmp_path / "images" / key[:2] / key).write_bytes(damaged)
    with pytest.raises(StorageError, match="not the image that was kept"):
        store.get(key)
    assert store.keep({key: b"image"}) == ([key], {})
    assert store.get(key) == b"image"
