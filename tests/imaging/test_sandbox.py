"""Worker processes: what a decoder does there costs its image an error, and no other image anything."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.imaging.test_dicom import image, written

from pneumoscope.core.errors import (
    DecodeCrashedError,
    DecodeMemoryError,
    DecodeTimeoutError,
    PneumoscopeError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.imaging import decode as decode_module
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing, preprocess_image
from pneumoscope.imaging.sandbox import DecodePool, Limits

CODEC = ("tests.imaging.hostile_codec",)
LIMITS = Limits(memory=2**30, cpu_seconds=20, wall_seconds=60)
# Short ones, for what must be ended.
HURRIED = Limits(memory=2**30, cpu_seconds=20, wall_seconds=1.5)
GREY = np.random.default_rng(3).integers(0, 256, (300, 200), dtype=np.uint8)
SIZE = Preprocessing(size=64)


def png(pixels: np.ndarray = GREY, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def hostile(action: str) -> bytes:
    """See `hostile_codec`, which only workers import: it takes over a format."""
    return b"BM" + action.encode()


def is_alive(pid: int) -> bool:
    """False for a zombie too, which nobody may have waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} are alive"
        time.sleep(0.02)


def pids(pool: DecodePool) -> list[int]:
    return [worker._process.pid for worker in pool._idle]


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, limits=LIMITS, preload=CODEC) as made:
        yield made


@pytest.fixture
def hurried() -> Iterator[DecodePool]:
    with DecodePool(1, limits=HURRIED, preload=CODEC) as made:
        yield made


# --- the same images as in this process -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_worker_returns_what_this_process_would(pool: DecodePool, tmp_path: Path, kind: str, keep: bool) -> None:
    data = written(image(PatientAge="004Y")) if kind == "DICOM" else png(GREY, kind)
    expected = preprocess_image(decode(data, name="x", min_side=SIZE.min_side), SIZE, keep_radiograph=keep)
    path = tmp_path / "café \udcff.img"  # a name that is no text
    path.write_bytes(data)

    for found in (
        pool.preprocess(data, SIZE, name="x", keep_radiograph=keep),
        pool.preprocess(path, SIZE, name="x", keep_radiograph=keep),
    ):
        assert np.array_equal(found.pixels, expected.pixels)
        assert not found.pixels.flags.writeable
        for field in ("source", "format", "width", "height", "age", "rejection"):
            assert getattr(found, field) == getattr(expected, field), field
        if not keep:
            assert found.radiograph is None
            continue
        assert found.radiograph is not None
        assert expected.radiograph is not None
        assert np.array_equal(found.radiograph.pixels, expected.radiograph.pixels)
        assert (found.radiograph.chroma, found.radiograph.reduced_from, found.radiograph.mode) == (
            expected.radiograph.chroma,
            expected.radiograph.reduced_from,
            expected.radiograph.mode,
        )


def test_decode_returns_the_whole_image(pool: DecodePool) -> None:
    data = png(kind="JPEG")
    found, expected = pool.decode(data, name="x"), decode(data, name="x")
    assert np.array_equal(found.pixels, expected.pixels)
    assert (found.source, found.format, found.reduced_from) == ("x", "JPEG", None)


def test_a_large_image_passes_whole_both_ways(pool: DecodePool) -> None:
    """Many times what a socket holds at once."""
    large = np.random.default_rng(4).integers(0, 256, (2000, 3000), dtype=np.uint8)
    assert np.array_equal(pool.decode(png(large, "TIFF")).pixels, large)


@pytest.mark.parametrize("given", [b"no image", b"", png()[:60], written(image(Modality="MR"))])
def test_an_unreadable_file_has_the_same_error(pool: DecodePool, given: bytes) -> None:
    with pytest.raises(UnreadableImageError) as expected:
        decode(given, name="x")
    with pytest.raises(UnreadableImageError) as found:
        pool.preprocess(given, SIZE, name="x")
    assert type(found.value) is UnreadableImageError
    assert (str(found.value), found.value.hint) == (str(expected.value), expected.value.hint)


def test_a_missing_file_is_named_as_the_caller_named_it(pool: DecodePool, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="No such file") as caught:
        pool.preprocess(tmp_path / "gone.png", SIZE)
    assert caught.value.path == str(tmp_path / "gone.png")


def test_more_bytes_than_a_radiograph_has_are_not_sent(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImageError, match=r"bytes is more than 100; no radiograph is that large"):
        pool.preprocess(png(), SIZE)


# --- decoders that do harm --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "error", "says"),
    [
        ("segfault", DecodeCrashedError, r"cannot read 'x': the decoder crashed \(SIGSEGV\)\. The file is damaged"),
        ("abort", DecodeCrashedError, r"the decoder crashed \(SIGABRT\)"),
        ("exit", DecodeCrashedError, r"the decoder ended \(exit status 0\)"),
        ("fault", UnreadableImageError, "the pixels cannot be decoded"),
        ("garbage", DecodeCrashedError, "the decoder gave no answer that makes sense"),
        ("short", DecodeCrashedError, "the decoder gave no answer that makes sense"),
        ("another", DecodeCrashedError, "the decoder gave no answer that makes sense"),
        ("enormous", DecodeCrashedError, "the decoder gave no answer that makes sense"),
        ("8GB", DecodeMemoryError, r"decoding takes more than 1 GiB of memory\. The file is damaged"),
    ],
)
def test_a_harmful_image_has_an_error_and_the_next_one_is_decoded(
    pool: DecodePool, action: str, error: type[Exception], says: str
) -> None:
    for _ in range(2):  # in a worker that has decoded others, and in a new one
        with pytest.raises(error, match=says):
            pool.preprocess(hostile(action), SIZE, name="x")
        assert np.array_equal(pool.decode(png()).pixels, GREY)


@pytest.mark.parametrize("actions", [("segfault",), ("8GB",), ("segfault", "exit", "garbage"), ("another", "8GB")])
def test_among_several_each_harmful_image_alone_has_an_error(pool: DecodePool, actions: tuple[str, ...]) -> None:
    given: list[tuple[Path | bytes, str]] = [(png(), "first")]
    for action in actions:
        given += [(hostile(action), action), (png(255 - GREY), f"after {action}")]
    given.append((b"no image", "last"))

    found = pool.preprocess_many(given, Preprocessing(size=64))

    for (content, name), result in zip(given, found, strict=True):
        if name in actions:
            assert isinstance(result, DecodeCrashedError | DecodeMemoryError), name
            assert result.path == name
        elif name == "last":
            assert type(result) is UnreadableImageError
        else:
            assert isinstance(result, PreprocessedImage)
            assert result.source == name
            assert np.array_equal(result.pixels, preprocess_image(decode(content), SIZE).pixels)


def test_among_several_one_that_hangs_alone_has_an_error(hurried: DecodePool) -> None:
    found = hurried.preprocess_many([(png(), "a"), (hostile("sleep"), "b"), (png(), "c")], SIZE)
    assert [type(image) for image in found] == [PreprocessedImage, DecodeTimeoutError, PreprocessedImage]


@pytest.mark.parametrize("action", ["sleep", "drip", "loop", "native"])
def test_an_image_that_takes_too_long_is_ended_by_the_deadline(hurried: DecodePool, action: str) -> None:
    assert np.array_equal(hurried.decode(png()).pixels, GREY)
    before, started = pids(hurried), time.monotonic()
    with pytest.raises(DecodeTimeoutError, match=r"decoding took more than 1\.5 s\. The file is damaged"):
        hurried.preprocess(hostile(action), SIZE)
    assert time.monotonic() - started < 20
    wait_until_gone(before)
    assert np.array_equal(hurried.decode(png()).pixels, GREY)


@pytest.mark.parametrize("action", ["loop", "native"])
def test_processor_time_is_limited_for_each_image(action: str) -> None:
    with DecodePool(1, limits=Limits(memory=2**30, cpu_seconds=1, wall_seconds=120), preload=CODEC) as pool:
        with pytest.raises(DecodeTimeoutError, match=r"decoding took more than 1 s of processor time"):
            pool.preprocess(hostile(action), SIZE)
        assert np.array_equal(pool.decode(png()).pixels, GREY)


def test_the_limit_on_processor_time_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images that together take several times as long as one may."""
    large = png(np.random.default_rng(0).integers(0, 256, (3000, 3000), dtype=np.uint8))
    with DecodePool(1, limits=Limits(memory=2**30, cpu_seconds=1, wall_seconds=120)) as pool:
        started = time.process_time()
        decode(large)
        for _ in range(round(3 / (time.process_time() - started)) + 1):
            pool.preprocess(large, SIZE)
        assert len(set(pids(pool))) == 1


def test_what_a_decoder_prints_is_nowhere(pool: DecodePool, capfd: pytest.CaptureFixture[str]) -> None:
    for action in ("print", "warn"):
        pool.preprocess(hostile(action), SIZE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("action", ["leak", "segfault"])
def test_damage_that_an_earlier_image_left_is_not_blamed_on_the_next(action: str) -> None:
    """The second one fails in the same worker, and is decoded in a new one."""
    with DecodePool(1, limits=LIMITS, preload=CODEC) as pool:
        if action == "leak":  # 600 MiB each, of 1 GiB
            pool.preprocess(hostile("leak"), SIZE)
            (first,) = pids(pool)
            pool.preprocess(hostile("leak"), SIZE)
        else:
            pool.preprocess(png(), SIZE)
            (first,) = pids(pool)
            os.kill(first, signal.SIGSEGV)  # as the kernel may, where memory runs out
            pool.preprocess(png(), SIZE)
        assert pids(pool) != [first]


def test_a_fault_of_ours_in_a_worker_is_no_hang(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DecodeCrashedError, match=r"ended \(exit status 1\)"):
        pool.preprocess(png(), Preprocessing(size=-1))
    assert np.array_equal(pool.decode(png()).pixels, GREY)


# --- the life of a worker ---------------------------------------------------------------------------------------------


def test_a_worker_is_replaced_after_so_many_images() -> None:
    with DecodePool(1, limits=Limits(images=3)) as pool:
        seen = []
        for _ in range(7):
            pool.preprocess(png(), SIZE)
            seen += pids(pool)
        assert len(set(seen)) == 3
    wait_until_gone(seen)


def test_threads_share_the_workers_and_each_gets_its_own_image() -> None:
    levels = range(0, 240, 6)
    found: dict[int, int] = {}

    def ask(level: int) -> None:
        image = pool.decode(png(np.full((40, 40), level, np.uint8)))
        found[level] = int(image.pixels.mean())

    with DecodePool(2) as pool:
        threads = [threading.Thread(target=ask, args=(level,)) for level in levels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {level: level for level in levels}
        assert 1 <= len(pids(pool)) <= 2


def test_start_starts_all_workers_and_close_ends_them() -> None:
    pool = DecodePool(2)
    pool.start()
    started = pids(pool)
    assert len(set(started)) == 2
    pool.close()
    wait_until_gone(started)
    with pytest.raises(UsageError, match="the DecodePool is closed"):
        pool.decode(png())


def test_a_pool_that_nobody_holds_ends_its_workers() -> None:
    pool = DecodePool(1)
    pool.decode(png())
    started = pids(pool)
    del pool
    wait_until_gone(started)


PARENT = """
import sys, threading
from pathlib import Path
from pneumoscope.imaging.sandbox import DecodePool
pool = DecodePool(2, preload=["tests.imaging.hostile_codec"])
pool.start()
print(*(worker._process.pid for worker in pool._idle), flush=True)
pool.decode(Path(sys.argv[1]))
for action in sys.argv[2:]:
    threading.Thread(target=pool.decode, args=[b"BM" + action.encode()], daemon=True).start()
print("busy", flush=True)
threading.Event().wait(60)
"""


@pytest.mark.parametrize("actions", [[], ["loop", "native"], ["sleep"]])
def test_killing_the_parent_leaves_no_worker(tmp_path: Path, actions: list[str]) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, str(path), *actions]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline() == "busy\n"
        assert all(map(is_alive, workers))
        parent.kill()
    assert len(workers) == 2
    wait_until_gone(workers)


def test_ctrl_c_is_for_the_parent_alone() -> None:
    with DecodePool(1) as pool:
        pool.decode(png())
        (worker,) = pids(pool)
        assert os.getpgid(worker) != os.getpgid(0)


def test_a_worker_gets_no_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hush")
    with DecodePool(1) as pool:
        pool.decode(png())
        (worker,) = pids(pool)
        assert b"hush" not in Path(f"/proc/{worker}/environ").read_bytes()


def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with DecodePool(1) as pool:
        assert np.array_equal(pool.decode(png()).pixels, GREY)


def test_a_worker_that_cannot_start_is_no_fault_of_the_image() -> None:
    with (
        DecodePool(1, preload=["no_such_module"]) as pool,
        pytest.raises(PneumoscopeError, match="does not start") as caught,
    ):
        pool.decode(png())
    assert not isinstance(caught.value, UnreadableImageError)


def test_a_fork_does_not_share_its_parents_workers() -> None:
    with DecodePool(1) as pool:
        pool.decode(png())
        child = os.fork()
        if not child:
            try:
                pool.decode(png())
            except UsageError:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert np.array_equal(pool.decode(png()).pixels, GREY)


def test_an_impossible_number_of_workers_is_refused() -> None:
    with pytest.raises(UsageError, match="workers is -1; 0 takes one per core"):
        DecodePool(-1)


def test_a_worker_imports_no_network_and_no_dicom_until_it_needs_it() -> None:
    code = (
        "import sys, pneumoscope.imaging.decode_worker\n"
        "print(*({'torch', 'onnxruntime', 'scipy', 'pydicom', 'pydantic', 'subprocess'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout == "\n"
