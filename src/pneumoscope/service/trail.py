"""The audit trail: who did what, when, with which model, each row chained to the one before it by its hash.

A row's hash is the SHA-256 of what it says and of the hash before it, as JSON without spaces. Whoever changes, removes or slips
in a row must make all later rows anew; then the last hash is another one. So write the last hash down elsewhere from time
to time: `verify` compares it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

from sqlalchemy import Connection, Engine, insert, select

from pneumoscope.errors import TrailError
from pneumoscope.service.database import reading
from pneumoscope.service.tables import trail

__all__ = ["Verified", "append", "verify"]

_FIRST = "0" * 64
_SAID = ("number", "at", "who", "what", "prediction", "film_sha256", "model_sha256", "details", "previous")


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """An audit trail that holds: how many rows, and the hash of the last one (zeros where there is none)."""

    rows: int
    last: str


def append(
    connection: Connection,
    *,
    at: str,
    who: str,
    what: str,
    prediction: str = "",
    film_sha256: str = "",
    model_sha256: str = "",
    details: Mapping[str, object] | None = None,
) -> None:
    """Add a row in the transaction of what it tells of, so that neither is there without the other.

    Args:
        connection: of `database.writing`, whose transactions follow one another.
        at: time, ISO 8601 in UTC.
        who: the name of a token, or "local".
        what: "judged", "reviewed", "deleted", ...
        prediction, film_sha256, model_sha256: of what; empty where there is none.
        details: nothing that could name a patient: no file name, no note.
    """
    last = connection.execute(select(trail.c.number, trail.c.hash).order_by(trail.c.number.desc()).limit(1)).first()
    number, previous = (last.number + 1, last.hash) if last else (1, _FIRST)
    row: dict[str, object] = {
        "number": number,
        "at": at,
        "who": who,
        "what": what,
        "prediction": prediction,
        "film_sha256": film_sha256,
        "model_sha256": model_sha256,
        "details": json.dumps(details or {}, sort_keys=True, ensure_ascii=False),
        "previous": previous,
    }
    connection.execute(insert(trail).values(**row, hash=_hash(row)))


def verify(engine: Engine, *, expected: str = "") -> Verified:
    """Work out every hash anew.

    Args:
        engine: of the database.
        expected: a hash that was written down earlier; it must be that of some row.
    Raises:
        TrailError: a row is missing, out of place, or not what its hash was made of; or `expected` is of no row.
        StorageError: the database cannot be reached.
    """
    number, previous, seen = 0, _FIRST, not expected or expected == _FIRST
    with reading(engine) as connection:
        for row in connection.execution_options(yield_per=1000).execute(select(trail).order_by(trail.c.number)):
            number += 1
            said = {name: getattr(row, name) for name in _SAID}
            if row.number != number:
                raise _broken(number, f"it is missing; the next one is {row.number}")
            if row.previous != previous:
                raise _broken(number, "it does not follow the one before it")
            if row.hash != _hash(said):
                raise _broken(number, "what it says is not what its hash was made of")
            previous = row.hash
            seen = seen or previous == expected
    if not seen:
        raise TrailError(
            f"none of the {number} rows of the audit trail has the hash {expected!r}",
            advice="It was mistyped, or rows were replaced since it was written down: compare with a backup",
        )
    return Verified(number, previous)


def _hash(row: Mapping[str, object]) -> str:
    said = json.dumps([row[name] for name in _SAID], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(said.encode()).hexdigest()


def _broken(number: int, how: str) -> TrailError:
    return TrailError(
        f"row {number} of the audit trail was altered: {how}",
        advice="What stands before it holds. Compare it with a backup to learn what was changed",
    )
