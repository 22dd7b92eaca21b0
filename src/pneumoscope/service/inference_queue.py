"""The inference queue: images of all requests wait in a bounded queue; worker threads score them in batches."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from pneumoscope.core.errors import BusyError
from pneumoscope.core.prediction import Prediction
from pneumoscope.inference.model import BATCH_SIZE, Model

__all__ = ["InferenceQueue"]


@dataclasses.dataclass(slots=True)
class _Job:
    """An image in the queue, with the client's name for it and the entered age."""

    image: bytes
    name: str
    age: float | None
    future: Future[Prediction]

    def release_image(self, _: Future[Prediction]) -> None:
        """Free the image bytes after the image was scored or cancelled."""
        self.image = b""


class InferenceQueue:
    """Threads that decode and score queued images.

    Each worker takes an equal share of the queue, up to `inference.model.BATCH_SIZE` images: single images are scored
    immediately, and under load several images share a network call. Images whose future is cancelled are skipped.

    Args:
        model: The model, with one thread per call, so that workers do not wait for each other.
        max_waiting: Maximum number of accepted images without a response.
        workers: Number of threads; 0 means one per core.
    """

    def __init__(self, model: Model, *, max_waiting: int, workers: int = 0) -> None:
        self.model = model
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._max_waiting = max_waiting
        self._waiting = 0
        self._closed = False
        self._lock = threading.Lock()
        self._workers = [
            threading.Thread(target=self._run, name=f"inference-{number}", daemon=True)
            for number in range(workers or os.cpu_count() or 1)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """Number of accepted images without a response."""
        return self._waiting

    @contextlib.contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Reserve queue places for all images of a request until it is answered.

        Args:
            count: Number of images.
        Raises:
            BusyError: The queue is full, or the service is stopping.
        """
        with self._lock:
            self._raise_if_closed()
            # A request larger than the queue is accepted only if the queue is empty; otherwise it could never be
            # accepted.
            if self._waiting and self._waiting + count > self._max_waiting:
                raise BusyError(
                    f"the queue is full: {self._waiting} images are waiting, and the limit is {self._max_waiting}",
                    hint="Try again in a few seconds",
                )
            self._waiting += count
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= count

    def submit(self, images: Sequence[tuple[bytes, str]], *, age: float | None = None) -> list[Future[Prediction]]:
        """Enqueue images.

        Args:
            images: Bytes and name of each image.
            age: See `PredictionService.predict`.
        Returns:
            A future for each image, in the same order; the prediction of an unreadable image has a `failure`.
        Raises:
            BusyError: The service is stopping.
        """
        with self._lock:
            self._raise_if_closed()
            jobs = [_Job(image, name, age, Future()) for image, name in images]
            for job in jobs:
                job.future.add_done_callback(job.release_image)
                self._queue.put(job)
        return [job.future for job in jobs]

    def close(self, timeout: float) -> None:
        """Stop accepting images, and wait up to `timeout` seconds until all accepted images are scored."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._workers:
                    self._queue.put(None)
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise BusyError("the service is stopping", hint="Try again when it has started")

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first]
            fair_size = -(-(1 + self._queue.qsize()) // len(self._workers))
            with contextlib.suppress(queue.Empty):
                while len(batch) < min(fair_size, BATCH_SIZE):
                    following = self._queue.get_nowait()
                    if following is None:
                        self._queue.put(None)  # for another worker, or for the next iteration of this one
                        break
                    batch.append(following)
            self._predict([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _predict(self, batch: list[_Job]) -> None:
        if not batch:
            return
        try:
            # Without names, since they may identify patients and must not appear in failures.
            predictions = self.model.predict_batch(
                [job.image for job in batch], names=[""] * len(batch), ages=[job.age for job in batch]
            )
        except Exception as error:  # noqa: BLE001  every waiting request must get an answer
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for job in batch:  # one of the images may be the cause
                self._predict([job])
            return
        for job, prediction in zip(batch, predictions, strict=True):
            job.future.set_result(dataclasses.replace(prediction, path=job.name))
