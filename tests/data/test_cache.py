"""Images are prepared once, and what is kept is whole or made anew."""

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

from pneumoscope.core.errors import StorageError, UnreadableImageError
from pneumoscope.data import cache as module
from pneumoscope.data.cache import cache_folder, load_array, preprocess_images, store_array
from pneumoscope.data.manifest import LabelledImage
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing

SMALL = Preprocessing(size=16)


def row(root, path):
    return LabelledImage(path, "NORMAL", "normal", "", "train", hashlib.sha256((root / path).read_bytes()).hexdigest())


@pytest.fixture
def root(tmp_path, draw_image):
    for number in range(10):
        draw_image(tmp_path / "images" / f"{number}.png", seed=number)
    return tmp_path / "images"


@pytest.fixture
def images(root):
    return [row(root, f"{number}.png") for number in range(10)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """Paths of the images that were decoded."""
    paths, read_image = [], module.read_image

    def counting(root, image, **options):
        paths.append(image.path)
        return read_image(root, image, **options)

    monkeypatch.setattr(module, "read_image", counting)
    return paths


def expected(root, images, size=16):
    """Pillow's own resize of each image: what `preprocess` says that it does."""
    made = [Image.open(root / image.path).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in made])


def files(cache):
    return sorted(path.name for path in cache.iterdir())


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [256, 4])
def test_images_come_prepared_in_the_order_asked_for(root, images, monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    for order in (images, images[::-1], images[3:6]):
        prepared = preprocess_images(root, order, SMALL)
        assert np.array_equal(prepared.pixels[prepared.rows], expected(root, order))
        assert prepared.pixels.dtype == np.uint8


def test_the_second_call_decodes_nothing(root, images, decoded):
    first = preprocess_images(root, images, SMALL)
    assert sorted(decoded) == sorted(image.path for image in images)
    decoded.clear()

    second = preprocess_images(root, images, SMALL)

    assert decoded == []
    assert np.array_equal(first.pixels, second.pixels)
    assert first.key == second.key


def test_the_second_call_needs_no_images_on_disk(root, images):
    first = preprocess_images(root, images, SMALL)
    for image in images:
        (root / image.path).unlink()

    assert np.array_equal(preprocess_images(root, images, SMALL).pixels, first.pixels)


def test_the_same_images_in_another_order_or_elsewhere_share_the_file(root, images, cache, decoded):
    first = preprocess_images(root, images, SMALL)
    decoded.clear()
    moved = root.rename(root.with_name("moved"))

    again = preprocess_images(moved, images[::-1], SMALL)

    assert decoded == []
    assert files(cache) == [f"images-{first.key}"]
    assert np.array_equal(again.pixels[again.rows], first.pixels[first.rows][::-1])


def test_the_same_content_is_decoded_and_kept_once(root, images, decoded):
    (root / "twin.png").write_bytes((root / "4.png").read_bytes())

    prepared = preprocess_images(root, [*images, row(root, "twin.png")], SMALL)

    assert len(decoded) == len(prepared.pixels) == 10
    assert prepared.rows[10] == prepared.rows[4]


def test_the_key_changes_with_content_preparation_and_version(root, images, monkeypatch):
    def key(preprocessing=SMALL, images=images):
        return preprocess_images(root, images, preprocessing).key

    keys = [key(), key(Preprocessing(size=17)), key(Preprocessing(size=16, crop="centre")), key(images=images[1:])]
    keys.append(key(Preprocessing(size=16, version=PREPROCESSING_VERSION + 1)))
    (root / "0.png").write_bytes((root / "0.png").read_bytes() + b"\0")
    keys.append(key(images=[row(root, "0.png"), *images[1:]]))

    assert len(set(keys)) == 6
    assert key() == keys[0]


def test_what_is_kept_cannot_be_changed_by_accident(root, images):
    prepared = preprocess_images(root, images, SMALL)

    with pytest.raises(ValueError, match="read-only"):
        prepared.pixels[0] = 0


def test_progress_is_told_up_to_the_last_image_and_only_while_images_are_decoded(root, images, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 4)
    told = []

    preprocess_images(root, images, SMALL, lambda done, total: told.append((done, total)))
    preprocess_images(root, images, SMALL, lambda done, total: told.append((done, total)))

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
def test_a_damaged_file_is_made_anew(root, images, cache, decoded, damage):
    first = preprocess_images(root, images, SMALL)
    file = cache / f"images-{first.key}"
    whole = file.read_bytes()
    del first
    file.write_bytes(damage(whole))
    decoded.clear()

    again = preprocess_images(root, images, SMALL)

    assert len(decoded) == 10
    assert np.array_equal(again.pixels[again.rows], expected(root, images))
    assert file.read_bytes() == whole
    assert files(cache) == [file.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from pneumoscope.data import cache
from pneumoscope.data.manifest import Image, Manifest
from pneumoscope.imaging.preprocess import Preprocessing

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

step, root = sys.argv[1], Path(sys.argv[2])
images = Manifest.from_csv(Path(sys.argv[3]).read_text(), root, "images.csv").images
cache._CHUNK = 4
if step == "before the checksum":
    cache._checksum = die
if step == "before its name":
    Path.replace = die
cache.preprocess_images(root, images, Preprocessing(size=16), die if step == "while decoding" else None)
"""


@pytest.mark.parametrize("step", ["while decoding", "before the checksum", "before its name"])
def test_a_process_that_is_killed_leaves_nothing_that_is_taken_for_whole(root, images, cache, decoded, tmp_path, step):
    listed = tmp_path / "images.csv"
    rows = (f"{image.path},{image.label},{image.sha256}" for image in images)
    listed.write_text("\n".join(["path,label,sha256", *rows]))
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, step, root, listed], capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    left = files(cache)
    assert len(left) == 1
    assert left[0].startswith(".images-")

    prepared = preprocess_images(root, images, SMALL)

    assert len(decoded) == 10
    assert np.array_equal(prepared.pixels[prepared.rows], expected(root, images))
    assert files(cache) == [*left, f"images-{prepared.key}"]


def test_an_array_of_another_shape_or_kind_is_not_taken(cache):
    store_array("features", (3, 4), np.float32, lambda target: np.copyto(target, 7))

    assert load_array("features", (3, 4), np.float32).tolist() == [[7.0] * 4] * 3
    assert load_array("features", (3, 5), np.float32) is None
    assert load_array("features", (3, 4), np.uint8) is None
    assert load_array("absent", (3, 4), np.float32) is None


# --- what fails ------------------------------------------------------------------------------------------------------


def test_an_unreadable_image_is_named_and_no_cache_is_left(root, images, cache):
    (root / "3.png").write_bytes(b"no image")

    with pytest.raises(
        UnreadableImageError, match=r"cannot read '3.png': .*\. .*: pneumoscope check-data DATA; then remove"
    ):
        preprocess_images(root, [*images[:3], row(root, "3.png"), *images[4:]], SMALL)

    assert files(cache) == []


def test_several_unreadable_images_are_counted(root, images, cache):
    for number in (2, 3, 5):
        (root / f"{number}.png").write_bytes(b"no image %d" % number)

    with pytest.raises(UnreadableImageError, match=r"cannot read '[235].png': .* \(and 2 more images\)"):
        preprocess_images(root, [row(root, image.path) for image in images], SMALL)

    assert files(cache) == []


def test_no_image_at_all_is_no_trouble(root, cache):
    prepared = preprocess_images(root, [], SMALL)

    assert prepared.pixels.shape == (0, 16, 16)
    assert prepared.rows.tolist() == []


def test_a_full_disk_is_an_error_with_what_to_do_and_leaves_nothing(root, images, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(StorageError, match=rf"cannot write the cache in '{cache}': No space left on device. Free some"):
        preprocess_images(root, images, SMALL)

    assert files(cache) == []


@pytest.mark.parametrize("reserves", [True, False], ids=["where blocks can be reserved", "where they cannot"])
def test_images_are_kept_on_systems_that_reserve_blocks_and_on_others(root, images, cache, monkeypatch, reserves):
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot")

    made = preprocess_images(root, images, SMALL)

    assert (cache / f"images-{made.key}").stat().st_size == made.pixels.size + 4
    np.testing.assert_array_equal(
        made.pixels[made.rows], [module.preprocess(module.read_image(root, image), SMALL) for image in images]
    )


def test_a_disk_that_is_really_full_leaves_what_was_there(root, images, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    made = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=60)
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(disk))
    try:
        key = preprocess_images(root, images, SMALL).key

        with pytest.raises(StorageError, match="No space left on device"):
            preprocess_images(root, images, Preprocessing(size=400))

        assert files(disk) == [f"images-{key}"]
        assert np.array_equal(preprocess_images(root, images, SMALL).pixels.shape, (10, 16, 16))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True, timeout=60)


def test_a_cache_folder_that_is_a_file_is_named(root, images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "file"))

    with pytest.raises(StorageError, match=rf"cannot write the cache in '{tmp_path / 'file'}': File exists"):
        preprocess_images(root, images, SMALL)


def test_a_disk_that_gives_other_bytes_back_is_named(root, images, cache, monkeypatch):
    monkeypatch.setattr(module, "load_array", lambda *_: None)

    with pytest.raises(StorageError, match=r"images-.*' was written and cannot be read back\. Set PNEUMOSCOPE_CACHE"):
        preprocess_images(root, images, SMALL)


# --- several at once, and where --------------------------------------------------------------------------------------


def test_processes_at_once_make_one_whole_file(root, images, cache):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tasks = [
            pool.submit(preprocess_images, root, images[:9] if odd else images, SMALL) for odd in (0, 0, 1, 0, 0, 1)
        ]
        made = [task.result(timeout=60) for task in tasks]

    for prepared, odd in zip(made, (0, 0, 1, 0, 0, 1), strict=True):
        asked = images[:9] if odd else images
        assert np.array_equal(np.asarray(prepared.pixels)[prepared.rows], expected(root, asked))
    assert files(cache) == sorted({f"images-{prepared.key}" for prepared in made})
    assert len(files(cache)) == 2


def test_one_that_is_read_while_another_makes_it_anew_stays_whole(root, images, cache):
    first = preprocess_images(root, images, SMALL)
    before = np.array(first.pixels)
    shape = before.shape
    store_array(f"images-{first.key}", shape, np.uint8, lambda target: np.copyto(target, 9))

    assert np.array_equal(first.pixels, before)
    assert np.array_equal(load_array(f"images-{first.key}", shape, np.uint8), np.full(shape, 9))


def test_the_folder_is_named_by_the_environment(monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "/ours")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/ours")

    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "")
    assert cache_folder() == Path("/users/pneumoscope")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/user/.cache/pneumoscope")
