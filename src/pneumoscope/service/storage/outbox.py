"""The outbox: results to deliver to other nodes, written in the transaction that stores the prediction.

A row is one DICOM object for one destination. `deliver` builds the object when it is sent; its UID is derived from the image, the
prediction and the kind of object, so that an object that is sent twice, because the process was killed before it recorded the
delivery, is the same object. A row can also be the event that a study is finished, for one webhook; see `study_events`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Engine, and_, delete, func, insert, or_, select, update

from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.service.audit.log import Entry, Event, append
from pneumoscope.service.auth.users import COMMAND_LINE, RETENTION
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.outbox_status import (
    IS_CONFIRMED,
    UNCOMMITTED,
    CommitmentState,
    OutboxStatus,
    add_to_totals,
    read_status,
)
from pneumoscope.service.storage.records import Row, format_time
from pneumoscope.service.storage.tables import HAS_IDENTIFIERS, outbox, outbox_totals, predictions, received_instances

__all__ = [
    "MAX_COPIES",
    "MAX_DELAY",
    "NEW_ROW",
    "Delivery",
    "DeliveryKind",
    "DeliveryState",
    "ObjectKind",
    "Outbox",
    "ResultSubject",
    "delivered_header",
    "derive_uid",
    "destinations_with",
    "destinations_with_result",
    "enqueue",
    "failed_attempt",
    "find_old_headers",
    "forget_headers",
    "replace_header",
    "result_uid",
    "retry_delay",
    "withdraw",
]

ObjectKind = Literal["secondary_capture", "structured_report", "rejection_note", "parametric_map", "presentation_state"]
DeliveryKind = Literal[ObjectKind, "webhook"]
DeliveryState = Literal["waiting", "delivered", "withdrawn", "cancelled"]
_FIRST_DELAY, MAX_DELAY = timedelta(seconds=5), timedelta(minutes=15)
_UNREACHABLE_BATCH = 500  # objects that are changed in one transaction
_COMMITMENT_DELAY = timedelta(seconds=2)  # after a delivery, so that one request is about all objects of a study
_NAMESPACE = uuid.UUID("5f0f6c1e-0f0e-5d55-9c39-8f2f6a3a8f10")  # of the names from which UIDs are derived
_BATCH = 500  # rows that are changed by one statement
MAX_COPIES = 20  # received instances with one SOP Instance UID that are considered; a sender could send any number
_COLUMNS = outbox.c
_STUDY_AND_SERIES = ("0020000D", "0020000E")  # the UIDs in DICOM JSON
# Error of an object that the destination may have: the process ended before it answered, or it has not answered yet.
_INTERRUPTED = "interrupted"
# Values of an object that was sent again, and is not any more.
_DELIVERED_BEFORE: dict[str, Any] = {"state": "delivered", "maybe_delivered": False}
# Of objects that will be sent, perhaps after they are retried, with the header that the sender stated last.
_HAS_PRESENT_HEADER = and_(
    _COLUMNS.state.in_(("waiting", "cancelled")),
    _COLUMNS.maybe_delivered.is_(False),
    _COLUMNS.kind != "rejection_note",
    _COLUMNS.header != "",
)
# Of results that a destination has or may get; not of those that were withdrawn or superseded.
_CAN_HOLD = and_(
    _COLUMNS.kind != "rejection_note",
    or_(
        _COLUMNS.state.in_(("waiting", "delivered")),
        and_(_COLUMNS.state == "cancelled", or_(_COLUMNS.maybe_delivered, _COLUMNS.header != "")),
    ),
)
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
        header: The elements that the objects share with the image, as DICOM JSON; empty once they are delivered.
    """

    prediction_id: str
    failure_code: str
    model_sha256: str
    operating_point: str
    sop_instance_uid: str
    header: str

    def __repr__(self) -> str:
        """Return the prediction without identifiers of the patient, which could reach a log."""
        return f"ResultSubject(prediction_id={self.prediction_id!r})"


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
        commitment: Storage commitment of a delivered object; empty if the destination is not asked for it. "pending": it is asked
            next; "failed": it refused several times.
        commitment_requested: Time of the last request.
        commitment_due: Time of the next request, if one follows.
        commitment_attempts: Number of requests without a report.
        commitment_failures: Number of reports that the destination does not commit to the object.
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
        study = row["study_instance_uid"] or _study_of(row["header"]) or row.get("received_study") or ""
        names = {field.name for field in dataclasses.fields(cls)} - {"subject", "study_instance_uid", *documents}
        return cls(**{name: row[name] for name in names}, subject=subject, study_instance_uid=study, **documents)

    @property
    def next_attempt(self) -> str | None:
        """Time of the next attempt to deliver it, or of the next request for its commitment, ISO 8601; None if none follows.

        A time that has passed means as soon as possible.
        """
        if self.state == "waiting":
            return max(self.due, self.created)
        return self.commitment_due if self.commitment in ("pending", "requested") else None


def _study_of(header: str) -> str:
    """Return the Study Instance UID in a header, DICOM JSON; empty if there is no header."""
    values = json.loads(header).get("0020000D", {}).get("Value") if header else None
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


def enqueue(
    connection: Connection,
    subject: ResultSubject,
    destinations: Collection[str],
    kinds: Sequence[ObjectKind],
    time: str,
) -> None:
    """Add the objects of a prediction, in the transaction that stores it; objects that were added before are not added again.

    Other objects of the image are cancelled or withdrawn, except those of the same pixels by another model or at another
    operating point.
    """
    for destination in destinations:
        same_image = _COLUMNS.destination == destination, _COLUMNS.sop_instance_uid == subject.sop_instance_uid
        rows = connection.execute(select(outbox).where(*same_image, _CAN_HOLD)).mappings().all()
        pixels = _pixels(connection, {subject.prediction_id, *(row["prediction_id"] for row in rows)})
        replaced = [row for row in rows if not _holds_beside(row, subject, pixels)]
        _withdraw(connection, replaced, subject.header, time)
        for kind in kinds:
            uid = _new_uid(connection, subject, destination, kind)
            if uid:
                _insert(connection, subject, destination, kind, uid, {}, time)


def _pixels(connection: Connection, prediction_ids: Collection[str]) -> dict[str, str]:
    """Return the hashes of the pixels of predictions by their ids."""
    query = select(predictions.c.id, predictions.c.pixel_sha256).where(predictions.c.id.in_(prediction_ids))
    return {row.id: row.pixel_sha256 for row in connection.execute(query)}


def _holds_beside(row: Row, subject: ResultSubject, pixels: Mapping[str, str]) -> bool:
    """Return whether an object of the same image is valid beside those of a subject, or is one of them."""
    if (row["prediction_id"], row["failure_code"]) == (subject.prediction_id, subject.failure_code):
        return True
    if (row["model_sha256"], row["operating_point"]) == (subject.model_sha256, subject.operating_point):
        return False
    same_pixels = pixels.get(subject.prediction_id)  # a file that could not be read has none
    return same_pixels is not None and pixels.get(row["prediction_id"]) == same_pixels


def destinations_with(connection: Connection, sop_instance_uid: str, prediction_id: str, failure_code: str) -> set[str]:
    """Return the destinations for which results of an image, by a prediction or a failure, were added."""
    query = select(_COLUMNS.destination).where(
        _COLUMNS.sop_instance_uid == sop_instance_uid,
        _COLUMNS.prediction_id == prediction_id,
        _COLUMNS.failure_code == failure_code,
        _COLUMNS.kind != "rejection_note",
    )
    return set(connection.execute(query.distinct()).scalars())


def destinations_with_result(connection: Connection, sop_instance_uid: str) -> set[str]:
    """Return the destinations that have, or will get, results of an image."""
    query = select(_COLUMNS.destination).where(
        _COLUMNS.sop_instance_uid == sop_instance_uid,
        _COLUMNS.state.in_(("waiting", "delivered")),
        _COLUMNS.kind != "rejection_note",
    )
    return set(connection.execute(query.distinct()).scalars())


def _new_uid(connection: Connection, subject: ResultSubject, destination: str, kind: ObjectKind) -> str:
    """Return the UID of the next object of this kind, or "" if the destination has it or will get it.

    Rows are found by their UID: their other identifiers may have been removed.
    """
    for generation in itertools.count():
        uid = result_uid(kind, subject.sop_instance_uid, subject.prediction_id or subject.failure_code, generation)
        query = select(_COLUMNS.state).where(_COLUMNS.result_uid == uid, _COLUMNS.destination == destination)
        state = connection.execute(query).scalar()
        if state is None:
            return uid
        if state in ("waiting", "delivered"):
            break
    return ""


def withdraw(connection: Connection, prediction_ids: Collection[str], headers: Mapping[str, str], time: str) -> None:
    """Cancel the objects of deleted predictions, and withdraw those that were delivered by a rejection note.

    Args:
        connection: Of the transaction that deletes the predictions.
        prediction_ids: Ids of the predictions.
        headers: Present headers by SOP Instance UID of the image, for objects of which it is not known under which header they
            were delivered; without any, because it was forgotten, an object cannot be withdrawn.
        time: Time of the transaction.
    """
    of_predictions = _COLUMNS.prediction_id.in_(prediction_ids), _COLUMNS.kind != "webhook"
    rows = connection.execute(select(outbox).where(*of_predictions)).mappings().all()
    for sop_instance_uid in {row["sop_instance_uid"] for row in rows}:
        of_image = [row for row in rows if row["sop_instance_uid"] == sop_instance_uid]
        _withdraw(connection, of_image, headers.get(sop_instance_uid, ""), time)


def replace_header(connection: Connection, sop_instance_uid: str, header: str) -> None:
    """Set the header of the objects of an image that are not delivered yet: the sender may have corrected the patient.

    An object that the destination may have keeps its own: no two objects have one UID; see `Outbox.record_failure`. So does a
    rejection note, which belongs to the study of the withdrawn objects. A header without study and series is that of no object.
    """
    same_image = _COLUMNS.sop_instance_uid == sop_instance_uid, _HAS_PRESENT_HEADER
    numbers = connection.execute(select(_COLUMNS.number).where(*same_image)).scalars().all()
    if numbers and _states_study(header):
        connection.execute(update(outbox).where(_COLUMNS.number.in_(numbers)).values(header=header))


def find_old_headers(connection: Connection, limit: str, count: int) -> list[int]:
    """Return the numbers of objects with identifiers that were created before a limit, at most `count`.

    Args:
        connection: Of a transaction.
        limit: Time of the oldest object that keeps its identifiers.
        count: Number of objects, at most.
    """
    query = select(_COLUMNS.number).where(_COLUMNS.created < limit, HAS_IDENTIFIERS)
    return list(connection.execute(query.order_by(_COLUMNS.created).limit(count)).scalars())


def forget_headers(connection: Connection, numbers: Sequence[int], time: str) -> None:
    """Cancel those of some objects that could not be delivered, and remove the identifiers of all.

    Delivered events are deleted: without its identifier, the study has no further event. Cancelled events and all objects are
    kept: none is delivered twice, and an object that returns is recognized.

    Args:
        connection: Of the transaction.
        numbers: See `find_old_headers`; not too many for a statement.
        time: Time of the transaction, for the audit log, which has an entry for each destination with cancelled objects.
    """
    old = (_COLUMNS.number.in_(numbers),)
    again = *old, _COLUMNS.state == "waiting", _COLUMNS.finished.is_not(None)
    connection.execute(update(outbox).where(*again).values(_DELIVERED_BEFORE | {"error": "identity_removed"}))
    cancelled = {"state": "cancelled", "error": "identity_removed", "finished": time}
    query = update(outbox).where(*old, _COLUMNS.state == "waiting").values(cancelled)
    rows = connection.execute(query.returning(_COLUMNS.destination)).mappings().all()
    _append_changes(connection, "delivery_cancelled", rows, time, RETENTION)
    # Not `== "delivered"`: SQLite would read all objects in this state.
    delivered_event = _COLUMNS.kind == "webhook", _COLUMNS.state.not_in(("waiting", "cancelled"))
    connection.execute(delete(outbox).where(*old, *delivered_event))
    connection.execute(update(outbox).where(*old).values(header="", sop_instance_uid="", study_instance_uid=""))


class Outbox:
    """The results to deliver.

    Args:
        engine: Engine of the service's database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, destination: str, time: datetime, limit: int) -> list[Delivery]:
        """Return deliveries that are due, those that wait longest first, at most `limit`; see `record_failure`.

        One whose time lies beyond the longest delay is due, too: the clock was set back.

        Raises:
            StorageError: The database cannot be read.
        """
        query = select(outbox).where(_COLUMNS.destination == destination, _COLUMNS.state == "waiting", _is_due(time))
        with read_transaction(self._engine) as connection:
            rows = connection.execute(query.order_by(_COLUMNS.due, _COLUMNS.number).limit(limit)).mappings()
            return [Delivery.from_row(row) for row in rows]

    def begin(self, number: int) -> Delivery | None:
        """Return an object that is sent next, as it is now; None if it no longer waits.

        Until the outcome is recorded, its error is "interrupted", and the destination may have the object.

        Raises:
            StorageError: The database cannot be written.
        """
        waiting = _COLUMNS.number == number, _COLUMNS.state == "waiting"
        with write_transaction(self._engine) as connection:
            row = connection.execute(select(outbox).where(*waiting)).mappings().first()
            begun = {"error": _INTERRUPTED, "maybe_delivered": True}
            connection.execute(update(outbox).where(*waiting).values(begun))
            return Delivery.from_row(row) if row else None

    def record_delivered(
        self,
        deliveries: Sequence[Delivery],
        time: datetime,
        *,
        asks_commitment: bool = False,
        hashes: Mapping[int, str] | None = None,
    ) -> None:
        """Record that objects were delivered, in the audit log, too.

        Args:
            deliveries: The objects, of one destination.
            time: Now.
            asks_commitment: Whether the destination is asked to commit itself to them. Their headers are kept until then: it may
                refuse, and they are sent again.
            hashes: SHA-256 of what was sent by number, for the audit log.
        Raises:
            StorageError: The database cannot be written.
        """
        values: dict[str, Any] = {
            "state": "delivered", "finished": format_time(time), "error": "", "maybe_delivered": False,
        }  # fmt: skip
        if asks_commitment:
            due = format_time(time + _COMMITMENT_DELAY)
            values |= {"commitment": "pending", "commitment_due": due, "commitment_attempts": 0, "transaction_uid": ""}
        else:
            values |= {"header": ""}
        entries = [
            Entry(
                format_time(time),
                each.destination,
                "delivered",
                each.subject.prediction_id,
                model_sha256=each.subject.model_sha256,
                details={"object": each.kind} | ({"sha256": hashes[each.number]} if hashes else {}),
            )
            for each in deliveries
        ]
        of_deliveries = _COLUMNS.number.in_([each.number for each in deliveries])
        with write_transaction(self._engine) as connection:
            is_new = of_deliveries, _COLUMNS.state != "delivered", ~IS_CONFIRMED
            confirmed = connection.execute(select(func.count()).select_from(outbox).where(*is_new)).scalar_one()
            if confirmed:
                add_to_totals(connection, deliveries[0].destination, delivered=confirmed)
            # It may have been cancelled or withdrawn while it was sent.
            unfinished = of_deliveries, _COLUMNS.state.in_(("waiting", "cancelled"))
            connection.execute(update(outbox).where(*unfinished).values(values))
            withdrawn = of_deliveries, _COLUMNS.state == "withdrawn"
            connection.execute(update(outbox).where(*withdrawn).values(maybe_delivered=False))
            append(connection, entries)

    def record_cancelled(self, delivery: Delivery, error: str, time: datetime) -> None:
        """Record that an object can no longer be built, and why; one that was sent again is delivered as it was before.

        Raises:
            StorageError: The database cannot be written.
        """
        cancelled = {"state": "cancelled", "finished": format_time(time), "maybe_delivered": delivery.maybe_delivered}
        values = _DELIVERED_BEFORE if delivery.finished else cancelled
        self._update(delivery.number, values | {"error": error, "header": ""})

    def record_failure(
        self, deliveries: Sequence[Delivery], error: str, time: datetime, *, maybe_delivered: bool = False
    ) -> None:
        """Record a failed attempt; the next one follows after 5 s, and twice as long each time, up to 15 minutes.

        An object that the destination does not have is sent with the header that the sender stated last, which may have come
        during the attempt.

        Args:
            deliveries: The objects, as they were before the attempt.
            error: Stable code of the failure.
            time: Now.
            maybe_delivered: Whether the destination may have got the objects in this attempt.
        Raises:
            StorageError: The database cannot be written.
        """
        for each in deliveries:
            values = {"error": error, "maybe_delivered": each.maybe_delivered or maybe_delivered}
            with write_transaction(self._engine) as connection:
                waiting = _COLUMNS.number == each.number, _COLUMNS.state == "waiting"
                connection.execute(update(outbox).where(*waiting).values(failed_attempt(each.attempts, time) | values))
                if not values["maybe_delivered"]:
                    _record_undelivered(connection, each.number, format_time(time))

    def record_unreachable(self, destination: str, error: str, time: datetime) -> None:
        """Record a failed attempt for each object that is due for a destination; see `record_failure`.

        Many objects may wait. They are changed in batches, so that images can be received meanwhile.
        """
        due = _COLUMNS.destination == destination, _COLUMNS.state == "waiting", _is_due(time)
        batch = select(_COLUMNS.number, _COLUMNS.attempts).where(*due).order_by(_COLUMNS.due).limit(_UNREACHABLE_BATCH)
        while True:
            with write_transaction(self._engine) as connection:
                rows = connection.execute(batch).all()
                for attempts in {row.attempts for row in rows}:
                    same = _COLUMNS.number.in_([row.number for row in rows if row.attempts == attempts])
                    values = failed_attempt(attempts, time) | {"error": error}
                    connection.execute(update(outbox).where(same).values(values))
            if len(rows) < _UNREACHABLE_BATCH:
                return

    def find(self, states: Collection[DeliveryState] | None = None, limit: int = 1000) -> list[Delivery]:
        """Return deliveries in some states, or waiting ones, oldest first. Raise StorageError if the database cannot be read."""
        return self._find(_COLUMNS.state.in_(states or ("waiting",)), limit)

    def find_uncommitted(self, limit: int = 1000) -> list[Delivery]:
        """Return delivered objects to which the destination was to commit itself and did not so far; see `find`."""
        return self._find(_COLUMNS.commitment.in_(UNCOMMITTED), limit)

    def _find(self, condition: ColumnElement[bool], limit: int) -> list[Delivery]:
        received = received_instances.c  # for the studies of objects without a header
        study = select(received.study_instance_uid).where(
            received.sop_instance_uid == _COLUMNS.sop_instance_uid, received.header != "", _COLUMNS.header == ""
        )
        study = study.order_by(received.number.desc()).limit(1)
        with read_transaction(self._engine) as connection:
            columns = outbox, study.scalar_subquery().label("received_study")
            query = select(*columns).where(condition).order_by(_COLUMNS.number).limit(limit)
            return [Delivery.from_row(row) for row in connection.execute(query).mappings()]

    def retry(self, numbers: Collection[int] = (), destination: str = "", *, time: datetime) -> int:
        """Make waiting and cancelled objects due now, and delivered ones whose commitment failed; return their number.

        Args:
            numbers: Their numbers; all waiting ones if empty.
            destination: Only those for this destination.
            time: Now.
        Raises:
            UnknownNameError: There is no such object or destination.
            UsageError: An object was delivered, its header is gone, or another one replaced it.
            StorageError: The database cannot be written.
        """
        with write_transaction(self._engine) as connection:
            refused = and_(_COLUMNS.state == "delivered", _COLUMNS.commitment == "failed")
            unfinished = or_(_COLUMNS.state.in_(("waiting", "cancelled")), refused)
            rows = self._select(
                connection, numbers, destination, unfinished if numbers else _COLUMNS.state == "waiting"
            )
            for row in rows:
                if not row["header"] and not row["study_instance_uid"]:
                    raise UsageError(f"the header of result {row['number']} was removed", hint="Send the image again")
                if successor := _successor(connection, row):
                    raise UsageError(
                        f"result {row['number']} was replaced by result {successor}",
                        hint="See `pneumoscope outbox list`; retry the later one if it was cancelled",
                    )
            _change(
                connection,
                rows,
                {"state": "waiting", "due": "", "commitment": "", "commitment_failures": 0},
            )
            _change(connection, [row for row in rows if row["state"] != "waiting"], {"finished": None})
            _change(connection, [row for row in rows if row["state"] == "delivered"], {"maybe_delivered": True})
            _append_changes(connection, "delivery_retried", rows, format_time(time))
            return len(rows)

    def cancel(self, numbers: Collection[int] = (), destination: str = "", *, time: datetime) -> int:
        """Cancel waiting objects, and return their number; see `retry`. Their headers are kept, so that they can be retried."""
        with write_transaction(self._engine) as connection:
            rows = self._select(connection, numbers, destination, _COLUMNS.state == "waiting")
            again = [row for row in rows if row["finished"]]
            _change(connection, again, _DELIVERED_BEFORE | {"error": "cancelled", "header": ""})
            others = [row for row in rows if not row["finished"]]
            _change(connection, others, {"state": "cancelled", "finished": format_time(time), "error": "cancelled"})
            _append_changes(connection, "delivery_cancelled", rows, format_time(time))
            return len(rows)

    def status(self) -> list[OutboxStatus]:
        """Return the numbers of each destination. Raise StorageError if the database cannot be read."""
        return read_status(self._engine)

    def is_result(self, sop_instance_uid: str) -> bool:
        """Return whether an object is a result of this service. Raise StorageError if the database cannot be read."""
        with read_transaction(self._engine) as connection:
            query = select(_COLUMNS.number).where(_COLUMNS.result_uid == sop_instance_uid).limit(1)
            return connection.execute(query).first() is not None

    def _update(self, number: int, values: Mapping[str, Any]) -> None:
        with write_transaction(self._engine) as connection:
            waiting = _COLUMNS.number == number, _COLUMNS.state == "waiting"
            connection.execute(update(outbox).where(*waiting).values(values))

    def _select(
        self, connection: Connection, numbers: Collection[int], destination: str, condition: ColumnElement[bool]
    ) -> Sequence[Row]:
        query = select(outbox).where(condition)
        if numbers:
            query = query.where(_COLUMNS.number.in_(numbers))
        if destination:
            query = query.where(_COLUMNS.destination == destination)
            known = connection.execute(select(outbox_totals.c.destination)).scalars().all()
            if destination not in known:
                raise UnknownNameError("destination with results", destination, known)
        rows = connection.execute(query).mappings().all()
        missing = sorted(set(numbers) - {row["number"] for row in rows})
        if missing:
            stored = connection.execute(select(outbox).where(_COLUMNS.number == missing[0])).mappings().first()
            if stored is None:
                raise UnknownNameError("result", str(missing[0]), (), hint="See `pneumoscope outbox list`")
            raise UsageError(
                f"result {missing[0]} does not wait: it was {stored['state']} at {stored['finished']}",
                hint=f"To send it again: pneumoscope outbox retry --delivered {missing[0]}"
                if stored["state"] == "delivered"
                else "See `pneumoscope outbox list --state " + stored["state"] + "`",
            )
        return rows


def _change(connection: Connection, rows: Sequence[Row], values: Mapping[str, Any]) -> None:
    """Change rows, of which there may be more than a statement can have parameters."""
    for start in range(0, len(rows), _BATCH):
        numbers = [row["number"] for row in rows[start : start + _BATCH]]
        connection.execute(update(outbox).where(_COLUMNS.number.in_(numbers)).values(values))


def _append_changes(
    connection: Connection, event: Event, rows: Sequence[Row], time: str, user: str = COMMAND_LINE
) -> None:
    """Add an entry for each destination to the audit log: a person retried or cancelled results, or retention cancelled them."""
    for destination, count in Counter(row["destination"] for row in rows).items():
        append(connection, [Entry(time, user, event, details={"destination": destination, "results": count})])


def _ended_entries(rows: Sequence[Row], event: Event, time: str) -> list[Entry]:
    """Return entries of results that no longer hold, as those of deliveries are: each names the destination and the object."""
    return [
        Entry(
            time,
            row["destination"],
            event,
            row["prediction_id"],
            model_sha256=row["model_sha256"],
            details={"object": row["kind"]},
        )
        for row in rows
    ]


def _is_due(time: datetime) -> ColumnElement[bool]:
    return or_(_COLUMNS.due <= format_time(time), _COLUMNS.due > format_time(time + 2 * MAX_DELAY))


def failed_attempt(attempts: int, time: datetime) -> dict[str, Any]:
    """Return the values of an object after a failed attempt that others preceded."""
    return {"attempts": attempts + 1, "due": format_time(time + retry_delay(attempts + 1))}


def retry_delay(attempts: int) -> timedelta:
    """Return the time from the last of some failed attempts to the next one."""
    factor: int = 2 ** min(max(attempts - 1, 0), 20)
    return min(factor * _FIRST_DELAY, MAX_DELAY)


def _may_have_arrived(row: Row) -> bool:
    return bool(row["state"] == "delivered" or (row["state"] in ("waiting", "cancelled") and row["maybe_delivered"]))


def _successor(connection: Connection, row: Row) -> int | None:
    """Return the number of the last object, or event, that was added after a cancelled one in its place; None without one."""
    if row["state"] != "cancelled":
        return None
    names = ["study_instance_uid"]  # an event states all predictions of its study
    if row["kind"] != "webhook":
        names = ["sop_instance_uid", "prediction_id", "failure_code"]
    same = [_COLUMNS[name] == row[name] for name in ("destination", "kind", *names)]
    query = select(func.max(_COLUMNS.number)).where(*same, _COLUMNS.number > row["number"])
    return connection.execute(query).scalar()


def _withdraw(connection: Connection, rows: Sequence[Row], header: str, time: str) -> None:
    """Cancel the waiting objects among rows of one image, and add rejection notes for those that a destination may have.

    Args:
        connection: Of a transaction.
        rows: The rows.
        header: The present header of the image; empty if it is unknown.
        time: Time of the transaction.
    """
    rows = [row for row in rows if row["kind"] != "rejection_note"]
    unsent = [row for row in rows if row["state"] in ("waiting", "cancelled") and not _may_have_arrived(row)]
    _change(connection, unsent, {"header": ""})  # so that none can be sent any more
    waiting = [row for row in unsent if row["state"] == "waiting"]
    _change(connection, waiting, {"state": "cancelled", "finished": time, "error": "superseded"})
    append(connection, _ended_entries(waiting, "result_superseded", time))
    delivered = [row for row in rows if _may_have_arrived(row)]
    # A note is about objects of one subject, in the study in which they were delivered, and about one of each kind.
    notes: dict[tuple[str, str, str, str, int], list[Row]] = defaultdict(list)
    of_kind: Counter[tuple[str, ...]] = Counter()
    for row in delivered:
        key = (
            row["destination"],
            row["prediction_id"],
            row["failure_code"],
            delivered_header(connection, row, time, header),
        )
        notes[*key, of_kind[*key, row["kind"]]].append(row)
        of_kind[*key, row["kind"]] += 1
    for (destination, _, _, note_header, _), of_note in notes.items():
        if not note_header:
            continue
        withdrawn: dict[ObjectKind, str] = {row["kind"]: row["result_uid"] for row in of_note}
        values = {field.name: of_note[0][field.name] for field in dataclasses.fields(ResultSubject)}
        subject = ResultSubject(**values | {"header": note_header})
        uid = derive_uid(" ".join(["rejection_note", *sorted(withdrawn.values())]))
        _insert(connection, subject, destination, "rejection_note", uid, withdrawn, time)
        _change(connection, of_note, {"state": "withdrawn", "header": ""})
        again = [row for row in of_note if row["state"] == "waiting" and row["finished"]]
        _change(connection, again, _DELIVERED_BEFORE | {"state": "withdrawn"})
        _change(connection, [row for row in of_note if row["commitment"] != "committed"], {"commitment": ""})
        append(connection, _ended_entries(of_note, "result_withdrawn", time))


def delivered_header(connection: Connection, row: Row, time: str, present: str = "") -> str:
    """Return the header under which an object was delivered, or may have been; empty if it is unknown.

    Its own is removed after the delivery. It was the last one that had been received then; see `replace_header`.

    Args:
        connection: Of a transaction.
        row: The object.
        time: Now. A delivery cannot be later, unless the clock was set back: then the time says nothing.
        present: The present header, if no received instance has one.
    """
    if row["header"]:
        return str(row["header"])
    received = received_instances.c
    is_known = bool(row["finished"]) and row["finished"] <= time
    before = _last_header(connection, row["sop_instance_uid"], received.received <= row["finished"]) if is_known else ""
    # A file that arrived again since has a later time, and the same header.
    same = received.prediction_id == row["prediction_id"], received.failure_code == row["failure_code"]
    uid = row["sop_instance_uid"]
    return before or _last_header(connection, uid, *same, is_first=True) or _last_header(connection, uid) or present


def _last_header(
    connection: Connection, sop_instance_uid: str, *conditions: ColumnElement[bool], is_first: bool = False
) -> str:
    """Return the header of the last received instance of an image, or of the first one, that states study and series.

    It is empty if none of `MAX_COPIES` instances does.
    """
    received = received_instances.c
    same = received.sop_instance_uid == sop_instance_uid, received.sop_instance_uid != "", received.header != ""
    order = received.number if is_first else received.number.desc()
    query = select(received.header).where(*same, *conditions).order_by(order).limit(MAX_COPIES)
    return next((str(header) for header in connection.execute(query).scalars() if _states_study(header)), "")


def _states_study(header: str) -> bool:
    elements = json.loads(header)
    return all(any(elements.get(tag, {}).get("Value", ())) for tag in _STUDY_AND_SERIES)


def _record_undelivered(connection: Connection, number: int, time: str) -> None:
    """Change an object that did not arrive, although its row states that it may have, since it was being sent."""
    row = connection.execute(select(outbox).where(_COLUMNS.number == number)).mappings().one()
    if row["state"] == "withdrawn":
        _take_back_withdrawal(connection, row, time)
        return
    _change(connection, [row], {"maybe_delivered": False})
    if header := _last_header(connection, row["sop_instance_uid"]):
        present = _COLUMNS.number == number, _HAS_PRESENT_HEADER
        connection.execute(update(outbox).where(*present).values(header=header))


def _take_back_withdrawal(connection: Connection, row: Row, time: str) -> None:
    """Cancel an object that was withdrawn while it was being sent and did not arrive; its rejection note is not about it."""
    unsent_notes = (
        _COLUMNS.sop_instance_uid == row["sop_instance_uid"],
        _COLUMNS.sop_instance_uid != "",
        _COLUMNS.destination == row["destination"],
        _COLUMNS.kind == "rejection_note",
        _COLUMNS.state == "waiting",
        _COLUMNS.maybe_delivered.is_(False),
    )
    for note in connection.execute(select(outbox).where(*unsent_notes)).mappings().all():
        withdrawn = json.loads(note["withdrawn_uids"])
        others = {kind: uid for kind, uid in withdrawn.items() if uid != row["result_uid"]}
        if others == withdrawn:
            continue
        ended = [row] if others else [row, note]
        if others:
            _change(connection, [note], {"withdrawn_uids": json.dumps(others)})
        _change(connection, ended, {"state": "cancelled", "finished": time, "error": "superseded", "header": ""})
        _change(connection, [row], {"maybe_delivered": False})
        append(connection, _ended_entries(ended, "result_superseded", time))


def _insert(
    connection: Connection,
    subject: ResultSubject,
    destination: str,
    kind: ObjectKind,
    uid: str,
    withdrawn_uids: Mapping[ObjectKind, str],
    time: str,
) -> None:
    assert kind in get_args(ObjectKind)
    row = dataclasses.asdict(subject) | {
        "destination": destination, "kind": kind, "result_uid": uid, "withdrawn_uids": json.dumps(withdrawn_uids),
        **NEW_ROW, "created": time, "due": time,
    }  # fmt: skip
    connection.execute(insert(outbox), [row])
    add_to_totals(connection, destination)
