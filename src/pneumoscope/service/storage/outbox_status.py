"""Status of the outbox by destination, for the dashboard, the API and the metrics.

Delivered objects are counted on delivery. Since there may be millions, their rows are not read for the status.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from sqlalchemy import Connection, Engine, and_, func, insert, or_, select, update

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.service.storage.database import read_transaction
from pneumoscope.service.storage.tables import outbox, outbox_totals

__all__ = [
    "IS_CONFIRMED",
    "UNCOMMITTED",
    "CommitmentState",
    "OutboxStatus",
    "add_to_totals",
    "read_status",
    "require_destination",
]

CommitmentState = Literal["", "pending", "requested", "committed", "failed"]
# States of an open or failed commitment. Only delivered objects have them, so queries omit the delivery state; with it,
# SQLite would read all delivered objects.
UNCOMMITTED: tuple[CommitmentState, ...] = ("pending", "requested", "failed")
_COLUMNS = outbox.c
# Whether the destination has confirmed an object, including objects that were later withdrawn or are sent again after a
# failed commitment, which is only requested for confirmed objects. For withdrawn objects, `maybe_delivered` means that
# the destination never answered. An object that a person resends is waiting, but keeps the time of its delivery; see
# `resending`.
IS_CONFIRMED = or_(
    and_(_COLUMNS.state == "waiting", _COLUMNS.finished.is_not(None)),
    and_(_COLUMNS.state.in_(("delivered", "withdrawn")), _COLUMNS.maybe_delivered.is_(False)),
    _COLUMNS.commitment_requested.is_not(None),
)


@dataclasses.dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The objects of a destination.

    Attributes:
        destination: Name of the destination.
        waiting: Number of waiting objects.
        failing: Number of waiting objects that failed at least once.
        oldest: Time when the oldest waiting object was created, ISO 8601 in UTC; None if there is none.
        delivered: Number of objects and events that the destination has confirmed, each counted once. It never falls,
            since withdrawn, resent and deleted ones remain counted.
        committed: Number of these with confirmed storage commitment.
        uncommitted: Number of delivered objects with requested but unconfirmed storage commitment.
        commitment_failing: Number of uncommitted objects whose last request failed, or which the destination reported
            as failed.
    """

    destination: str
    waiting: int
    failing: int
    oldest: str | None
    delivered: int
    committed: int
    uncommitted: int
    commitment_failing: int


def add_to_totals(connection: Connection, destination: str, *, delivered: int = 0, committed: int = 0) -> None:
    """Add to the totals of a destination, in a transaction that excludes other writers."""
    columns = outbox_totals.c
    values = {"delivered": columns.delivered + delivered, "committed": columns.committed + committed}
    changed = connection.execute(update(outbox_totals).where(columns.destination == destination).values(values))
    if not changed.rowcount:
        row = {"destination": destination, "delivered": delivered, "committed": committed}
        connection.execute(insert(outbox_totals), [row])


def require_destination(connection: Connection, destination: str) -> str:
    """Return the name of a destination that has or had results.

    Raises:
        UnknownNameError: There is no such destination.
    """
    known = connection.execute(select(outbox_totals.c.destination)).scalars().all()
    if destination not in known:
        raise UnknownNameError("destination with results", destination, known)
    return destination


def read_status(engine: Engine) -> list[OutboxStatus]:
    """Return the status of each destination. Raise StorageError if the database cannot be read.

    Delivered objects without an open commitment are not read, since there may be millions.
    """
    count = func.count(_COLUMNS.number)
    waiting = (
        select(_COLUMNS.destination, count, count.filter(_COLUMNS.attempts > 0), func.min(_COLUMNS.created))
        .where(_COLUMNS.state == "waiting")
        .group_by(_COLUMNS.destination)
    )
    uncommitted = (
        select(_COLUMNS.destination, count, count.filter(_COLUMNS.error != ""))
        .where(_COLUMNS.commitment.in_(UNCOMMITTED))
        .group_by(_COLUMNS.destination)
    )
    with read_transaction(engine) as connection:
        totals = connection.execute(select(outbox_totals).order_by(outbox_totals.c.destination)).all()
        of_waiting = {name: values for name, *values in connection.execute(waiting)}
        of_uncommitted = {name: values for name, *values in connection.execute(uncommitted)}
    found = []
    for name, delivered, committed in totals:
        n_waiting, n_failing, oldest = of_waiting.get(name, (0, 0, None))
        n_uncommitted, n_commitment_failing = of_uncommitted.get(name, (0, 0))
        found.append(
            OutboxStatus(name, n_waiting, n_failing, oldest, delivered, committed, n_uncommitted, n_commitment_failing)
        )
    return found
