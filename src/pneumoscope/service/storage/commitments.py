"""Storage commitment: which delivered objects a destination has promised to keep (PS3.4 annex J).

The state is in the rows of the outbox. A request is recorded with its transaction UID before it is sent, so that its report is
recognized after a restart, and however soon it comes. An object has one transaction at a time: the last one.
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

__all__ = ["MAX_FAILURES", "MAX_WAIT", "CommitmentReport", "CommitmentRequest", "Commitments"]

MAX_FAILURES = 3  # reports that an object is not committed; it is sent again after each but the last
MAX_WAIT = timedelta(days=1)  # for a report
_AWAITED = ("pending", "requested")  # of delivered objects only, see `outbox`
_NOT_REPORTED, _REFUSED = "commitment_not_reported", "status_"
_COLUMNS = outbox.c


@dataclasses.dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """A request to send.

    Attributes:
        transaction_uid: Its transaction UID.
        deliveries: The objects.
    """

    transaction_uid: str
    deliveries: tuple[Delivery, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class CommitmentReport:
    """A destination's answer.

    Attributes:
        transaction_uid: Of the request.
        committed: UIDs of the objects that it keeps.
        failed: Failure reasons by UID of the others.
    """

    transaction_uid: str
    committed: frozenset[str]
    failed: Mapping[str, int]


class Commitments:
    """The commitments to the objects of the outbox.

    Args:
        engine: Engine of the service's database.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, destination: str, time: datetime, wait: timedelta, limit: int) -> CommitmentRequest | None:
        """Record a request for the objects that are due longest, and return it; None if none is due.

        Objects of a request that was refused follow the others. They are requested separately, half as many after each rejection,
        so that one that causes rejections is finally alone, and delays no other.

        Args:
            destination: Name of the destination.
            time: Now.
            wait: Time after which the request is repeated, if its outcome is not recorded.
            limit: Number of objects.
        Raises:
            StorageError: The database cannot be used.
        """
        due = _is_due(destination, time)
        with read_transaction(self._engine) as connection:  # without excluding writers: usually, none is due
            if connection.execute(select(_COLUMNS.number).where(due).limit(1)).first() is None:
                return None
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        with write_transaction(self._engine) as connection:
            ordered = select(outbox).where(due).order_by(_was_refused(), _COLUMNS.commitment_due, _COLUMNS.number)
            first = connection.execute(ordered.limit(1)).mappings().first()
            if first is None:
                return None
            alike = _was_refused()
            if first["error"].startswith(_REFUSED):
                alike &= _COLUMNS.commitment_attempts == first["commitment_attempts"]
                limit = max(1, limit >> min(first["commitment_attempts"], 20))
            else:
                alike = ~alike
            rows = connection.execute(ordered.where(alike).limit(limit)).mappings().all()
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

        If no report comes within `wait`, the objects are due again: in twice the time after each request, up to a day.

        Raises:
            StorageError: The database cannot be written.
        """
        with write_transaction(self._engine) as connection:
            rows = connection.execute(select(outbox).where(_is_requested(transaction_uid))).mappings().all()
            silent = [row for row in rows if row["error"] == _NOT_REPORTED]
            others = [row for row in rows if row["error"] != _NOT_REPORTED]
            _change(
                connection, others, {"error": "", "commitment_attempts": 1, "commitment_due": format_time(time + wait)}
            )
            attempts = max((row["commitment_attempts"] for row in silent), default=1)
            longer = min(wait * 2 ** min(attempts - 1, 20), max(wait, MAX_WAIT))
            _change(connection, silent, {"commitment_due": format_time(time + longer)})

    def postpone(self, transaction_uid: str, error: str, due: datetime) -> None:
        """Record a failed request.

        Args:
            transaction_uid: Of the request; its report may come nevertheless.
            error: Stable code of the failure.
            due: Time of the next request.
        Raises:
            StorageError: The database cannot be written.
        """
        values = {"commitment": "pending", "commitment_due": format_time(due), "error": error}
        with write_transaction(self._engine) as connection:
            connection.execute(update(outbox).where(_is_requested(transaction_uid)).values(values))

    def record_refused(self, transaction_uid: str, status: int, time: datetime) -> None:
        """Record that the destination refused a request, of which one object may be the cause; see `begin`.

        Its objects follow again in 5 s, and in twice the time after each rejection, up to 15 minutes. Others do not wait.

        Args:
            transaction_uid: Of the request.
            status: Status of N-ACTION.
            time: Now.
        Raises:
            StorageError: The database cannot be written.
        """
        with write_transaction(self._engine) as connection:
            rows = connection.execute(select(outbox).where(_is_requested(transaction_uid))).mappings().all()
            again = [row for row in rows if row["error"].startswith(_REFUSED)]
            # The attempts of the others failed for other reasons.
            first = [row for row in rows if not row["error"].startswith(_REFUSED)]
            for refused, attempts in ((again, again[0]["commitment_attempts"] if again else 0), (first, 1)):
                due = failed_attempt(attempts - 1, time)["due"]
                values = {
                    "commitment": "pending", "commitment_due": due, "commitment_attempts": attempts,
                    "error": f"{_REFUSED}{status:04x}",
                }  # fmt: skip
                _change(connection, refused, values)

    def record_report(self, destination: str, report: CommitmentReport, time: datetime) -> bool:
        """Record a report, and return whether it is one about objects of the last request for them to this destination.

        An object that is not committed is sent again, at most `MAX_FAILURES` - 1 times, with an entry in the audit log each time.
        An object that the report does not mention, or one whose outcome is recorded already, remains as it is.

        Raises:
            StorageError: The database cannot be written.
        """
        known = _COLUMNS.transaction_uid == report.transaction_uid, _COLUMNS.destination == destination
        with write_transaction(self._engine) as connection:
            rows = connection.execute(select(outbox).where(*known)).mappings().all()
            if not rows or not (report.committed | set(report.failed)) <= {row["result_uid"] for row in rows}:
                return False
            awaited = [row for row in rows if row["commitment"] in _AWAITED]
            committed = [row for row in awaited if row["result_uid"] in report.committed]
            _change(connection, committed, {"commitment": "committed", "commitment_due": None, "error": ""})
            _change(connection, [row for row in committed if row["kind"] == "rejection_note"], {"header": ""})
            add_to_totals(connection, destination, committed=len(committed))
            failed = [row for row in awaited if row["result_uid"] in report.failed]
            for row in failed:
                _record_failure(connection, row, report.failed[row["result_uid"]], time)
        return True

    def end(self, destinations: Collection[str]) -> None:
        """Stop waiting for commitments from all destinations except these, and clear their failures.

        Raises:
            StorageError: The database cannot be written.
        """
        ended = _COLUMNS.commitment.in_(UNCOMMITTED), _COLUMNS.destination.not_in(destinations)
        with write_transaction(self._engine) as connection:
            notes = *ended, _COLUMNS.kind == "rejection_note"
            connection.execute(update(outbox).where(*notes).values(header=""))
            connection.execute(update(outbox).where(*ended).values(commitment="", error=""))


def _record_failure(connection: Connection, row: Row, reason: int, time: datetime) -> None:
    """Record that an object is not committed; it is sent again unless that happened too often, or its header was removed."""
    error, failures = f"not_committed_{reason:04x}", row["commitment_failures"] + 1
    values: dict[str, Any] = {
        "commitment_failures": failures, "commitment_attempts": 0, "commitment_due": None, "error": error,
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
    """Change rows, of which there are few: those of one request."""
    numbers = [row["number"] for row in rows]
    connection.execute(update(outbox).where(_COLUMNS.number.in_(numbers)).values(values))


def _was_refused() -> ColumnElement[bool]:
    return _COLUMNS.error.startswith(_REFUSED, autoescape=True)


def _is_requested(transaction_uid: str) -> ColumnElement[bool]:
    return and_(_COLUMNS.transaction_uid == transaction_uid, _COLUMNS.commitment == "requested")


def _is_due(destination: str, time: datetime) -> ColumnElement[bool]:
    """Return whether a commitment is to be requested; also one whose time lies too far ahead: the clock was set back."""
    return and_(
        _COLUMNS.destination == destination,
        _COLUMNS.commitment.in_(_AWAITED),
        _COLUMNS.state != "waiting",  # it is sent again
        or_(_COLUMNS.commitment_due <= format_time(time), _COLUMNS.commitment_due > format_time(time + 2 * MAX_WAIT)),
    )
