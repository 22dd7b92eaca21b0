"""The worklist as CSV: what `predict --csv` writes of each image, and what is kept beside it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from pneumoscope.inference.writers import COLUMNS, csv_cells, csv_line, escape_formula
from pneumoscope.service.storage.records import Filter, Order, StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["worklist_csv"]

_MORE = ("id", "created", "operating_point", "image_sha256", "image_removed", "agrees", "note", "reviewed")
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
        found = page
        yield codecs.BOM_UTF8 + csv_line((*COLUMNS, *_MORE))  # without the mark, Excel takes it for another encoding
        while True:
            for record in found.records:
                yield csv_line((*csv_cells(record.prediction), *_more(record)))
            if not found.next:
                return
            found = records.find(wanted, order=order, limit=_PAGE, after=found.next)

    return lines()


def _more(record: StoredPrediction) -> tuple[object, ...]:
    review = record.review
    kept = (record.id, record.created, record.operating_point, record.image_sha256, record.image_removed)
    if review is None:
        return (*kept, None, None, None)
    return (*kept, "yes" if review.agrees else "no", escape_formula(review.note, "'"), review.at)
