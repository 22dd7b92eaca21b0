"""The worklist as CSV: what `predict --csv` writes of each film, and what is kept beside it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from pneumoscope.predictor.document import COLUMNS, csv_cells, csv_line, no_formula
from pneumoscope.service.record import Filter, Order, Record
from pneumoscope.service.records import Records

__all__ = ["worklist_csv"]

_MORE = ("id", "created", "operating_point", "film_sha256", "film_removed", "agrees", "note", "reviewed")
_PAGE = 200


def worklist_csv(records: Records, wanted: Filter, order: Order) -> Iterator[bytes]:
    """The lines of the file, a page of records after the other.

    Args:
        records: that are kept.
        wanted, order: see `Records.find`.
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


def _more(record: Record) -> tuple[object, ...]:
    review = record.review
    kept = (record.id, record.created, record.operating_point, record.film_sha256, record.film_removed)
    if review is None:
        return (*kept, None, None, None)
    return (*kept, "yes" if review.agrees else "no", no_formula(review.note, "'"), review.at)
