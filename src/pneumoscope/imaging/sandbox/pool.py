"""Decode untrusted files in a pool of worker processes, so that a crash, decompression bomb or hang affects only one image.

Workers have memory and processor time limits, and the parent kills them after a deadline. This protects against decoder bugs
triggered by malicious files. It does not confine code that has taken over a worker, which runs as the same user. Replies are
validated like any other untrusted input.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import (
    DecodeCrashedError,
    DecodeMemoryError,
    DecodeTimeoutError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.imaging.decode import require_max_bytes
from pneumoscope.imaging.image import DicomPart, Radiograph
from pneumoscope.imaging.pixel_values import PixelValues
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing
from pneumoscope.imaging.sandbox.process import (
    ReplyWithPixels,
    WorkerCrashedError,
    WorkerKilledError,
    WorkerProcess,
    WorkerTimeoutError,
)
from pneumoscope.imaging.sandbox.worker import DecodeFailure, DecodeSuccess, Limits, PartSuccess

__all__ = ["DecodePool", "Limits"]

_MAX_MESSAGE_BYTES = 2**23  # content of all images in one message
_MAX_STARTS = 3  # attempts, if workers are killed before they are ready


class DecodePool:
    """Thread-safe pool of worker processes that decode and preprocess images.

    Workers start on demand, serve one thread at a time, and exit with this process. If a worker that has decoded other images
    crashes or runs out of memory, the image is retried once in a new worker. Timeouts are not retried.

    Args:
        workers: Maximum number of workers; 0 for one per core.
        limits: Resource limits of decoding.
        preload: Modules that each worker imports first, such as a Pillow plug-in.

    Raises:
        UsageError: `workers` is negative, or the platform is neither Linux nor macOS.
    """

    def __init__(self, workers: int = 0, *, limits: Limits | None = None, preload: Sequence[str] = ()) -> None:
        if workers < 0:
            raise UsageError(f"workers must be 0 (one per core) or more, not {workers}")
        if os.name != "posix":
            raise UsageError("decoding in worker processes needs Linux or macOS")
        self.limits = limits or Limits()
        self._max_workers = workers or os.cpu_count() or 1
        self._preload = tuple(preload)
        self._slots = threading.BoundedSemaphore(self._max_workers)
        self._lock = threading.Lock()
        self._idle: list[WorkerProcess] = []
        self._owner = os.getpid()
        self._closed = False
        self._finalizer = weakref.finalize(self, _kill_all, self._idle, self._owner)

    @property
    def idle_pids(self) -> list[int]:
        """Ids of the processes of the workers that decode no image, one that started last at the end."""
        with self._lock:
            return [worker.pid for worker in self._idle]

    def start(self) -> None:
        """Start all workers without waiting until they are ready."""
        with self._lock:
            while not self._closed and len(self._idle) < self._max_workers:
                self._idle.append(WorkerProcess(self.limits, self._preload))

    def decode(self, source: Path | bytes, *, name: str = "") -> Radiograph:
        """Return an image decoded in a worker at full size, even if its header rejects it; see `imaging.decode.decode`.

        Raises:
            DecodeCrashedError, DecodeTimeoutError, DecodeMemoryError: The worker crashed or exceeded a limit.
            UnreadableImageError: The image cannot be decoded; see `imaging.decode`.
        """
        name = _name(source, name)
        reply, (pixels,) = self._decode(source, name, None, pixels=True)
        return _radiograph(reply, pixels, name)

    def decode_values(self, source: Path | bytes, *, name: str = "") -> PixelValues:
        """Return the pixel values of an image before windowing, decoded in a worker, even if its header rejects it.

        Raises:
            DecodeCrashedError, DecodeTimeoutError, DecodeMemoryError: The worker crashed or exceeded a limit.
            UnreadableImageError: The image cannot be decoded; see `imaging.decode`.
        """
        reply, (gray_levels, numbers) = self._decode(source, _name(source, name), None, pixels=False, values=True)
        assert reply.description  # checked by `WorkerProcess`
        return PixelValues(numbers, gray_levels, reply.description)

    def read_part(self, source: Path | bytes, part: DicomPart, *, name: str = "") -> bytes:
        """Return a part of a DICOM file, read in a worker; see `imaging.dicom_parts.read_part`.

        Raises:
            DecodeCrashedError, DecodeTimeoutError, DecodeMemoryError: The worker crashed or exceeded a limit.
            UnreadableImageError: The part cannot be read.
        """
        _, (content,) = self._request(source, _name(source, name), lambda worker: worker.read_part(source, part))
        return content.tobytes()

    def preprocess(
        self, source: Path | bytes, preprocessing: Preprocessing, *, name: str = "", keep_radiograph: bool = False
    ) -> PreprocessedImage:
        """Return an image decoded and preprocessed in a worker.

        Args:
            source: Path of a file, or its content.
            preprocessing: Crop and size.
            name: Name of the file in messages; defaults to its path.
            keep_radiograph: Whether to return the decoded image as well.

        Raises:
            DecodeCrashedError, DecodeTimeoutError, DecodeMemoryError: The worker crashed or exceeded a limit.
            UnreadableImageError: The image cannot be decoded; see `imaging.decode`.
        """
        name = _name(source, name)
        reply, arrays = self._decode(source, name, preprocessing, pixels=keep_radiograph)
        return _preprocessed(reply, arrays, name)

    def preprocess_many(
        self,
        sources: Sequence[tuple[Path | bytes, str]],
        preprocessing: Preprocessing,
        *,
        keep_radiograph: bool = False,
    ) -> list[PreprocessedImage | UnreadableImageError]:
        """Return several images decoded and preprocessed by one worker, with an error in place of each unreadable image.

        A single message for all images is several times faster than one message per image. If the worker fails, the images are
        decoded one by one.

        Args:
            sources: Paths or contents of files, each with a name; see `preprocess`.
            preprocessing, keep_radiograph: See `preprocess`.
        """
        named = [(source, _name(source, name)) for source, name in sources]
        results: dict[int, PreprocessedImage | UnreadableImageError] = {}
        n_bytes = sum(len(source) for source, _ in named if isinstance(source, bytes))
        if len(named) > 1 and n_bytes <= _MAX_MESSAGE_BYTES:
            replies = self._request_batch([source for source, _ in named], preprocessing, pixels=keep_radiograph)
            for i, ((reply, arrays), (_, name)) in enumerate(zip(replies, named, strict=False)):
                if isinstance(reply, DecodeSuccess):
                    results[i] = _preprocessed(reply, arrays, name)
                elif isinstance(reply, DecodeFailure) and reply.reason and not reply.out_of_memory:
                    results[i] = UnreadableImageError(name, reply.reason)
        for i, (source, name) in enumerate(named):
            if i not in results:
                try:
                    results[i] = self.preprocess(source, preprocessing, name=name, keep_radiograph=keep_radiograph)
                except UnreadableImageError as error:
                    results[i] = error
        return [results[i] for i in range(len(named))]

    def close(self) -> None:
        """Kill the idle workers; busy workers are killed after their reply."""
        with self._lock:
            self._closed = True
            _kill_all(self._idle, self._owner)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(
        self,
        source: Path | bytes,
        name: str,
        preprocessing: Preprocessing | None,
        *,
        pixels: bool,
        values: bool = False,
    ) -> tuple[DecodeSuccess, list[npt.NDArray[Any]]]:
        def send(worker: WorkerProcess) -> ReplyWithPixels:
            return worker.decode([source], preprocessing, pixels=pixels, values=values)[0]

        reply, arrays = self._request(source, name, send)
        assert isinstance(reply, DecodeSuccess)  # checked by `WorkerProcess`
        return reply, arrays

    def _request(
        self, source: Path | bytes, name: str, send: Callable[[WorkerProcess], ReplyWithPixels]
    ) -> tuple[DecodeSuccess | PartSuccess, list[npt.NDArray[Any]]]:
        """Return the reply to a request sent by a function, retrying once if the worker fails after earlier images."""
        if isinstance(source, bytes):
            require_max_bytes(name, len(source))
        with self._slots:
            worker = self._wait_until_ready(self._take_worker())
            while True:
                is_new = worker.n_images == 0
                try:
                    reply, arrays = send(worker)
                except BaseException as error:
                    worker.kill()
                    if isinstance(error, WorkerCrashedError):
                        if is_new:
                            raise DecodeCrashedError(name, error.reason) from None
                        worker = self._wait_until_ready(self._start_worker())
                        continue
                    if isinstance(error, WorkerTimeoutError):
                        raise DecodeTimeoutError(name, error.reason) from None
                    raise
                if isinstance(reply, DecodeFailure) and reply.out_of_memory:
                    worker.kill()
                    if is_new:
                        limit = {"gibibytes": self.limits.memory / 2**30}
                        raise DecodeMemoryError(name, UnreadableReason("memory_limit_exceeded", limit))
                    worker = self._wait_until_ready(self._start_worker())
                    continue
                self._return_worker(worker)
                if isinstance(reply, DecodeFailure):
                    assert reply.reason  # checked by `WorkerProcess`
                    raise UnreadableImageError(name, reply.reason)
                return reply, arrays

    def _request_batch(
        self, sources: Sequence[Path | bytes], preprocessing: Preprocessing, *, pixels: bool
    ) -> list[ReplyWithPixels]:
        """Return the replies, or an empty list if the worker failed, in which case any of the images may be the cause."""
        with self._slots:
            worker = self._wait_until_ready(self._take_worker())
            try:
                replies = worker.decode(sources, preprocessing, pixels=pixels)
            except (WorkerCrashedError, WorkerTimeoutError):
                worker.kill()
                return []
            except BaseException:
                worker.kill()
                raise
            if any(isinstance(reply, DecodeFailure) and reply.out_of_memory for reply, _ in replies):
                worker.kill()
            else:
                self._return_worker(worker)
            return replies

    def _take_worker(self) -> WorkerProcess:
        with self._lock:
            if os.getpid() != self._owner:
                raise UsageError(
                    "a DecodePool cannot be used in a forked process", hint="Create a pool in each process"
                )
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive:
                    return worker
                worker.kill()
        return self._start_worker()

    def _start_worker(self) -> WorkerProcess:
        if self._closed:
            raise UsageError("the DecodePool is closed")
        return WorkerProcess(self.limits, self._preload)

    def _wait_until_ready(self, worker: WorkerProcess) -> WorkerProcess:
        """Return a worker that has started: this one, or a replacement if it was killed before it was ready."""
        for number in range(1, _MAX_STARTS + 1):
            try:
                worker.wait_until_ready()
            except BaseException as error:
                worker.kill()
                if not isinstance(error, WorkerKilledError) or number == _MAX_STARTS:
                    raise
                worker = self._start_worker()
        return worker

    def _return_worker(self, worker: WorkerProcess) -> None:
        with self._lock:
            if not self._closed and worker.n_images < self.limits.images:
                self._idle.append(worker)
                return
        worker.kill()


def _kill_all(workers: list[WorkerProcess], owner: int) -> None:
    if os.getpid() != owner:  # after a fork, the workers belong to the parent
        return
    while workers:
        workers.pop().kill()


def _name(source: Path | bytes, name: str) -> str:
    return name or ("bytes" if isinstance(source, bytes) else str(source))


def _preprocessed(reply: DecodeSuccess, arrays: Sequence[npt.NDArray[np.uint8]], name: str) -> PreprocessedImage:
    width, height = reply.reduced_from or (reply.width, reply.height)
    return PreprocessedImage(
        pixels=arrays[0],
        source=name,
        format=reply.format,
        width=width,
        height=height,
        age=reply.age,
        rejections=reply.rejections,
        warnings=reply.warnings,
        identity=reply.identity,
        acquisition=reply.acquisition,
        pixel_sha256=reply.pixel_sha256,
        radiograph=_radiograph(reply, arrays[1], name) if len(arrays) > 1 else None,
    )


def _radiograph(reply: DecodeSuccess, pixels: npt.NDArray[np.uint8], name: str) -> Radiograph:
    return Radiograph(
        pixels,
        name,
        reply.format,
        reply.mode,
        reduced_from=reply.reduced_from,
        chroma=reply.chroma,
        age=reply.age,
        rejections=reply.header_rejections,
        warnings=reply.warnings,
        identity=reply.identity,
        acquisition=reply.acquisition,
    )
