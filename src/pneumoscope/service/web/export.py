"""The worklist as CSV: what `predict --csv` writes of each image, and what is kept beside it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from pneumoscope.inference.writers import csv_line, csv_row, escape_formula
from pneumoscope.service.storage.records import Filter, Order, StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["worklist_csv"]

_PAGE = 200


def worklist_csv(records: PredictionRepository, wanted: Filter, order: Order) -> Iterator[bytes]:
    """The lines of the file, a page of records after the other.

    Args:
        records: that are kept.
        wanted, order: see `PredictionRepository.find`.
    Raises:
        StorageError: the records cannot be read; before the first line where it is so from the beginning.
    """
    page = records.find(wanted, order=order, limit=_PAGE)

    def lines() -> Iterator[bytes]:
        found, header = page, True
        yield codecs.BOM_UTF8  # without it, Excel assumes another encoding
        while True:
            for record in found.records:
                row = _row(record)
                if header:
                    yield csv_line(row)
                    header = False
                yield csv_line(row.values())
            if not found.next:
                return
            found = records.find(wanted, order=order, limit=_PAGE, after=found.next)

    return lines()


def _row(record: StoredPrediction) -> dict[str, object]:
    review = record.review
    return csv_row(record.prediction) | {
        "id": record.id,
        "created": record.created,
        "image_sha256": record.image_sha256,
        "image_removed": record.image_removed,
        "agrees": review and ("yes" if review.agrees else "no"),
        "note": review and escape_formula(review.note, "'"),
        "reviewed": review and review.at,
    }
