"""Storage commitment: track which delivered objects a destination has committed to store (PS3.4 annex J).

The state is stored in the outbox rows. A request is recorded with its transaction UID before it is sent, so that its
report is recognized even if it arrives immediately or after a restart. For each object, only the last transaction
counts.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, and_, or_, select, update

from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.storage.database import read_transaction, write_transaction
from pneumoscope.service.storage.outbox_records import Delivery, failed_attempt
from pneumoscope.service.storage.outbox_status import UNCOMMITTED, add_to_totals
from pneumoscope.service.storage.records import Row, format_time
from pneumoscope.service.storage.tables import outbox

__all__ = ["MAX_FAILURES", "MAX_WAIT", "CommitmentReport", "CommitmentRequest", "Commitments", "is_due"]

MAX_FAILURES = 3  # failure reports per object; it is sent again after each except the last
MAX_WAIT = timedelta(days=1)  # maximum time to wait for a report
_AWAITED = ("pending", "requested")  # only of delivered objects; see `outbox`
_NOT_REPORTED = "commitment_not_reported"
_NO_FAILURE = {"error": "", "commitment_rejections": 0}
_COLUMNS = outbox.c


@dataclasses.dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """A request to send (N-ACTION).

    Attributes:
        transaction_uid: Transaction UID.
        deliveries: The objects.
    """

    transaction_uid: str
    deliveries: tuple[Delivery, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CommitmentReport:
    """The report of a destination (N-EVENT-REPORT).

    Attributes:
        transaction_uid: Transaction UID of the request.
        committed: UIDs of the committed objects.
        failed: Failure reasons of the other objects, by UID.
    """

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]


class Commitments:
    """Storage commitments for the objects in the outbox.

    Args:
        engine: Engine of the service's database.
    Attributes:
        engine: As above.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def begin(self, destination: str, time: datetime, wait: timedelta, limit: int) -> CommitmentRequest | None:
        """Record a request for the objects that have been due longest, and return it; None if none is due.

        Objects of rejected requests come last, in separate requests, each with half as many objects as the one before.
        An object that causes rejections is thus eventually requested alone and delays no others.

        Args:
            destination: Name of the destination.
            time: Current time.
            wait: Time after which the request is repeated if its outcome is not recorded.
            limit: Maximum number of objects.
        Raises:
            StorageError: The database cannot be used.
        """
        due = is_due(destination, time)
        with read_transaction(self.engine) as connection:  # does not exclude writers; usually, nothing is due
            if connection.execute(select(_COLUMNS.number).where(due).limit(1)).first() is None:
                return None
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        with write_transaction(self.engine) as connection:
            is_rejected = _COLUMNS.commitment_rejections > 0
            ordered = select(outbox).where(due).order_by(is_rejected, _COLUMNS.commitment_due, _COLUMNS.number)
            first = connection.execute(ordered.limit(1)).mappings().first()
            if first is None:
                return None
            rejections = first["commitment_rejections"]
            limit = max(1, limit >> min(rejections, 20))
            together = ordered.where(_COLUMNS.commitment_rejections == rejections).limit(limit)
            rows = connection.execute(together).mappings().all()
            _change(connection, [row for row in rows if row["commitment"] == "requested"], {"error": _NOT_REPORTED})
            values = {
                "commitment": "requested", "transaction_uid": transaction_uid,
                "commitment_requested": format_time(time), "commitment_due": format_time(time + wait),
                "commitment_attempts": _COLUMNS.commitment_attempts + 1,
            }  # fmt: skip
            _change(connection, rows, values)
        return CommitmentRequest(transaction_uid, tuple(map(Delivery.from_row, rows)))

    def record_accepted(self, transaction_uid: str, time: datetime, wait: timedelta) -> None:
        """Record that the destination accepted a request.

        If no report arrives within `wait`, the objects become due again; the wait doubles with each request, up to a
        day.

        Raises:
            StorageError: The database cannot be written.
        """
        with write_transaction(self.engine) as connection:
            rows = connection.execute(select(outbox).where(_is_requested(transaction_uid))).mappings().all()
            silent = [row for row in rows if row["error"] == _NOT_REPORTED]
            others = [row for row in rows if row["error"] != _NOT_REPORTED]
            values = {"commitment_attempts": 1, "commitment_due": format_time(time + wait)}
            _change(connection, others, _NO_FAILURE | values)
            attempts = max((row["commitment_attempts"] for row in silent), default=1)
            longer = min(wait * 2 ** min(attempts - 1, 20), max(wait, MAX_WAIT))
            _change(connection, silent, {"commitment_due": format_time(time + longer), "commitment_rejections": 0})

    def postpone(self, transaction_uid: str, error: str, due: datetime) -> None:
        """Record a failed request.

        Args:
            transaction_uid: Transaction UID of the request. A report may still arrive.
            error: Stable code of the failure.
            due: Time of the next request.
        Raises:
            StorageError: The database cannot be written.
        """
        values = {
            "commitment": "pending", "commitment_due": format_time(due), "error": error, "commitment_rejections": 0,
        }  # fmt: skip
        with write_transaction(self.engine) as connection:
            connection.execute(update(outbox).where(_is_requested(transaction_uid)).values(values))

    def record_rejected(self, transaction_uid: str, status: int, time: datetime) -> None:
        """Record that the destination rejected a request, perhaps because of a single object; see `begin`.

        Its objects are requested again after 5 s, then after a wait that doubles each time, up to 15 minutes. Others do
        not wait.

        Args:
            transaction_uid: Transaction UID of the request.
            status: Status of the N-ACTION.
            time: Current time.
        Raises:
            StorageError: The database cannot be written.
        """
        with write_transaction(self.engine) as connection:
            rows = connection.execute(select(outbox).where(_is_requested(transaction_uid))).mappings().all()
            if not rows:
                return
            rejections = rows[0]["commitment_rejections"]  # the same for all objects of a request; see `begin`
            values = {
                "commitment": "pending", "commitment_due": failed_attempt(rejections, time)["due"],
                "commitment_rejections": rejections + 1, "error": f"status_{status:04x}",
            }  # fmt: skip
            _change(connection, rows, values)

    def record_report(self, destination: str, report: CommitmentReport, time: datetime) -> bool:
        """Record a report; return whether it concerns objects whose last request to this destination is the reported one.

        An object that is not committed is sent again, at most `MAX_FAILURES` - 1 times, with an audit log entry each
        time. Objects that the report omits, or whose outcome is already recorded, remain unchanged.

        Raises:
            StorageError: The database cannot be written.
        """
        known = _COLUMNS.transaction_uid == report.transaction_uid, _COLUMNS.destination == destination
        with write_transaction(self.engine) as connection:
            rows = connection.execute(select(outbox).where(*known)).mappings().all()
            if not rows or not (report.committed | set(report.failed)) <= {row["result_uid"] for row in rows}:
                return False
            awaited = [row for row in rows if row["commitment"] in _AWAITED]
            committed = [row for row in awaited if row["result_uid"] in report.committed]
            _change(connection, committed, _NO_FAILURE | {"commitment": "committed", "commitment_due": None})
            _change(connection, [row for row in committed if row["kind"] == "rejection_note"], {"header": ""})
            add_to_totals(connection, destination, committed=len(committed))
            failed = [row for row in awaited if row["result_uid"] in report.failed]
            for row in failed:
                _record_failure(connection, row, report.failed[row["result_uid"]], time)
        return True

    def end(self, destinations: Collection[str]) -> None:
        """Stop waiting for commitments from all other destinations, and clear their commitment failures.

        Raises:
            StorageError: The database cannot be written.
        """
        ended = _COLUMNS.commitment.in_(UNCOMMITTED), _COLUMNS.destination.not_in(destinations)
        with write_transaction(self.engine) as connection:
            notes = *ended, _COLUMNS.kind == "rejection_note"
            connection.execute(update(outbox).where(*notes).values(header=""))
            connection.execute(update(outbox).where(*ended).values(_NO_FAILURE | {"commitment": ""}))


def _record_failure(connection: Connection, row: Row, reason: int, time: datetime) -> None:
    """Record a failed commitment; the object is sent again unless it failed too often or its header was removed."""
    error, failures = f"not_committed_{reason:04x}", row["commitment_failures"] + 1
    values: dict[str, Any] = {
        "commitment_failures": failures, "commitment_attempts": 0, "commitment_rejections": 0, "commitment_due": None,
        "error": error,
    }  # fmt: skip
    if row["header"] and failures < MAX_FAILURES:
        values |= {"state": "waiting", "finished": None, "maybe_delivered": True, "commitment": ""}
        values |= failed_attempt(row["attempts"], time)
    else:
        values |= {"commitment": "failed"}
    _change(connection, [row], values)
    details = {"object": row["kind"], "reason": f"{reason:04x}"}
    entry = Entry(
        format_time(time), row["destination"], "commitment_failed", row["prediction_id"],
        model_sha256=row["model_sha256"], details=details,
    )  # fmt: skip
    append(connection, [entry])


def _change(connection: Connection, rows: Sequence[Row], values: Mapping[str, Any]) -> None:
    """Change the rows of one request; there are only a few."""
    numbers = [row["number"] for row in rows]
    connection.execute(update(outbox).where(_COLUMNS.number.in_(numbers)).values(values))


def _is_requested(transaction_uid: str) -> ColumnElement[bool]:
    return and_(_COLUMNS.transaction_uid == transaction_uid, _COLUMNS.commitment == "requested")


def is_due(destination: str, time: datetime) -> ColumnElement[bool]:
    """Return the condition that a commitment is due, or that its time is too far ahead because the clock was set back."""
    return and_(
        _COLUMNS.destination == destination,
        _COLUMNS.commitment.in_(_AWAITED),
        _COLUMNS.state != "waiting",  # otherwise, it is to be sent again
        or_(_COLUMNS.commitment_due <= format_time(time), _COLUMNS.commitment_due > format_time(time + 2 * MAX_WAIT)),
    )
