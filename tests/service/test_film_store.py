"""Where films lie: below a folder, each under its hash, and nowhere else."""

from datetime import UTC, datetime

import pytest

from pneumoscope.errors import StorageError
from pneumoscope.service.film_store import FolderStore, MemoryStore, film_hash


@pytest.mark.parametrize(
    "name", ["", "..", "../" * 8 + "etc/passwd", "ab" * 32 + "/..", "AB" * 32, "ab" * 31, "é" * 64]
)
@pytest.mark.parametrize("ask", ["get", "remove", "keep"])
def test_what_is_no_hash_is_no_film(tmp_path, name, ask):
    store = FolderStore(tmp_path / "films")
    with pytest.raises(ValueError, match="is no hash of a film"):
        store.keep({name: b"film"}) if ask == "keep" else getattr(store, ask)(name)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_that_of_the_standard():
    # FIPS 180-2, appendix B.1
    assert film_hash(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("kind", [FolderStore, MemoryStore])
def test_a_film_is_there_until_it_is_removed(tmp_path, kind):
    store = kind(tmp_path / "films") if kind is FolderStore else kind()
    films = {film_hash(film): film for film in (b"a", b"b")}
    assert store.keep(films) == (list(films), {})
    assert store.keep(films) == ([], {})
    assert {key: store.get(key) for key in films} == films
    first, second = films
    store.remove(first)
    store.remove(first)
    assert (store.get(first), store.get(second)) == (None, films[second])
    assert (store.has(first), store.has(second)) == (False, True)


def test_films_are_listed_with_their_time_and_what_was_left_half_way_is_not(tmp_path):
    store = FolderStore(tmp_path / "films")
    key = film_hash(b"a")
    store.keep({key: b"a"})
    half = tmp_path / f"films/{key[:2]}/.{key}-{'0' * 16}"
    other = tmp_path / f"films/{key[:2]}/notes.txt"
    half.write_bytes(b"half")
    other.write_bytes(b"of somebody else")
    ((found, since),) = store.kept()
    assert found == key
    assert abs((datetime.now(UTC) - since).total_seconds()) < 60
    store.tidy()
    assert not half.exists()
    assert other.exists()
    assert store.get(key) == b"a"


def test_a_film_that_cannot_be_written_keeps_no_other_from_it(tmp_path):
    store = FolderStore(tmp_path / "films")
    good, bad = film_hash(b"good"), film_hash(b"bad")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / bad[:2]).write_bytes(b"a file where a folder should be")
    written, failed = store.keep({bad: b"bad", good: b"good"})
    assert (written, list(failed)) == ([good], [bad])
    assert isinstance(failed[bad], StorageError)
    assert not store.has(bad)
    assert store.get(good) == b"good"


@pytest.mark.parametrize("damaged", [b"", b"fil", b"filn"])
def test_a_damaged_film_is_whole_again_when_it_comes_again(tmp_path, damaged):
    store, key = FolderStore(tmp_path / "films"), film_hash(b"film")
    store.keep({key: b"film"})
    (tmp_path / "films" / key[:2] / key).write_bytes(damaged)
    with pytest.raises(StorageError, match="not the film that was kept"):
        store.get(key)
    assert store.keep({key: b"film"}) == ([key], {})
    assert store.get(key) == b"film"
