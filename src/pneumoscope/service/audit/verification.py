"""Verify the audit log, and check predictions and images against it.

The hashes prove that the log is unchanged. Predictions could still be altered in their own table, so each is compared
with its log entries: its creation, every version of its reviews, the removal of its image, and its deletion. The tables
are read side by side in the order of ids, so memory use does not depend on their size.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, Table, select

from pneumoscope.core.errors import AuditLogError
from pneumoscope.core.messages import counted
from pneumoscope.service.audit.log import verify_hashes
from pneumoscope.service.storage.blob_store import BlobStore
from pneumoscope.service.storage.check import check_blobs
from pneumoscope.service.storage.database import read_transaction
from pneumoscope.service.storage.records import compute_id, result_hash
from pneumoscope.service.storage.reviews import review_hash
from pneumoscope.service.storage.tables import audit_log, predictions, reviews

__all__ = ["Verification", "verify"]

_BATCH = 1000  # rows fetched at a time
_MAX_SHOWN = 3  # differences listed in an error message


@dataclasses.dataclass(frozen=True, slots=True)
class Verification:
    """The result for an intact audit log.

    Attributes:
        rows: Number of rows in the log.
        last_hash: Hash of the last row; zeros for an empty log.
        predictions: Number of predictions that match the log.
        images: Number of images that match their predictions; None if they were not checked.
    """

    rows: int
    last_hash: str
    predictions: int
    images: int | None


def verify(engine: Engine, *, expected: str = "", images: BlobStore | None = None) -> Verification:
    """Recompute every hash, and check predictions and images against the log.

    Args:
        engine: Engine of the database. The service may be running.
        expected: A previously recorded hash, which must match that of some row; empty to skip this check.
        images: The blob store; None skips the images.
    Raises:
        AuditLogError: A row is missing, out of order or altered; no row has the expected hash; or a prediction or image
            does not match the log.
        StorageError: The database cannot be reached.
    """
    with read_transaction(engine) as connection:
        rows, last_hash = verify_hashes(connection, expected)
        count = _compare_predictions(connection)
    return Verification(rows, last_hash, count, None if images is None else _compare_images(engine, images))


@dataclasses.dataclass(slots=True)
class _Events:
    """The log entries that determine the current state of a prediction."""

    predicted: Row[Any]
    result: Row[Any]
    reviews: list[Row[Any]]
    deletions: list[int]  # number of review entries before each deletion
    deleted: bool = False
    image_removed: Row[Any] | None = None


def _compare_predictions(connection: Connection) -> int:
    """Compare every prediction with the log in one snapshot; return the number of predictions."""
    differences, count = _Differences(), 0
    stored = _sorted_rows(connection, predictions, predictions.c.id)
    versions = _Groups(_sorted_rows(connection, reviews, reviews.c.prediction_id, reviews.c.number))
    for id, events, row in _merge(_events_by_id(connection), stored):
        reviewed = versions.take(id)
        count += row is not None
        if events is None or (events.deleted and row is not None):
            differences.add(f"prediction {id!r} exists, but the audit log has no entry for it, or its deletion")
        elif row is None and events.deleted:
            if not _has_reviews(reviewed, events):
                differences.add(f"reviews of the deleted prediction {id!r} differ from the audit log")
        elif row is None:
            differences.add(f"prediction {id!r} is missing, and the audit log has no entry of its deletion")
        elif names := [name for name, equal in _compare(row, reviewed, events) if not equal]:
            differences.add(f"prediction {id!r} differs from the audit log: {', '.join(names)}")
    versions.take("~")  # "~" sorts after all ids
    if versions.unknown:
        differences.add(
            f"{counted(versions.unknown, 'version')} of reviews are of predictions that the audit log does not know"
        )
    differences.raise_if_any()
    return count


def _compare_images(engine: Engine, images: BlobStore) -> int:
    """Read every stored image and return their number."""
    count, faults = check_blobs(engine, images)
    differences = _Differences()
    for fault in faults:
        problem = f"cannot be used: {fault.error}" if fault.error else "is missing"
        differences.add(f"the image of prediction {fault.prediction_id!r} {problem}")
    differences.raise_if_any()
    return count


class _Differences:
    """A count of differences with the first few for the message, without values of predictions."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._count = 0

    def add(self, text: str) -> None:
        self._count += 1
        if len(self._first) < _MAX_SHOWN:
            self._first.append(text)

    def raise_if_any(self) -> None:
        if self._count:
            more = f"; and {self._count - len(self._first)} more" if self._count > len(self._first) else ""
            raise AuditLogError(
                "; ".join(self._first) + more, hint="The audit log itself is intact. Compare the database with a backup"
            )


def _sorted_rows(connection: Connection, table: Table, *by: ColumnElement[Any]) -> Iterator[Row[Any]]:
    first, *rest = by
    # Sort as Python compares strings; PostgreSQL would use the collation of a language.
    order = first.collate("C") if connection.dialect.name == "postgresql" else first
    return iter(connection.execute(select(table).order_by(order, *rest).execution_options(yield_per=_BATCH)))


def _events_by_id(connection: Connection) -> Iterator[tuple[str, _Events | None]]:
    rows = _sorted_rows(connection, audit_log, audit_log.c.prediction_id, audit_log.c.number)
    for id, group in itertools.groupby(rows, key=lambda row: str(row.prediction_id)):
        yield id, _current_events(group)


def _current_events(rows: Iterable[Row[Any]]) -> _Events | None:
    """Return the events that determine a prediction's state after all its log entries; None if it was never predicted."""
    events: _Events | None = None
    reviews: list[Row[Any]] = []
    deletions: list[int] = []
    for row in rows:
        if row.event == "predicted":
            events = _Events(row, row, reviews, deletions)
        elif events is None:
            continue
        elif row.event == "predicted_again":
            events.result = row
        elif row.event == "deleted":
            deletions.append(len(reviews))
            events.deleted = True
        elif row.event in ("reviewed", "review_withdrawn") and "agrees" not in _details(row):
            reviews.append(row)  # entries with "agrees" come from an older database revision that did not keep reviews
        elif row.event == "image_removed":
            events.image_removed = row
    return events


def _merge(
    logged: Iterator[tuple[str, _Events | None]], stored: Iterator[Row[Any]]
) -> Iterator[tuple[str, _Events | None, Row[Any] | None]]:
    """Yield each id once with its events and its prediction; both inputs are sorted by id."""
    entry, row = next(logged, None), next(stored, None)
    while entry or row is not None:
        if row is None or (entry and entry[0] < row.id):
            assert entry
            if entry[1]:
                yield entry[0], entry[1], None
            entry = next(logged, None)
        elif entry is None or row.id < entry[0]:
            yield row.id, None, row
            row = next(stored, None)
        else:
            yield row.id, entry[1], row
            entry, row = next(logged, None), next(stored, None)


def _compare(row: Row[Any], reviewed: Sequence[Row[Any]], events: _Events) -> Iterator[tuple[str, bool]]:
    """Yield each compared property and whether prediction and reviews agree with the log on it."""
    predicted, removed = events.predicted, events.image_removed
    details = _details(predicted)
    yield "image hash", row.image_sha256 == predicted.image_sha256
    yield "model hash", row.model_sha256 == predicted.model_sha256
    logged = {"image_sha256": predicted.image_sha256, "model_sha256": predicted.model_sha256}
    yield (
        "operating point, site profile, prevalence, pixels, age or rejection",
        row.id == compute_id({**row._mapping, **logged}),
    )
    yield "time", row.created == predicted.time
    yield "decision", row.decision == details.get("decision", "")
    yield "probability", row.probability == details.get("probability", "")
    yield (
        "image size, image statistics, interval, threshold, rejection, age, warnings or model",
        _details(events.result).get("result_sha256") == result_hash(row._mapping),
    )
    yield "removal of the image", row.image_removed == (removed and removed.time)
    same_image = all(each.pixel_sha256 == row.pixel_sha256 for each in reviewed)
    yield "reviews", same_image and _has_reviews(reviewed, events)


def _has_reviews(reviewed: Sequence[Row[Any]], events: _Events) -> bool:
    """Return whether the stored reviews equal the log's, either from the beginning or since a deletion.

    A deletion removes the reviews, unless the image has another prediction.
    """
    stored, logged = [_version(each) for each in reviewed], [_logged_version(each) for each in events.reviews]
    return any(stored == logged[start:] for start in {0, *events.deletions})


def _version(review: Row[Any]) -> tuple[str, str, str | None, str]:
    """Return time, author, label and hash of a review version; label and hash are empty if it was withdrawn."""
    sha256 = review_hash(review.label, review.finding, review.note) if review.label else ""
    return review.time, review.reviewer, review.label, sha256


def _logged_version(row: Row[Any]) -> tuple[str, str, str | None, str]:
    details = _details(row)
    return row.time, row.user, details.get("label"), details.get("review_sha256", "")


class _Groups:
    """Groups of rows sorted by prediction id; they must be taken in the same order."""

    def __init__(self, rows: Iterator[Row[Any]]) -> None:
        self._rows = rows
        self._next = next(rows, None)
        self.unknown = 0  # number of skipped rows

    def take(self, id: str) -> list[Row[Any]]:
        """Return the rows with an id; skip and count rows with smaller ids."""
        found = []
        while self._next is not None and self._next.prediction_id <= id:
            if self._next.prediction_id == id:
                found.append(self._next)
            else:
                self.unknown += 1
            self._next = next(self._rows, None)
        return found


def _details(row: Row[Any]) -> dict[str, Any]:
    try:
        details = json.loads(row.details)
    except ValueError:  # not written by the service; nothing will match it
        return {}
    return details if isinstance(details, dict) else {}
