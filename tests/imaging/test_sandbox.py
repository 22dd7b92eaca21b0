"""Decoding in worker processes: a crash, bomb or hang affects one image only, and no worker outlives its pool."""

from __future__ import annotations

import io
import multiprocessing
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
from tests.imaging.dicom_images import image, written
from tests.processes import started

from pneumoscope.core.errors import (
    DecodeCrashedError,
    DecodeMemoryError,
    DecodeTimeoutError,
    PneumoscopeError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.core.prediction import Rejection
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging import decode as decode_module
from pneumoscope.imaging.decode import decode
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing, preprocess_image
from pneumoscope.imaging.sandbox.pool import DecodePool, Limits
from pneumoscope.imaging.sandbox.process import WorkerProcess

CODEC = ("tests.imaging.hostile_codec",)
LIMITS = Limits(memory=2**30, cpu_seconds=20, wall_seconds=60)
SHORT_LIMITS = Limits(memory=2**30, cpu_seconds=20, wall_seconds=4)
GRAY = np.random.default_rng(3).integers(0, 256, (300, 200), dtype=np.uint8)
SIZE = Preprocessing(size=64)


def png(pixels: np.ndarray = GRAY, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def hostile(action: str) -> bytes:
    """Return a file on which `hostile_codec`, imported by workers only, runs an action."""
    return b"BM" + bytes(8) + action.encode()


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_exited(pids: list[int], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"{alive} have not exited"
        time.sleep(0.02)


def pids(pool: DecodePool) -> list[int]:
    return pool.idle_pids


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(1, limits=LIMITS, preload=CODEC) as decode_pool:
        yield decode_pool


@pytest.fixture
def impatient_pool() -> Iterator[DecodePool]:
    with DecodePool(1, limits=SHORT_LIMITS, preload=CODEC) as decode_pool:
        yield decode_pool


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_worker_returns_the_same_values_as_this_process(pool: DecodePool, kind: str) -> None:
    data = written(image(PixelSpacing=[0.2, 0.3])) if kind == "DICOM" else png(GRAY, kind)
    expected = decode(data, keep_values=True).values
    values = pool.decode_values(data, name="x")
    assert expected is not None
    assert np.array_equal(values.numbers, expected.numbers)
    assert np.array_equal(values.gray_levels, expected.gray_levels)
    assert values.description == expected.description


@pytest.mark.parametrize("action", ["values 1", "values 2", "values 3"])
def test_invalid_values_are_a_crash_of_the_decoder(action: str) -> None:
    with (
        DecodePool(1, limits=LIMITS, preload=CODEC) as new_pool,
        pytest.raises(DecodeCrashedError, match="the decoder sent an invalid reply"),
    ):
        new_pool.decode_values(hostile(action), name="x")


def test_values_of_a_truncated_image_are_unreadable(pool: DecodePool) -> None:
    with pytest.raises(UnreadableImageError, match="cannot be decoded"):
        pool.decode_values(png()[:-40], name="x")


# --- The same results as in this process -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_worker_returns_the_same_image_as_this_process(
    pool: DecodePool, tmp_path: Path, kind: str, keep: bool
) -> None:
    data = written(image(PatientAge="004Y")) if kind == "DICOM" else png(GRAY, kind)
    expected = preprocess_image(decode(data, name="x", min_side=SIZE.min_side), SIZE, keep_radiograph=keep)
    path = tmp_path / "café \udcff.img"  # not valid UTF-8
    path.write_bytes(data)

    for result in (
        pool.preprocess(data, SIZE, name="x", keep_radiograph=keep),
        pool.preprocess(path, SIZE, name="x", keep_radiograph=keep),
    ):
        assert np.array_equal(result.pixels, expected.pixels)
        assert not result.pixels.flags.writeable
        for field in ("source", "format", "width", "height", "age", "rejections", "warnings"):
            assert getattr(result, field) == getattr(expected, field), field
        if not keep:
            assert result.radiograph is None
            continue
        assert result.radiograph is not None
        assert expected.radiograph is not None
        assert np.array_equal(result.radiograph.pixels, expected.radiograph.pixels)
        assert (result.radiograph.chroma, result.radiograph.reduced_from, result.radiograph.mode) == (
            expected.radiograph.chroma,
            expected.radiograph.reduced_from,
            expected.radiograph.mode,
        )


def test_decode_returns_the_image_at_full_size(pool: DecodePool) -> None:
    data = png(kind="JPEG")
    result, expected = pool.decode(data, name="x"), decode(data, name="x")
    assert np.array_equal(result.pixels, expected.pixels)
    assert (result.source, result.format, result.reduced_from) == ("x", "JPEG", None)


def test_a_large_image_is_sent_and_returned_completely(pool: DecodePool) -> None:
    # many times the buffer of a socket
    large = np.random.default_rng(4).integers(0, 256, (2000, 3000), dtype=np.uint8)
    assert np.array_equal(pool.decode(png(large, "TIFF")).pixels, large)


@pytest.mark.parametrize("content", [b"no image", b"", png()[:60], written(image(NumberOfFrames=2))])
def test_an_unreadable_file_has_the_same_error(pool: DecodePool, content: bytes) -> None:
    with pytest.raises(UnreadableImageError) as expected:
        decode(content, name="x")
    with pytest.raises(UnreadableImageError) as caught:
        pool.preprocess(content, SIZE, name="x")
    assert type(caught.value) is UnreadableImageError
    assert (str(caught.value), caught.value.hint) == (str(expected.value), expected.value.hint)
    assert caught.value.reason == expected.value.reason is not None


def test_header_rejections_are_returned_with_the_pixels(pool: DecodePool) -> None:
    content = written(image(np.tile(GRAY, (1, 2)), 8, ViewPosition="LL"))
    rejection = Rejection("lateral_view", {"view": "LL"})
    result = pool.preprocess(content, SIZE, keep_radiograph=True)
    assert result.rejections[:1] == (rejection,)
    assert result.radiograph is not None
    assert result.radiograph.rejections == (rejection,)
    assert pool.decode(content).rejections == (rejection,)
    too_small = pool.preprocess(png(GRAY[:20, :20]), SIZE, keep_radiograph=True)
    assert [rejection.code for rejection in too_small.rejections] == ["too_small"]
    assert too_small.radiograph is not None
    assert too_small.radiograph.rejections == ()


def test_the_error_of_a_missing_file_has_the_path_of_the_caller(pool: DecodePool, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="No such file") as caught:
        pool.preprocess(tmp_path / "missing.png", SIZE)
    assert caught.value.path == str(tmp_path / "missing.png")


def test_files_with_too_many_bytes_are_not_sent(pool: DecodePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_BYTES", 100)
    with pytest.raises(UnreadableImageError, match=r"bytes; the maximum is 100"):
        pool.preprocess(png(), SIZE)


# --- Malicious files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        ("segfault", DecodeCrashedError, r"cannot read 'x': the decoder crashed \(SIGSEGV\)\. The file is damaged"),
        ("abort", DecodeCrashedError, r"the decoder crashed \(SIGABRT\)"),
        ("exit", DecodeCrashedError, r"the decoder exited with status 0"),
        ("exception", UnreadableImageError, "the pixels cannot be decoded"),
        ("garbage", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("short", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("unknown reason", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("reason without parameters", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("reason of another type", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("long reason", UnreadableImageError, r"the header cannot be read \(e{4000}\)"),
        ("wrong number", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("wrong size", DecodeCrashedError, "the decoder sent an invalid reply"),
        ("8GB", DecodeMemoryError, r"decoding takes more than 1 GiB of memory\. The file is damaged"),
    ],
)
def test_a_malicious_file_has_an_error_and_the_next_one_is_decoded(
    pool: DecodePool, action: str, error: type[Exception], message: str
) -> None:
    for _ in range(2):  # in a worker that has decoded other images, and in a new one
        with pytest.raises(error, match=message):
            pool.preprocess(hostile(action), SIZE, name="x")
        assert np.array_equal(pool.decode(png()).pixels, GRAY)


@pytest.mark.parametrize(
    ("action", "code", "parameters"),
    [
        ("segfault", "decoder_crashed", {"signal": "SIGSEGV"}),
        ("exit", "decoder_exited", {"status": 0}),
        ("garbage", "decoder_reply_invalid", {}),
        ("8GB", "memory_limit_exceeded", {"gibibytes": 1.0}),
    ],
)
def test_end_of_a_decoder_has_a_reason(pool: DecodePool, action: str, code: str, parameters: dict[str, object]) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        pool.preprocess(hostile(action), SIZE)
    assert caught.value.reason == UnreadableReason(code, parameters)


@pytest.mark.slow
@pytest.mark.parametrize("actions", [("segfault",), ("8GB",), ("segfault", "exit", "garbage"), ("wrong number", "8GB")])
def test_only_the_malicious_files_of_a_batch_have_errors(pool: DecodePool, actions: tuple[str, ...]) -> None:
    batch: list[tuple[Path | bytes, str]] = [(png(), "first")]
    for action in actions:
        batch += [(hostile(action), action), (png(255 - GRAY), f"after {action}")]
    batch.append((b"no image", "last"))

    results = pool.preprocess_many(batch, Preprocessing(size=64))

    for (content, name), result in zip(batch, results, strict=True):
        if name in actions:
            assert isinstance(result, DecodeCrashedError | DecodeMemoryError), name
            assert result.path == name
        elif name == "last":
            assert type(result) is UnreadableImageError
        else:
            assert isinstance(result, PreprocessedImage)
            assert result.source == name
            assert np.array_equal(result.pixels, preprocess_image(decode(content), SIZE).pixels)


@pytest.mark.slow
def test_only_the_file_of_a_batch_that_hangs_has_an_error(impatient_pool: DecodePool) -> None:
    results = impatient_pool.preprocess_many([(png(), "a"), (hostile("sleep"), "b"), (png(), "c")], SIZE)
    assert [type(result) for result in results] == [PreprocessedImage, DecodeTimeoutError, PreprocessedImage]


@pytest.mark.slow
@pytest.mark.parametrize("action", ["sleep", "drip", "loop", "native"])
def test_the_deadline_stops_an_image_that_takes_too_long(impatient_pool: DecodePool, action: str) -> None:
    assert np.array_equal(impatient_pool.decode(png()).pixels, GRAY)
    before, start = pids(impatient_pool), time.monotonic()
    with pytest.raises(DecodeTimeoutError, match=r"decoding took more than 4 s\. The file is damaged"):
        impatient_pool.preprocess(hostile(action), SIZE)
    assert time.monotonic() - start < 60
    wait_until_exited(before)
    assert np.array_equal(impatient_pool.decode(png()).pixels, GRAY)


@pytest.mark.slow
@pytest.mark.parametrize("action", ["loop", "native"])
def test_processor_time_is_limited_for_each_image(action: str) -> None:
    # `wall_seconds` ends the test if processor time is not limited; a loaded machine may need 20 s for 1 s of processor time
    with DecodePool(1, limits=Limits(memory=2**30, cpu_seconds=1, wall_seconds=120), preload=CODEC) as pool:
        with pytest.raises(DecodeTimeoutError, match=r"decoding took more than 1 s of processor time"):
            pool.preprocess(hostile(action), SIZE)
        assert np.array_equal(pool.decode(png()).pixels, GRAY)


@pytest.mark.slow
def test_the_limit_on_processor_time_is_renewed_for_each_image() -> None:
    # decode images for twice the limit in total
    large = png(np.random.default_rng(0).integers(0, 256, (3000, 3000), dtype=np.uint8))
    with DecodePool(1, limits=Limits(memory=2**30, cpu_seconds=1, wall_seconds=60)) as pool:
        start = time.process_time()
        decode(large)
        for _ in range(round(2 / (time.process_time() - start)) + 1):
            pool.preprocess(large, SIZE)
        assert len(set(pids(pool))) == 1


def test_the_output_of_a_decoder_is_discarded(pool: DecodePool, capfd: pytest.CaptureFixture[str]) -> None:
    for action in ("print", "warn"):
        pool.preprocess(hostile(action), SIZE)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("action", ["leak", "segfault"])
def test_an_image_that_fails_because_of_an_earlier_one_is_retried_in_a_new_worker(action: str) -> None:
    with DecodePool(1, limits=LIMITS, preload=CODEC) as pool:
        if action == "leak":  # 600 MiB each, of 1 GiB
            pool.preprocess(hostile("leak"), SIZE)
            (first,) = pids(pool)
            pool.preprocess(hostile("leak"), SIZE)
        else:
            pool.preprocess(png(), SIZE)
            (first,) = pids(pool)
            os.kill(first, signal.SIGSEGV)  # as the kernel may if memory runs out
            pool.preprocess(png(), SIZE)
        assert pids(pool) != [first]


def test_an_internal_error_in_a_worker_is_a_crash(pool: DecodePool) -> None:
    with pytest.raises(DecodeCrashedError, match=r"exited with status 1"):
        pool.preprocess(png(), Preprocessing(size=-1))
    assert np.array_equal(pool.decode(png()).pixels, GRAY)


# --- Life cycle of workers --------------------------------------------------------------------------------------------


def test_a_worker_is_replaced_after_the_maximum_number_of_images() -> None:
    with DecodePool(1, limits=Limits(images=3)) as pool:
        workers = []
        for _ in range(7):
            pool.preprocess(png(), SIZE)
            workers += pids(pool)
        assert len(set(workers)) == 3
    wait_until_exited(workers)


def test_threads_share_the_workers_and_each_gets_its_own_image() -> None:
    levels = range(0, 240, 6)
    decoded: dict[int, int] = {}

    def decode_level(level: int) -> None:
        image = pool.decode(png(np.full((40, 40), level, np.uint8)))
        decoded[level] = int(image.pixels.mean())

    with DecodePool(2) as pool:
        threads = [threading.Thread(target=decode_level, args=(level,)) for level in levels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert decoded == {level: level for level in levels}
        assert 1 <= len(pids(pool)) <= 2


def test_start_starts_all_workers_and_close_ends_them() -> None:
    pool = DecodePool(2)
    pool.start()
    workers = pids(pool)
    assert len(set(workers)) == 2
    pool.close()
    wait_until_exited(workers)
    with pytest.raises(UsageError, match="the DecodePool is closed"):
        pool.decode(png())


def test_a_garbage_collected_pool_ends_its_workers() -> None:
    pool = DecodePool(1)
    pool.decode(png())
    workers = pids(pool)
    del pool
    wait_until_exited(workers)


PARENT = """
import sys, threading
from pathlib import Path
from pneumoscope.imaging.sandbox.pool import DecodePool
pool = DecodePool(2, preload=["tests.imaging.hostile_codec"])
pool.start()
print(*pool.idle_pids, flush=True)
pool.decode(Path(sys.argv[1]))
for action in sys.argv[2:]:
    threading.Thread(target=pool.decode, args=[b"BM" + bytes(8) + action.encode()], daemon=True).start()
print("busy", flush=True)
threading.Event().wait(60)
"""


@pytest.mark.parametrize("actions", [[], ["loop", "native"], ["sleep"]])
def test_workers_exit_if_their_parent_is_killed(tmp_path: Path, actions: list[str]) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, str(path), *actions]
    with started(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.stdout.readline() == "busy\n"
        assert all(map(is_alive, workers))
        parent.kill()
    assert len(workers) == 2
    wait_until_exited(workers)


def test_workers_are_not_in_the_process_group_that_ctrl_c_interrupts() -> None:
    with DecodePool(1) as pool:
        pool.decode(png())
        (worker,) = pids(pool)
        assert os.getpgid(worker) != os.getpgid(0)


def test_secrets_in_the_environment_are_not_passed_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hush")
    with DecodePool(1) as pool:
        pool.decode(png())
        (worker,) = pids(pool)
        assert b"hush" not in Path(f"/proc/{worker}/environ").read_bytes()


def test_a_module_in_the_working_directory_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with DecodePool(1) as pool:
        assert np.array_equal(pool.decode(png()).pixels, GRAY)


def test_a_worker_that_does_not_start_is_not_an_error_of_the_image() -> None:
    with (
        DecodePool(1, preload=["no_such_module"]) as pool,
        pytest.raises(PneumoscopeError, match="does not start") as caught,
    ):
        pool.decode(png())
    assert not isinstance(caught.value, UnreadableImageError)


def test_a_worker_that_is_killed_while_it_starts_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerProcess, "is_alive", True)  # it is killed after the pool has looked
    with DecodePool(1) as pool:
        pool.start()
        os.kill(pool.idle_pids[0], signal.SIGKILL)
        assert np.array_equal(pool.decode(png()).pixels, GRAY)


def test_a_forked_process_cannot_use_the_pool_of_its_parent() -> None:
    def decode_and_exit() -> None:
        try:
            pool.decode(png())
        except UsageError:
            os._exit(7)

    with DecodePool(1) as pool:
        pool.decode(png())
        child = multiprocessing.get_context("fork").Process(target=decode_and_exit)
        child.start()
        child.join(60)
        child.kill()
        assert child.exitcode == 7
        assert np.array_equal(pool.decode(png()).pixels, GRAY)


def test_a_negative_number_of_workers_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"workers must be 0 \(one per core\) or more, not -1"):
        DecodePool(-1)


def test_a_worker_imports_no_unneeded_package() -> None:
    code = (
        "import sys, pneumoscope.imaging.sandbox.worker\n"
        "print(*({'torch', 'onnxruntime', 'scipy', 'pydicom', 'pydantic', 'subprocess'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout == "\n"
