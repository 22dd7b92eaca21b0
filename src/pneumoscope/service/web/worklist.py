"""The worklist: its filters, its sort order and its CSV export."""

from __future__ import annotations

import codecs
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pneumoscope.core.errors import UsageError
from pneumoscope.core.i18n import N_
from pneumoscope.core.prediction import DECISIONS
from pneumoscope.inference.writers import csv_line, csv_row, escape_formula
from pneumoscope.service.storage.records import Filter, Order, Page, StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["ORDERS", "WorklistQuery", "export_csv", "parse_query"]

# Labels of the sort orders; the first one is the default.
ORDERS: dict[Order, str] = {
    "urgency": N_("Most urgent first"),
    "newest": N_("Newest first"),
    "oldest": N_("Oldest first"),
    "highest": N_("Highest probability first"),
    "lowest": N_("Lowest probability first"),
}
_EXPORT_BATCH = 200  # predictions read from the database at a time
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_REVIEWED = {"": None, "yes": True, "no": False}


@dataclasses.dataclass(frozen=True, slots=True)
class WorklistQuery:
    """A worklist's query.

    Attributes:
        filter: Conditions on the listed predictions. Rejected images are listed on a tab of their own.
        order: Sort order.
        form: The query parameters "decision", "reviewed", "since", "until" and "order" as given; empty if absent.
    """

    filter: Filter
    order: Order
    form: Mapping[str, str]

    @property
    def rejected(self) -> bool:
        """True on the tab of rejected images."""
        return self.filter.decision == "rejected"

    @property
    def filtered(self) -> bool:
        """True if there is a filter beyond the tab."""
        return any(value for name, value in self.form.items() if name != "order" and value != "rejected")


def parse_query(parameters: Mapping[str, str]) -> WorklistQuery:
    """Return the query that the parameters of a URL describe.

    Raises:
        UsageError: A value is not one of those allowed.
    """
    form = {name: parameters.get(name, "") for name in ("decision", "reviewed", "since", "until", "order")}
    decision, reviewed, order = form["decision"], form["reviewed"], form["order"] or next(iter(ORDERS))
    if decision and decision not in DECISIONS:
        raise UsageError(f"unknown decision {decision[:40]!r}", hint=f"Use one of: {', '.join(DECISIONS)}")
    if reviewed not in _REVIEWED:
        raise UsageError(f"reviewed is {reviewed[:40]!r}", hint="Use yes or no")
    if order not in ORDERS:
        raise UsageError(f"unknown order {order[:40]!r}", hint=f"Use one of: {', '.join(ORDERS)}")
    for name in ("since", "until"):
        if form[name] and not _DATE.fullmatch(form[name]):
            raise UsageError(f"{name} is not a date", hint="Write it as 2026-01-31")
    return WorklistQuery(
        filter=Filter(
            decision=decision or None,
            rejected=decision == "rejected",
            reviewed=_REVIEWED[reviewed],
            since=form["since"] or None,
            until=form["until"] or None,
        ),
        order=order,
        form=form,
    )


def export_csv(repository: PredictionRepository, query: WorklistQuery) -> Iterator[bytes]:
    """Return the lines of a CSV file with the predictions of a query: the columns of `predict --csv`, the image and the review.

    Without a decision in the query, the file has the rejected images as well.

    The file begins with a byte order mark, which Excel needs to recognize UTF-8.

    Raises:
        StorageError: The database cannot be read; raised before the first line if it fails at the beginning.
    """
    if not query.filter.decision:
        query = dataclasses.replace(query, filter=dataclasses.replace(query.filter, rejected=None))
    first = repository.find(query.filter, order=query.order, limit=_EXPORT_BATCH)
    return _csv_lines(repository, query, first)


def _csv_lines(repository: PredictionRepository, query: WorklistQuery, page: Page) -> Iterator[bytes]:
    """Yield the byte order mark, the header and a line for each prediction from a page on."""
    header = True
    yield codecs.BOM_UTF8
    while True:
        for prediction in page.predictions:
            row = _row(prediction)
            if header:
                yield csv_line(row)
                header = False
            yield csv_line(row.values())
        if not page.next:
            return
        page = repository.find(query.filter, order=query.order, limit=_EXPORT_BATCH, after=page.next)


def _row(prediction: StoredPrediction) -> dict[str, Any]:
    row = csv_row(prediction)
    return row | {
        "agrees": {None: None, True: "yes", False: "no"}[row["agrees"]],
        "note": escape_formula(row["note"], "'"),
        "reviewer": row["reviewer"] and escape_formula(row["reviewer"], "'"),
    }
