"""Start a decode worker, send it requests with a deadline, and kill it: the parent's side of `worker`."""

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
from pneumoscope.core.rejection_messages import rejection_message
from pneumoscope.core.unreadable import UnreadableReason, reason_message
from pneumoscope.imaging.image import MAX_PART_BYTES, MAX_PIXELS, DicomPart
from pneumoscope.imaging.preprocess import Preprocessing
from pneumoscope.imaging.sandbox.worker import (
    BUFFER_BYTES,
    LENGTH,
    MAX_HEADER_BYTES,
    READY,
    DecodeFailure,
    DecodeSuccess,
    Limits,
    PartRequest,
    PartSuccess,
    Reply,
    Request,
)

__all__ = ["ReplyWithPixels", "WorkerCrashedError", "WorkerKilledError", "WorkerProcess", "WorkerTimeoutError"]

_START_SECONDS = 120.0  # for a worker to start on a busy machine
_EXIT_SECONDS = 10.0  # for a killed process to exit
_INVALID_REPLY = UnreadableReason("decoder_reply_invalid")
# A worker imports the same modules as its parent; -I excludes modules in the working directory.
_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pneumoscope.imaging.sandbox.worker import main
main(int(sys.argv[2]), sys.argv[3], sys.argv[4:])
"""
# Other variables are not passed on because they may contain secrets.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR", "TZ")
_SETTINGS = {
    "OPENBLAS_NUM_THREADS": "1",  # OpenBLAS reserves memory for each thread
    "OMP_NUM_THREADS": "1",
    # By default glibc returns the memory of each image to the kernel, which takes a third of the time of a small image.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**27),
}

# Header of a reply, and the requested arrays.
ReplyWithPixels = tuple[Reply, list[npt.NDArray[Any]]]


class WorkerError(Exception):
    """Base class of errors after which a worker cannot be used again.

    Attributes:
        reason: Reason why the image could not be decoded.
    """

    def __init__(self, reason: UnreadableReason) -> None:
        super().__init__(reason.code)
        self.reason = reason


class WorkerCrashedError(WorkerError):
    """Raised when the worker exited or sent an invalid reply."""


class WorkerTimeoutError(WorkerError):
    """Raised when the worker exceeded a time limit."""


class WorkerKilledError(PneumoscopeError):
    """Raised when the worker was killed before it was ready; a new one may start."""


class WorkerProcess:
    """One worker process, used by one thread at a time.

    Args:
        limits: Resource limits of the worker.
        preload: Modules that the worker imports first.

    Attributes:
        n_images: Number of images sent to the worker.
    """

    _decoder = msgspec.msgpack.Decoder(Reply)

    def __init__(self, limits: Limits, preload: Sequence[str]) -> None:
        self.n_images = 0
        self._limits = limits
        self._is_ready = False
        self._connection, worker_end = socket.socketpair()
        self._stream = _DeadlineStream(self._connection)
        self._reader = io.BufferedReader(self._stream, BUFFER_BYTES)
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = json.dumps([path for path in sys.path if path])
        arguments = (paths, str(worker_end.fileno()), msgspec.json.encode(limits).decode(), *preload)
        with worker_end:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", _BOOT, *arguments],
                stdin=subprocess.PIPE,  # see worker._exit_with_parent
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[worker_end.fileno()],
                env=environment | _SETTINGS,
                process_group=0,  # Ctrl-C goes to the parent only
            )

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def decode(
        self,
        sources: Sequence[Path | bytes],
        preprocessing: Preprocessing | None,
        *,
        pixels: bool,
        values: bool = False,
    ) -> list[ReplyWithPixels]:
        """Return the replies to a single message with several requests.

        Args:
            sources: Paths or contents of files.
            preprocessing, pixels, values: See `Request`.

        Raises:
            WorkerCrashedError, WorkerTimeoutError: The worker cannot be used again; kill it.
            PneumoscopeError: The worker does not start.
        """
        requests, contents = [], []
        for source in sources:
            number, path, content = self._next(source)
            requests.append(Request(number, path, len(content), preprocessing, pixels, values))
            contents.append(content)
        return self._exchange(requests, contents)

    def read_part(self, source: Path | bytes, part: DicomPart) -> ReplyWithPixels:
        """Return the reply to a request for a part of a DICOM file; raises the same errors as `decode`."""
        number, path, content = self._next(source)
        (reply,) = self._exchange([PartRequest(number, path, len(content), part)], [content])
        return reply

    def _next(self, source: Path | bytes) -> tuple[int, bytes, bytes]:
        """Return the number of the next request, and the path or content of its file."""
        self.n_images += 1
        return (
            (self.n_images, b"", source)
            if isinstance(source, bytes)
            else (self.n_images, os.fsencode(source.absolute()), b"")
        )

    def _exchange(self, requests: Sequence[Request | PartRequest], contents: Sequence[bytes]) -> list[ReplyWithPixels]:
        """Send one message and return the replies."""
        self.wait_until_ready()
        header = msgspec.msgpack.encode(requests)
        self._stream.deadline = time.monotonic() + self._limits.wall_seconds
        try:
            self._stream.send(LENGTH.pack(len(header)) + header)
            for content in contents:
                self._stream.send(content)
            return [self._read_reply(request) for request in requests]
        except TimeoutError:
            reason = UnreadableReason("time_limit_exceeded", {"seconds": self._limits.wall_seconds})
            raise WorkerTimeoutError(reason) from None
        except OSError:
            raise self._exit_error(requests) from None

    def kill(self) -> None:
        """Kill the process and wait until it has exited."""
        self._process.kill()
        self._connection.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)

    def wait_until_ready(self) -> None:
        """Wait until the worker has started.

        Raises:
            WorkerKilledError: The worker was killed first, for example because memory ran out.
            PneumoscopeError: The worker does not start.
        """
        if self._is_ready:
            return
        self._stream.deadline = time.monotonic() + _START_SECONDS
        with contextlib.suppress(OSError):  # reported below
            self._is_ready = self._reader.read(len(READY)) == READY
        if not self._is_ready:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_SECONDS)
            error = WorkerKilledError if self._process.returncode == -signal.SIGKILL else PneumoscopeError
            raise error(
                "the worker process that decodes images does not start",
                hint=f"For the cause, run: {sys.executable} -c 'import pneumoscope.imaging.sandbox.worker'",
            )

    def _read_reply(self, request: Request | PartRequest) -> ReplyWithPixels:
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        if length > MAX_HEADER_BYTES:
            raise WorkerCrashedError(_INVALID_REPLY)
        try:
            reply: Reply = self._decoder.decode(self._read(length))
        except msgspec.DecodeError:  # includes ValidationError
            raise WorkerCrashedError(_INVALID_REPLY) from None
        if reply.number != request.number or not _is_valid(reply):
            raise WorkerCrashedError(_INVALID_REPLY)
        if isinstance(reply, DecodeFailure):
            return reply, []
        if isinstance(reply, PartSuccess) or isinstance(request, PartRequest):
            return reply, [self._read_part(request, reply)]
        if request.values != (reply.description is not None):
            raise WorkerCrashedError(_INVALID_REPLY)
        shapes = [(request.preprocessing.size, request.preprocessing.size)] if request.preprocessing else []
        shapes += [(reply.height, reply.width)] if request.pixels else []
        arrays = [self._read_pixels(*shape) for shape in shapes]
        return reply, arrays + (self._read_values(reply) if request.values else [])

    def _read_part(self, request: Request | PartRequest, reply: Reply) -> npt.NDArray[Any]:
        if not isinstance(request, PartRequest) or not isinstance(reply, PartSuccess):
            raise WorkerCrashedError(_INVALID_REPLY)
        if reply.size > MAX_PART_BYTES[request.part]:
            raise WorkerCrashedError(_INVALID_REPLY)
        part = self._read_pixels(reply.size)
        try:
            if request.part != "frame":
                msgspec.json.decode(part.data, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            raise WorkerCrashedError(_INVALID_REPLY) from None
        return part

    def _read(self, size: int) -> bytes:
        content = self._reader.read(size)
        if len(content) < size:
            raise ConnectionError  # end of stream
        return content

    def _read_values(self, reply: DecodeSuccess) -> list[npt.NDArray[Any]]:
        """Return the gray level of each number, and the numbers."""
        gray_levels = self._read_pixels(reply.n_gray_levels)
        numbers = self._read_pixels(reply.height, reply.width, dtype="<u2")
        if numbers.max() >= len(gray_levels):
            raise WorkerCrashedError(_INVALID_REPLY)
        return [gray_levels, numbers]

    def _read_pixels(self, *shape: int, dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
        pixels = np.empty(shape, dtype=dtype)
        if self._reader.readinto(pixels.data.cast("B")) < pixels.nbytes:
            raise ConnectionError
        pixels.flags.writeable = False
        return pixels

    def _exit_error(self, requests: Sequence[Request | PartRequest]) -> WorkerCrashedError | WorkerTimeoutError:
        """Return the error that matches the exit status of the worker."""
        try:
            code = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            return WorkerCrashedError(UnreadableReason("decoder_disconnected"))
        if code == -signal.SIGXCPU:
            is_part = isinstance(requests[0], PartRequest)  # part requests are sent alone
            seconds = self._limits.part_cpu_seconds if is_part else self._limits.cpu_seconds
            return WorkerTimeoutError(UnreadableReason("processor_time_limit_exceeded", {"seconds": seconds}))
        if code < 0:
            return WorkerCrashedError(UnreadableReason("decoder_crashed", {"signal": signal.Signals(-code).name}))
        return WorkerCrashedError(UnreadableReason("decoder_exited", {"status": code}))


class _DeadlineStream(io.RawIOBase):
    """Socket stream with one deadline for all reads and writes, which a slow sender cannot extend.

    Attributes:
        deadline: Monotonic time in seconds.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.deadline = 0.0
        self._connection = connection

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._set_timeout()
        return self._connection.recv_into(buffer)

    def send(self, content: bytes) -> None:
        """Send the whole content."""
        remaining = memoryview(content)
        while remaining:
            self._set_timeout()
            remaining = remaining[self._connection.send(remaining) :]

    def _set_timeout(self) -> None:
        seconds = self.deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        self._connection.settimeout(seconds)


def _is_valid(reply: Reply) -> bool:
    """Return whether the size is within the limit, the parameters of reasons match their codes, and the numbers are usable."""
    try:
        if isinstance(reply, DecodeFailure):
            return bool(reason_message(reply.reason)) if reply.reason else reply.out_of_memory
        if isinstance(reply, PartSuccess):
            return True
        for rejection in (*reply.rejections, *reply.header_rejections):
            rejection_message(rejection)
    except (KeyError, ValueError, IndexError, TypeError):
        return False
    return reply.width * reply.height <= MAX_PIXELS and (reply.description is None or reply.description.is_valid)
