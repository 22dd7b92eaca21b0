"""Receive DICOM instances, predict each study when it is quiet, and put the results into the outbox.

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
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import NamedTuple

from fastapi.concurrency import run_in_threadpool
from pydicom import Dataset
from sqlalchemy import Connection

from pneumoscope import __version__
from pneumoscope.core.errors import BusyError, StorageError, UnreadableImageError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import Failure, Prediction, Rejection
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.dicom.configuration import DicomConfiguration, SiteRule
from pneumoscope.service.dicom.header import decode_header, encode_header, is_own_result, read_header
from pneumoscope.service.dicom.node_settings import CANNOT_UNDERSTAND, OUT_OF_RESOURCES, PROCESSING_FAILURE, SUCCESS
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.storage.outbox_records import ObjectKind, ResultSubject, states_study
from pneumoscope.service.storage.received_instances import (
    Outcome,
    ReceivedInstance,
    copies_of,
    finish,
    forget_header,
    instances_of,
)
from pneumoscope.service.storage.records import StoredPrediction, format_time
from pneumoscope.service.storage.results import destinations_with, destinations_with_result, enqueue
from pneumoscope.service.storage.stored_predictions import read_one
from pneumoscope.service.storage.study_events import enqueue_study_event
from pneumoscope.service.storage.unreadable import find_reason

__all__ = ["InstanceProcessor", "Reception"]

_LOG = logging.getLogger("pneumoscope.service")
_STORE_SECONDS = 60  # limit on storing an instance
_POLL_SECONDS = 0.5
_BATCH = 64  # instances that are taken from the inbox at once
_CONCURRENT = 8  # of those, whose files are in memory at once
_MAX_ATTEMPTS = 3  # that end with an unexpected error, or with the process
_UNREADABLE_SECONDS = 60  # until the next attempt to read a file
_SECOND_ATTEMPT_SECONDS = 10  # after the start of the service, before instances are attempted again


class Reception(NamedTuple):
    """The response to an instance.

    Attributes:
        status: Status of C-STORE, and reason of a failure in STOW-RS.
        code: Stable code of the error; empty for success.
    """

    status: int
    code: str = ""


class InstanceProcessor:
    """Receives instances, and predicts those whose studies are quiet.

    Args:
        service: Predicts the instances.
        configuration: Site rules, destinations and quiet period.
    """

    def __init__(self, service: PredictionService, configuration: DicomConfiguration) -> None:
        self._service, self._configuration = service, configuration
        self._inbox, self._outbox = service.repository.inbox, service.repository.outbox
        rules = [rule.model_dump(mode="json") for rule in configuration.rules]
        settings = json.dumps([__version__, service.model.settings, rules])
        self._settings = hashlib.sha256(settings.encode()).hexdigest()
        self._postponed: dict[int, float] = {}  # time of the next attempt to read a file, by number of the instance
        # Instances whose number of attempts is still to be restored, as they were before, by number.
        self._to_cancel: dict[int, ReceivedInstance] = {}
        self._to_cancel_lock = threading.Lock()
        self._started = time.monotonic()

    def receive(self, instance: bytes, name: str, sender: str, *, reply_to: str = "") -> Reception:
        """Store an instance, and return the response when it is on the disk.

        It runs in a thread, and never raises: every instance is answered.

        Args:
            instance: A DICOM file.
            name: Name of the image, for a record of a file that cannot be understood.
            sender: Name of the peer or user.
            reply_to: Name of the peer to which results go by default; empty if there is none.
        """
        try:
            return self._receive(instance, name, sender, reply_to)
        except (StorageError, concurrent.futures.TimeoutError) as error:
            code = error.code if isinstance(error, StorageError) else "timeout"
            _LOG.warning("Instance of %s not stored: %s", sender, code)
            return Reception(OUT_OF_RESOURCES, code)
        except Exception as error:  # noqa: BLE001  its message may contain anything
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
        return Reception(SUCCESS)

    async def run(self) -> None:
        """Predict instances of quiet studies until the task is cancelled."""
        self._started = time.monotonic()
        while True:
            try:
                is_done = await self._process_ready()
            except Exception as error:  # noqa: BLE001  the task must survive; the message may contain anything
                reason = error.message if isinstance(error, StorageError) else f"unexpected {type(error).__name__}"
                _LOG.warning("Received instances cannot be predicted; the next attempt follows: %s", reason)
                is_done = False
            if not is_done:
                await asyncio.sleep(_POLL_SECONDS)

    async def _process_ready(self) -> bool:
        """Predict some instances of quiet studies, and return whether one of them no longer waits."""
        await run_in_threadpool(self._repeat_cancellations)
        now = time.monotonic()
        self._postponed = {number: due for number, due in self._postponed.items() if due > now}
        ready = await run_in_threadpool(self._inbox.ready, _BATCH, self._postponed)
        # An instance that was attempted before may have killed the process, with others of its batch. It is attempted alone, so
        # that only the one that does is given up. The process may also be killed again and again for another reason. So that it
        # does not always die during the same instance, an instance follows those with fewer attempts, and waits after the start.
        again = sorted((each for each in ready if each.attempts), key=lambda each: (each.attempts, each.number))
        if time.monotonic() - self._started < _SECOND_ATTEMPT_SECONDS:
            again = []
        batches = [[each for each in ready if not each.attempts], *([each] for each in again)]
        return any([await self._process_batch(batch) for batch in batches if batch])

    async def _process_batch(self, batch: Sequence[ReceivedInstance]) -> bool:
        """Predict instances, and return whether one of them no longer waits."""
        semaphore = asyncio.Semaphore(_CONCURRENT)
        failed: set[int] = set()  # numbers of those with an unexpected error
        beginning = asyncio.ensure_future(run_in_threadpool(self._inbox.begin_attempts, batch))
        try:
            await asyncio.shield(beginning)
            return any(await asyncio.gather(*(self._process(each, semaphore, failed) for each in batch)))
        except asyncio.CancelledError:  # the service stops
            await asyncio.wait([beginning])  # its thread goes on, and would count them after they are taken back
            self._cancel_attempts([each for each in batch if each.number not in failed])
            raise

    async def _process(self, received: ReceivedInstance, semaphore: asyncio.Semaphore, failed: set[int]) -> bool:
        """Predict an instance, and return whether it no longer waits; only an unexpected error leaves its attempt counted."""
        async with semaphore:
            try:
                await self._attempt(received)
            except (StorageError, BusyError):  # the next attempt follows
                await run_in_threadpool(self._cancel_attempts, [received])
                return False
            except Exception as error:  # noqa: BLE001  the others are predicted; its message may contain anything
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
            also = partial(self._record_lost, received)
            content = await run_in_threadpool(self._inbox.finish_lost, received, self._settings, also)
        if content is None:
            _LOG.error("The file of a received instance is missing; ask its sender to send it again")
            return
        if received.attempts < _MAX_ATTEMPTS:
            await self._service.predict_received(
                content,
                received.sop_instance_uid,
                received.sender,
                adjust=partial(self._with_rule, received),
                also=partial(self._record, received),
            )
        else:
            await self._give_up(received, content)
        await run_in_threadpool(self._inbox.remove_file, received)

    def _cancel_attempts(self, batch: Sequence[ReceivedInstance]) -> None:
        """Take back the attempts of instances; retry before the next attempts if the database is unavailable."""
        with self._to_cancel_lock:
            self._to_cancel |= {each.number: each for each in batch}
        with contextlib.suppress(StorageError):
            self._repeat_cancellations()

    def _repeat_cancellations(self) -> None:
        """Take back the attempts that could not be taken back before. Raise StorageError if that is still impossible."""
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
            also=lambda connection, id: self._record(received, connection, failed, id),
        )  # fmt: skip

    def _stored(self, prediction: Prediction) -> Prediction:
        """Return a prediction as it is stored: with pseudonyms, if only they are."""
        pseudonymizer = self._service.pseudonymizer
        return pseudonymizer.prediction(prediction) if pseudonymizer else prediction

    def _record_lost(self, received: ReceivedInstance, connection: Connection, time: str) -> None:
        append(connection, [Entry(time, received.sender, "instance_lost", image_sha256=received.image_sha256)])
        if self._service.pseudonymizer:
            forget_header(connection, received, self._stored_uid(received))
        self._enqueue_event(received, connection, time)
        if not self._service.pseudonymizer:
            self._enqueue_copies(connection, received, time)
            self._enqueue_lost(connection, received, time)

    def adjust_again(self, earlier: StoredPrediction, prediction: Prediction) -> Prediction:
        """Return the prediction of an image that is predicted again, or a rejection if a site rule excludes a received image."""
        stated = dataclasses.replace(prediction, identity=earlier.identity)
        for received in self._inbox.instances_of(earlier.id):
            stated = self._with_rule(received, stated)
        return dataclasses.replace(stated, identity=prediction.identity)

    def _with_rule(self, received: ReceivedInstance, prediction: Prediction) -> Prediction:
        """Return the prediction, or a rejection if a site rule excludes the image."""
        rule = self._rule_of(prediction, received)
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

    def _rule_of(self, prediction: Prediction, received: ReceivedInstance) -> SiteRule | None:
        header = decode_header(received.header) if received.header else Dataset()
        modality, view = (str(header.get(name) or "").strip() for name in ("Modality", "ViewPosition"))
        return self._configuration.rule_of(prediction, modality=modality, view=view, sender=received.sender)

    def _record(self, received: ReceivedInstance, connection: Connection, prediction: Prediction, id: str) -> None:
        """Record the outcome of an instance, and put its results into the outbox, in the transaction of its prediction."""
        at = format_time(datetime.now(UTC))
        code = prediction.failure.code if prediction.failure else ""
        finish(connection, received, Outcome("predicted" if id else "unreadable", self._settings, id, code), at)
        if self._service.pseudonymizer:
            forget_header(connection, received, self._stored_uid(received))
        self._enqueue_event(received, connection, at)
        if self._service.pseudonymizer:
            return
        rule = None if prediction.failure else self._rule_of(prediction, received)
        if rule is None or rule.result:
            self._enqueue(connection, received, at, id=id, failure=prediction.failure)
        self._enqueue_copies(connection, received, at)

    def record_again(self, earlier_id: str, connection: Connection, id: str) -> None:
        """Put the results of an image that was predicted again into the outbox; see `PredictionService.on_predicted_again`."""
        at, prediction = format_time(datetime.now(UTC)), read_one(connection, id)
        others = {each.identity.sop_instance_uid for each in prediction.other_identities}  # the age is not theirs
        found = [each for each in instances_of(connection, earlier_id) if each.sop_instance_uid not in others]
        for received in found:
            finish(connection, received, Outcome("predicted", self._settings, id), at)
            rule = self._rule_of(prediction, received)
            if rule is None or rule.result:
                self._enqueue(connection, received, at, id=id)
        for received in {each.study_instance_uid: each for each in found}.values():  # one event for each study
            self._enqueue_event(received, connection, at)

    def _stored_uid(self, received: ReceivedInstance) -> str:
        """Return the Study Instance UID as it is stored after the prediction: its pseudonym, if only pseudonyms are stored."""
        identity = Identity(study_instance_uid=received.study_instance_uid)
        if self._service.pseudonymizer:
            identity = self._service.pseudonymizer.identity(identity)
        return identity.study_instance_uid

    def _enqueue_event(self, received: ReceivedInstance, connection: Connection, time: str) -> None:
        """Put the event of the study into the outbox for the webhooks, if none of its instances waits any more."""
        webhooks = [webhook.name for webhook in self._configuration.webhooks]
        if not webhooks or not received.study_instance_uid:
            return
        enqueue_study_event(
            connection,
            webhooks,
            received.study_instance_uid,
            self._stored_uid(received),
            model_sha256=self._service.model.facts.sha256,
            operating_point=self._service.model.operating_point_name,
            time=time,
        )

    def _enqueue(
        self,
        connection: Connection,
        received: ReceivedInstance,
        at: str,
        *,
        id: str = "",
        failure: Failure | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Put the results of an instance into the outbox, for the destinations that get none of a later copy of it.

        A corrected header, or other pixels, with the same SOP Instance UID: the result is that of the last copy, in whatever
        order they are predicted, and its header is that of the last copy. But a copy that has no result itself must not leave
        out those of an earlier one, for silence reads as normal: its file may be lost, or a site rule may allow it no result. So
        a later copy counts while it waits, and afterwards only if its results are in the outbox; see `_enqueue_copies`.
        """
        later = [each for each in copies_of(connection, received) if each.number > received.number]
        destinations = set(self._configuration.destinations_of(received.reply_to)).difference(without)
        for each in later:
            if each.state == "waiting":
                destinations -= set(self._configuration.destinations_of(each.reply_to))
            # Results of the same pixels by another model or other site rules leave out none; and a report of a loss is no result.
            elif each.state != "lost" and (each.settings == self._settings or not _is_same_image(connection, each, id)):
                destinations -= self._destinations_with_results(connection, each)
        header = next((each.header for each in (*later, received) if states_study(each.header)), "")
        if not header:
            return
        stored = read_one(connection, id) if id else None
        reason = failure and failure.reason
        parameters = {name: value for name, value in reason.parameters.items() if name != "error"} if reason else {}
        subject = ResultSubject(
            prediction_id=id,
            failure_code=failure.code if failure else "",
            failure_reason=reason.code if reason else "",
            failure_parameters=json.dumps(parameters) if reason else "",
            model_sha256=stored.model.sha256 if stored else self._service.model.facts.sha256,
            operating_point=stored.operating_point if stored else self._service.model.operating_point_name,
            sop_instance_uid=received.sop_instance_uid,
            header=header,
        )
        enqueue(connection, subject, sorted(destinations), self._kinds(stored), at)

    def _enqueue_copies(self, connection: Connection, received: ReceivedInstance, at: str) -> None:
        """Put the results of copies of an instance into the outbox if they were left out because it waited.

        Those of an earlier copy by another model or other site rules are not: it would be predicted again if it were sent again.
        """
        copies = copies_of(connection, received)
        for each in copies:
            is_processed = each.state in ("predicted", "unreadable") and each.settings == self._settings
            if each.number < received.number and is_processed and self._has_result(connection, each):
                answered, id = self._destinations_with_results(connection, each), each.prediction_id
                reason = None if id else find_reason(connection, each.image_sha256, each.failure_code)
                failure = None if id else Failure(each.failure_code, "", reason=reason)
                self._enqueue(connection, each, at, id=id, failure=failure, without=answered)
        for each in copies:  # last, since a result is better than the report of a loss
            if each.state == "lost":
                self._enqueue_lost(connection, each, at)

    def _enqueue_lost(self, connection: Connection, lost: ReceivedInstance, at: str) -> None:
        """Report the loss of an instance to the destinations that neither have a result of a copy of it nor await one."""
        waiting = [each for each in copies_of(connection, lost) if each.state == "waiting"]
        awaiting = {name for each in waiting for name in self._configuration.destinations_of(each.reply_to)}
        answered = destinations_with_result(connection, lost.sop_instance_uid)
        self._enqueue(connection, lost, at, failure=Failure("lost", ""), without=answered | awaiting)

    def _destinations_with_results(self, connection: Connection, received: ReceivedInstance) -> set[str]:
        """Return the destinations that get, or got, results of a processed instance."""
        return destinations_with(connection, received.sop_instance_uid, received.prediction_id, received.failure_code)

    def _has_result(self, connection: Connection, received: ReceivedInstance) -> bool:
        """Return whether the site rules allow results of a processed instance."""
        if not received.prediction_id:
            return True
        rule = self._rule_of(read_one(connection, received.prediction_id), received)
        return rule is None or rule.result

    def _kinds(self, stored: StoredPrediction | None) -> Sequence[ObjectKind]:
        """Return the kinds of objects of a prediction, or of a file that could not be read, of which there is no picture."""
        if stored is None:
            return ("structured_report",)
        has_heatmap = stored.decision != "rejected" and self._service.model.has_heatmaps
        return self._configuration.results.kinds(has_heatmap=has_heatmap)


def _is_same_image(connection: Connection, received: ReceivedInstance, prediction_id: str) -> bool:
    """Return whether a processed instance has the pixels of a prediction; False if one of them could not be read."""
    if not received.prediction_id or not prediction_id:
        return False
    first, second = (read_one(connection, id).image_key for id in (received.prediction_id, prediction_id))
    return first == second
