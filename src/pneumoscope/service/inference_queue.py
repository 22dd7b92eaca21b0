"""Images of all requests through one network: they wait in a queue with an end, and go through it a few at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from pneumoscope.core.errors import BusyError
from pneumoscope.core.prediction import Prediction
from pneumoscope.inference.model import BATCH_SIZE, Model

__all__ = ["InferenceQueue"]


@dataclasses.dataclass(slots=True)
class _Waiting:
    image: bytes
    name: str
    found: Future[Prediction]

    def forget(self, _: Future[Prediction]) -> None:
        """Let go of the bytes of an image that is scored, or that nobody waits for any more."""
        self.image = b""


class InferenceQueue:
    """Threads that decode and score what waits.

    A worker takes its share of what waits, up to `session.model.BATCH_SIZE` images: alone an image is scored at once, and under load
    they go through the network together. An image whose request has gone (its future is cancelled) is passed over.

    Args:
        model: that scores; with one thread a call, so that workers do not wait for each other.
        most_waiting: images that may be taken in and not answered.
        workers: threads; 0 takes one a core.
    """

    def __init__(self, model: Model, *, most_waiting: int, workers: int = 0) -> None:
        self.model = model
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._most = most_waiting
        self._count = 0
        self._closed = False
        self._lock = threading.Lock()
        self._workers = [
            threading.Thread(target=self._work, name=f"scoring-{place}", daemon=True)
            for place in range(workers or os.cpu_count() or 1)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def waiting(self) -> int:
        """Images that are taken in and not answered yet."""
        return self._count

    @contextlib.contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Room for the images of one request, all or none, until it is answered.

        Args:
            count: of images.
        Raises:
            BusyError: too many are taken in already, or the service is stopping.
        """
        with self._lock:
            self._refuse_when_closed()
            # A request that alone is longer than the queue is taken when nothing else waits: it could never be otherwise.
            if self._count and self._count + count > self._most:
                raise BusyError(
                    f"{self._count} images wait to be scored; {self._most} may", hint="Try again in a few seconds"
                )
            self._count += count
        try:
            yield
        finally:
            with self._lock:
                self._count -= count

    def submit(self, images: Sequence[tuple[bytes, str]]) -> list[Future[Prediction]]:
        """Have images scored.

        Args:
            images: bytes and name of each.
        Returns:
            In their order; an image that cannot be read becomes a `Prediction` with `error`.
        Raises:
            BusyError: the service is stopping.
        """
        with self._lock:
            self._refuse_when_closed()
            waiting = [_Waiting(image, name, Future()) for image, name in images]
            for each in waiting:
                each.found.add_done_callback(each.forget)
                self._waiting.put(each)
        return [each.found for each in waiting]

    def close(self) -> None:
        """Take in nothing more, and return when all that was taken in is answered."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._workers:
                    self._waiting.put(None)
        for worker in self._workers:
            worker.join()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BusyError("the service is stopping", hint="Try again when it has started")

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            share = -(-(1 + self._waiting.qsize()) // len(self._workers))  # the others are to have some, too
            with contextlib.suppress(queue.Empty):
                while len(batch) < min(share, BATCH_SIZE):
                    following = self._waiting.get_nowait()
                    if following is None:
                        self._waiting.put(None)  # the end is for another worker, or for this one's next turn
                        break
                    batch.append(following)
            self._score([each for each in batch if each.found.set_running_or_notify_cancel()])

    def _score(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        try:
            judged = self.model.predict_batch([each.image for each in batch])
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait must be told
            if len(batch) == 1:
                batch[0].found.set_exception(error)
                return
            for each in batch:  # one of them keeps the others from being scored
                self._score([each])
            return
        for each, prediction in zip(batch, judged, strict=True):
            each.found.set_result(dataclasses.replace(prediction, path=each.name))
