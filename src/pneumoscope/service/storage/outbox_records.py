"""Records of the outbox: an object or event to deliver to one destination, its UID, and the delays between attempts."""

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
    "is_due",
    "result_uid",
    "retry_delay",
    "states_study",
    "study_of",
]

ObjectKind = Literal["secondary_capture", "structured_report", "rejection_note", "parametric_map", "presentation_state"]
DeliveryKind = Literal[ObjectKind, "webhook"]
DeliveryState = Literal["waiting", "delivered", "withdrawn", "cancelled"]
_FIRST_DELAY, MAX_DELAY = timedelta(seconds=5), timedelta(minutes=15)
_NAMESPACE = uuid.UUID("5f0f6c1e-0f0e-5d55-9c39-8f2f6a3a8f10")  # of the names from which UIDs are derived
_COLUMNS = outbox.c
# Values of a row that waits for its first attempt.
NEW_ROW: Mapping[str, Any] = {
    "attempts": 0, "state": "waiting", "error": "", "maybe_delivered": False, "finished": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class ResultSubject:
    """What results are about: a prediction of an image, or a file that could not be read.

    Attributes:
        prediction_id: Id of the prediction; empty for a file that could not be read.
        failure_code: Why the file could not be read; empty for a prediction.
        model_sha256, operating_point: Of the service.
        sop_instance_uid: Of the image.
        header: The elements that the objects share with the image, as DICOM JSON; empty if it was removed.
        failure_reason, failure_parameters: The reason as a code with parameters, as JSON; empty if it is unknown.
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
        """Return the prediction without identifiers of the patient, which could reach a log."""
        return f"ResultSubject(prediction_id={self.prediction_id!r})"

    @property
    def failure(self) -> Failure | None:
        """Why the file could not be read; None for a prediction."""
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
        kind: Kind of object; a rejection note (Key Object Selection) withdraws objects. "webhook": an event.
        result_uid: SOP Instance UID of the object, or id of the event.
        subject: What the object is about; of an event, `prediction_id` is that of an image of the study, if one could be read.
        withdrawn_uids: Of a rejection note: the UIDs of the withdrawn objects by kind.
        revision: Of an event: 1 for the first one of the study, 2 for the next one.
        unreadable: Of an event: number of files of the study that could not be read, by failure code.
        study_instance_uid: Of the object, or of the event; empty if it was removed.
        created: Time when the prediction was stored, ISO 8601 in UTC.
        due: Time of the next attempt, if it waits; empty: now.
        attempts: Number of failed attempts.
        state: "withdrawn": it was delivered, and a rejection note followed.
        error: Code of the last failure; "interrupted" while it is sent, and after the process was killed meanwhile.
        maybe_delivered: Whether the destination may have the object, although it did not confirm it.
        finished: Time of the delivery or cancellation; of a waiting object that is sent again, of its delivery.
        commitment: Storage commitment of a delivered object; empty if it is not requested. "pending": in the next request;
            "failed": the destination reported several times that it failed.
        commitment_requested: Time of the last request.
        commitment_due: Time of the next request, if one follows.
        commitment_attempts: Number of requests without a report.
        commitment_failures: Number of reports that commitment failed.
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
        """Time of the next attempt to deliver it, or of the next request for its commitment, ISO 8601; None if none follows.

        A time that has passed means as soon as possible.
        """
        if self.state == "waiting":
            return max(self.due, self.created)
        return self.commitment_due if self.commitment in ("pending", "requested") else None


def study_of(header: str) -> str:
    """Return the Study Instance UID in a header, DICOM JSON; empty if there is none."""
    return _uid_in(header, "0020000D")


def states_study(header: str) -> bool:
    """Return whether there is a header, DICOM JSON, with study and series, without which there are no results."""
    return bool(study_of(header) and _uid_in(header, "0020000E"))


def _uid_in(header: str, tag: str) -> str:
    values = json.loads(header).get(tag, {}).get("Value") if header else None
    return str(values[0]) if values else ""


def derive_uid(name: str) -> str:
    """Return the UID of a name, by a name-based UUID (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"


def result_uid(kind: str, sop_instance_uid: str, subject_id: str, generation: int = 0) -> str:
    """Return the UID of an object, or of its series.

    Args:
        kind: Kind of object.
        sop_instance_uid: Of the image.
        subject_id: Id of the prediction, which is derived from the image's pixels, the model and the operating point.
        generation: How many times the object was withdrawn before.
    """
    return derive_uid(" ".join([kind, sop_instance_uid, subject_id, *([str(generation)] if generation else [])]))


def is_due(time: datetime) -> ColumnElement[bool]:
    """Return whether an object is to be sent; also one whose time lies beyond the longest delay: the clock was set back."""
    return or_(_COLUMNS.due <= format_time(time), _COLUMNS.due > format_time(time + 2 * MAX_DELAY))


def failed_attempt(attempts: int, time: datetime) -> dict[str, Any]:
    """Return the values of an object after a failed attempt that others preceded."""
    return {"attempts": attempts + 1, "due": format_time(time + retry_delay(attempts + 1))}


def retry_delay(attempts: int) -> timedelta:
    """Return the time from the last of some failed attempts to the next one."""
    factor: int = 2 ** min(max(attempts - 1, 0), 20)
    return min(factor * _FIRST_DELAY, MAX_DELAY)
