"""Films are prepared once, and what is kept is whole or made anew."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.dataset import cache as module
from pneumoscope.dataset.cache import cache_folder, keep_array, kept_array, prepare_films
from pneumoscope.dataset.manifest import Film
from pneumoscope.errors import StorageError, UnreadableFilmError
from pneumoscope.radiograph.prepare import PREPARE_VERSION, Preparation

SMALL = Preparation(size=16)


def row(root, path):
    return Film(path, "NORMAL", "normal", "", "train", hashlib.sha256((root / path).read_bytes()).hexdigest())


@pytest.fixture
def root(tmp_path, draw_film):
    for number in range(10):
        draw_film(tmp_path / "films" / f"{number}.png", seed=number)
    return tmp_path / "films"


@pytest.fixture
def films(root):
    return [row(root, f"{number}.png") for number in range(10)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """Paths of the films that were decoded."""
    paths, read_film = [], module.read_film

    def counting(root, film, **options):
        paths.append(film.path)
        return read_film(root, film, **options)

    monkeypatch.setattr(module, "read_film", counting)
    return paths


def expected(root, films, size=16):
    """Pillow's own resize of each film: what `prepare` says that it does."""
    made = [Image.open(root / film.path).resize((size, size), Image.Resampling.BILINEAR) for film in films]
    return np.stack([np.asarray(image) for image in made])


def files(cache):
    return sorted(path.name for path in cache.iterdir())


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [256, 4])
def test_films_come_prepared_in_the_order_asked_for(root, films, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    for order in (films, films[::-1], films[3:6]):
        prepared = prepare_films(root, order, SMALL)
        assert np.array_equal(prepared.pixels[prepared.rows], expected(root, order))
        assert prepared.pixels.dtype == np.uint8


def test_the_second_call_decodes_nothing(root, films, decoded):
    first = prepare_films(root, films, SMALL)
    assert sorted(decoded) == sorted(film.path for film in films)
    decoded.clear()

    second = prepare_films(root, films, SMALL)

    assert decoded == []
    assert np.array_equal(first.pixels, second.pixels)
    assert first.key == second.key


def test_the_second_call_needs_no_films_on_disk(root, films):
    first = prepare_films(root, films, SMALL)
    for film in films:
        (root / film.path).unlink()

    assert np.array_equal(prepare_films(root, films, SMALL).pixels, first.pixels)


def test_the_same_films_in_another_order_or_elsewhere_share_the_file(root, films, cache, decoded):
    first = prepare_films(root, films, SMALL)
    decoded.clear()
    moved = root.rename(root.with_name("moved"))

    again = prepare_films(moved, films[::-1], SMALL)

    assert decoded == []
    assert files(cache) == [f"films-{first.key}"]
    assert np.array_equal(again.pixels[again.rows], first.pixels[first.rows][::-1])


def test_the_same_content_is_decoded_and_kept_once(root, films, decoded):
    (root / "twin.png").write_bytes((root / "4.png").read_bytes())

    prepared = prepare_films(root, [*films, row(root, "twin.png")], SMALL)

    assert len(decoded) == len(prepared.pixels) == 10
    assert prepared.rows[10] == prepared.rows[4]


def test_the_key_changes_with_content_preparation_and_version(root, films, monkeypatch):
    def key(preparation=SMALL, films=films):
        return prepare_films(root, films, preparation).key

    keys = [key(), key(Preparation(size=17)), key(Preparation(size=16, crop="centre")), key(films=films[1:])]
    keys.append(key(Preparation(size=16, version=PREPARE_VERSION + 1)))
    (root / "0.png").write_bytes((root / "0.png").read_bytes() + b"\0")
    keys.append(key(films=[row(root, "0.png"), *films[1:]]))

    assert len(set(keys)) == 6
    assert key() == keys[0]


def test_what_is_kept_cannot_be_changed_by_accident(root, films):
    prepared = prepare_films(root, films, SMALL)

    with pytest.raises(ValueError, match="read-only"):
        prepared.pixels[0] = 0


def test_progress_is_told_up_to_the_last_film_and_only_while_films_are_decoded(root, films, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 4)
    told = []

    prepare_films(root, films, SMALL, lambda done, total: told.append((done, total)))
    prepare_films(root, films, SMALL, lambda done, total: told.append((done, total)))

    assert told == [(4, 10), (8, 10), (10, 10)]


# --- what is damaged -------------------------------------------------------------------------------------------------


def truncate(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def lengthen(content):
    return content + b"\0"


def flip(place):
    def damage(content):
        content = bytearray(content)
        content[place] ^= 1
        return bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, lengthen, flip(0), flip(1000), flip(-5), flip(-1)],
    ids=["half", "empty", "longer", "first byte", "a byte", "last byte", "checksum"],
)
def test_a_damaged_file_is_made_anew(root, films, cache, decoded, damage):
    first = prepare_films(root, films, SMALL)
    file = cache / f"films-{first.key}"
    whole = file.read_bytes()
    del first
    file.write_bytes(damage(whole))
    decoded.clear()

    again = prepare_films(root, films, SMALL)

    assert len(decoded) == 10
    assert np.array_equal(again.pixels[again.rows], expected(root, films))
    assert file.read_bytes() == whole
    assert files(cache) == [file.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from pneumoscope.dataset import cache
from pneumoscope.dataset.manifest import Film, Manifest
from pneumoscope.radiograph.prepare import Preparation

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

step, root = sys.argv[1], Path(sys.argv[2])
films = Manifest.from_csv(Path(sys.argv[3]).read_text(), root, "films.csv").films
cache._CHUNK = 4
if step == "before the checksum":
    cache._checksum = die
if step == "before its name":
    Path.replace = die
cache.prepare_films(root, films, Preparation(size=16), die if step == "while decoding" else None)
"""


@pytest.mark.parametrize("step", ["while decoding", "before the checksum", "before its name"])
def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(root, films, cache, decoded, tmp_path, step):
    listed = tmp_path / "films.csv"
    rows = (f"{film.path},{film.label},{film.sha256}" for film in films)
    listed.write_text("\n".join(["path,label,sha256", *rows]))
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, step, root, listed], capture_output=True, text=True, check=False
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    left = files(cache)
    assert len(left) == 1
    assert left[0].startswith(".films-")

    prepared = prepare_films(root, films, SMALL)

    assert len(decoded) == 10
    assert np.array_equal(prepared.pixels[prepared.rows], expected(root, films))
    assert files(cache) == [*left, f"films-{prepared.key}"]


def test_an_array_of_another_shape_or_kind_is_not_taken(cache):
    keep_array("features", (3, 4), np.float32, lambda target: np.copyto(target, 7))

    assert kept_array("features", (3, 4), np.float32).tolist() == [[7.0] * 4] * 3
    assert kept_array("features", (3, 5), np.float32) is None
    assert kept_array("features", (3, 4), np.uint8) is None
    assert kept_array("absent", (3, 4), np.float32) is None


# --- what fails ------------------------------------------------------------------------------------------------------


def test_an_unreadable_film_is_named_and_no_cache_is_left(root, films, cache):
    (root / "3.png").write_bytes(b"no film")

    with pytest.raises(UnreadableFilmError, match=r"cannot read '3.png': .*\. .*: pneumoscope audit DATA; then remove"):
        prepare_films(root, [*films[:3], row(root, "3.png"), *films[4:]], SMALL)

    assert files(cache) == []


def test_several_unreadable_films_are_counted(root, films, cache):
    for number in (2, 3, 5):
        (root / f"{number}.png").write_bytes(b"no film %d" % number)

    with pytest.raises(UnreadableFilmError, match=r"cannot read '[235].png': .* \(and 2 more films\)"):
        prepare_films(root, [row(root, film.path) for film in films], SMALL)

    assert files(cache) == []


def test_no_film_at_all_is_no_trouble(root, cache):
    prepared = prepare_films(root, [], SMALL)

    assert prepared.pixels.shape == (0, 16, 16)
    assert prepared.rows.tolist() == []


def test_a_full_disk_is_an_error_with_what_to_do_and_leaves_nothing(root, films, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(StorageError, match=rf"cannot write the cache in '{cache}': No space left on device. Free some"):
        prepare_films(root, films, SMALL)

    assert files(cache) == []


@pytest.mark.parametrize("reserves", [True, False], ids=["where blocks can be reserved", "where they cannot"])
def test_films_are_kept_on_systems_that_reserve_blocks_and_on_others(root, films, cache, monkeypatch, reserves):
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot")

    made = prepare_films(root, films, SMALL)

    assert (cache / f"films-{made.key}").stat().st_size == made.pixels.size + 4
    np.testing.assert_array_equal(
        made.pixels[made.rows], [module.prepare(module.read_film(root, film), SMALL) for film in films]
    )


def test_a_disk_that_is_really_full_leaves_what_was_there(root, films, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(disk))
    try:
        key = prepare_films(root, films, SMALL).key

        with pytest.raises(StorageError, match="No space left on device"):
            prepare_films(root, films, Preparation(size=400))

        assert files(disk) == [f"films-{key}"]
        assert np.array_equal(prepare_films(root, films, SMALL).pixels.shape, (10, 16, 16))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_cache_folder_that_is_a_file_is_named(root, films, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "file"))

    with pytest.raises(StorageError, match=rf"cannot write the cache in '{tmp_path / 'file'}': File exists"):
        prepare_films(root, films, SMALL)


def test_a_disk_that_gives_other_bytes_back_is_named(root, films, cache, monkeypatch):
    monkeypatch.setattr(module, "kept_array", lambda *_: None)

    with pytest.raises(StorageError, match=r"films-.*' was written and cannot be read back\. Set PNEUMOSCOPE_CACHE"):
        prepare_films(root, films, SMALL)


# --- several at once, and where --------------------------------------------------------------------------------------


def test_processes_at_once_make_one_whole_file(root, films, cache):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(prepare_films, root, films[:9] if odd else films, SMALL) for odd in (0, 0, 1, 0, 0, 1)]
        made = [task.result(timeout=60) for task in tasks]

    for prepared, odd in zip(made, (0, 0, 1, 0, 0, 1), strict=True):
        asked = films[:9] if odd else films
        assert np.array_equal(np.asarray(prepared.pixels)[prepared.rows], expected(root, asked))
    assert files(cache) == sorted({f"films-{prepared.key}" for prepared in made})
    assert len(files(cache)) == 2


def test_one_that_is_read_while_another_makes_it_anew_stays_whole(root, films, cache):
    first = prepare_films(root, films, SMALL)
    before = np.array(first.pixels)
    shape = before.shape
    keep_array(f"films-{first.key}", shape, np.uint8, lambda target: np.copyto(target, 9))

    assert np.array_equal(first.pixels, before)
    assert np.array_equal(kept_array(f"films-{first.key}", shape, np.uint8), np.full(shape, 9))


def test_the_folder_is_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "/ours")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/ours")

    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "")
    assert cache_folder() == Path("/users/pneumoscope")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/user/.cache/pneumoscope")
