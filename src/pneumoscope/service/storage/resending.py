"""Resend delivered results that a destination has lost: the same objects, with the same bytes.

A resent result becomes waiting, but keeps its delivery time and header. The sender compares the object with the hashes
in the audit log and sends nothing else, so that different objects never share a UID.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import Connection, Engine, select

from pneumoscope.core.errors import UnknownNameError, UsageError
from pneumoscope.service.audit.log import Entry, append, was_delivered
from pneumoscope.service.auth.users import COMMAND_LINE
from pneumoscope.service.storage.database import write_transaction
from pneumoscope.service.storage.outbox_records import Delivery
from pneumoscope.service.storage.outbox_status import require_destination
from pneumoscope.service.storage.records import Row, format_time
from pneumoscope.service.storage.results import change_rows
from pneumoscope.service.storage.tables import outbox

__all__ = ["is_unchanged", "resend"]

_COLUMNS = outbox.c


def resend(
    engine: Engine,
    numbers: Collection[int] = (),
    study_instance_uid: str = "",
    destination: str = "",
    *,
    time: datetime,
) -> int:
    """Make delivered results due now, with an audit log entry for each destination; return their number.

    Args:
        engine: Engine of the service's database.
        numbers: Numbers of the results; all delivered ones of the study if empty.
        study_instance_uid: UID of the study; empty if `numbers` is given.
        destination: With a study, restricts the results to one destination.
        time: Current time.
    Raises:
        UnknownNameError: There is no such result, or no delivered result of the study.
        UsageError: A result was not delivered, is no longer valid, or its identifiers were removed.
        StorageError: The database cannot be written.
    """
    with write_transaction(engine) as connection:
        rows = _by_number(connection, numbers) if numbers else _of_study(connection, study_instance_uid, destination)
        # The commitment becomes void once the object is sent; see `Outbox.record_delivered`.
        values = {
            "state": "waiting",
            "due": "",
            "attempts": 0,
            "error": "",
            "maybe_delivered": True,
            "commitment_failures": 0,
        }
        change_rows(connection, rows, values)
        for name, count in Counter(row["destination"] for row in rows).items():
            details = {"destination": name, "results": count, "delivered": True}
            append(connection, [Entry(format_time(time), COMMAND_LINE, "delivery_retried", details=details)])
        return len(rows)


def is_unchanged(engine: Engine, delivery: Delivery, sha256: str) -> bool:
    """Return whether an object may be sent: it is not being resent, or has the same bytes as when it was delivered.

    Args:
        engine: Engine of the service's database.
        delivery: The object, as it was before this attempt.
        sha256: Hash of its content.
    Raises:
        StorageError: The database cannot be read.
    """
    return delivery.finished is None or was_delivered(
        engine, delivery.destination, delivery.subject.prediction_id, sha256
    )


def _by_number(connection: Connection, numbers: Collection[int]) -> Sequence[Row]:
    rows = connection.execute(select(outbox).where(_COLUMNS.number.in_(numbers))).mappings().all()
    for number in sorted(set(numbers) - {row["number"] for row in rows}):
        raise UnknownNameError("result", str(number), (), hint="See `pneumoscope outbox list --state delivered`")
    for row in rows:
        name = f"result {row['number']}"
        if row["kind"] == "webhook":
            raise UsageError(f"{name} is an event of a webhook", hint="Select results of images")
        if row["state"] == "withdrawn":
            raise UsageError(
                f"{name} was withdrawn: its prediction was deleted or replaced",
                hint="Send the result that replaced it; see `pneumoscope outbox list --state delivered`",
            )
        if row["error"] == "superseded":
            raise UsageError(
                f"{name} was superseded by another result of the image, and never delivered",
                hint="Send the result that replaced it; see `pneumoscope outbox list --state delivered`",
            )
        if row["state"] != "delivered":
            raise UsageError(f"{name} has not been delivered (state: {row['state']})", hint="Leave out --delivered")
        if not row["header"] and row["kind"] == "rejection_note":
            raise UsageError(
                f"{name} is a rejection note, whose header was removed when it was delivered",
                hint=f"If {row['destination']} shows the withdrawn results again, delete or hide them there",
            )
        if not row["header"]:
            raise UsageError(f"the header of {name} was removed", hint="Send the image again")
    return rows


def _of_study(connection: Connection, study_instance_uid: str, destination: str) -> Sequence[Row]:
    """Return the delivered results of a study, without withdrawn ones and rejection notes."""
    query = select(outbox).where(
        _COLUMNS.study_instance_uid == study_instance_uid,
        _COLUMNS.study_instance_uid != "",
        _COLUMNS.state == "delivered",
        _COLUMNS.kind.not_in(("webhook", "rejection_note")),
    )
    if destination:
        query = query.where(_COLUMNS.destination == require_destination(connection, destination))
    rows = connection.execute(query.order_by(_COLUMNS.number)).mappings().all()
    if not rows:
        raise UnknownNameError(
            "study with delivered results", study_instance_uid, (), hint="See `pneumoscope outbox list`"
        )
    return rows
