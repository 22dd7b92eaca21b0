"""Receive DICOM instances, predict each study after its quiet period, and put the results into the outbox.

The receiver of the DICOM node and STOW-RS both call `InstanceProcessor.receive`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from fastapi.concurrency import run_in_threadpool

from pneumoscope import __version__
from pneumoscope.core.errors import BusyError, StorageError, UnreadableImageError
from pneumoscope.core.prediction import Failure, Prediction, Rejection
from pneumoscope.service.dicom.configuration import DicomConfiguration
from pneumoscope.service.dicom.header import encode_header, is_own_result, read_header
from pneumoscope.service.dicom.node_settings import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, PROCESSING_FAILURE, SUCCESS
from pneumoscope.service.dicom.outcomes import OutcomeRecorder
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.storage.received_instances import (
    ReceivedInstance,
)
from pneumoscope.service.storage.records import StoredPrediction

__all__ = ["InstanceProcessor", "Reception"]

_LOG = logging.getLogger("pneumoscope.service")
_STORE_SECONDS = 60  # time limit for storing an instance
_POLL_SECONDS = 0.5  # interval for checking for studies whose quiet period has ended
_BATCH = 64  # instances taken from the inbox at once
_CONCURRENT = 8  # instances of a batch with their files in memory
_MAX_ATTEMPTS = 3  # attempts that end with an unexpected error or kill the process
_UNREADABLE_SECONDS = 60  # delay until the next attempt to read a file
_SECOND_ATTEMPT_SECONDS = 10  # delay after start-up before repeated attempts


class Reception(NamedTuple):
    """The response to an instance.

    Attributes:
        status: Status of C-STORE, or failure reason of STOW-RS.
        code: Stable error code; empty on success.
    """

    status: int
    code: str = ""


class InstanceProcessor:
    """Processor of received instances, which are predicted after the quiet period of their study.

    Args:
        service: Predicts the instances.
        configuration: Site rules, destinations and quiet period.

    Attributes:
        outcomes: Records the outcomes.
    """

    def __init__(self, service: PredictionService, configuration: DicomConfiguration) -> None:
        self._service, self._configuration = service, configuration
        self._inbox, self._outbox = service.repository.inbox, service.repository.outbox
        rules = [rule.model_dump(mode="json") for rule in configuration.rules]
        settings = json.dumps([__version__, service.model.settings, rules])
        self._settings = hashlib.sha256(settings.encode()).hexdigest()
        self.outcomes = OutcomeRecorder(service, configuration, self._settings)
        self._postponed: dict[int, float] = {}  # time of the next attempt to read a file, by instance number
        # Instances, by number, whose attempt counts still have to be restored.
        self._to_cancel: dict[int, ReceivedInstance] = {}
        self._to_cancel_lock = threading.Lock()
        self._started = time.monotonic()
        self._wake: Callable[[], object] = lambda: None  # makes `run` check the inbox immediately; set by `run`

    def receive(self, instance: bytes, name: str, sender: str, *, reply_to: str = "") -> Reception:
        """Store an instance on disk, then return the response.

        Blocking; never raises, so that every instance is answered.

        Args:
            instance: A DICOM file.
            name: Name of the image in the record of an unreadable file.
            sender: Name of the peer or user.
            reply_to: Name of the peer that receives results by default; empty if there is none.
        """
        try:
            return self._receive(instance, name, sender, reply_to)
        except (StorageError, concurrent.futures.TimeoutError) as error:
            code = error.code if isinstance(error, StorageError) else "timeout"
            _LOG.warning("Instance of %s not stored: %s", sender, code)
            return Reception(OUT_OF_RESOURCES, code)
        except Exception as error:  # noqa: BLE001  the message may contain anything
            _LOG.warning("Instance of %s not stored: unexpected %s", sender, type(error).__name__)
            return Reception(PROCESSING_FAILURE, "internal_error")

    def _receive(self, instance: bytes, name: str, sender: str, reply_to: str) -> Reception:
        try:
            header = read_header(instance)
        except UnreadableImageError as error:
            failed = Prediction(
                path=name,
                decision=None,
                operating_point=self._service.model.operating_point_name,
                failure=Failure.from_error(error),
                model=self._service.model.facts,
            )
            self._service.repository.unreadable_files.add(self._stored(failed), instance, user=sender)
            self._service.metrics.images.labels("unreadable").inc()
            return Reception(CANNOT_UNDERSTAND, error.code)
        received = ReceivedInstance(
            sender, reply_to, header.StudyInstanceUID, header.SOPInstanceUID, encode_header(header)
        )
        if is_own_result(header) or self._outbox.is_result(received.sop_instance_uid):
            self._inbox.record_own_result(received, instance)
            return Reception(SUCCESS)
        quiet = timedelta(seconds=self._configuration.quiet_seconds)
        self._inbox.submit(received, instance, quiet, self._settings).result(_STORE_SECONDS)
        if not quiet:
            with contextlib.suppress(RuntimeError):  # the loop is closed, because the service has stopped
                self._wake()
        return Reception(SUCCESS)

    async def run(self) -> None:
        """Predict instances after their quiet period until the task is cancelled."""
        self._started = time.monotonic()
        arrived = asyncio.Event()
        self._wake = partial(asyncio.get_running_loop().call_soon_threadsafe, arrived.set)
        while True:
            arrived.clear()  # before reading the inbox, so that no arrival is missed
            try:
                is_done = await self._process_ready()
            except Exception as error:  # noqa: BLE001  the task must survive; the message may contain anything
                reason = error.message if isinstance(error, StorageError) else f"unexpected {type(error).__name__}"
                _LOG.warning("Received instances cannot be predicted; the next attempt follows: %s", reason)
                is_done = False
            if not is_done:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await arrived.wait()

    async def _process_ready(self) -> bool:
        """Predict a batch of ready instances; return whether any of them is finished."""
        await run_in_threadpool(self._repeat_cancellations)
        now = time.monotonic()
        self._postponed = {number: due for number, due in self._postponed.items() if due > now}
        ready = await run_in_threadpool(self._inbox.ready, _BATCH, self._postponed)
        # An instance with earlier attempts may have killed the process, together with others of its batch. It is
        # attempted alone, so that only the one at fault is given up. If the process is killed repeatedly for another
        # reason, this must not always happen during the same instance: instances with fewer attempts come first, and
        # repeated attempts are delayed after start-up.
        again = sorted((each for each in ready if each.attempts), key=lambda each: (each.attempts, each.number))
        if time.monotonic() - self._started < _SECOND_ATTEMPT_SECONDS:
            again = []
        batches = [[each for each in ready if not each.attempts], *([each] for each in again)]
        return any([await self._process_batch(batch) for batch in batches if batch])

    async def _process_batch(self, batch: Sequence[ReceivedInstance]) -> bool:
        """Predict instances; return whether any of them is finished."""
        semaphore = asyncio.Semaphore(_CONCURRENT)
        failed: set[int] = set()  # numbers of instances with an unexpected error
        beginning = asyncio.ensure_future(run_in_threadpool(self._inbox.begin_attempts, batch))
        try:
            await asyncio.shield(beginning)
            return any(await asyncio.gather(*(self._process(each, semaphore, failed) for each in batch)))
        except asyncio.CancelledError:  # the service is stopping
            await asyncio.wait([beginning])  # its thread continues, and would count attempts later
            self._cancel_attempts([each for each in batch if each.number not in failed])
            raise

    async def _process(self, received: ReceivedInstance, semaphore: asyncio.Semaphore, failed: set[int]) -> bool:
        """Predict an instance; return whether it is finished. Only an unexpected error leaves the attempt counted."""
        async with semaphore:
            try:
                await self._attempt(received)
            except (StorageError, BusyError):  # try again later
                await run_in_threadpool(self._cancel_attempts, [received])
                return False
            except Exception as error:  # noqa: BLE001  the others continue; the message may contain anything
                _LOG.warning("A received instance could not be predicted: unexpected %s", type(error).__name__)
                failed.add(received.number)
                return False
            return True

    async def _attempt(self, received: ReceivedInstance) -> None:
        try:
            content = await run_in_threadpool(self._inbox.content, received)
        except StorageError as error:
            _LOG.error("A received instance cannot be read; the next attempt follows: %s", error.message)
            self._postponed[received.number] = time.monotonic() + _UNREADABLE_SECONDS
            raise
        if content is None:
            callback = partial(self.outcomes.record_lost, received)
            content = await run_in_threadpool(self._inbox.finish_lost, received, self._settings, callback)
        if content is None:
            _LOG.error("The file of a received instance is missing; ask its sender to send it again")
            return
        if received.attempts < _MAX_ATTEMPTS:
            await self._service.predict_received(
                content,
                received.sop_instance_uid,
                received.sender,
                adjust=partial(self._with_rule, received),
                callback=partial(self.outcomes.record, received),
            )
        else:
            await self._give_up(received, content)
        await run_in_threadpool(self._inbox.remove_file, received)

    def _cancel_attempts(self, batch: Sequence[ReceivedInstance]) -> None:
        """Restore the attempt counts of instances; if the database is unavailable, retry before the next attempts."""
        with self._to_cancel_lock:
            self._to_cancel |= {each.number: each for each in batch}
        with contextlib.suppress(StorageError):
            self._repeat_cancellations()

    def _repeat_cancellations(self) -> None:
        """Restore attempt counts that could not be restored before. Raise StorageError if that is still impossible."""
        with self._to_cancel_lock:
            if self._to_cancel:
                self._inbox.cancel_attempts(list(self._to_cancel.values()))
                self._to_cancel.clear()

    async def _give_up(self, received: ReceivedInstance, content: bytes) -> None:
        failed = Prediction(
            path=received.sop_instance_uid,
            decision=None,
            operating_point=self._service.model.operating_point_name,
            failure=Failure("internal_error", f"it could not be predicted in {_MAX_ATTEMPTS} attempts", "See the log"),
            model=self._service.model.facts,
        )
        await run_in_threadpool(
            self._service.repository.unreadable_files.add, self._stored(failed), content, user=received.sender,
            callback=lambda connection, id: self.outcomes.record(received, connection, failed, id),
        )  # fmt: skip

    def _stored(self, prediction: Prediction) -> Prediction:
        """Return a prediction in the form to store: pseudonymized if that is enabled."""
        pseudonymizer = self._service.pseudonymizer
        return pseudonymizer.prediction(prediction) if pseudonymizer else prediction

    def adjust_again(self, earlier: StoredPrediction, prediction: Prediction) -> Prediction:
        """Return the repeated prediction of an image, or a rejection if a site rule excludes a received instance of it."""
        stated = dataclasses.replace(prediction, identity=earlier.identity)
        for received in self._inbox.instances_of(earlier.id):
            stated = self._with_rule(received, stated)
        return dataclasses.replace(stated, identity=prediction.identity)

    def _with_rule(self, received: ReceivedInstance, prediction: Prediction) -> Prediction:
        """Return the prediction, or a rejection if a site rule excludes the image."""
        rule = self.outcomes.rule_of(prediction, received)
        if rule is None or rule.action == "predict" or prediction.decision == "rejected":
            return prediction
        return dataclasses.replace(
            prediction,
            decision="rejected",
            probability=None,
            interval=None,
            uncertainty=None,
            warnings=(),
            rejection=Rejection("excluded_by_site_rule", {"rule": rule.name}),
        )
