"""The audit log: who did what, when, with which model, each row chained to the one before it by its hash.

A row's hash is the SHA-256 of what it says and of the hash before it, as JSON without spaces. Whoever changes, removes or slips
in a row must make all later rows anew; then the last hash is another one. So write the last hash down elsewhere from time
to time: `verify` compares it. What the rows tell of is compared by `consistency`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Row, func, insert, select

from pneumoscope.core.errors import AuditLogError
from pneumoscope.service.audit.verification import compare_images, compare_records
from pneumoscope.service.storage.blob_store import BlobStore
from pneumoscope.service.storage.database import reading
from pneumoscope.service.storage.tables import trail

__all__ = ["Entry", "Verified", "append", "read_trail", "verify", "verify_rows"]

_FIRST = "0" * 64
_AT_ONCE = 1000  # rows that are fetched
_LAST = select(trail.c.number, trail.c.hash).order_by(trail.c.number.desc()).limit(1)
_ADD = insert(trail)
_SAID = ("number", "at", "who", "what", "prediction", "image_sha256", "model_sha256", "details", "previous")


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """An audit log that holds.

    Attributes:
        rows: of the trail.
        last: the hash of the last one, zeros where there is none.
        records: that are what the trail tells of them.
        images: that are what was judged; None where they were not looked at.
    """

    rows: int
    last: str
    records: int
    images: int | None


class Entry(NamedTuple):
    """What is to be told.

    Attributes:
        at: time, ISO 8601 in UTC.
        who: the name of a token, or "local".
        what: "judged", "reviewed", "deleted", ...
        prediction, image_sha256, model_sha256: of what; empty where there is none.
        details: nothing that could name a patient: no file name, no note.
    """

    at: str
    who: str
    what: str
    prediction: str = ""
    image_sha256: str = ""
    model_sha256: str = ""
    details: Mapping[str, object] = {}


def append(connection: Connection, entries: Sequence[Entry]) -> None:
    """Add rows in the transaction of what they tell of, so that neither is there without the other.

    Args:
        connection: of `database.writing`, whose transactions follow one another.
        entries: in their order.
    """
    if not entries:
        return
    last = connection.execute(_LAST).first()
    number, previous = (last.number, last.hash) if last else (0, _FIRST)
    rows = []
    for entry in entries:
        number += 1
        row: dict[str, object] = {**entry._asdict(), "number": number, "previous": previous}
        row["details"] = json.dumps(entry.details, sort_keys=True, ensure_ascii=False)
        row["hash"] = previous = _hash(row)
        rows.append(row)
    connection.execute(_ADD, rows)


def read_trail(engine: Engine, *, last: int = 0) -> Iterator[Row[Any]]:
    """The rows as they stand, newest last, without looking whether they hold.

    Args:
        engine: of the database.
        last: how many of the newest; 0 gives all.
    Raises:
        StorageError: the database cannot be reached.
    """
    asked = select(trail).order_by(trail.c.number)
    if last:
        asked = asked.where(trail.c.number > select(func.max(trail.c.number)).scalar_subquery() - last)
    with reading(engine) as connection:
        yield from connection.execute(asked.execution_options(yield_per=_AT_ONCE))


def verify(engine: Engine, *, expected: str = "", images: BlobStore | None = None) -> Verified:
    """Work out every hash anew, and compare the records and the images with what the trail tells of them.

    Args:
        engine: of the database; others may be writing to it.
        expected: a hash that was written down earlier; it must be that of some row.
        images: where they are kept; None leaves them out.
    Raises:
        AuditLogError: a row is missing, out of place, or not what its hash was made of; `expected` is of no row; or a record or a
            image is not what the trail tells.
        StorageError: the database cannot be reached.
    """
    with reading(engine) as connection:
        rows, last = verify_rows(connection, expected)
        records = compare_records(connection)
    return Verified(rows, last, records, None if images is None else compare_images(engine, images))


def verify_rows(connection: Connection, expected: str = "") -> tuple[int, str]:
    """The trail alone; how many rows, and the last one's hash. See `verify`."""
    number, previous, seen = 0, _FIRST, not expected or expected == _FIRST
    for row in connection.execute(select(trail).order_by(trail.c.number).execution_options(yield_per=_AT_ONCE)):
        number += 1
        said = {name: getattr(row, name) for name in _SAID}
        if row.number != number:
            raise _broken(number, f"it is missing; the next one is {row.number}")
        if row.previous != previous:
            raise _broken(number, "it does not follow the one before it")
        if not _hashes_to(row.hash, said):
            raise _broken(number, "what it says is not what its hash was made of")
        previous = row.hash
        seen = seen or previous == expected
    if not seen:
        raise AuditLogError(
            f"none of the {number} rows of the audit log has the hash {expected!r}",
            hint="It was mistyped, or rows were replaced since it was written down: compare with a backup",
        )
    return number, previous


def _hashes_to(known: str, row: Mapping[str, object]) -> bool:
    try:
        return known == _hash(row)
    except TypeError:  # SQLite keeps a value of any type in any column, and JSON has no bytes
        return False


def _hash(row: Mapping[str, object]) -> str:
    said = json.dumps([row[name] for name in _SAID], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def _broken(number: int, how: str) -> AuditLogError:
    return AuditLogError(
        f"row {number} of the audit log was altered: {how}",
        hint="What stands before it holds. Compare it with a backup to learn what was changed",
    )
