"""Decoding in worker processes that may die: a crash, a bomb or a hang costs that image and nothing else.

A worker has limits on memory and processor time, and its parent kills it after a deadline. This holds against faults of decoders,
which hostile files aim at. It does not confine code that has taken over a worker: that runs as the same user. Replies are
checked like any other untrusted input.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import (
    DecodeCrashedError,
    DecodeMemoryError,
    DecodeTimeoutError,
    PneumoscopeError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.imaging.decode import refuse_too_many_bytes
from pneumoscope.imaging.decode_worker import (
    BUFFER,
    LENGTH,
    LONGEST_HEADER,
    READY,
    Failure,
    Limits,
    Reply,
    Request,
    Success,
)
from pneumoscope.imaging.image import MAX_PIXELS, Radiograph
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing

__all__ = ["DecodePool", "Limits"]

_START_SECONDS = 120.0  # for a worker to start on a busy machine
_END_SECONDS = 10.0  # for a killed process to be gone
# A worker finds the same modules as its parent; -I keeps those that lie in the working directory out.
_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pneumoscope.imaging.decode_worker import main
main(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
"""
# A worker needs no secrets that the environment may hold.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "TZ")
_SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",  # it would reserve memory for a thread per core
    "OMP_NUM_THREADS": "1",
    # glibc would return each image's memory to the kernel and fetch it again, page by page: a third of a small image's time.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}
_TOGETHER = 2**23  # bytes of images in one message
_ADVICE = "The file is damaged or made to do harm; if another program opens it, save it there as PNG"


_Answer = tuple[Reply, list[npt.NDArray[np.uint8]]]


class DecodePool:
    """Worker processes that decode and preprocess images, for any number of threads.

    A worker starts when it is needed, serves one image at a time, and ends with this process, however that ends. An image that
    fails in a worker which has decoded others is tried once more in a new one: the damage may have been done before it came.

    Args:
        workers: processes at most; 0 takes one per core.
        limits: what one image may cost.
        preload: names of modules that each worker imports first, such as a plug-in of Pillow.
    Raises:
        UsageError: the number is below 0, or this is neither Linux nor macOS.
    """

    def __init__(self, workers: int = 0, *, limits: Limits | None = None, preload: Sequence[str] = ()) -> None:
        if workers < 0:
            raise UsageError(f"workers is {workers}; 0 takes one per core")
        if os.name != "posix":
            raise UsageError("decoding in worker processes needs Linux or macOS")
        self.limits = limits or Limits()
        self._most = workers or os.cpu_count() or 1
        self._preload = tuple(preload)
        self._free = threading.BoundedSemaphore(self._most)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._owner = os.getpid()
        self._closed = False
        self._finalizer = weakref.finalize(self, _end_all, self._idle, self._owner)

    def start(self) -> None:
        """Start all workers, without waiting for them."""
        with self._lock:
            while not self._closed and len(self._idle) < self._most:
                self._idle.append(_Worker(self.limits, self._preload))

    def decode(self, source: Path | bytes, *, name: str = "") -> Radiograph:
        """Return an image decoded in a worker, whole; see `radiograph.decode.decode`.

        Raises:
            DecodeCrashedError, DecodeTimeoutError, DecodeMemoryError: the worker died, was killed, or ran out of memory.
            UnreadableImageError: see `radiograph.decode`.
        """
        name = _name(source, name)
        found, (pixels,) = self._ask(source, name, None, pixels=True)
        return _radiograph(found, pixels, name)

    def preprocess(
        self, source: Path | bytes, preprocessing: Preprocessing, *, name: str = "", keep_radiograph: bool = False
    ) -> PreprocessedImage:
        """Return an image decoded and prepared in a worker.

        Args:
            source: a file, or its bytes.
            preprocessing: the crop and the side.
            name: for messages; the path where empty.
            keep_radiograph: Also return the decoded image.
        Raises:
            DecodeCrashedError, DecodeTimeoutError, DecodeMemoryError: the worker died, was killed, or ran out of memory.
            UnreadableImageError: see `radiograph.decode`.
        """
        name = _name(source, name)
        found, parts = self._ask(source, name, preprocessing, pixels=keep_radiograph)
        return _preprocessed(found, parts, name)

    def preprocess_many(
        self,
        sources: Sequence[tuple[Path | bytes, str]],
        preprocessing: Preprocessing,
        *,
        keep_radiograph: bool = False,
    ) -> list[PreprocessedImage | UnreadableImageError]:
        """Return several images decoded and prepared by one worker, or the error of each that cannot be.

        They share a message, which is several times cheaper than one each. Where the worker fails, each is tried alone.

        Args:
            sources: files or their bytes, each with its name; see `preprocess`.
            preprocessing, keep_radiograph: as for `preprocess`.
        """
        named = [(source, _name(source, name)) for source, name in sources]
        found: list[PreprocessedImage | UnreadableImageError | None] = [None] * len(named)
        if len(named) > 1 and sum(len(source) for source, _ in named if isinstance(source, bytes)) <= _TOGETHER:
            replies = self._ask_together([source for source, _ in named], preprocessing, pixels=keep_radiograph)
            for place, (reply, parts) in enumerate(replies):
                name = named[place][1]
                if isinstance(reply, Success):
                    found[place] = _preprocessed(reply, parts, name)
                elif not reply.memory:
                    found[place] = UnreadableImageError(name, reply.why, hint=reply.hint)
        for place, (source, name) in enumerate(named):
            if found[place] is None:
                try:
                    found[place] = self.preprocess(source, preprocessing, name=name, keep_radiograph=keep_radiograph)
                except UnreadableImageError as error:
                    found[place] = error
        return [each for each in found if each is not None]

    def close(self) -> None:
        """End the workers. One that is decoding ends when it has replied."""
        with self._lock:
            self._closed = True
            _end_all(self._idle, self._owner)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self, source: Path | bytes, name: str, preprocessing: Preprocessing | None, *, pixels: bool
    ) -> tuple[Success, list[npt.NDArray[np.uint8]]]:
        if isinstance(source, bytes):
            refuse_too_many_bytes(name, len(source))
        with self._free:
            worker = self._take()
            while True:
                is_new = worker.images == 0
                try:
                    ((reply, parts),) = worker.ask([source], preprocessing, pixels=pixels)
                except BaseException as error:
                    worker.end()
                    if isinstance(error, _DiedError):
                        if is_new:
                            raise DecodeCrashedError(name, f"the decoder {error}", hint=_ADVICE) from None
                        worker = self._start_one()
                        continue
                    if isinstance(error, _TooSlowError):
                        raise DecodeTimeoutError(name, f"decoding took more than {error}", hint=_ADVICE) from None
                    raise
                if isinstance(reply, Failure) and reply.memory:
                    worker.end()
                    if is_new:
                        why = f"decoding takes more than {self.limits.memory / 2**30:.3g} GiB of memory"
                        raise DecodeMemoryError(name, why, hint=_ADVICE)
                    worker = self._start_one()
                    continue
                self._give_back(worker)
                if isinstance(reply, Failure):
                    raise UnreadableImageError(name, reply.why, hint=reply.hint)
                return reply, parts

    def _ask_together(
        self, sources: Sequence[Path | bytes], preprocessing: Preprocessing, *, pixels: bool
    ) -> list[_Answer]:
        """The replies; none where the worker failed, as it may have done at any of them."""
        with self._free:
            worker = self._take()
            try:
                replies = worker.ask(sources, preprocessing, pixels=pixels)
            except (_DiedError, _TooSlowError):
                worker.end()
                return []
            except BaseException:
                worker.end()
                raise
            if any(isinstance(reply, Failure) and reply.memory for reply, _ in replies):
                worker.end()
            else:
                self._give_back(worker)
            return replies

    def _take(self) -> _Worker:
        with self._lock:
            if os.getpid() != self._owner:
                raise UsageError("a DecodePool belongs to the process that made it", hint="Make one in each process")
            while self._idle:
                worker = self._idle.pop()
                if worker.lives:
                    return worker
                worker.end()
        return self._start_one()

    def _start_one(self) -> _Worker:
        if self._closed:
            raise UsageError("the DecodePool is closed")
        return _Worker(self.limits, self._preload)

    def _give_back(self, worker: _Worker) -> None:
        with self._lock:
            if not self._closed and worker.images < self.limits.images:
                self._idle.append(worker)
                return
        worker.end()


class _DiedError(Exception):
    """The worker is gone or replies nonsense; the words say how, as in "the decoder crashed (SIGSEGV)"."""


class _TooSlowError(Exception):
    """The words say which limit was passed."""


class _Worker:
    """One process, used by one thread at a time.

    Attributes:
        images: that were sent to it.
    """

    _decoder = msgspec.msgpack.Decoder(Reply)

    def __init__(self, limits: Limits, preload: Sequence[str]) -> None:
        self.images = 0
        self._limits = limits
        self._is_ready = False
        self._connection, other = socket.socketpair()
        self._stream = _Stream(self._connection)
        self._received = io.BufferedReader(self._stream, BUFFER)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = json.dumps([path for path in sys.path if path])
        told = (paths, str(other.fileno()), msgspec.json.encode(limits).decode(), *preload)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", _BOOT, *told],
                stdin=subprocess.PIPE,  # see decode_worker._end_with_parent
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
                env=environment | _SETTINGS,
                process_group=0,  # Ctrl-C is for the parent
            )

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, sources: Sequence[Path | bytes], preprocessing: Preprocessing | None, *, pixels: bool
    ) -> list[_Answer]:
        """Have images decoded.

        Raises:
            _DiedError, _TooSlowError: the worker is of no more use.
        """
        self._await_start()
        requests, bodies = [], []
        for source in sources:
            self.images += 1
            path, body = (b"", source) if isinstance(source, bytes) else (os.fsencode(source.absolute()), b"")
            requests.append(Request(self.images, path, len(body), preprocessing, pixels))
            bodies.append(body)
        header = msgspec.msgpack.encode(requests)
        self._stream.deadline = time.monotonic() + self._limits.wall_seconds
        try:
            self._stream.send(LENGTH.pack(len(header)) + header)
            for body in bodies:
                self._stream.send(body)
            return [self._answer(request) for request in requests]
        except TimeoutError:
            raise _TooSlowError(f"{self._limits.wall_seconds:g} s") from None
        except OSError:
            raise self._death() from None

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)

    def _await_start(self) -> None:
        if self._is_ready:
            return
        self._stream.deadline = time.monotonic() + _START_SECONDS
        with contextlib.suppress(OSError):  # the error below says it
            self._is_ready = self._received.read(len(READY)) == READY
        if not self._is_ready:
            raise PneumoscopeError(
                "a worker process that decodes images does not start",
                hint=f"See why: {sys.executable} -c 'import pneumoscope.imaging.decode_worker'",
            )

    def _answer(self, request: Request) -> _Answer:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        try:
            if length > LONGEST_HEADER:
                raise msgspec.DecodeError("too long")
            reply: Reply = self._decoder.decode(self._read(length))
            is_large = isinstance(reply, Success) and reply.width * reply.height > MAX_PIXELS
            if reply.number != request.number or is_large:
                raise msgspec.DecodeError("no reply to what was asked")
        except msgspec.DecodeError:  # ValidationError is one
            raise _DiedError("gave no answer that makes sense") from None
        if isinstance(reply, Failure):
            return reply, []
        sides = [(request.preprocessing.size, request.preprocessing.size)] if request.preprocessing else []
        sides += [(reply.height, reply.width)] if request.pixels else []
        return reply, [self._pixels(*shape) for shape in sides]

    def _read(self, size: int) -> bytes:
        content = self._received.read(size)
        if len(content) < size:
            raise ConnectionError  # the stream has ended
        return content

    def _pixels(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        pixels = np.empty((height, width), dtype=np.uint8)
        if self._received.readinto(pixels.data.cast("B")) < pixels.nbytes:
            raise ConnectionError
        pixels.flags.writeable = False
        return pixels

    def _death(self) -> _DiedError | _TooSlowError:
        """What ended the worker."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return _DiedError("closed its connection")
        if code == -signal.SIGXCPU:
            return _TooSlowError(f"{self._limits.cpu_seconds} s of processor time")
        if code < 0:
            return _DiedError(f"crashed ({signal.Signals(-code).name})")
        return _DiedError(f"ended (exit status {code})")


class _Stream(io.RawIOBase):
    """A socket as a file with a deadline, which a worker that sends byte after byte cannot put off.

    Attributes:
        deadline: on the monotonic clock, for all that follows.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.deadline = 0.0
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._await()
        return self._connection.recv_into(buffer)

    def send(self, content: bytes) -> None:
        """Send all of it."""
        left = memoryview(content)
        while left:
            self._await()
            left = left[self._connection.send(left) :]

    def _await(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)


def _end_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() != owner:  # a fork: they are its parent's
        return
    while workers:
        workers.pop().end()


def _name(source: Path | bytes, name: str) -> str:
    return name or ("bytes" if isinstance(source, bytes) else str(source))


def _preprocessed(found: Success, parts: Sequence[npt.NDArray[np.uint8]], name: str) -> PreprocessedImage:
    width, height = found.reduced_from or (found.width, found.height)
    return PreprocessedImage(
        pixels=parts[0],
        source=name,
        format=found.format,
        width=width,
        height=height,
        age=found.age,
        rejection=found.rejection,
        radiograph=_radiograph(found, parts[1], name) if len(parts) > 1 else None,
    )


def _radiograph(found: Success, pixels: npt.NDArray[np.uint8], name: str) -> Radiograph:
    return Radiograph(
        pixels,
        name,
        found.format,
        found.mode,
        reduced_from=found.reduced_from,
        chroma=found.chroma,
        age=found.age,
    )
