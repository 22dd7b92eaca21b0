"""Patients, studies and instances: assign images to them, and find what belongs together.

An instance is an image, identified by its pixels; a study belongs to one patient. Keys are random, so that URLs and logs may
contain them; the identifiers of the hospital may be reused or mistyped, so none of them is a key:

- A patient is found by identifier and issuer, unless name or birth date contradict, or several match. One without an identifier
  is found within its study.
- A study is found by its UID, or else by its accession number or date, and its patient: a UID that two patients share does not
  mix them.

The latest statement about an image is kept, and a correction by a person until an upload states something new. Rows that nothing
refers to are deleted.

The same pixels under another SOP Instance UID and another patient are not a correction: one of the two images may be misfiled.
Both identities are kept, the second one beside that of the image, until a person decides for one patient.
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
    """Changes by a statement about an image.

    Attributes:
        event: For the audit log.
        fields: Names of the fields that changed, or by which two patients differ; nothing changed if there are none.
        numbers: Of the instance that the statement is about: `ASSIGNED` for that of the image, others for another patient. If a
            person has decided, of those whose predictions are now those of the image: of all, if the patient is that of none.
        is_first: Whether the image had no identity before.
    """

    event: Literal["identity_changed", "identity_conflict", "identity_resolved"] = "identity_changed"
    fields: Sequence[str] = ()
    numbers: Sequence[int] = (ASSIGNED,)
    is_first: bool = False


class _Instance(NamedTuple):
    """The identity of an instance, the keys of its study and patient, the hash of the statement of its last upload, and the age
    that a person entered for the patient.

    `exists` is False if there is no instance yet; one whose identity a person removed has no study.
    """

    identity: Identity = Identity()
    study_key: str | None = None
    patient_key: str | None = None
    statement_sha256: str = ""
    number: int = ASSIGNED
    entered_age: float | None = None
    exists: bool = False


def assign_identity(connection: Connection, pixel_sha256: str, stated: Identity | None) -> Assignment:
    """Assign an uploaded image to its patient and study, and return what changed; nothing for a new image.

    An upload that states the same as an earlier one changes nothing, so that it does not undo a person's correction. Another
    patient under another SOP Instance UID is stored beside the patient of the image.

    Args:
        connection: Of a write transaction.
        pixel_sha256: Of the image.
        stated: What the upload states; None states nothing. Fields that are not stated keep their values, unless the patient or
            the study is another one.
    """
    if stated is None or not stated.stated():
        return Assignment()
    known = _find_known(connection, pixel_sha256, stated)
    statement_sha256 = _statement_hash(stated)
    for each in known:
        if each.statement_sha256 == statement_sha256:
            return Assignment(numbers=(_number_of_repeated(each, known[0], stated),))
    if not known:
        current = _Instance(entered_age=_age_without_patient(connection, pixel_sha256))
    else:
        current = _find_stated(known, stated) or _Instance(number=_next_number(connection, pixel_sha256))
    identity = _merge(current.identity, stated)
    patient_key = find_or_add_patient(connection, identity, current.patient_key)
    study_key = find_or_add_study(connection, identity, patient_key, current.study_key, current.patient_key)
    age = _kept_age(current, identity)
    changed = _store(connection, pixel_sha256, identity, current, study_key, statement_sha256, age)
    if current.number == ASSIGNED or current.exists:
        is_merged = current.number in _forget_same_patient(connection, pixel_sha256)
        number = ASSIGNED if is_merged else current.number
        return Assignment("identity_changed", changed, (number,), is_first=not known)
    return Assignment("identity_conflict", _differences(known[0].identity, identity), (current.number,))


def _number_of_repeated(found: _Instance, of_image: _Instance, stated: Identity) -> int:
    """Return the number of the instance of a statement that is repeated; that of the image, if the two were merged."""
    is_merged = not found.study_key and not is_other_patient(of_image.identity, stated)
    return ASSIGNED if is_merged else found.number


def find_entered_age(connection: Connection, pixel_sha256: str, stated: Identity | None) -> float | None:
    """Return the age, years, that a person entered for the patient of an image; None for another patient, or without one.

    Args:
        connection: Of a transaction.
        pixel_sha256: Of the image.
        stated: What an upload states; None states nothing.
    """
    stated = stated or Identity()
    known = _find_known(connection, pixel_sha256, stated)
    if not known:
        return _age_without_patient(connection, pixel_sha256)
    repeated = [each for each in known if each.statement_sha256 == _statement_hash(stated)]
    found = repeated[0] if repeated else _find_stated(known, stated)
    if found is None or is_other_patient(found.identity, stated):
        return None
    return found.entered_age


def _age_without_patient(connection: Connection, pixel_sha256: str) -> float | None:
    """Return the age that a person entered for an image about which nothing was stated yet: that of its first patient."""
    c = predictions.c
    same = c.pixel_sha256 == pixel_sha256, c.age_source == "entered", c.identity_removed.is_(None)
    query = select(c.age).where(*same).order_by(c.last_predicted.desc()).limit(1)
    age: float | None = connection.execute(query).scalar()
    return age


def enter_age(connection: Connection, pixel_sha256: str, number: int, age: float) -> None:
    """Store the age that a person entered for the patient of an instance, if there is one."""
    same = instances.c.pixel_sha256 == pixel_sha256, instances.c.number == number
    connection.execute(update(instances).where(*same).values(entered_age=age))


def replace_identity(connection: Connection, pixel_sha256: str, identity: Identity) -> Assignment:
    """Replace the identity of an image by that of a person, and return what changed.

    If the image was received under several patients, this decides for one of them: the identities of the others are removed.

    Args:
        connection: Of a write transaction.
        pixel_sha256: Of the image.
        identity: The complete identity. With the patient ID and issuer of before, it corrects the patient; otherwise the image
            belongs to another one.
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
    # The statements of uploads stay, so that they change nothing again: that of the chosen patient with the image.
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
    """Return whether a person entered an age for the patient of an image."""
    same = instances.c.pixel_sha256 == pixel_sha256, instances.c.number == ASSIGNED
    return connection.execute(select(instances.c.entered_age).where(*same)).scalar() is not None


def _kept_age(before: _Instance, identity: Identity) -> float | None:
    """Return the age that a person entered, if it holds with a new identity: not for another patient, or if it states less."""
    names = ("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date")
    states_less = any(getattr(before.identity, name) and not getattr(identity, name) for name in names)
    return None if states_less or is_other_patient(before.identity, identity) else before.entered_age


def _find_stated(known: Sequence[_Instance], stated: Identity) -> _Instance | None:
    """Return which of the instances of an image, at least one, a header is about; None if it is a new one of another patient.

    It is the one with the SOP Instance UID of the header. Without that, or with another one, it is the image itself, unless the
    header contradicts its patient.
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


def _forget_same_patient(connection: Connection, pixel_sha256: str) -> list[int]:
    """Remove the other identities of an image that are now of the same patient, and return their numbers: a header was corrected.

    Their predictions are then those of the image.
    """
    current = _instances(connection, pixel_sha256, instances.c.number == ASSIGNED)[0]
    of_patient = instances.c.number != ASSIGNED, studies.c.patient_key == current.patient_key
    others = _instances(connection, pixel_sha256, *of_patient) if current.patient_key else []
    for each in others:  # what was uploaded is remembered as a hash
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
    """Store the instance, and return the names of the fields that changed; none for a new one."""
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
    """Remove the identity of images, by the hashes of their pixels."""
    _delete_instances(connection, instances.c.pixel_sha256.in_(hashes))


def remove_unused_identity(connection: Connection, hashes: Sequence[str]) -> None:
    """Remove the identity of those of the images that have no prediction."""
    used = exists().where(predictions.c.pixel_sha256 == instances.c.pixel_sha256)
    _delete_instances(connection, instances.c.pixel_sha256.in_(hashes) & ~used)


def _delete_instances(connection: Connection, condition: ColumnElement[bool]) -> None:
    query = select(studies.c.study_key, studies.c.patient_key).join(instances).where(condition)
    rows = connection.execute(query).all()
    remove_headers(connection, select(instances.c.pixel_sha256).where(condition))
    connection.execute(delete(instances).where(condition))
    delete_empty(connection, {row.study_key for row in rows}, {row.patient_key for row in rows} - {None})


def _instances(connection: Connection, pixel_sha256: str, *conditions: ColumnElement[bool]) -> list[_Instance]:
    """Return the instances of an image, its own first; none if nothing was stated about it."""
    query = select_instances().where(instances.c.pixel_sha256 == pixel_sha256, *conditions)
    return [_instance(row) for row in connection.execute(query).mappings()]


def _find_known(connection: Connection, pixel_sha256: str, stated: Identity) -> list[_Instance]:
    """Return the instances of an image to which a header can belong, that of the image first.

    A test image may have a very large number of instances.
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
    """Return the current identity with the stated fields; another patient or study keeps nothing of the former one."""
    kept = dataclasses.asdict(current)
    if is_other_patient(current, stated):
        kept |= dict.fromkeys(PATIENT_FIELDS, "")
    if is_changed(current, stated, ("study_instance_uid", "accession_number")):
        kept |= dict.fromkeys(STUDY_FIELDS, "")
    return Identity(**kept | stated.stated())
