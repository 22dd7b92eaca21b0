"""Records of received DICOM instances, updated in the transactions that store their outcomes. See `inbox`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, or_, select, update

from pneumoscope.service.audit.log import Entry, append
from pneumoscope.service.auth.users import RETENTION
from pneumoscope.service.storage.records import Row
from pneumoscope.service.storage.results import MAX_COPIES
from pneumoscope.service.storage.tables import received_instances

__all__ = [
    "NO_IDENTIFIERS",
    "InboxState",
    "Outcome",
    "ReceivedInstance",
    "copies_of",
    "find_old_headers",
    "finish",
    "instances_of",
    "remove_header",
    "remove_headers",
    "remove_predictions",
]

InboxState = Literal["waiting", "predicted", "unreadable", "lost", "own_result"]
NO_IDENTIFIERS = {"header": "", "study_instance_uid": "", "sop_instance_uid": ""}
_COLUMNS = received_instances.c


@dataclasses.dataclass(frozen=True, slots=True)
class ReceivedInstance:
    """A DICOM instance received from another node.

    Attributes:
        sender: Name of the peer or user.
        reply_to: Name of the peer that receives results by default; empty if there is none.
        study_instance_uid, sop_instance_uid: From the header.
        header: Elements that results need, as DICOM JSON.
        number: Number of the row; 0 before it is stored.
        image_sha256: Hash of the file; empty before it is stored.
        attempts: Number of prediction attempts that failed or in which the process was killed.
        state: "waiting" until it is processed.
        prediction_id, failure_code, settings: See `Outcome`; empty while waiting.
    """

    sender: str
    reply_to: str
    study_instance_uid: str
    sop_instance_uid: str
    header: str
    number: int = 0
    image_sha256: str = ""
    attempts: int = 0
    state: InboxState = "waiting"
    prediction_id: str = ""
    failure_code: str = ""
    settings: str = ""

    def __repr__(self) -> str:
        """Return the number only, since identifiers could reach a log."""
        return f"ReceivedInstance(number={self.number})"

    @classmethod
    def from_row(cls, row: Row) -> ReceivedInstance:
        """Return the instance in a row of the table."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


class Outcome(NamedTuple):
    """The outcome of a received instance.

    Attributes:
        state: The new state.
        settings: Hash of everything else that the outcome depends on; see `Inbox.submit`.
        prediction_id: Id of the prediction, if any.
        failure_code: Error code if the file could not be read.
    """

    state: InboxState
    settings: str
    prediction_id: str = ""
    failure_code: str = ""


def finish(connection: Connection, instance: ReceivedInstance, outcome: Outcome, time: str) -> None:
    """Record the outcome of an instance, in the transaction that stores its prediction."""
    values = {
        "state": outcome.state, "processed": time, "prediction_id": outcome.prediction_id,
        "failure_code": outcome.failure_code, "settings": outcome.settings,
    }  # fmt: skip
    connection.execute(update(received_instances).where(_COLUMNS.number == instance.number).values(values))


def instances_of(connection: Connection, prediction_id: str) -> list[ReceivedInstance]:
    """Return the received instances of a prediction."""
    query = select(received_instances).where(_COLUMNS.prediction_id == prediction_id).order_by(_COLUMNS.number)
    return [ReceivedInstance.from_row(row) for row in connection.execute(query).mappings()]


def copies_of(connection: Connection, instance: ReceivedInstance) -> list[ReceivedInstance]:
    """Return other instances with the same SOP Instance UID, most recent first; empty if the UID was removed.

    At most `MAX_COPIES` received later and `MAX_COPIES` received earlier are returned, in both cases the most recent
    ones.
    """
    if not instance.sop_instance_uid:
        return []
    same = select(received_instances).where(_COLUMNS.sop_instance_uid == instance.sop_instance_uid)
    found: list[ReceivedInstance] = []
    for side in (_COLUMNS.number > instance.number, _COLUMNS.number < instance.number):
        query = same.where(side).order_by(_COLUMNS.number.desc()).limit(MAX_COPIES)
        found += [ReceivedInstance.from_row(row) for row in connection.execute(query).mappings()]
    return found


def remove_predictions(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Delete the records of instances whose predictions are deleted; return their Study Instance UIDs as stored.

    If no instance of a study remains predicted or waiting, all its other records are deleted as well.
    """
    query = delete(received_instances).where(_COLUMNS.prediction_id.in_(ids)).returning(_COLUMNS.study_instance_uid)
    studies = set(connection.execute(query).scalars()) - {""}
    left = select(_COLUMNS.study_instance_uid).where(
        _COLUMNS.study_instance_uid.in_(studies), _COLUMNS.state.in_(("waiting", "predicted"))
    )
    gone = studies - set(connection.execute(left).scalars())
    connection.execute(delete(received_instances).where(_COLUMNS.study_instance_uid.in_(gone)))
    return studies


def remove_header(connection: Connection, instance: ReceivedInstance, pseudonym: str) -> None:
    """Remove the identifiers of an instance, except a pseudonym of its study."""
    values = NO_IDENTIFIERS | {"study_instance_uid": pseudonym}
    connection.execute(update(received_instances).where(_COLUMNS.number == instance.number).values(values))


def find_old_headers(connection: Connection, limit: str, count: int, after: int) -> list[int]:
    """Return, in order, the numbers of instances with identifiers that were processed before a limit.

    Args:
        connection: Connection in a transaction that does not block writers, since all rows may be read.
        limit: Time of the oldest instance that keeps its identifiers.
        count: Maximum number of instances.
        after: Number of the last instance found before; 0 at first.
    """
    query = select(_COLUMNS.number).where(_has_old_header(limit), _COLUMNS.number > after)
    return list(connection.execute(query.order_by(_COLUMNS.number).limit(count)).scalars())


def remove_headers(connection: Connection, numbers: Sequence[int], limit: str, time: str) -> None:
    """Remove the identifiers of instances, with an audit log entry for each.

    The entries contain no prediction, since its identity may be kept longer; see `audit.log.last_change`.

    Args:
        connection: Connection in the transaction.
        numbers: See `find_old_headers`. Instances that have arrived again keep their identifiers.
        limit: Time of the oldest instance that keeps its identifiers.
        time: Time of the transaction.
    """
    query = update(received_instances).where(_COLUMNS.number.in_(numbers), _has_old_header(limit))
    query = query.values(NO_IDENTIFIERS)
    hashes = connection.execute(query.returning(_COLUMNS.image_sha256)).scalars().all()
    append(connection, [Entry(time, RETENTION, "instance_identity_removed", image_sha256=each) for each in hashes])


def _has_old_header(limit: str) -> ColumnElement[bool]:
    return and_(_COLUMNS.processed < limit, or_(_COLUMNS.sop_instance_uid != "", _COLUMNS.study_instance_uid != ""))
