"""The cache of preprocessed images: used once complete, written again if damaged."""

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
from pneumoscope.data.manifest import LabeledImage
from pneumoscope.imaging.preprocess import PREPROCESSING_VERSION, Preprocessing

SMALL = Preprocessing(size=16)


def row(root, path):
    return LabeledImage(path, "NORMAL", "normal", "", "train", hashlib.sha256((root / path).read_bytes()).hexdigest())


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
    """Record the paths of the images that are decoded."""
    paths, read_image = [], module.read_image

    def counting(root, image, **options):
        paths.append(image.path)
        return read_image(root, image, **options)

    monkeypatch.setattr(module, "read_image", counting)
    return paths


def expected(root, images, size=16):
    """Return each image, resized with Pillow."""
    resized = [Image.open(root / image.path).resize((size, size), Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def files(cache):
    return sorted(path.name for path in cache.iterdir())


# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [256, 4])
def test_images_are_in_the_requested_order(root, images, chunk):
    for order in (images, images[::-1], images[3:6]):
        prepared = preprocess_images(root, order, SMALL, chunk=chunk)
        assert np.array_equal(prepared.pixels[prepared.rows], expected(root, order))
        assert prepared.pixels.dtype == np.uint8


def test_second_call_uses_the_cache(root, images, decoded):
    first = preprocess_images(root, images, SMALL)
    assert sorted(decoded) == sorted(image.path for image in images)
    decoded.clear()

    second = preprocess_images(root, images, SMALL)

    assert decoded == []
    assert np.array_equal(first.pixels, second.pixels)
    assert first.key == second.key


def test_cached_images_need_no_files(root, images):
    first = preprocess_images(root, images, SMALL)
    for image in images:
        (root / image.path).unlink()

    assert np.array_equal(preprocess_images(root, images, SMALL).pixels, first.pixels)


def test_order_and_folder_of_the_images_do_not_change_the_cache(root, images, cache, decoded):
    first = preprocess_images(root, images, SMALL)
    decoded.clear()
    moved = root.rename(root.with_name("moved"))

    again = preprocess_images(moved, images[::-1], SMALL)

    assert decoded == []
    assert files(cache) == [f"images-{first.key}"]
    assert np.array_equal(again.pixels[again.rows], first.pixels[first.rows][::-1])


def test_identical_files_are_stored_once(root, images, decoded):
    (root / "copy.png").write_bytes((root / "4.png").read_bytes())

    prepared = preprocess_images(root, [*images, row(root, "copy.png")], SMALL)

    assert len(decoded) == len(prepared.pixels) == 10
    assert prepared.rows[10] == prepared.rows[4]


def test_key_depends_on_content_preprocessing_and_version(root, images, monkeypatch):
    def key(preprocessing=SMALL, images=images):
        return preprocess_images(root, images, preprocessing).key

    keys = [key(), key(Preprocessing(size=17)), key(Preprocessing(size=16, crop="center")), key(images=images[1:])]
    keys.append(key(Preprocessing(size=16, version=PREPROCESSING_VERSION + 1)))
    (root / "0.png").write_bytes((root / "0.png").read_bytes() + b"\0")
    keys.append(key(images=[row(root, "0.png"), *images[1:]]))

    assert len(set(keys)) == 6
    assert key() == keys[0]


def test_cached_images_are_read_only(root, images):
    prepared = preprocess_images(root, images, SMALL)

    with pytest.raises(ValueError, match="read-only"):
        prepared.pixels[0] = 0


def test_progress_is_reported_only_while_images_are_decoded(root, images):
    calls = []

    preprocess_images(root, images, SMALL, lambda done, total: calls.append((done, total)), chunk=4)
    preprocess_images(root, images, SMALL, lambda done, total: calls.append((done, total)), chunk=4)

    assert calls == [(4, 10), (8, 10), (10, 10)]


# --- damage ----------------------------------------------------------------------------------------------------------


def truncate(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def extend(content):
    return content + b"\0"


def flip(position):
    def damage(content):
        content = bytearray(content)
        content[position] ^= 1
        return bytes(content)

    return damage


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, extend, flip(0), flip(1000), flip(-5), flip(-1)],
    ids=["truncated", "empty", "extended", "first byte", "a byte", "last byte", "checksum"],
)
def test_damaged_file_is_written_again(root, images, cache, decoded, damage):
    first = preprocess_images(root, images, SMALL)
    file = cache / f"images-{first.key}"
    content = file.read_bytes()
    del first
    file.write_bytes(damage(content))
    decoded.clear()

    again = preprocess_images(root, images, SMALL)

    assert len(decoded) == 10
    assert np.array_equal(again.pixels[again.rows], expected(root, images))
    assert file.read_bytes() == content
    assert files(cache) == [file.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from pneumoscope.data import cache
from pneumoscope.data.manifest import Manifest
from pneumoscope.imaging.preprocess import Preprocessing

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

step, root = sys.argv[1], Path(sys.argv[2])
images = Manifest.from_csv(Path(sys.argv[3]).read_text(), root, "images.csv").images
if step == "before the checksum":
    cache._checksum = die
if step == "before the rename":
    Path.replace = die
cache.preprocess_images(root, images, Preprocessing(size=16), die if step == "while decoding" else None, chunk=4)
"""


@pytest.mark.parametrize("step", ["while decoding", "before the checksum", "before the rename"])
def test_killed_process_leaves_no_file_that_is_used(root, images, cache, decoded, tmp_path, step):
    listed = tmp_path / "images.csv"
    rows = (f"{image.path},{image.label},{image.sha256}" for image in images)
    listed.write_text("\n".join(["path,label,sha256", *rows]))
    command = [sys.executable, "-c", KILLED, step, root, listed]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = files(cache)
    assert len(left) == 1
    assert left[0].startswith(".images-")

    prepared = preprocess_images(root, images, SMALL)

    assert len(decoded) == 10
    assert np.array_equal(prepared.pixels[prepared.rows], expected(root, images))
    assert files(cache) == [*left, f"images-{prepared.key}"]


def test_array_of_another_shape_or_type_is_not_used(cache):
    store_array("features", (3, 4), np.float32, lambda target: np.copyto(target, 7))

    assert load_array("features", (3, 4), np.float32).tolist() == [[7.0] * 4] * 3
    assert load_array("features", (3, 5), np.float32) is None
    assert load_array("features", (3, 4), np.uint8) is None
    assert load_array("absent", (3, 4), np.float32) is None


# --- errors ----------------------------------------------------------------------------------------------------------


def test_unreadable_image_is_named_and_nothing_is_cached(root, images, cache):
    (root / "3.png").write_bytes(b"not an image")

    with pytest.raises(
        UnreadableImageError, match=r"cannot read '3.png': .*\. .*: pneumoscope check-data DATA; then remove"
    ):
        preprocess_images(root, [*images[:3], row(root, "3.png"), *images[4:]], SMALL)

    assert files(cache) == []


def test_unreadable_images_are_counted(root, images, cache):
    for number in (2, 3, 5):
        (root / f"{number}.png").write_bytes(b"not an image %d" % number)

    with pytest.raises(UnreadableImageError, match=r"cannot read '[235].png': .* \(and 2 more images\)"):
        preprocess_images(root, [row(root, image.path) for image in images], SMALL)

    assert files(cache) == []


def test_empty_list_of_images(root, cache):
    prepared = preprocess_images(root, [], SMALL)

    assert prepared.pixels.shape == (0, 16, 16)
    assert prepared.rows.tolist() == []


def test_full_disk_is_an_error_and_leaves_no_file(root, images, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)

    with pytest.raises(StorageError, match=rf"cannot write the cache in '{cache}': No space left on device. Free some"):
        preprocess_images(root, images, SMALL)

    assert files(cache) == []


@pytest.mark.parametrize("fallocate", [True, False])
def test_cache_is_written_with_and_without_posix_fallocate(root, images, cache, monkeypatch, fallocate):
    if not fallocate:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    elif not hasattr(os, "posix_fallocate"):
        pytest.skip("this system has no posix_fallocate")

    prepared = preprocess_images(root, images, SMALL)

    assert (cache / f"images-{prepared.key}").stat().st_size == prepared.pixels.size + 4
    np.testing.assert_array_equal(
        prepared.pixels[prepared.rows], [module.preprocess(module.read_image(root, image), SMALL) for image in images]
    )


def test_full_file_system_keeps_earlier_files(root, images, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=60)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(disk))
    try:
        key = preprocess_images(root, images, SMALL).key

        with pytest.raises(StorageError, match="No space left on device"):
            preprocess_images(root, images, Preprocessing(size=400))

        assert files(disk) == [f"images-{key}"]
        assert np.array_equal(preprocess_images(root, images, SMALL).pixels.shape, (10, 16, 16))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True, timeout=60)


def test_file_instead_of_the_cache_folder_is_an_error(root, images, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "file"))

    with pytest.raises(StorageError, match=rf"cannot write the cache in '{tmp_path / 'file'}': File exists"):
        preprocess_images(root, images, SMALL)


def test_unreadable_cache_is_an_error(root, images, cache, monkeypatch):
    monkeypatch.setattr(module, "load_array", lambda *_: None)

    with pytest.raises(StorageError, match=r"images-.*' was written but cannot be read\. Set PNEUMOSCOPE_CACHE"):
        preprocess_images(root, images, SMALL)


# --- processes and folders -------------------------------------------------------------------------------------------


def test_concurrent_processes_write_one_complete_file(root, images, cache):
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tasks = [
            pool.submit(preprocess_images, root, images[:9] if odd else images, SMALL) for odd in (0, 0, 1, 0, 0, 1)
        ]
        results = [task.result(timeout=60) for task in tasks]

    for prepared, odd in zip(results, (0, 0, 1, 0, 0, 1), strict=True):
        requested = images[:9] if odd else images
        assert np.array_equal(np.asarray(prepared.pixels)[prepared.rows], expected(root, requested))
    assert files(cache) == sorted({f"images-{prepared.key}" for prepared in results})
    assert len(files(cache)) == 2


def test_open_array_is_unaffected_by_a_new_file(root, images, cache):
    first = preprocess_images(root, images, SMALL)
    before = np.array(first.pixels)
    shape = before.shape
    store_array(f"images-{first.key}", shape, np.uint8, lambda target: np.copyto(target, 9))

    assert np.array_equal(first.pixels, before)
    assert np.array_equal(load_array(f"images-{first.key}", shape, np.uint8), np.full(shape, 9))


def test_cache_folder_is_set_by_the_environment(monkeypatch):
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "/custom")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/user")
    assert cache_folder() == Path("/custom")

    monkeypatch.setenv("PNEUMOSCOPE_CACHE", "")
    assert cache_folder() == Path("/xdg/pneumoscope")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("/home/user/.cache/pneumoscope")
