"""The outbox: results to deliver to other nodes, written in the transaction that stores the prediction.

A row is one DICOM object for one destination, created when it is sent (see `results`), or the event of a finished study
for one webhook (see `study_events`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, func, or_, select, update

from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.outbox_records import (
    Delivery,
    DeliveryState,
    failed_attempt,
    is_due,
)
from pneumoscope.service.storage.outbox_status import (
    IS_CONFIRMED,
    UNCOMMITTED,
    OutboxStatus,
    add_to_totals,
    read_status,
    require_destination,
)
from pneumoscope.service.storage.records import Row, format_time
from pneumoscope.service.storage.results import (
    DELIVERED_BEFORE,
    append_changes,
    change_rows,
    record_undelivered,
)
from pneumoscope.service.storage.tables import outbox

__all__ = ["Outbox"]

_UNREACHABLE_BATCH = 500  # objects changed in one transaction
_COMMITMENT_DELAY = timedelta(seconds=2)  # after a delivery, so that one request covers all objects of a study
_COLUMNS = outbox.c
# Error of an object in transit: the destination has not answered yet, or the process ended before it did.
_INTERRUPTED = "interrupted"


class Outbox:
    """The results to deliver.

    Args:
        engine: Engine of the service's database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def due(self, destination: str, time: datetime, limit: int) -> list[Delivery]:
        """Return due deliveries, longest overdue first, at most `limit`; see `record_failure`.

        A delivery whose time is further ahead than the longest delay is also due, because the clock was set back.

        Raises:
            StorageError: The database cannot be read.
        """
        query = select(outbox).where(_COLUMNS.destination == destination, _COLUMNS.state == "waiting", is_due(time))
        with read_transaction(self._engine) as connection:
            rows = connection.execute(query.order_by(_COLUMNS.due, _COLUMNS.number).limit(limit)).mappings()
            return [Delivery.from_row(row) for row in rows]

    def begin(self, number: int) -> Delivery | None:
        """Return the current state of the object to send next; None if it is no longer waiting.

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
        requests_commitment: bool = False,
        hashes: Mapping[int, str] | None = None,
    ) -> None:
        """Record the delivery of objects, also in the audit log.

        Args:
            deliveries: The objects, all of one destination.
            time: Current time.
            requests_commitment: Whether storage commitment is requested for them.
            hashes: SHA-256 of the sent content by number, for the audit log.
        Raises:
            StorageError: The database cannot be written.
        """
        values: dict[str, Any] = {
            "state": "delivered", "finished": format_time(time), "error": "", "maybe_delivered": False,
        }  # fmt: skip
        if requests_commitment:
            due = format_time(time + _COMMITMENT_DELAY)
            values |= {"commitment": "pending", "commitment_due": due, "transaction_uid": ""}
            values |= {"commitment_attempts": 0, "commitment_rejections": 0}
        else:
            values |= {"commitment": "", "commitment_due": None}
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
            # It may have been cancelled or withdrawn while it was being sent.
            unfinished = of_deliveries, _COLUMNS.state.in_(("waiting", "cancelled"))
            before = *unfinished, _COLUMNS.commitment == "committed"  # void, because the object was sent again
            if void := connection.execute(select(func.count()).select_from(outbox).where(*before)).scalar_one():
                add_to_totals(connection, deliveries[0].destination, committed=-void)
            connection.execute(update(outbox).where(*unfinished).values(values))
            # The prediction may be deleted, and the withdrawn objects keep no header either.
            of_note = of_deliveries, _COLUMNS.kind == "rejection_note", _COLUMNS.commitment == ""
            connection.execute(update(outbox).where(*of_note).values(header=""))
            withdrawn = of_deliveries, _COLUMNS.state == "withdrawn"
            connection.execute(update(outbox).where(*withdrawn).values(maybe_delivered=False))
            append(connection, entries)

    def record_cancelled(self, delivery: Delivery, error: str, time: datetime) -> None:
        """Record why an object can no longer be created; an object that was being resent is delivered as before.

        An object that the destination may have keeps its header, so that it can be withdrawn.

        Raises:
            StorageError: The database cannot be written.
        """
        cancelled = {
            "state": "cancelled", "finished": format_time(time), "maybe_delivered": delivery.maybe_delivered,
            "header": delivery.subject.header if delivery.maybe_delivered else "",
        }  # fmt: skip
        values = DELIVERED_BEFORE if delivery.finished else cancelled
        with write_transaction(self._engine) as connection:
            waiting = _COLUMNS.number == delivery.number, _COLUMNS.state == "waiting"
            connection.execute(update(outbox).where(*waiting).values(values | {"error": error}))
            if not delivery.maybe_delivered:
                record_undelivered(connection, delivery.number, format_time(time))

    def record_failure(
        self, deliveries: Sequence[Delivery], error: str, time: datetime, *, maybe_delivered: bool = False
    ) -> None:
        """Record a failed attempt; the next one follows after 5 s, and after twice as long each time, up to 15 minutes.

        If the destination does not have the object, the next attempt uses the latest header from the sender, which may
        have arrived during this attempt.

        Args:
            deliveries: The objects, as they were before the attempt.
            error: Stable code of the failure.
            time: Current time.
            maybe_delivered: Whether the destination may have received the objects in this attempt.
        Raises:
            StorageError: The database cannot be written.
        """
        for each in deliveries:
            values = {"error": error, "maybe_delivered": each.maybe_delivered or maybe_delivered}
            with write_transaction(self._engine) as connection:
                waiting = _COLUMNS.number == each.number, _COLUMNS.state == "waiting"
                connection.execute(update(outbox).where(*waiting).values(failed_attempt(each.attempts, time) | values))
                if not values["maybe_delivered"]:
                    record_undelivered(connection, each.number, format_time(time))

    def record_unreachable(self, destination: str, error: str, time: datetime) -> None:
        """Record a failed attempt for each object that is due for a destination; see `record_failure`.

        Many objects may be waiting. They are changed in batches, so that images can be received in the meantime.
        """
        due = _COLUMNS.destination == destination, _COLUMNS.state == "waiting", is_due(time)
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
        """Return deliveries in the given states (default: waiting), oldest first.

        Raises:
            StorageError: The database cannot be read.
        """
        return self._find(_COLUMNS.state.in_(states or ("waiting",)), limit)

    def find_uncommitted(self, limit: int = 1000) -> list[Delivery]:
        """Return delivered objects with a requested but unconfirmed storage commitment; see `find`."""
        return self._find(_COLUMNS.commitment.in_(UNCOMMITTED), limit)

    def _find(self, condition: ColumnElement[bool], limit: int) -> list[Delivery]:
        with read_transaction(self._engine) as connection:
            query = select(outbox).where(condition).order_by(_COLUMNS.number).limit(limit)
            return [Delivery.from_row(row) for row in connection.execute(query).mappings()]

    def retry(self, numbers: Collection[int] = (), destination: str = "", *, time: datetime) -> int:
        """Make waiting and cancelled objects due now, as well as delivered ones with a failed commitment; return their number.

        Args:
            numbers: Numbers of the objects; all waiting ones if empty.
            destination: Restricts them to one destination.
            time: Current time.
        Raises:
            UnknownNameError: There is no such object or destination.
            UsageError: An object was delivered, its header was removed, or another one replaced it.
            StorageError: The database cannot be written.
        """
        with write_transaction(self._engine) as connection:
            refused = and_(_COLUMNS.state == "delivered", _COLUMNS.commitment == "failed")
            unfinished = or_(_COLUMNS.state.in_(("waiting", "cancelled")), refused)
            rows = self._select(
                connection, numbers, destination, unfinished if numbers else _COLUMNS.state == "waiting"
            )
            for row in rows:
                if not row["study_instance_uid" if row["kind"] == "webhook" else "header"]:
                    raise UsageError(f"the header of result {row['number']} was removed", hint="Send the image again")
                if successor := _successor(connection, row):
                    raise UsageError(
                        f"result {row['number']} was replaced by result {successor}",
                        hint="See `pneumoscope outbox list`; retry the later one if it was cancelled",
                    )
            change_rows(connection, rows, {"state": "waiting", "due": "", "commitment_failures": 0})
            change_rows(connection, [row for row in rows if row["state"] != "waiting"], {"finished": None})
            again = [row for row in rows if row["state"] == "delivered"]
            change_rows(connection, again, {"maybe_delivered": True, "commitment": ""})
            append_changes(connection, "delivery_retried", rows, format_time(time))
            return len(rows)

    def cancel(self, numbers: Collection[int] = (), destination: str = "", *, time: datetime) -> int:
        """Cancel waiting objects; return their number. Their headers are kept, so that they can be retried; see `retry`."""
        with write_transaction(self._engine) as connection:
            rows = self._select(connection, numbers, destination, _COLUMNS.state == "waiting")
            again = [row for row in rows if row["finished"]]
            change_rows(connection, again, DELIVERED_BEFORE | {"error": "cancelled"})
            others = [row for row in rows if not row["finished"]]
            change_rows(connection, others, {"state": "cancelled", "finished": format_time(time), "error": "cancelled"})
            append_changes(connection, "delivery_cancelled", rows, format_time(time))
            return len(rows)

    def status(self) -> list[OutboxStatus]:
        """Return the status of each destination. Raise StorageError if the database cannot be read."""
        return read_status(self._engine)

    def is_result(self, sop_instance_uid: str) -> bool:
        """Return whether an object is a result of this service. Raise StorageError if the database cannot be read."""
        with read_transaction(self._engine) as connection:
            query = select(_COLUMNS.number).where(_COLUMNS.result_uid == sop_instance_uid).limit(1)
            return connection.execute(query).first() is not None

    def _select(
        self, connection: Connection, numbers: Collection[int], destination: str, condition: ColumnElement[bool]
    ) -> Sequence[Row]:
        query = select(outbox).where(condition)
        if numbers:
            query = query.where(_COLUMNS.number.in_(numbers))
        if destination:
            query = query.where(_COLUMNS.destination == require_destination(connection, destination))
        rows = connection.execute(query).mappings().all()
        missing = sorted(set(numbers) - {row["number"] for row in rows})
        if missing:
            stored = connection.execute(select(outbox).where(_COLUMNS.number == missing[0])).mappings().first()
            if stored is None:
                raise UnknownNameError(
                    "result",
                    str(missing[0]),
                    (),
                    hint="See `pneumoscope outbox list --help`: it lists waiting results, and others by --state",
                )
            can_be_resent = stored["state"] == "delivered" and stored["kind"] != "webhook"
            raise UsageError(
                f"result {missing[0]} does not wait: it was {stored['state']} at {str(stored['finished'])[:19]}Z",
                hint=f"To send it again: pneumoscope outbox retry --delivered {missing[0]}"
                if can_be_resent
                else f"See `pneumoscope outbox list --state {stored['state']}`",
            )
        return rows


def _successor(connection: Connection, row: Row) -> int | None:
    """Return the number of the latest object or event that replaced a cancelled one; None if there is none."""
    if row["state"] != "cancelled" or row["kind"] == "rejection_note":  # other notes concern other objects
        return None
    names = ["study_instance_uid"]  # an event covers all predictions of its study
    if row["kind"] != "webhook":
        names = ["sop_instance_uid", "prediction_id", "failure_code"]
    same = [_COLUMNS[name] == row[name] for name in ("destination", "kind", *names)]
    query = select(func.max(_COLUMNS.number)).where(*same, _COLUMNS.number > row["number"])
    return connection.execute(query).scalar()
