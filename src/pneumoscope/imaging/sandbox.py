"""Decoding in worker processes that may die: a crash, a bomb or a hang costs that image and nothing else.

A worker has limits on memory and processor time, and its parent kills it after a deadline. This holds against faults of decoders,
which hostile files aim at. It does not confine code that has taken over a worker: that runs as the same user. Replies are
checked like any other untrusted input.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pneumoscope.core.errors import (
    DecodeCrashedError,
    DecodeMemoryError,
    DecodeTimeoutError,
    UnreadableImageError,
    UsageError,
)
from pneumoscope.imaging.decode import refuse_too_many_bytes
from pneumoscope.imaging.decode_worker import (
    Failure,
    Limits,
    Success,
)
from pneumoscope.imaging.image import Radiograph
from pneumoscope.imaging.preprocess import PreprocessedImage, Preprocessing
from pneumoscope.imaging.worker_process import Answer, DiedError, TooSlowError, Worker

__all__ = ["DecodePool", "Limits"]

_TOGETHER = 2**23  # bytes of images in one message
_ADVICE = "The file is damaged or made to do harm; if another program opens it, save it there as PNG"


class DecodePool:
    """Worker processes that decode and preprocess images, for any number of threads.

    A worker starts when it is needed, serves one thread at a time, and ends with this process, however that ends. An image that
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
        self._idle: list[Worker] = []
        self._owner = os.getpid()
        self._closed = False
        self._finalizer = weakref.finalize(self, _end_all, self._idle, self._owner)

    def start(self) -> None:
        """Start all workers, without waiting for them."""
        with self._lock:
            while not self._closed and len(self._idle) < self._most:
                self._idle.append(Worker(self.limits, self._preload))

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
                    found[place] = UnreadableImageError(name, reply.reason, hint=reply.hint)
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
                    if isinstance(error, DiedError):
                        if is_new:
                            raise DecodeCrashedError(name, f"the decoder {error}", hint=_ADVICE) from None
                        worker = self._start_one()
                        continue
                    if isinstance(error, TooSlowError):
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
                    raise UnreadableImageError(name, reply.reason, hint=reply.hint)
                return reply, parts

    def _ask_together(
        self, sources: Sequence[Path | bytes], preprocessing: Preprocessing, *, pixels: bool
    ) -> list[Answer]:
        """The replies; none where the worker failed, as it may have done at any of them."""
        with self._free:
            worker = self._take()
            try:
                replies = worker.ask(sources, preprocessing, pixels=pixels)
            except (DiedError, TooSlowError):
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

    def _take(self) -> Worker:
        with self._lock:
            if os.getpid() != self._owner:
                raise UsageError("a DecodePool belongs to the process that made it", hint="Make one in each process")
            while self._idle:
                worker = self._idle.pop()
                if worker.lives:
                    return worker
                worker.end()
        return self._start_one()

    def _start_one(self) -> Worker:
        if self._closed:
            raise UsageError("the DecodePool is closed")
        return Worker(self.limits, self._preload)

    def _give_back(self, worker: Worker) -> None:
        with self._lock:
            if not self._closed and worker.images < self.limits.images:
                self._idle.append(worker)
                return
        worker.end()


def _end_all(workers: list[Worker], owner: int) -> None:
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
