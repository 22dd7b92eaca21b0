"""Patients, studies and instances: assign images to them, and determine what belongs together.

An instance is an image, identified by its pixels; a study belongs to one patient. Keys are random, so that URLs and
logs may contain them. Hospital identifiers may be reused or mistyped, so they are not keys:

- A patient is matched by identifier and issuer, unless the name or birth date contradicts, or several patients match. A
  patient without an identifier is matched only within the study.
- A study is matched by its UID, or else by accession number or date, and by its patient, so that a UID shared by two
  patients does not mix them.

The latest identity received for an image is kept; a correction by a person is kept until an upload contains something
new. Rows without references are deleted.

The same pixels with another SOP Instance UID and another patient are not a correction, since one of the two images may
be misfiled. Both identities are kept, the second one beside that of the image, until a person decides for one patient.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, exists, func, insert, or_, select, update

from pneumoscope.core.identity import (
    IDENTITY_FIELDS,
    PATIENT_FIELDS,
    STUDY_FIELDS,
    Identity,
    is_changed,
    is_other_patient,
)
from pneumoscope.service.storage.current_prediction import merge_header, remove_headers
from pneumoscope.service.storage.identity_columns import ASSIGNED, INSTANCE_FIELDS, read_identity, select_instances
from pneumoscope.service.storage.patients import delete_empty, find_or_add_patient, find_or_add_study
from pneumoscope.service.storage.tables import instances, patients, predictions, studies

__all__ = [
    "Assignment",
    "assign_identity",
    "enter_age",
    "find_entered_age",
    "has_entered_age",
    "remove_identity",
    "remove_unused_identity",
    "replace_identity",
]


class Assignment(NamedTuple):
    """Changes made by assigning an identity to an image.

    Attributes:
        event: Event for the audit log.
        fields: Names of the fields that changed, or in which two patients differ; empty if nothing changed.
        numbers: Number of the instance concerned: `ASSIGNED` for the image itself, others for another patient. After a
            person's decision, the instances whose predictions now belong to the image: all of them, if the patient is
            none of theirs.
        is_first: Whether the image had no identity before.
    """

    event: Literal["identity_changed", "identity_conflict", "identity_resolved"] = "identity_changed"
    fields: Sequence[str] = ()
    numbers: Sequence[int] = (ASSIGNED,)
    is_first: bool = False


class _Instance(NamedTuple):
    """An instance: identity, keys of study and patient, hash of the identity in its last upload, and entered age.

    `exists` is False before the instance is stored. An instance whose identity was removed by a person has no study.
    """

    identity: Identity = Identity()
    study_key: str | None = None
    patient_key: str | None = None
    statement_sha256: str = ""
    number: int = ASSIGNED
    entered_age: float | None = None
    exists: bool = False


def assign_identity(connection: Connection, pixel_sha256: str, stated: Identity | None) -> Assignment:
    """Assign an uploaded image to its patient and study; return the changes, which are empty for a new image.

    An upload with the same identity as an earlier one changes nothing, so that it does not undo a person's correction.
    Another patient under another SOP Instance UID is stored beside the patient of the image.

    Args:
        connection: Connection in a write transaction.
        pixel_sha256: Pixel hash of the image.
        stated: Identity in the upload, if any. Fields that it lacks keep their values, unless the patient or the study
            changes.
    """
    if stated is None or not stated.stated():
        return Assignment()
    known = _find_known(connection, pixel_sha256, stated)
    statement_sha256 = _statement_hash(stated)
    for each in known:
        if each.statement_sha256 == statement_sha256:
            return Assignment(numbers=(_repeated_instance_number(each, known[0], stated),))
    if not known:
        current = _Instance(entered_age=_age_without_patient(connection, pixel_sha256))
    else:
        current = _find_declared_instance(known, stated) or _Instance(number=_next_number(connection, pixel_sha256))
    identity = _merge(current.identity, stated)
    patient_key = find_or_add_patient(connection, identity, current.patient_key)
    study_key = find_or_add_study(connection, identity, patient_key, current.study_key, current.patient_key)
    age = _kept_age(current, identity)
    changed = _store(connection, pixel_sha256, identity, current, study_key, statement_sha256, age)
    if current.number == ASSIGNED or current.exists:
        is_merged = current.number in _remove_same_patient(connection, pixel_sha256)
        number = ASSIGNED if is_merged else current.number
        return Assignment("identity_changed", changed, (number,), is_first=not known)
    return Assignment("identity_conflict", _differences(known[0].identity, identity), (current.number,))


def _repeated_instance_number(found: _Instance, of_image: _Instance, stated: Identity) -> int:
    """Return the number of the instance of a repeated upload; `ASSIGNED` if it was merged with that of the image."""
    is_merged = not found.study_key and not is_other_patient(of_image.identity, stated)
    return ASSIGNED if is_merged else found.number


def find_entered_age(connection: Connection, pixel_sha256: str, stated: Identity | None) -> float | None:
    """Return the age in years that was entered for the patient of an image; None if missing or for another patient.

    Args:
        connection: Connection in a transaction.
        pixel_sha256: Pixel hash of the image.
        stated: Identity in the upload, if any.
    """
    stated = stated or Identity()
    known = _find_known(connection, pixel_sha256, stated)
    if not known:
        return _age_without_patient(connection, pixel_sha256)
    repeated = [each for each in known if each.statement_sha256 == _statement_hash(stated)]
    found = repeated[0] if repeated else _find_declared_instance(known, stated)
    if found is None or is_other_patient(found.identity, stated):
        return None
    return found.entered_age


def _age_without_patient(connection: Connection, pixel_sha256: str) -> float | None:
    """Return the age that was entered for an image before it had an identity; it applies to the first patient."""
    c = predictions.c
    same = c.pixel_sha256 == pixel_sha256, c.age_source == "entered", c.identity_removed.is_(None)
    query = select(c.age).where(*same).order_by(c.last_predicted.desc()).limit(1)
    age: float | None = connection.execute(query).scalar()
    return age


def enter_age(connection: Connection, pixel_sha256: str, number: int, age: float) -> None:
    """Store the age that was entered for the patient of an instance, if the instance exists."""
    same = instances.c.pixel_sha256 == pixel_sha256, instances.c.number == number
    connection.execute(update(instances).where(*same).values(entered_age=age))


def replace_identity(connection: Connection, pixel_sha256: str, identity: Identity) -> Assignment:
    """Replace the identity of an image by one that a person entered; return the changes.

    If the image was received under several patients, this decides for one of them, and the identities of the others are
    removed.

    Args:
        connection: Connection in a write transaction.
        pixel_sha256: Pixel hash of the image.
        identity: The complete identity. With unchanged patient ID and issuer, it corrects the patient; otherwise, it
            assigns the image to another patient.
    """
    known = _instances(connection, pixel_sha256)
    current = known[0] if known else _Instance(entered_age=_age_without_patient(connection, pixel_sha256))
    others = [each for each in known[1:] if each.study_key]
    patient_key = study_key = None
    if identity.stated():
        patient_key = find_or_add_patient(connection, identity, current.patient_key, complete=True)
        study_key = find_or_add_study(
            connection, identity, patient_key, current.study_key, current.patient_key, complete=True
        )
    # Keep the hashes of uploads, so that repeated uploads change nothing; that of the chosen patient moves to the
    # image.
    chosen = [each for each in (current, *others) if each.patient_key and each.patient_key == patient_key]
    statements = {each.number: each.statement_sha256 for each in (current, *others)}
    age = _kept_age(current, identity)
    if chosen and chosen[0] is not current:
        number = chosen[0].number
        statements[current.number], statements[number] = statements[number], statements[current.number]
        age = _kept_age(chosen[0], identity)
    changed = _store(connection, pixel_sha256, identity, current, study_key, statements[current.number], age)
    if not others:
        return Assignment("identity_changed", changed)
    for each in others:
        _store(connection, pixel_sha256, Identity(), each, None, statements[each.number])
    different = {name for each in (current, *others) for name in _differences(each.identity, identity)}
    numbers = [each.number for each in chosen[:1] or (current, *others)]
    return Assignment("identity_resolved", [name for name in IDENTITY_FIELDS if name in different], numbers)


def has_entered_age(connection: Connection, pixel_sha256: str) -> bool:
    """Return whether an age was entered for the patient of an image."""
    same = instances.c.pixel_sha256 == pixel_sha256, instances.c.number == ASSIGNED
    return connection.execute(select(instances.c.entered_age).where(*same)).scalar() is not None


def _kept_age(before: _Instance, identity: Identity) -> float | None:
    """Return the entered age if it remains valid: not for another patient, or for an identity with fewer values."""
    names = ("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date")
    states_less = any(getattr(before.identity, name) and not getattr(identity, name) for name in names)
    return None if states_less or is_other_patient(before.identity, identity) else before.entered_age


def _find_declared_instance(known: Sequence[_Instance], stated: Identity) -> _Instance | None:
    """Return the instance of an image to which a header belongs; None for a new instance of another patient.

    The SOP Instance UID decides; otherwise, the first instance whose patient the header does not contradict; otherwise,
    the image itself if it or the header has no SOP Instance UID.

    Args:
        known: Instances of the image, at least one; that of the image first.
        stated: Identity in the header.
    """
    current = known[0]
    others = [each for each in known[1:] if each.study_key]
    uid = stated.sop_instance_uid
    for each in (current, *others):
        if uid and each.identity.sop_instance_uid == uid:
            return each
    for each in (current, *others):
        if not is_other_patient(each.identity, stated):
            return each
    return None if uid and current.identity.sop_instance_uid else current


def _statement_hash(stated: Identity) -> str:
    return hashlib.sha256(json.dumps(dataclasses.astuple(stated)).encode()).hexdigest()


def _next_number(connection: Connection, pixel_sha256: str) -> int:
    query = select(func.max(instances.c.number)).where(instances.c.pixel_sha256 == pixel_sha256)
    return int(connection.execute(query).scalar_one()) + 1


def _differences(a: Identity, b: Identity) -> list[str]:
    return [name for name in IDENTITY_FIELDS if getattr(a, name) != getattr(b, name)]


def _remove_same_patient(connection: Connection, pixel_sha256: str) -> list[int]:
    """Remove other identities of an image that belong to its patient after a header correction; return their numbers.

    Their predictions become those of the image.
    """
    current = _instances(connection, pixel_sha256, instances.c.number == ASSIGNED)[0]
    of_patient = instances.c.number != ASSIGNED, studies.c.patient_key == current.patient_key
    others = _instances(connection, pixel_sha256, *of_patient) if current.patient_key else []
    for each in others:  # uploads are remembered only as hashes
        _store(connection, pixel_sha256, Identity(), each, None, each.statement_sha256)
        merge_header(connection, pixel_sha256, each.number)
    return [each.number for each in others]


def _store(
    connection: Connection,
    pixel_sha256: str,
    identity: Identity,
    current: _Instance,
    study_key: str | None,
    statement_sha256: str,
    entered_age: float | None = None,
) -> list[str]:
    """Store the instance; return the names of changed fields, which are empty for a new instance."""
    values = {"study_key": study_key, "statement_sha256": statement_sha256, "entered_age": entered_age}
    values |= {name: getattr(identity, name) for name in INSTANCE_FIELDS}
    if not current.exists:
        key = {"pixel_sha256": pixel_sha256, "number": current.number}
        connection.execute(insert(instances), [key | values])
        return []
    same = instances.c.pixel_sha256 == pixel_sha256, instances.c.number == current.number
    connection.execute(update(instances).where(*same).values(values))
    delete_empty(connection, {current.study_key} - {None}, {current.patient_key} - {None})
    (after,) = _instances(connection, pixel_sha256, instances.c.number == current.number)
    return _differences(current.identity, after.identity)


def remove_identity(connection: Connection, hashes: Sequence[str]) -> None:
    """Remove the identities of images, given their pixel hashes."""
    _delete_instances(connection, instances.c.pixel_sha256.in_(hashes))


def remove_unused_identity(connection: Connection, hashes: Sequence[str]) -> None:
    """Remove the identities of those images that have no prediction."""
    used = exists().where(predictions.c.pixel_sha256 == instances.c.pixel_sha256)
    _delete_instances(connection, instances.c.pixel_sha256.in_(hashes) & ~used)


def _delete_instances(connection: Connection, condition: ColumnElement[bool]) -> None:
    query = select(studies.c.study_key, studies.c.patient_key).join(instances).where(condition)
    rows = connection.execute(query).all()
    remove_headers(connection, select(instances.c.pixel_sha256).where(condition))
    connection.execute(delete(instances).where(condition))
    delete_empty(connection, {row.study_key for row in rows}, {row.patient_key for row in rows} - {None})


def _instances(connection: Connection, pixel_sha256: str, *conditions: ColumnElement[bool]) -> list[_Instance]:
    """Return the instances of an image, that of the image itself first; empty if it has no identity."""
    query = select_instances().where(instances.c.pixel_sha256 == pixel_sha256, *conditions)
    return [_instance(row) for row in connection.execute(query).mappings()]


def _find_known(connection: Connection, pixel_sha256: str, stated: Identity) -> list[_Instance]:
    """Return the instances of an image to which a header may belong, that of the image first.

    The database filters them, because a test image may have a very large number of instances.
    """
    may_be_patient: ColumnElement[bool] = instances.c.study_key.is_not(None)
    if stated.patient_id:
        may_be_patient &= or_(patients.c.patient_id.is_(None), patients.c.patient_id.in_(("", stated.patient_id)))
    if not stated.stated():
        return _instances(connection, pixel_sha256, instances.c.number == ASSIGNED)
    candidates = [
        instances.c.number == ASSIGNED,
        instances.c.statement_sha256 == _statement_hash(stated),
        may_be_patient,
    ]
    if stated.sop_instance_uid:
        candidates.append(instances.c.sop_instance_uid == stated.sop_instance_uid)
    return _instances(connection, pixel_sha256, or_(*candidates))


def _instance(row: RowMapping) -> _Instance:
    return _Instance(
        read_identity(row),
        row["study_key"],
        row["patient_key"],
        row["statement_sha256"],
        row["number"],
        row["entered_age"],
        exists=True,
    )


def _merge(current: Identity, stated: Identity) -> Identity:
    """Return the current identity updated with the given fields; values of a different patient or study are not kept."""
    kept = dataclasses.asdict(current)
    if is_other_patient(current, stated):
        kept |= dict.fromkeys(PATIENT_FIELDS, "")
    if is_changed(current, stated, ("study_instance_uid", "accession_number")):
        kept |= dict.fromkeys(STUDY_FIELDS, "")
    return Identity(**kept | stated.stated())
