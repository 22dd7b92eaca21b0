"""The audit log: events with user, time and model in a hash chain.

The hash of a row is the SHA-256 of its values and the previous row's hash, encoded as JSON without spaces. Changing,
removing or inserting a row invalidates all later hashes. An attacker could recompute them, but then the last hash would
differ: keep a copy of the last hash elsewhere and pass it to `verification.verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Engine, Row, RowMapping, func, insert, select

from pneumoscope.core.errors import AuditLogError
from pneumoscope.core.messages import counted
from pneumoscope.service.storage.database import read_transaction
from pneumoscope.service.storage.tables import audit_log, predictions

__all__ = [
    "Entry",
    "Event",
    "append",
    "last_change",
    "prediction_entry",
    "read_rows",
    "verify_hashes",
    "was_deleted",
    "was_delivered",
]

Event = Literal[
    "predicted",
    "predicted_again",
    "reviewed",
    "review_withdrawn",
    "image_removed",
    "deleted",
    "unreadable",
    "unreadable_deleted",
    "identity_changed",
    "identity_conflict",
    "identity_resolved",
    "identity_removed",
    "instance_lost",
    "instance_identity_removed",
    "viewed",
    "exported",
    "delivered",
    "delivery_retried",
    "delivery_cancelled",
    "commitment_failed",
    "result_superseded",
    "result_withdrawn",
    "signed_in",
    "signed_out",
    "token_added",
    "token_revoked",
]
_FIRST_HASH = "0" * 64
_BATCH = 1000  # rows fetched at a time
_CHANGES: tuple[Event, ...] = (
    "predicted", "predicted_again", "identity_changed", "identity_conflict", "identity_resolved", "identity_removed",
)  # fmt: skip
_SELECT_LAST = select(audit_log.c.number, audit_log.c.hash).order_by(audit_log.c.number.desc()).limit(1)
_INSERT = insert(audit_log)
# The order of the names is part of the hash.
_HASHED = (
    "number", "time", "user", "event", "prediction_id", "image_sha256", "model_sha256", "details", "previous_hash",
)  # fmt: skip


class Entry(NamedTuple):
    """An event to record.

    Attributes:
        time: ISO 8601 in UTC.
        user: Name of the user, peer or destination; "local" without authentication, "retention" for automatic removal.
        event: Type of the event.
        prediction_id, image_sha256, model_sha256: The prediction concerned; empty if there is none.
        details: Other values. They must not identify patients, so file names and notes are excluded.
    """

    time: str
    user: str
    event: Event
    prediction_id: str = ""
    image_sha256: str = ""
    model_sha256: str = ""
    details: Mapping[str, object] = {}


def prediction_entry(
    row: Mapping[str, Any] | RowMapping, time: str, user: str, event: Event, details: Mapping[str, object] | None = None
) -> Entry:
    """Return the entry for an event about the prediction in a table row."""
    return Entry(time, user, event, row["id"], row["image_sha256"], row["model_sha256"], details or {})


def append(connection: Connection, entries: Sequence[Entry]) -> None:
    """Append entries in the same transaction as the changes that they record, so that both are committed or neither.

    Args:
        connection: Connection from `database.write_transaction`, which excludes other writers.
        entries: The entries, in order.
    """
    if not entries:
        return
    last = connection.execute(_SELECT_LAST).first()
    number, previous = (last.number, last.hash) if last else (0, _FIRST_HASH)
    rows = []
    for entry in entries:
        number += 1
        row: dict[str, object] = {**entry._asdict(), "number": number, "previous_hash": previous}
        row["details"] = json.dumps(entry.details, sort_keys=True, ensure_ascii=False)
        row["hash"] = previous = _row_hash(row)
        rows.append(row)
    connection.execute(_INSERT, rows)


def read_rows(engine: Engine, *, last: int = 0) -> Iterator[Row[Any]]:
    """Yield the rows, newest last, without verifying their hashes.

    Args:
        engine: Engine of the database.
        last: Number of newest rows to yield; 0 yields all.
    Raises:
        StorageError: The database cannot be reached.
    """
    query = select(audit_log).order_by(audit_log.c.number)
    if last:
        query = query.where(audit_log.c.number > select(func.max(audit_log.c.number)).scalar_subquery() - last)
    with read_transaction(engine) as connection:
        yield from connection.execute(query.execution_options(yield_per=_BATCH))


def last_change(engine: Engine, id: str) -> str | None:
    """Return the time of the last change to a prediction or its image's identity; None without a prediction.

    Raises:
        StorageError: The database cannot be reached.
    """
    same = predictions.alias()  # all predictions of the same image
    ids = select(same.c.id).join(predictions, predictions.c.pixel_sha256 == same.c.pixel_sha256)
    ids = ids.where(predictions.c.id == id)
    query = select(func.max(audit_log.c.time)).where(
        audit_log.c.prediction_id.in_(ids), audit_log.c.event.in_(_CHANGES)
    )
    with read_transaction(engine) as connection:
        found: str | None = connection.execute(query).scalar()
        return found


def was_deleted(engine: Engine, id: str) -> bool:
    """Return whether a prediction with this id was ever deleted. Raise StorageError if the database cannot be reached."""
    query = select(audit_log.c.number).where(audit_log.c.prediction_id == id, audit_log.c.event == "deleted")
    with read_transaction(engine) as connection:
        return connection.execute(query.limit(1)).first() is not None


def was_delivered(engine: Engine, destination: str, id: str, sha256: str) -> bool:
    """Return whether a destination ever confirmed an object with this hash. Raise StorageError if the database cannot be reached.

    Args:
        engine: Engine of the database.
        destination: Name of the destination.
        id: Id of the prediction; empty for an unreadable file.
        sha256: Hash of the object.
    """
    columns = audit_log.c
    same = columns.prediction_id == id, columns.event == "delivered", columns.user == destination
    query = select(columns.number).where(*same, columns.details.contains(f'"{sha256}"', autoescape=True))
    with read_transaction(engine) as connection:
        return connection.execute(query.limit(1)).first() is not None


def verify_hashes(connection: Connection, expected: str = "") -> tuple[int, str]:
    """Recompute the hash of every row; return the number of rows and the last hash.

    Args:
        connection: Connection from `database.read_transaction`.
        expected: A previously recorded hash, which must match that of some row; empty to skip this check.
    Raises:
        AuditLogError: A row is missing, out of order or altered, or no row has the expected hash.
    """
    number, previous, found = 0, _FIRST_HASH, not expected or expected == _FIRST_HASH
    query = select(audit_log).order_by(audit_log.c.number).execution_options(yield_per=_BATCH)
    for row in connection.execute(query):
        number += 1
        if row.number != number:
            raise _altered(number, f"it is missing; the next row is {row.number}")
        if row.previous_hash != previous:
            raise _altered(number, "it does not contain the hash of the row before it")
        if not _has_hash({name: getattr(row, name) for name in _HASHED}, row.hash):
            raise _altered(number, "its values do not match its hash")
        previous = row.hash
        found = found or previous == expected
    if not found:
        raise AuditLogError(
            f"the audit log has no row with the hash {expected!r} ({counted(number, 'row')})",
            hint="Check the hash for typing errors. If it is right, rows were replaced since: compare with a backup",
        )
    return number, previous


def _has_hash(row: Mapping[str, object], expected: str) -> bool:
    try:
        return _row_hash(row) == expected
    except TypeError:  # SQLite stores values of any type in any column; JSON cannot encode bytes
        return False


def _row_hash(row: Mapping[str, object]) -> str:
    values = json.dumps([row[name] for name in _HASHED], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(values.encode()).hexdigest()


def _altered(number: int, reason: str) -> AuditLogError:
    return AuditLogError(
        f"row {number} of the audit log was altered: {reason}",
        hint="The rows before it are intact. Compare with a backup to find the change",
    )
