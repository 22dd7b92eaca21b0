"""Records of the outbox: objects and events for one destination, their UIDs, and the delays between attempts."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, or_

from pneumoscope.core.prediction import Failure
from pneumoscope.core.unreadable import UnreadableCode, UnreadableReason
from pneumoscope.service.storage.outbox_status import CommitmentState
from pneumoscope.service.storage.records import Row, format_time
from pneumoscope.service.storage.tables import outbox

__all__ = [
    "MAX_DELAY",
    "NEW_ROW",
    "Delivery",
    "DeliveryKind",
    "DeliveryState",
    "ObjectKind",
    "ResultSubject",
    "derive_uid",
    "failed_attempt",
    "has_study_and_series",
    "is_due",
    "result_uid",
    "retry_delay",
    "study_of",
]

ObjectKind = Literal["secondary_capture", "structured_report", "rejection_note", "parametric_map", "presentation_state"]
DeliveryKind = Literal[ObjectKind, "webhook"]
DeliveryState = Literal["waiting", "delivered", "withdrawn", "cancelled"]
_FIRST_DELAY, MAX_DELAY = timedelta(seconds=5), timedelta(minutes=15)
_NAMESPACE = uuid.UUID("5f0f6c1e-0f0e-5d55-9c39-8f2f6a3a8f10")  # namespace of the names from which UIDs are derived
_COLUMNS = outbox.c
# Values of a row before its first attempt.
NEW_ROW: Mapping[str, Any] = {
    "attempts": 0, "state": "waiting", "error": "", "maybe_delivered": False, "finished": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ResultSubject:
    """The subject of results: a prediction of an image, or a file that could not be read.

    Attributes:
        prediction_id: Id of the prediction; empty for an unreadable file.
        failure_code: Error code of an unreadable file; empty for a prediction.
        model_sha256, operating_point: Model and operating point of the service.
        sop_instance_uid: SOP Instance UID of the image.
        header: Elements that the objects share with the image, as DICOM JSON; empty if removed.
        failure_reason, failure_parameters: Reason code of an unreadable file and its parameters as JSON; empty if
        unknown.
    """

    prediction_id: str
    failure_code: str
    model_sha256: str
    operating_point: str
    sop_instance_uid: str
    header: str
    failure_reason: UnreadableCode | Literal[""] = ""
    failure_parameters: str = ""

    def __repr__(self) -> str:
        """Return the prediction id only, since patient identifiers could reach a log."""
        return f"ResultSubject(prediction_id={self.prediction_id!r})"

    @property
    def failure(self) -> Failure | None:
        """The failure to read the file; None for a prediction."""
        if not self.failure_code:
            return None
        parameters = json.loads(self.failure_parameters or "{}")
        reason = UnreadableReason(self.failure_reason, parameters) if self.failure_reason else None
        return Failure(self.failure_code, "", reason=reason)


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """One DICOM object, or the event of a finished study, for one destination.

    Attributes:
        number: Number of the row.
        destination: Name of the destination.
        kind: Kind of object; a rejection note (Key Object Selection) withdraws objects. "webhook" for an event.
        result_uid: SOP Instance UID of the object, or id of the event.
        subject: Subject of the object. For an event, `prediction_id` belongs to an image of the study, if one could be
            read.
        withdrawn_uids: For a rejection note: UIDs of the withdrawn objects by kind.
        revision: For an event: 1 for the first event of the study, 2 for the next one.
        unreadable: For an event: number of unreadable files in the study by failure code.
        study_instance_uid: Study Instance UID of the object or event; empty if removed.
        created: Time when the prediction was stored, ISO 8601 in UTC.
        due: Time of the next attempt, if waiting; empty means now.
        attempts: Number of failed attempts.
        state: "withdrawn" means that it was delivered and a rejection note followed.
        error: Code of the last failure; "interrupted" during an attempt, and after the process was killed in one.
        maybe_delivered: Whether the destination may have the object without having confirmed it.
        finished: Time of delivery or cancellation; for a waiting object that is being resent, time of its delivery.
        commitment: Storage commitment of a delivered object; empty if not requested. "pending": part of the next
            request; "failed": the destination reported failure several times.
        commitment_requested: Time of the last request.
        commitment_due: Time of the next request, if any.
        commitment_attempts: Number of requests without a report.
        commitment_failures: Number of reports of failure.
    """

    number: int
    destination: str
    kind: DeliveryKind
    result_uid: str
    subject: ResultSubject
    withdrawn_uids: Mapping[ObjectKind, str]
    revision: int
    unreadable: Mapping[str, int]
    study_instance_uid: str = dataclasses.field(repr=False)  # it could reach a log
    created: str
    due: str
    attempts: int
    state: DeliveryState
    error: str
    maybe_delivered: bool
    finished: str | None
    commitment: CommitmentState
    commitment_requested: str | None
    commitment_due: str | None
    commitment_attempts: int
    commitment_failures: int

    @classmethod
    def from_row(cls, row: Row) -> Delivery:
        """Return the delivery in a row of the table."""
        subject = ResultSubject(**{field.name: row[field.name] for field in dataclasses.fields(ResultSubject)})
        documents = {name: json.loads(row[name]) for name in ("withdrawn_uids", "unreadable")}
        names = {field.name for field in dataclasses.fields(cls)} - {"subject", *documents}
        return cls(**{name: row[name] for name in names}, subject=subject, **documents)

    @property
    def next_attempt(self) -> str | None:
        """Time of the next delivery attempt or commitment request, ISO 8601; None if there is none.

        A time in the past means as soon as possible.
        """
        if self.state == "waiting":
            return max(self.due, self.created)
        return self.commitment_due if self.commitment in ("pending", "requested") else None


def study_of(header: str) -> str:
    """Return the Study Instance UID in a DICOM JSON header; empty if there is none."""
    return _uid_in(header, "0020000D")


def has_study_and_series(header: str) -> bool:
    """Return whether a DICOM JSON header contains a study and a series, which results require."""
    return bool(study_of(header) and _uid_in(header, "0020000E"))


def _uid_in(header: str, tag: str) -> str:
    values = json.loads(header).get(tag, {}).get("Value") if header else None
    return str(values[0]) if values else ""


def derive_uid(name: str) -> str:
    """Return a UID derived from a name by a name-based UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def result_uid(kind: str, sop_instance_uid: str, subject_id: str, generation: int = 0) -> str:
    """Return the UID of an object.

    Args:
        kind: Kind of object.
        sop_instance_uid: SOP Instance UID of the image.
        subject_id: Id of the prediction, which is derived from the image's pixels, the model and the operating point.
        generation: How often the object was withdrawn before.
    """
    return derive_uid(" ".join([kind, sop_instance_uid, subject_id, *([str(generation)] if generation else [])]))


def is_due(time: datetime) -> ColumnElement[bool]:
    """Return the condition that an object is due, or its time is too far ahead because the clock was set back."""
    return or_(_COLUMNS.due <= format_time(time), _COLUMNS.due > format_time(time + 2 * MAX_DELAY))


def failed_attempt(attempts: int, time: datetime) -> dict[str, Any]:
    """Return the values of an object after a further failed attempt."""
    return {"attempts": attempts + 1, "due": format_time(time + retry_delay(attempts + 1))}


def retry_delay(attempts: int) -> timedelta:
    """Return the delay after a number of failed attempts."""
    factor: int = 2 ** min(max(attempts - 1, 0), 20)
    return min(factor * _FIRST_DELAY, MAX_DELAY)
