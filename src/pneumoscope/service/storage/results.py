"""Results in the outbox: add, replace and withdraw them, and correct their headers, within a transaction.

The UID of an object is derived from the image, the prediction and the kind of object. If the process is killed before
it records a delivery, the object is sent again with the same UID.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from sqlalchemy import Connection, and_, delete, insert, or_, select, update

from pneumoscope.service.audit.log import Entry, Event, append
from pneumoscope.service.auth.users import COMMAND_LINE, RETENTION
from pneumoscope.service.storage.outbox_records import (
    NEW_ROW,
    ObjectKind,
    ResultSubject,
    derive_uid,
    has_study_and_series,
    result_uid,
    study_of,
)
from pneumoscope.service.storage.outbox_status import add_to_totals
from pneumoscope.service.storage.records import Row
from pneumoscope.service.storage.tables import HAS_IDENTIFIERS, outbox, predictions, received_instances

__all__ = [
    "DELIVERED_BEFORE",
    "MAX_COPIES",
    "append_changes",
    "change_rows",
    "destinations_with",
    "destinations_with_result",
    "enqueue",
    "find_old_headers",
    "record_undelivered",
    "remove_headers",
    "replace_header",
    "withdraw",
]

_BATCH = 500  # rows changed by one statement
MAX_COPIES = 20  # limit on instances with the same SOP Instance UID; a sender could send any number
_COLUMNS = outbox.c
# Values of an object that is no longer being resent.
DELIVERED_BEFORE: dict[str, Any] = {"state": "delivered", "maybe_delivered": False}
# Objects that will be sent, perhaps after a retry, with the sender's latest header.
_HAS_PRESENT_HEADER = and_(
    _COLUMNS.state.in_(("waiting", "cancelled")),
    _COLUMNS.maybe_delivered.is_(False),
    _COLUMNS.kind != "rejection_note",
    _COLUMNS.header != "",
)
# Results that a destination has or may receive; excludes withdrawn and superseded ones.
_CAN_HOLD = and_(
    _COLUMNS.kind != "rejection_note",
    or_(
        _COLUMNS.state.in_(("waiting", "delivered")),
        and_(_COLUMNS.state == "cancelled", or_(_COLUMNS.maybe_delivered, _COLUMNS.header != "")),
    ),
)


def enqueue(
    connection: Connection,
    subject: ResultSubject,
    destinations: Collection[str],
    kinds: Sequence[ObjectKind],
    time: str,
) -> None:
    """Add the objects of a prediction, unless they were added before, in the transaction that stores it.

    Other objects of the image are cancelled or withdrawn, except those for the same pixels from another model or
    operating point.
    """
    for destination in destinations:
        same_image = _COLUMNS.destination == destination, _COLUMNS.sop_instance_uid == subject.sop_instance_uid
        rows = connection.execute(select(outbox).where(*same_image, _CAN_HOLD)).mappings().all()
        pixels = _pixels(connection, {subject.prediction_id, *(row["prediction_id"] for row in rows)})
        replaced = [row for row in rows if not _holds_beside(row, subject, pixels)]
        _withdraw(connection, replaced, time)
        for kind in kinds:
            uid = _new_uid(connection, subject, destination, kind)
            if uid:
                _insert(connection, subject, destination, kind, uid, {}, time)


def _pixels(connection: Connection, prediction_ids: Collection[str]) -> dict[str, str]:
    """Return the pixel hashes of predictions by id."""
    query = select(predictions.c.id, predictions.c.pixel_sha256).where(predictions.c.id.in_(prediction_ids))
    return {row.id: row.pixel_sha256 for row in connection.execute(query)}


def _holds_beside(row: Row, subject: ResultSubject, pixels: Mapping[str, str]) -> bool:
    """Return whether an object of the same image remains valid beside a subject's objects, or is one of them.

    A cancelled object that the destination may have does not remain valid; the subject's object has another UID.
    """
    if (row["prediction_id"], row["failure_code"]) == (subject.prediction_id, subject.failure_code):
        return not (row["state"] == "cancelled" and row["maybe_delivered"])
    if (row["model_sha256"], row["operating_point"]) == (subject.model_sha256, subject.operating_point):
        return False
    same_pixels = pixels.get(subject.prediction_id)  # an unreadable file has none
    return same_pixels is not None and pixels.get(row["prediction_id"]) == same_pixels


def destinations_with(connection: Connection, sop_instance_uid: str, prediction_id: str, failure_code: str) -> set[str]:
    """Return the destinations to which results of a prediction or failure of an image were addressed."""
    query = select(_COLUMNS.destination).where(
        _COLUMNS.sop_instance_uid == sop_instance_uid,
        _COLUMNS.prediction_id == prediction_id,
        _COLUMNS.failure_code == failure_code,
        _COLUMNS.kind != "rejection_note",
    )
    return set(connection.execute(query.distinct()).scalars())


def destinations_with_result(connection: Connection, sop_instance_uid: str) -> set[str]:
    """Return the destinations that have or will receive results of an image."""
    query = select(_COLUMNS.destination).where(
        _COLUMNS.sop_instance_uid == sop_instance_uid,
        _COLUMNS.state.in_(("waiting", "delivered")),
        _COLUMNS.kind != "rejection_note",
    )
    return set(connection.execute(query.distinct()).scalars())


def _new_uid(connection: Connection, subject: ResultSubject, destination: str, kind: ObjectKind) -> str:
    """Return the UID of the next object of this kind; empty if the destination has or will receive the current one.

    Rows are found by UID, because their other identifiers may have been removed.
    """

    def uid_of(generation: int) -> str:
        return result_uid(kind, subject.sop_instance_uid, subject.prediction_id or subject.failure_code, generation)

    def state_of(generation: int) -> str | None:
        same = _COLUMNS.result_uid == uid_of(generation), _COLUMNS.destination == destination
        return connection.execute(select(_COLUMNS.state).where(*same)).scalar()

    # A sender could cause any number of generations, so find the first unused one by bisection.
    used, free = -1, 0
    while state_of(free) is not None:
        used, free = free, 2 * free + 1
    while free - used > 1:
        middle = (used + free) // 2
        used, free = (used, middle) if state_of(middle) is None else (middle, free)
    is_current = used >= 0 and state_of(used) in ("waiting", "delivered")
    return "" if is_current else uid_of(free)


def withdraw(connection: Connection, prediction_ids: Collection[str], time: str) -> None:
    """Cancel the objects of deleted predictions; withdraw delivered ones by rejection notes.

    Args:
        connection: Connection in the transaction that deletes the predictions.
        prediction_ids: Ids of the predictions.
        time: Time of the transaction.
    """
    of_predictions = _COLUMNS.prediction_id.in_(prediction_ids), _COLUMNS.kind != "webhook"
    rows = connection.execute(select(outbox).where(*of_predictions)).mappings().all()
    for sop_instance_uid in {row["sop_instance_uid"] for row in rows}:
        of_image = [row for row in rows if row["sop_instance_uid"] == sop_instance_uid]
        _withdraw(connection, of_image, time)


def replace_header(connection: Connection, sop_instance_uid: str, header: str) -> None:
    """Set the header of an image's undelivered objects, since the sender may have corrected the patient.

    An object that the destination may have keeps its header, so that different objects never share a UID; see
    `Outbox.record_failure`. So does a rejection note, which belongs to the study of the withdrawn objects. A header
    without study and series is ignored.
    """
    same_image = _COLUMNS.sop_instance_uid == sop_instance_uid, _HAS_PRESENT_HEADER
    numbers = connection.execute(select(_COLUMNS.number).where(*same_image)).scalars().all()
    if numbers and has_study_and_series(header):
        connection.execute(update(outbox).where(_COLUMNS.number.in_(numbers)).values(_header_values(header)))


def find_old_headers(connection: Connection, limit: str, count: int) -> list[int]:
    """Return the numbers of objects with identifiers that were created before a limit.

    Args:
        connection: Connection in a transaction.
        limit: Time of the oldest object that keeps its identifiers.
        count: Maximum number of objects.
    """
    query = select(_COLUMNS.number).where(_COLUMNS.created < limit, HAS_IDENTIFIERS)
    return list(connection.execute(query.order_by(_COLUMNS.created).limit(count)).scalars())


def remove_headers(connection: Connection, numbers: Sequence[int], time: str) -> None:
    """Remove the identifiers of objects, and cancel those that are still waiting.

    Delivered events are deleted, since a study without its identifier has no further events. Cancelled events and all
    objects are kept, so that none is delivered twice and returned objects are recognized.

    Args:
        connection: Connection in the transaction.
        numbers: See `find_old_headers`; not more than a statement can have parameters.
        time: Time of the transaction, for the audit log entries: one for each destination with cancelled objects.
    """
    old = (_COLUMNS.number.in_(numbers),)
    again = *old, _COLUMNS.state == "waiting", _COLUMNS.finished.is_not(None)
    connection.execute(update(outbox).where(*again).values(DELIVERED_BEFORE | {"error": "identity_removed"}))
    cancelled = {"state": "cancelled", "error": "identity_removed", "finished": time}
    query = update(outbox).where(*old, _COLUMNS.state == "waiting").values(cancelled)
    rows = connection.execute(query.returning(_COLUMNS.destination)).mappings().all()
    append_changes(connection, "delivery_cancelled", rows, time, RETENTION)
    # With `== "delivered"`, SQLite would read all objects in this state.
    delivered_event = _COLUMNS.kind == "webhook", _COLUMNS.state.not_in(("waiting", "cancelled"))
    connection.execute(delete(outbox).where(*old, *delivered_event))
    # The parameters of a reason may quote the header.
    removed = dict.fromkeys(("header", "sop_instance_uid", "study_instance_uid", "failure_parameters"), "")
    connection.execute(update(outbox).where(*old).values(removed))


def change_rows(connection: Connection, rows: Sequence[Row], values: Mapping[str, Any]) -> None:
    """Change rows in batches, since the number of parameters of a statement is limited."""
    for start in range(0, len(rows), _BATCH):
        numbers = [row["number"] for row in rows[start : start + _BATCH]]
        connection.execute(update(outbox).where(_COLUMNS.number.in_(numbers)).values(values))


def append_changes(
    connection: Connection, event: Event, rows: Sequence[Row], time: str, user: str = COMMAND_LINE
) -> None:
    """Add an audit log entry for each destination: a person retried or cancelled results, or retention cancelled them."""
    for destination, count in Counter(row["destination"] for row in rows).items():
        append(connection, [Entry(time, user, event, details={"destination": destination, "results": count})])


def _finished_entries(rows: Sequence[Row], event: Event, time: str) -> list[Entry]:
    """Return audit log entries for invalid results; as for deliveries, each names the destination and the object."""
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


def _may_have_arrived(row: Row) -> bool:
    return bool(row["state"] == "delivered" or (row["state"] in ("waiting", "cancelled") and row["maybe_delivered"]))


def _withdraw(connection: Connection, rows: Sequence[Row], time: str) -> None:
    """Cancel the waiting objects among rows of one image, and add rejection notes for those that a destination may have.

    A note has the header under which the objects were delivered. An object whose header was removed cannot be
    withdrawn.

    Args:
        connection: Connection in a transaction.
        rows: The rows.
        time: Time of the transaction.
    """
    rows = [row for row in rows if row["kind"] != "rejection_note"]
    unsent = [row for row in rows if row["state"] in ("waiting", "cancelled") and not _may_have_arrived(row)]
    change_rows(connection, unsent, {"header": ""})  # so that they can never be sent
    waiting = [row for row in unsent if row["state"] == "waiting"]
    change_rows(connection, waiting, {"state": "cancelled", "finished": time, "error": "superseded"})
    append(connection, _finished_entries(waiting, "result_superseded", time))
    delivered = [row for row in rows if _may_have_arrived(row)]
    # A note covers objects of one subject, in the study in which they were delivered, and at most one of each kind.
    notes: dict[tuple[str, str, str, str, int], list[Row]] = defaultdict(list)
    of_kind: Counter[tuple[str, ...]] = Counter()
    for row in delivered:
        key = row["destination"], row["prediction_id"], row["failure_code"], row["header"]
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
        change_rows(connection, of_note, {"state": "withdrawn", "header": ""})
        again = [row for row in of_note if row["state"] == "waiting" and row["finished"]]
        change_rows(connection, again, DELIVERED_BEFORE | {"state": "withdrawn"})
        change_rows(connection, [row for row in of_note if row["commitment"] != "committed"], {"commitment": ""})
        append(connection, _finished_entries(of_note, "result_withdrawn", time))


def _last_header(connection: Connection, sop_instance_uid: str) -> str:
    """Return the header of the last received instance of an image that contains study and series; empty if there is none."""
    received = received_instances.c
    same = received.sop_instance_uid == sop_instance_uid, received.sop_instance_uid != "", received.header != ""
    query = select(received.header).where(*same, received.study_instance_uid != "").order_by(received.number.desc())
    headers = connection.execute(query.limit(MAX_COPIES)).scalars()
    return next((str(header) for header in headers if has_study_and_series(header)), "")


def _header_values(header: str) -> dict[str, str]:
    """Return the values of a row with a header. The study remains when the header is removed."""
    return {"header": header, "study_instance_uid": study_of(header)}


def record_undelivered(connection: Connection, number: int, time: str) -> None:
    """Record that an object did not arrive; during the attempt, its row was marked as possibly delivered."""
    row = connection.execute(select(outbox).where(_COLUMNS.number == number)).mappings().one()
    if row["state"] == "withdrawn":
        _cancel_withdrawal(connection, row, time)
        return
    change_rows(connection, [row], {"maybe_delivered": False})
    if header := _last_header(connection, row["sop_instance_uid"]):
        present = _COLUMNS.number == number, _HAS_PRESENT_HEADER
        connection.execute(update(outbox).where(*present).values(_header_values(header)))


def _cancel_withdrawal(connection: Connection, row: Row, time: str) -> None:
    """Cancel an object that was withdrawn while it was being sent but did not arrive; remove it from its rejection note."""
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
            change_rows(connection, [note], {"withdrawn_uids": json.dumps(others)})
        change_rows(connection, ended, {"state": "cancelled", "finished": time, "error": "superseded", "header": ""})
        change_rows(connection, [row], {"maybe_delivered": False})
        append(connection, _finished_entries(ended, "result_superseded", time))


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
    row = dataclasses.asdict(subject) | _header_values(subject.header) | {
        "destination": destination, "kind": kind, "result_uid": uid, "withdrawn_uids": json.dumps(withdrawn_uids),
        **NEW_ROW, "created": time, "due": time,
    }  # fmt: skip
    connection.execute(insert(outbox), [row])
    add_to_totals(connection, destination)
