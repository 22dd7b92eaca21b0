"""Reviews: the labels that readers give an image. Every version is kept; the latest version of each reader is valid."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from sqlalchemy import Connection, delete, func, insert, select, update

from pneumoscope.service.storage.tables import predictions, reviews

__all__ = [
    "LABELS",
    "Label",
    "Review",
    "add_review",
    "current_reviews",
    "remove_unused_reviews",
    "review_hash",
    "update_reviewed",
]

Label = Literal["pneumonia", "other_finding", "no_finding", "unusable"]
LABELS: tuple[Label, ...] = get_args(Label)


@dataclasses.dataclass(frozen=True, slots=True)
class Review:
    """A person's reading of an image.

    Attributes:
        label: "pneumonia", "other_finding", "no_finding", or "unusable" if the image cannot be read.
        finding: The other finding; empty with any other label.
        note: The reviewer's note; may be empty.
        time: ISO 8601 in UTC.
        reviewer: Name of the user; "local" without authentication.
    """

    label: Label
    finding: str
    note: str
    time: str
    reviewer: str


def add_review(connection: Connection, row: Mapping[str, Any], review: Review, *, withdrawn: bool = False) -> None:
    """Add a version of a review, which replaces the reviewer's previous one.

    Args:
        connection: Connection in a write transaction.
        row: Row of the prediction that the reviewer has seen.
        review: The review.
        withdrawn: Whether the reviewer withdraws the review.
    """
    values = dataclasses.asdict(review) | {"label": None if withdrawn else review.label}
    values |= {"prediction_id": row["id"], "pixel_sha256": row["pixel_sha256"]}
    connection.execute(insert(reviews), [values])
    update_reviewed(connection, [row["pixel_sha256"]])


def current_reviews(connection: Connection, hashes: Collection[str]) -> dict[str, tuple[Review, ...]]:
    """Return the current reviews of images by pixel hash, oldest first; images without a review are missing."""
    latest = select(func.max(reviews.c.number)).where(reviews.c.pixel_sha256.in_(hashes))
    latest = latest.group_by(reviews.c.pixel_sha256, reviews.c.reviewer)
    query = select(reviews).where(reviews.c.number.in_(latest), reviews.c.label.is_not(None)).order_by(reviews.c.number)
    found: defaultdict[str, list[Review]] = defaultdict(list)
    for row in connection.execute(query):
        found[row.pixel_sha256].append(Review(row.label, row.finding, row.note, row.time, row.reviewer))
    return {sha256: tuple(each) for sha256, each in found.items()}


def update_reviewed(connection: Connection, hashes: Collection[str]) -> None:
    """Set the time of the latest review in the predictions of images."""
    found = current_reviews(connection, hashes)
    for sha256 in hashes:
        time = max((review.time for review in found.get(sha256, ())), default=None)
        connection.execute(update(predictions).where(predictions.c.pixel_sha256 == sha256).values(reviewed=time))


def remove_unused_reviews(connection: Connection, hashes: Collection[str]) -> None:
    """Remove the reviews of those images that have no prediction."""
    used = select(predictions.c.id).where(predictions.c.pixel_sha256 == reviews.c.pixel_sha256).exists()
    connection.execute(delete(reviews).where(reviews.c.pixel_sha256.in_(hashes), ~used))


def review_hash(label: str | None, finding: str, note: str) -> str:
    """Return the SHA-256 of a review version, which the audit log contains instead of the text."""
    text = json.dumps([label, finding, note], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
