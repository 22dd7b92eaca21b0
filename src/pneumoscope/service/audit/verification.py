"""Whether records and images are what the audit log tells of them.

The trail's hashes show that nobody changed the trail; a record can be changed in the database beside it. So each record is
compared with the rows of its id: with the one that judged it, and with the last that reviewed it, removed its image or deleted it.
Both tables are read in the order of their ids, side by side, so that memory does not grow with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Table, select

from pneumoscope.core.errors import AuditLogError
from pneumoscope.service.storage.blob_store import BlobStore
from pneumoscope.service.storage.check import check_blobs
from pneumoscope.service.storage.records import record_id, rest_hash
from pneumoscope.service.storage.tables import predictions, trail

__all__ = ["compare_images", "compare_records"]

_AT_ONCE = 1000  # rows that are fetched
_SHOWN = 3  # differences that an error tells


@dataclasses.dataclass(slots=True)
class _Told:
    """What the trail tells of a record that is there: the rows that stand."""

    judged: Row[Any]
    reviewed: Row[Any] | None = None
    removed: Row[Any] | None = None


def compare_records(connection: Connection) -> int:
    """Compare every record with the trail, and the trail with the records; how many records there are.

    Args:
        connection: of `database.reading`, so that both are of one moment.
    Raises:
        AuditLogError: a record is missing, was slipped in, or is not what the trail tells. No value of a record is shown.
    """
    found, count = _Differences(), 0
    for key, told, record in _side_by_side(_events(connection), _sorted(connection, predictions, predictions.c.id)):
        count += record is not None
        if told is None:
            found.add(
                f"record {key!r} is there, and no row of the audit log tells that it was judged, or it was deleted"
            )
        elif record is None:
            found.add(f"record {key!r} is missing, and no row of the audit log tells that it was deleted")
        elif other := [name for name, same in _compared(record, told) if not same]:
            found.add(f"record {key!r} has another {', '.join(other)} than the audit log tells")
    found.tell()
    return count


def compare_images(engine: Engine, images: BlobStore) -> int:
    """Read every stored image and return their number.

    Args:
        engine: Of the database; others may add and remove predictions meanwhile.
        images: The blob store.
    Raises:
        AuditLogError: An image is missing, unreadable or damaged.
        StorageError: The database cannot be reached.
    """
    count, faults = check_blobs(engine, images)
    found = _Differences()
    for fault in faults:
        why = f"cannot be given out: {fault.error}" if fault.error else "is missing"
        found.add(f"the image of record {fault.prediction!r} {why}")
    found.tell()
    return count


class _Differences:
    """Counts differences, and tells the first of them."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, what: str) -> None:
        self._count += 1
        if len(self._first) < _SHOWN:
            self._first.append(what)

    def tell(self) -> None:
        if self._count:
            more = f"; and {self._count - len(self._first)} more" if self._count > len(self._first) else ""
            raise AuditLogError(
                "; ".join(self._first) + more,
                hint="The audit log itself holds: compare what it tells of with a backup",
            )


def _sorted(connection: Connection, table: Table, *by: ColumnElement[Any]) -> Iterator[Row[Any]]:
    first, *rest = by
    # As Python sorts: PostgreSQL would otherwise sort as some language does.
    order = first.collate("C") if connection.dialect.name == "postgresql" else first
    return iter(connection.execute(select(table).order_by(order, *rest).execution_options(yield_per=_AT_ONCE)))


def _events(connection: Connection) -> Iterator[tuple[str, _Told | None]]:
    rows = _sorted(connection, trail, trail.c.prediction, trail.c.number)
    for key, of_one in itertools.groupby(rows, key=lambda row: str(row.prediction)):
        yield key, _stands(of_one)


def _stands(rows: Iterable[Row[Any]]) -> _Told | None:
    """What stands after all rows of an id; None where it was deleted, or never judged."""
    told: _Told | None = None
    for row in rows:
        if row.what == "judged":
            told = _Told(row)
        elif row.what == "deleted":
            told = None
        elif told is not None and row.what == "reviewed":
            told.reviewed = row
        elif told is not None and row.what == "image removed":
            told.removed = row
    return told


def _side_by_side(
    events: Iterator[tuple[str, _Told | None]], records: Iterator[Row[Any]]
) -> Iterator[tuple[str, _Told | None, Row[Any] | None]]:
    """Each id once, with what the trail tells of it and its record; both streams are in the order of their ids."""
    event, record = next(events, None), next(records, None)
    while event or record is not None:
        if record is None or (event and event[0] < record.id):
            assert event
            if event[1]:  # else it was deleted, and is not there
                yield event[0], event[1], None
            event = next(events, None)
        elif event is None or record.id < event[0]:
            yield record.id, None, record
            record = next(records, None)
        else:
            yield record.id, event[1], record
            event, record = next(events, None), next(records, None)


def _compared(record: Row[Any], told: _Told) -> Iterator[tuple[str, bool]]:
    """What is compared, and whether it is the same."""
    judged, reviewed, removed = told.judged, told.reviewed, told.removed
    said = _details(judged)
    yield "image hash", record.image_sha256 == judged.image_sha256
    yield "model hash", record.model_sha256 == judged.model_sha256
    yield "operating point", record.id == record_id(judged.image_sha256, judged.model_sha256, record.operating_point)
    yield "time", record.created == judged.at
    yield "decision", record.decision == said.get("decision", "")
    yield "probability", record.probability == said.get("probability", "")
    yield "size, interval, threshold, reason or model", said.get("rest") == rest_hash(record._mapping)
    yield "removal of its image", record.image_removed == (removed and removed.at)
    if reviewed is None:
        yield "review", (record.reviewed, record.reviewer, record.agrees, record.note) == (None, None, None, "")
        return
    said = _details(reviewed)
    yield "time of its review", record.reviewed == reviewed.at
    yield "author of its review", record.reviewer == reviewed.who
    yield "review", record.agrees == said.get("agrees", "")
    yield "note", hashlib.sha256(record.note.encode()).hexdigest() == said.get("note", "")


def _details(row: Row[Any]) -> dict[str, Any]:
    try:
        found = json.loads(row.details)
    except ValueError:  # such a row was never written by us, and tells of nothing
        return {}
    return found if isinstance(found, dict) else {}
