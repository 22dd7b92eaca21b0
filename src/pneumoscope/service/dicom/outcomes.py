"""Record the outcomes of received instances, and put results and events into the outbox in the same transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from pydicom import Dataset
from sqlalchemy import Connection

from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import Failure, Prediction
from pneumoscope.imaging.header_identity import read_identity
from pneumoscope.imaging.patient_age import read_age
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.dicom.configuration import DicomConfiguration, SiteRule
from pneumoscope.service.dicom.header import decode_header
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.storage.outbox_records import ObjectKind, ResultSubject, has_study_and_series
from pneumoscope.service.storage.received_instances import (
    Outcome,
    ReceivedInstance,
    copies_of,
    finish,
    instances_of,
    remove_header,
)
from pneumoscope.service.storage.records import StoredPrediction, format_time
from pneumoscope.service.storage.results import destinations_with, destinations_with_result, enqueue
from pneumoscope.service.storage.stored_predictions import read_one
from pneumoscope.service.storage.study_events import enqueue_study_event
from pneumoscope.service.storage.unreadable import find_reason

__all__ = ["OutcomeRecorder"]


class OutcomeRecorder:
    """Recorder of outcomes, each in the transaction of its prediction.

    Args:
        service: Predicts the instances.
        configuration: Site rules and destinations.
        settings: Hash of the model and the site rules, stored with each outcome to detect changed settings.
    """

    def __init__(self, service: PredictionService, configuration: DicomConfiguration, settings: str) -> None:
        self._service, self._configuration, self._settings = service, configuration, settings

    def record(self, received: ReceivedInstance, connection: Connection, prediction: Prediction, id: str) -> None:
        """Record the outcome of an instance and enqueue its results, in the transaction of its prediction."""
        at = format_time(datetime.now(UTC))
        code = prediction.failure.code if prediction.failure else ""
        finish(connection, received, Outcome("predicted" if id else "unreadable", self._settings, id, code), at)
        if self._service.pseudonymizer:
            remove_header(connection, received, self._stored_uid(received))
        self._enqueue_event(received, connection, at)
        if self._service.pseudonymizer:
            return
        if self._allows_result(received, None if prediction.failure else prediction):
            self._enqueue(connection, received, at, id=id, failure=prediction.failure)
        self.enqueue_copies(connection, received, at)

    def record_again(self, earlier_id: str, connection: Connection, id: str) -> None:
        """Enqueue the results of an image that was predicted again; see `PredictionService.on_predicted_again`."""
        at, prediction = format_time(datetime.now(UTC)), read_one(connection, id)
        others = {each.identity.sop_instance_uid for each in prediction.other_identities}  # other patients
        found = [each for each in instances_of(connection, earlier_id) if each.sop_instance_uid not in others]
        for received in found:
            finish(connection, received, Outcome("predicted", self._settings, id), at)
            if self._allows_result(received, prediction):
                self._enqueue(connection, received, at, id=id)
        for received in {each.study_instance_uid: each for each in found}.values():  # one event per study
            self._enqueue_event(received, connection, at)

    def record_lost(self, received: ReceivedInstance, connection: Connection, time: str) -> None:
        """Record the loss of an acknowledged instance's file, and report it unless a copy has results or is waiting."""
        append(connection, [Entry(time, received.sender, "instance_lost", image_sha256=received.image_sha256)])
        if self._service.pseudonymizer:
            remove_header(connection, received, self._stored_uid(received))
        self._enqueue_event(received, connection, time)
        if not self._service.pseudonymizer:
            self.enqueue_copies(connection, received, time)
            self._enqueue_lost(connection, received, time)

    def rule_of(self, prediction: Prediction | None, received: ReceivedInstance) -> SiteRule | None:
        """Return the site rule that matches an instance, or None.

        Args:
            prediction: Prediction of the instance; None if its file is lost or unreadable, so that only the header is
                used.
            received: The instance.
        """
        header = decode_header(received.header) if received.header else Dataset()
        if prediction is None:
            model = self._service.model
            prediction = Prediction(
                path=received.sop_instance_uid,
                decision=None,
                operating_point=model.operating_point_name,
                age=read_age(header),
                identity=read_identity(header),
                model=model.facts,
            )
        modality, view = (str(header.get(name) or "").strip() for name in ("Modality", "ViewPosition"))
        return self._configuration.rule_of(prediction, modality=modality, view=view, sender=received.sender)

    def _enqueue_event(self, received: ReceivedInstance, connection: Connection, time: str) -> None:
        """Enqueue the study's event for the webhooks once none of its instances is waiting."""
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
        """Enqueue the results of an instance for the destinations that receive no results of a later copy.

        Copies have the same SOP Instance UID, but perhaps a corrected header or other pixels. In whatever order they
        are predicted, destinations receive the result of the latest copy, with its header. But a later copy without a
        result (its file is lost, or a site rule allows none) must not suppress the results of an earlier copy, since no
        result would look like a normal image. So a later copy counts while it is waiting, and afterwards only if its
        results are in the outbox; see `enqueue_copies`.
        """
        later = [each for each in copies_of(connection, received) if each.number > received.number]
        destinations = set(self._configuration.destinations_of(received.reply_to)).difference(without)
        for each in later:
            if each.state == "waiting":
                destinations -= set(self._configuration.destinations_of(each.reply_to))
            # Neither results with other settings nor the report of a loss replace these results.
            elif each.state != "lost" and (each.settings == self._settings or not _is_same_image(connection, each, id)):
                destinations -= self._destinations_with_results(connection, each)
        header = next((each.header for each in (*later, received) if has_study_and_series(each.header)), "")
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

    def enqueue_copies(self, connection: Connection, received: ReceivedInstance, at: str) -> None:
        """Enqueue the results of copies that were left out while this instance was waiting.

        Results of earlier copies with another model or other site rules are excluded; sending such a copy again
        predicts it again.
        """
        copies = copies_of(connection, received)
        for each in copies:
            is_processed = each.state in ("predicted", "unreadable") and each.settings == self._settings
            if each.number < received.number and is_processed and self._has_result(connection, each):
                answered, id = self._destinations_with_results(connection, each), each.prediction_id
                reason = None if id else find_reason(connection, each.image_sha256, each.failure_code)
                failure = None if id else Failure(each.failure_code, "", reason=reason)
                self._enqueue(connection, each, at, id=id, failure=failure, without=answered)
        for each in copies:  # last, since a result takes precedence over the report of a loss
            if each.state == "lost":
                self._enqueue_lost(connection, each, at)

    def _enqueue_lost(self, connection: Connection, lost: ReceivedInstance, at: str) -> None:
        """Report the loss of an instance to destinations that neither have nor await a result of a copy.

        If the site rules allow no result for the instance, the loss is not reported.
        """
        if not self._allows_result(lost, None):
            return
        waiting = [each for each in copies_of(connection, lost) if each.state == "waiting"]
        awaiting = {name for each in waiting for name in self._configuration.destinations_of(each.reply_to)}
        answered = destinations_with_result(connection, lost.sop_instance_uid)
        self._enqueue(connection, lost, at, failure=Failure("lost", ""), without=answered | awaiting)

    def _destinations_with_results(self, connection: Connection, received: ReceivedInstance) -> set[str]:
        """Return the destinations that receive, or have received, results of a processed instance."""
        return destinations_with(connection, received.sop_instance_uid, received.prediction_id, received.failure_code)

    def _has_result(self, connection: Connection, received: ReceivedInstance) -> bool:
        """Return whether the site rules allow results for a processed instance."""
        id = received.prediction_id
        return self._allows_result(received, read_one(connection, id) if id else None)

    def _allows_result(self, received: ReceivedInstance, prediction: Prediction | None) -> bool:
        """Return whether the site rules allow results for an instance; see `rule_of`."""
        rule = self.rule_of(prediction, received)
        return rule is None or rule.result

    def _kinds(self, stored: StoredPrediction | None) -> Sequence[ObjectKind]:
        """Return the kinds of objects for a prediction, or for an unreadable file."""
        results = self._configuration.results
        if stored is None:
            return results.kinds(has_heatmap=False, is_readable=False)
        return results.kinds(has_heatmap=stored.decision != "rejected" and self._service.model.has_heatmaps)

    def _stored_uid(self, received: ReceivedInstance) -> str:
        """Return the Study Instance UID as stored after the prediction: a pseudonym if pseudonymization is enabled."""
        identity = Identity(study_instance_uid=received.study_instance_uid)
        if self._service.pseudonymizer:
            identity = self._service.pseudonymizer.identity(identity)
        return identity.study_instance_uid


def _is_same_image(connection: Connection, received: ReceivedInstance, prediction_id: str) -> bool:
    """Return whether a processed instance has the same pixels as a prediction; False if either could not be read."""
    if not received.prediction_id or not prediction_id:
        return False
    first, second = (read_one(connection, id).image_key for id in (received.prediction_id, prediction_id))
    return first == second
