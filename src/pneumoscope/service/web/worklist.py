"""The worklist: filters, sort orders and CSV export."""

from __future__ import annotations

import codecs
import dataclasses
import datetime
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from zoneinfo import ZoneInfo

from pneumoscope.core.errors import UsageError
from pneumoscope.core.i18n import N_
from pneumoscope.core.prediction_codes import DECISIONS
from pneumoscope.inference.writers import csv_line, csv_row
from pneumoscope.service.storage.queries import Filter, Order, Page
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository
from pneumoscope.service.time_zone import start_of_day

__all__ = ["BLIND_ORDERS", "ORDERS", "SearchStore", "WorklistQuery", "export_csv", "parse_query"]

# Labels of the sort orders; the first is the default. A blind reader's orders do not depend on the prediction.
ORDERS: dict[Order, str] = {
    "urgency": N_("Most urgent first, read images last"),
    "newest": N_("Newest first"),
    "oldest": N_("Oldest first"),
    "highest": N_("Highest probability first"),
    "lowest": N_("Lowest probability first"),
}
_PARAMETERS = ("decision", "reviewed", "since", "until", "order", "study_key", "patient_key", "search")
_EXPORT_BATCH = 200  # predictions read from the database at a time
BLIND_ORDERS: dict[Order, str] = {order: ORDERS[order] for order in ("newest", "oldest")}
_KEY = re.compile(r"[0-9a-f]{32}")
_MAX_SEARCHES = 1000
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_REVIEWED = {"": None, "yes": True, "no": False}


class SearchStore:
    """Recent search texts, kept in memory so that URLs contain a random id instead of a patient's name."""

    def __init__(self) -> None:
        self._texts: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, text: str) -> str:
        """Store a search text; return its id, 32 hexadecimal digits."""
        id = secrets.token_hex(16)
        with self._lock:
            self._texts[id] = text
            while len(self._texts) > _MAX_SEARCHES:
                self._texts.popitem(last=False)
        return id

    def text(self, id: str) -> str:
        """Return the text of a search.

        Raises:
            UsageError: The search does not exist or has expired.
        """
        with self._lock:
            try:
                return self._texts[id]
            except KeyError:
                raise UsageError(N_("the search has expired"), hint=N_("Search again")) from None


@dataclasses.dataclass(frozen=True, slots=True)
class WorklistQuery:
    """Query of a worklist.

    Attributes:
        filter: Conditions on the listed predictions. Rejected images are listed on a separate tab.
        order: Sort order.
        form: The query parameters as received; empty if absent.
        search: Text of the search; empty without one.
    """

    filter: Filter
    order: Order
    form: Mapping[str, str]
    search: str = ""

    @property
    def rejected(self) -> bool:
        """Whether this is the tab of rejected images."""
        return self.filter.decision == "rejected"

    @property
    def filtered(self) -> bool:
        """Whether there are filters besides the tab."""
        return any(value for name, value in self.form.items() if name != "order" and value != "rejected")


def parse_query(
    parameters: Mapping[str, str],
    searches: SearchStore,
    search_words: Callable[[str], tuple[tuple[str, ...], ...]],
    *,
    time_zone: ZoneInfo,
    blind_reader: str | None = None,
) -> WorklistQuery:
    """Return the query described by URL parameters.

    Args:
        parameters: Parameters of the URL.
        searches: Contains the text for the parameter "search".
        search_words: See `PredictionService.search_words`.
        time_zone: Time zone of the dates.
        blind_reader: Reader who sees predictions only of images that the reader has labeled; None if all are visible.
            For such a reader, filters and orders by prediction are errors, and rejected images without the reader's
            label are listed among the others.
    Raises:
        UsageError: A value is not allowed.
    """
    form = {name: parameters.get(name, "") for name in _PARAMETERS}
    blind = blind_reader is not None
    orders = BLIND_ORDERS if blind else ORDERS
    decision, reviewed, order = form["decision"], form["reviewed"], form["order"] or next(iter(orders))
    if blind and decision not in ("", "rejected"):
        raise UsageError(N_("decisions are hidden until the images are read"), hint=N_("Remove the filter"))
    if decision and decision not in DECISIONS:
        raise UsageError(f"unknown decision {decision[:40]!r}", hint=f"Use one of: {', '.join(DECISIONS)}")
    if reviewed not in _REVIEWED:
        raise UsageError(f"reviewed is {reviewed[:40]!r}", hint="Use yes or no")
    if order not in orders:
        raise UsageError(f"unknown order {order[:40]!r}", hint=f"Use one of: {', '.join(orders)}")
    since, until = (_start_of_day(form[name], name, time_zone) for name in ("since", "until"))
    for name in ("study_key", "patient_key"):
        if form[name] and not _KEY.fullmatch(form[name]):
            raise UsageError(f"{name} is not a key", hint="Use a link of the worklist or the viewer")
    search = searches.text(form["search"]) if form["search"] else ""
    return WorklistQuery(
        filter=Filter(
            decision=decision or None,
            rejected=None if blind and not decision else decision == "rejected",
            reviewed_by=blind_reader if decision == "rejected" else None,
            reviewed=_REVIEWED[reviewed],
            since=since,
            until=until,
            study_key=form["study_key"] or None,
            patient_key=form["patient_key"] or None,
            search=search_words(search) if search else (),
            latest=True,
        ),
        order=order,
        form=form,
        search=search,
    )


def _start_of_day(text: str, name: str, time_zone: ZoneInfo) -> str | None:
    """Return the UTC time at which a date in a form begins; None for an empty field.

    Raises:
        UsageError: The text is not a date; the message contains `name`, the parameter.
    """
    if not text:
        return None
    try:
        if not _DATE.fullmatch(text):
            raise ValueError
        return start_of_day(datetime.date.fromisoformat(text), time_zone).isoformat()
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{name} is not a date", hint="Write it as 2026-01-31") from error


def export_csv(
    repository: PredictionRepository, query: WorklistQuery, notice: Callable[[StoredPrediction], str]
) -> tuple[int, Iterator[bytes]]:
    """Return the number of predictions of a query, and the lines of a CSV file with them.

    The columns are those of `predict --csv` and of `StoredPrediction`; each line ends with the notice of its
    prediction. Without a decision in the query, rejected images are included. The file begins with a byte order mark,
    which Excel needs to recognize UTF-8.

    Raises:
        StorageError: The database cannot be read. Raised before the first line if the first page cannot be read.
    """
    if not query.filter.decision:
        query = dataclasses.replace(query, filter=dataclasses.replace(query.filter, rejected=None))
    first = repository.find(query.filter, order=query.order, limit=_EXPORT_BATCH)
    return first.total, _csv_lines(repository, query, first, notice)


def _csv_lines(
    repository: PredictionRepository, query: WorklistQuery, page: Page, notice: Callable[[StoredPrediction], str]
) -> Iterator[bytes]:
    """Yield the byte order mark, the header, and a line for each prediction, starting with a page."""
    header = True
    yield codecs.BOM_UTF8
    while True:
        for prediction in page.predictions:
            row = csv_row(prediction, notice(prediction))
            if header:
                yield csv_line(row)
                header = False
            yield csv_line(row.values())
        if not page.next:
            return
        page = repository.find(query.filter, order=query.order, limit=_EXPORT_BATCH, after=page.next)
