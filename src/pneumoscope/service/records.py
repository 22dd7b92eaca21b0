"""What a service keeps of every film: the prediction, a person's reading of it, and the film itself, with the audit trail.

The order of writing makes a killed process harmless. A film is on the disk before its row is, and its row goes before it does:
at worst a film without a row is left. When `Records` is opened next, it removes those whose removal the trail tells of, and leaves
those that it never heard of: few may be of a process that was killed, but many are another database's, and not to be lost.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, Row, and_, case, delete, func, insert, or_, select, update

from pneumoscope.errors import GoneError, StorageError, UnknownNameError, UsageError
from pneumoscope.results import Prediction
from pneumoscope.service.database import open_database, reading, writing
from pneumoscope.service.film_store import FILMS, FilmStore, FolderStore, MemoryStore, film_hash
from pneumoscope.service.record import Filter, Judged, Order, Page, Record, moment, new_row, of_row
from pneumoscope.service.tables import predictions, trail
from pneumoscope.service.together import Together
from pneumoscope.service.trail import append

__all__ = ["Records"]

_LOG = logging.getLogger("pneumoscope.service")
_MOST = 200  # records a page
# How little a record needs a person's eyes: read ones last, before them the others by probability, first what is left open.
_CALM = case((predictions.c.reviewed.is_not(None), 4.0), else_=0.0) + case(
    (predictions.c.decision.in_(("rejected", "uncertain")), 0.0),
    else_=2.0 - func.coalesce(predictions.c.probability, 0.0),
)


class _Adding(NamedTuple):
    """A film to be kept: its row, its bytes, and who asked."""

    row: dict[str, Any]
    film: bytes
    who: str


class Records:
    """Open records.

    Args:
        folder: of the data; None keeps everything in memory.
        database: address of a PostgreSQL database; SQLite in the folder where empty.
        now: the time, for tests.
    Raises:
        StorageError, UsageError: see `database.open_database`.
    """

    def __init__(
        self, folder: Path | None, database: str = "", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.engine: Engine = open_database(folder, database)
        self.films: FilmStore = MemoryStore() if folder is None else FolderStore(folder / FILMS)
        self._now = now
        # In memory all threads share one connection.
        self._alone = threading.RLock() if folder is None and not database else contextlib.nullcontext()
        self._together = Together(self._add, StorageError)
        unknown: list[str] = []
        self.films.sweep(lambda sha256: self._is_wanted(sha256, unknown))
        if unknown:
            _LOG.warning(
                "%d films have no record and are left: if there should be records, this is another database",
                len(unknown),
            )

    def close(self) -> None:
        """Give back connections."""
        self.engine.dispose()

    def add(self, prediction: Prediction, film: bytes, *, operating_point: str, who: str) -> tuple[Record, bool]:
        """Keep a film and what was said of it.

        Args:
            prediction: of a film that could be read.
            film: the file's bytes.
            operating_point, who: for the record and the trail.
        Returns:
            The record, and whether it is new: the same film judged by the same model is kept once, as it was first.
        Raises:
            StorageError: it cannot be kept, and nothing of it was.
        """
        row = new_row(prediction, film, operating_point)
        self.films.keep(film)
        try:
            record, new = self._together(_Adding(row, film, who))
        except StorageError:
            with contextlib.suppress(StorageError):  # the next start tries again
                self._remove_unwanted(row["film_sha256"])
            raise
        if record.film_removed is not None:
            self._remove_unwanted(record.film_sha256)  # what was removed does not come back
        return record, new

    def _add(self, films: Sequence[_Adding]) -> list[tuple[Record, bool]]:
        """Add films in one transaction, which reaches the disk as fast with many as with one."""
        added = []
        with self._alone, writing(self.engine) as connection:
            for row, film, who in films:
                found = connection.execute(select(predictions).where(predictions.c.id == row["id"])).first()
                made = found
                if made is None:
                    at = self._time()
                    made = connection.execute(
                        insert(predictions).values(**row, created=at).returning(predictions)
                    ).one()
                    said = {"decision": row["decision"], "probability": row["probability"]}
                    self._tell(connection, made, at, who, "judged", said)
                # Another request may have removed it before it was this one's turn; nobody does while it is.
                if made.film_removed is None:
                    self.films.keep(film)
                added.append((of_row(made), found is None))
        return added

    def get(self, key: str) -> Record:
        """One record.

        Raises:
            UnknownNameError: there is none of that id.
        """
        with self._alone, reading(self.engine) as connection:
            return of_row(
                self._found(connection.execute(select(predictions).where(predictions.c.id == key)).first(), key)
            )

    def film(self, record: Record) -> bytes:
        """The file of a record's film.

        Raises:
            GoneError: it was removed.
            StorageError: it cannot be read, or is missing although nobody removed it.
        """
        content = None if record.film_removed else self.films.get(record.film_sha256)
        if content is not None:
            return content
        if record.film_removed or not self._is_kept(record):
            raise GoneError(f"the film of prediction {record.id!r} was removed", advice="Its numbers are kept")
        raise StorageError(
            f"the film of prediction {record.id!r} is missing, and nobody removed it here",
            advice=f"Restore {record.film_sha256[:2]}/{record.film_sha256} below {FILMS}/ from a backup, or post the film again",
        )

    def find(self, wanted: Filter, *, order: Order = "newest", limit: int = 50, after: str = "") -> Page:
        """A page of records.

        Args:
            wanted: which.
            order: "newest" and "oldest" first, or by probability; records without one come last either way. "attention": what
                nobody has read, and of it what the model says nothing of or is not sure of, then by probability, highest first.
            limit: most of them, up to 200.
            after: `next` of the page before.
        Raises:
            UsageError: `limit` or `after` is out of range.
        """
        if not 1 <= limit <= _MOST:
            raise UsageError(f"limit is {limit}; a page has 1 to {_MOST} records")
        column, falls = {
            "newest": (predictions.c.created, True),
            "oldest": (predictions.c.created, False),
            "highest": (func.coalesce(predictions.c.probability, -1.0), True),
            "lowest": (func.coalesce(predictions.c.probability, 2.0), False),
            "attention": (_CALM, False),
        }[order]
        matching = [
            *([predictions.c.decision == wanted.decision] if wanted.decision else []),
            *([predictions.c.reviewed.is_not(None) == wanted.reviewed] if wanted.reviewed is not None else []),
            *([predictions.c.created >= moment(wanted.since, "since")] if wanted.since else []),
            *([predictions.c.created < moment(wanted.until, "until")] if wanted.until else []),
        ]
        with self._alone, reading(self.engine) as connection:
            total = connection.execute(select(func.count()).select_from(predictions).where(*matching)).scalar_one()
            # From the last record of the page before, not from a count: what is added meanwhile shifts nothing.
            if after:
                last = connection.execute(
                    select(column.label("value"), predictions.c.id).where(predictions.c.id == after)
                ).first()
                if last is None:
                    raise UsageError(f"after is {after!r}, which is no record", advice="Begin again without it")
                beyond = column < last.value if falls else column > last.value
                matching.append(or_(beyond, and_(column == last.value, predictions.c.id > last.id)))
            rows = connection.execute(
                select(predictions)
                .where(*matching)
                .order_by(column.desc() if falls else column.asc(), predictions.c.id)
                .limit(limit + 1)
            ).all()
        records = tuple(of_row(row) for row in rows[:limit])
        return Page(records, total, records[-1].id if len(rows) > limit else "")

    def latest(self, model_sha256: str, operating_point: str, most: int) -> list[Judged]:
        """The films that a model judged last at an operating point, newest first.

        Args:
            model_sha256: of its network file.
            operating_point: by name.
            most: films.
        Raises:
            StorageError: they cannot be read.
        """
        columns = (predictions.c.created, predictions.c.decision, predictions.c.probability, predictions.c.agrees)
        asked = (
            select(*columns)
            .where(predictions.c.model_sha256 == model_sha256, predictions.c.operating_point == operating_point)
            .order_by(predictions.c.created.desc(), predictions.c.id)
            .limit(most)
        )
        with self._alone, reading(self.engine) as connection:
            return [Judged(*row) for row in connection.execute(asked)]

    def review(self, key: str, *, agrees: bool, note: str, who: str) -> Record:
        """Keep a person's reading; an earlier one is replaced, and stays in the trail.

        Raises:
            UnknownNameError: there is no such record.
            StorageError: it cannot be kept.
        """
        with self._alone, writing(self.engine) as connection:
            at = self._time()
            row = connection.execute(
                update(predictions)
                .where(predictions.c.id == key)
                .values(agrees=agrees, note=note, reviewed=at, reviewer=who)
                .returning(predictions)
            ).first()
            found = self._found(row, key)
            self._tell(connection, found, at, who, "reviewed", {"agrees": agrees, "note": film_hash(note.encode())})
            return of_row(found)

    def remove(self, key: str, *, who: str) -> None:
        """Remove a record and its film; that it was there stays in the trail.

        Raises:
            UnknownNameError: there is no such record.
            StorageError: it cannot be removed.
        """
        with self._alone:
            with writing(self.engine) as connection:
                row = connection.execute(
                    delete(predictions).where(predictions.c.id == key).returning(predictions)
                ).first()
                found = self._found(row, key)
                self._tell(connection, found, self._time(), who, "deleted", {})
            self._remove_unwanted(found.film_sha256)

    def expire(self, age: timedelta) -> int:
        """Remove films older than this and keep their numbers; how many.

        Raises:
            StorageError: they cannot be removed.
        """
        before = _text(self._now() - age)
        with self._alone:
            with writing(self.engine) as connection:
                at = self._time()
                rows = connection.execute(
                    update(predictions)
                    .where(predictions.c.created < before, predictions.c.film_removed.is_(None))
                    .values(film_removed=at)
                    .returning(predictions)
                ).all()
                for row in rows:
                    self._tell(connection, row, at, "retention", "film removed", {})
            for sha256 in {row.film_sha256 for row in rows}:
                self._remove_unwanted(sha256)
        return len(rows)

    def _remove_unwanted(self, sha256: str) -> None:
        # Another model's record may hold the same film, and none comes to hold it while this is the one writer.
        with self._alone, writing(self.engine) as connection:
            if not self._has(connection, predictions.c.film_sha256 == sha256):
                self.films.remove(sha256)

    def _is_wanted(self, sha256: str, unknown: list[str]) -> bool:
        """Whether a film is to stay; one that the trail never heard of stays too, and is added to `unknown`."""
        with reading(self.engine) as connection:
            if self._has(connection, predictions.c.film_sha256 == sha256):
                return True
            told = connection.execute(select(trail.c.number).where(trail.c.film_sha256 == sha256).limit(1)).first()
        if told is None:
            unknown.append(sha256)
        return told is None

    def _is_kept(self, record: Record) -> bool:
        with self._alone, reading(self.engine) as connection:
            return self._has(connection, predictions.c.id == record.id)

    def _has(self, connection: Connection, which: ColumnElement[bool]) -> bool:
        """Whether there is a record with its film."""
        asked = select(predictions.c.id).where(which, predictions.c.film_removed.is_(None)).limit(1)
        return connection.execute(asked).first() is not None

    def _tell(
        self, connection: Connection, row: Row[Any], at: str, who: str, what: str, details: Mapping[str, object]
    ) -> None:
        append(
            connection,
            at=at,
            who=who,
            what=what,
            prediction=row.id,
            film_sha256=row.film_sha256,
            model_sha256=row.model_sha256,
            details=details,
        )

    def _found(self, row: Row[Any] | None, key: str) -> Row[Any]:
        if row is None:
            raise UnknownNameError("prediction", key, (), advice="It was deleted, or never made here")
        return row

    def _time(self) -> str:
        return _text(self._now())


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
