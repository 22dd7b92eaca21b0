"""A decode worker as its parent sees it: started, asked with a deadline, and killed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import PneumoscopeError
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
from pneumoscope.imaging.image import MAX_PIXELS
from pneumoscope.imaging.preprocess import Preprocessing

__all__ = ["Answer", "DiedError", "TooSlowError", "Worker"]

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

Answer = tuple[Reply, list[npt.NDArray[np.uint8]]]


class DiedError(Exception):
    """The worker is gone or replies nonsense; the words say how, as in "the decoder crashed (SIGSEGV)"."""


class TooSlowError(Exception):
    """The words say which limit was passed."""


class Worker:
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
        """Whether the process has not ended."""
        return self._process.poll() is None

    def ask(
        self, sources: Sequence[Path | bytes], preprocessing: Preprocessing | None, *, pixels: bool
    ) -> list[Answer]:
        """Have images decoded.

        Raises:
            DiedError, TooSlowError: the worker is of no more use.
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
            raise TooSlowError(f"{self._limits.wall_seconds:g} s") from None
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

    def _answer(self, request: Request) -> Answer:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        try:
            if length > LONGEST_HEADER:
                raise msgspec.DecodeError("too long")
            reply: Reply = self._decoder.decode(self._read(length))
            is_large = isinstance(reply, Success) and reply.width * reply.height > MAX_PIXELS
            if reply.number != request.number or is_large:
                raise msgspec.DecodeError("no reply to what was asked")
        except msgspec.DecodeError:  # ValidationError is one
            raise DiedError("gave no answer that makes sense") from None
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

    def _death(self) -> DiedError | TooSlowError:
        """What ended the worker."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return DiedError("closed its connection")
        if code == -signal.SIGXCPU:
            return TooSlowError(f"{self._limits.cpu_seconds} s of processor time")
        if code < 0:
            return DiedError(f"crashed ({signal.Signals(-code).name})")
        return DiedError(f"ended (exit status {code})")


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
