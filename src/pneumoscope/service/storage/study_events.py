"""Events of finished studies, put into the outbox for the webhooks once no received instance of a study is waiting.

A later instance, or the deletion of a reported prediction, causes another event of the study with the next revision.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, Engine, and_, case, func, insert, or_, select, update

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.service.storage.database import read_transaction
from pneumoscope.service.storage.outbox_records import NEW_ROW, Delivery
from pneumoscope.service.storage.outbox_status import add_to_totals
from pneumoscope.service.storage.records import Row, StoredPrediction
from pneumoscope.service.storage.studies import find_studies
from pneumoscope.service.storage.tables import instances, outbox, predictions, received_instances, studies

__all__ = ["enqueue_study_event", "find_event_study", "find_superseded_event"]

_INSTANCES, _OUTBOX = received_instances.c, outbox.c


def enqueue_study_event(
    connection: Connection,
    webhooks: Collection[str],
    study_instance_uid: str,
    stored_uid: str,
    *,
    model_sha256: str,
    operating_point: str,
    time: str,
) -> None:
    """Add a study's event for each webhook, in the transaction that finishes the last waiting instance.

    Args:
        connection: Connection in the transaction.
        webhooks: Names of the webhooks.
        study_instance_uid: Study Instance UID of the instance; must not be empty.
        stored_uid: The same UID, or the pseudonym that replaces it in the records of predicted instances.
        model_sha256, operating_point: Model and operating point of the service.
        time: Time of the transaction.
    """
    rows = _instances(connection, {study_instance_uid, stored_uid})
    if not any(row["state"] == "waiting" for row in rows):
        _insert(connection, webhooks, stored_uid, rows, model_sha256, operating_point, time)


def enqueue_deletion(connection: Connection, stored_uids: Collection[str], time: str) -> None:
    """Add an event for each webhook that knows a study, in the transaction that deletes predictions of the study.

    Args:
        connection: Connection in the transaction, after the deletion.
        stored_uids: UIDs or pseudonyms of the studies of received instances whose predictions were deleted.
        time: Time of the transaction.
    """
    for uid in stored_uids:
        # A waiting event needs no successor, since its document is created when it is sent.
        got = or_(_OUTBOX.state == "delivered", and_(_OUTBOX.state == "cancelled", _OUTBOX.maybe_delivered))
        known = _OUTBOX.kind == "webhook", _OUTBOX.study_instance_uid == uid
        events = connection.execute(select(outbox).where(*known, got).order_by(_OUTBOX.number)).mappings().all()
        if events:
            webhooks, last = {row["destination"] for row in events}, events[-1]
            rows = _instances(connection, {uid})
            _insert(connection, webhooks, uid, rows, last["model_sha256"], last["operating_point"], time)


def _instances(connection: Connection, uids: Collection[str]) -> Sequence[Row]:
    query = select(received_instances).where(_INSTANCES.study_instance_uid.in_(uids)).order_by(_INSTANCES.number)
    return connection.execute(query).mappings().all()


def _insert(
    connection: Connection,
    webhooks: Collection[str],
    stored_uid: str,
    rows: Sequence[Row],
    model_sha256: str,
    operating_point: str,
    time: str,
) -> None:
    """Add the next event of a study; cancel its waiting events, because the new one covers the whole study."""
    same = _OUTBOX.kind == "webhook", _OUTBOX.study_instance_uid == stored_uid
    superseded = {"state": "cancelled", "finished": time, "error": "superseded"}
    earlier = *same, _OUTBOX.state == "waiting", _OUTBOX.destination.in_(webhooks)
    connection.execute(update(outbox).where(*earlier).values(superseded))
    revision = (connection.execute(select(func.max(_OUTBOX.revision)).where(*same)).scalar() or 0) + 1
    event = {
        **NEW_ROW, "kind": "webhook", "prediction_id": _prediction_id(rows), "failure_code": "",
        "model_sha256": model_sha256, "operating_point": operating_point, "sop_instance_uid": "", "header": "",
        "withdrawn_uids": "{}", "study_instance_uid": stored_uid, "revision": revision,
        "unreadable": json.dumps(_unreadable(rows)), "created": time, "due": time,
    }  # fmt: skip
    id = str(uuid.uuid4())
    connection.execute(insert(outbox), [event | {"destination": name, "result_uid": id} for name in webhooks])
    for name in webhooks:
        add_to_totals(connection, name)


def find_event_study(engine: Engine, event: Delivery) -> list[StoredPrediction]:
    """Return the predictions of an event's study, oldest first; empty if none of its files could be read.

    This is the current study of the latest received instance, since identities may have been corrected.

    Raises:
        UnknownNameError: The study was deleted, or its identity removed.
        StorageError: The database cannot be read.
    """
    with read_transaction(engine) as connection:
        uid = select(_OUTBOX.study_instance_uid).where(_OUTBOX.number == event.number).scalar_subquery()
        query = (
            select(instances.c.study_key)
            .join(predictions, predictions.c.pixel_sha256 == instances.c.pixel_sha256)
            .join(received_instances, _INSTANCES.prediction_id == predictions.c.id)
            .join(studies, studies.c.study_key == instances.c.study_key)
            .where(_INSTANCES.study_instance_uid == uid)
            # For an image of two patients, prefer the received study over that of the image.
            .order_by(
                _INSTANCES.number.desc(), case((studies.c.study_instance_uid == uid, 0), else_=1), instances.c.number
            )
        )
        key = connection.execute(query.limit(1)).scalar()
        stored = find_studies(connection, [key]).get(key, []) if key else []
    if event.subject.prediction_id and not stored:
        raise UnknownNameError("study of prediction", event.subject.prediction_id, (), hint="It was deleted")
    return stored


def find_superseded_event(engine: Engine, event: Delivery) -> str | None:
    """Return the id of the study's previous event that the webhook has or may have received; None if there is none.

    Raises:
        StorageError: The database cannot be read.
    """
    uid = select(_OUTBOX.study_instance_uid).where(_OUTBOX.number == event.number).scalar_subquery()
    query = select(_OUTBOX.result_uid).where(
        _OUTBOX.kind == "webhook",
        _OUTBOX.destination == event.destination,
        _OUTBOX.study_instance_uid == uid,
        _OUTBOX.study_instance_uid != "",  # excludes studies whose identities were removed
        _OUTBOX.revision < event.revision,
        or_(_OUTBOX.state == "delivered", _OUTBOX.maybe_delivered),
    )
    with read_transaction(engine) as connection:
        found: str | None = connection.execute(query.order_by(_OUTBOX.revision.desc()).limit(1)).scalar()
        return found


def _prediction_id(rows: Sequence[Row]) -> str:
    return next((row["prediction_id"] for row in reversed(rows) if row["prediction_id"]), "")


def _unreadable(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of files without a prediction by failure code; a file sent by two nodes counts once."""
    codes = {row["image_sha256"]: row["failure_code"] or row["state"] for row in rows if not row["prediction_id"]}
    return dict(Counter(code for code in codes.values() if code != "own_result").most_common())
