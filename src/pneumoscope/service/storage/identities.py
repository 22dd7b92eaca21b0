"""Patients, studies and instances: assign images to them, and find what belongs together.

An instance is an image, identified by its pixels; a study belongs to one patient. Keys are random, so that URLs and logs may
contain them; the identifiers of the hospital may be reused or mistyped, so none of them is a key:

- A patient is found by identifier and issuer, unless name or birth date contradict, or several match. One without an identifier
  is found within its study.
- A study is found by its UID, or else by its accession number or date, and its patient: a UID that two patients share does not
  mix them.

The latest statement about an image is kept, and a correction by a person until an upload states something new. Rows that nothing
refers to are deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import uuid
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, case, delete, exists, insert, or_, select, update

from pneumoscope.core.identity import (
    IDENTITY_FIELDS,
    PATIENT_FIELDS,
    STUDY_FIELDS,
    Identity,
    is_same_person,
    name_search_words,
    search_words,
)
from pneumoscope.service.storage.tables import instances, patients, predictions, studies

__all__ = [
    "CONFLICT_COLUMNS",
    "IDENTITY_COLUMNS",
    "assign_identity",
    "matches_search",
    "remove_identity",
    "remove_unused_identity",
    "replace_identity",
]

_INSTANCE = ("series_instance_uid", "sop_instance_uid", "station_name")

_other_patients, _other_studies, _other_instances = patients.alias(), studies.alias(), instances.alias()
# Columns of a prediction that is joined with its instance, study and patient.
IDENTITY_COLUMNS: tuple[ColumnElement[str], ...] = (
    studies.c.patient_key,
    instances.c.study_key,
    *(patients.c[name] for name in PATIENT_FIELDS),
    *(studies.c[name] for name in STUDY_FIELDS),
    *(instances.c[name] for name in _INSTANCE),
)
CONFLICT_COLUMNS: tuple[ColumnElement[bool], ...] = (
    exists()
    .where(
        _other_instances.c.sop_instance_uid == instances.c.sop_instance_uid,
        instances.c.sop_instance_uid != "",
        _other_instances.c.pixel_sha256 != instances.c.pixel_sha256,
    )
    .correlate(instances)
    .label("sop_instance_uid_reused"),
    exists()
    .where(
        _other_studies.c.study_instance_uid == studies.c.study_instance_uid,
        studies.c.study_instance_uid != "",
        _other_studies.c.study_key != studies.c.study_key,
    )
    .correlate(studies)
    .label("study_instance_uid_reused"),
    exists()
    .where(
        _other_patients.c.patient_id == patients.c.patient_id,
        patients.c.patient_id != "",
        _other_patients.c.issuer_of_patient_id == patients.c.issuer_of_patient_id,
        _other_patients.c.patient_key != patients.c.patient_key,
    )
    .correlate(patients)
    .label("patient_id_reused"),
)


class _Assigned(NamedTuple):
    """The identity of an instance, the keys of its study and patient, and the hash of the statement of its last upload.

    `exists` is False if there is no instance yet; one whose identity a person removed has no study.
    """

    identity: Identity = Identity()
    study_key: str | None = None
    patient_key: str | None = None
    statement_sha256: str = ""
    exists: bool = False


def assign_identity(connection: Connection, pixel_sha256: str, stated: Identity | None) -> list[str]:
    """Assign an uploaded image to its patient and study, and return the names of the fields that changed; none for a new image.

    An upload that states the same as the one before changes nothing, so that it does not undo a person's correction.

    Args:
        connection: Of a write transaction.
        pixel_sha256: Of the image.
        stated: What the upload states; None states nothing. Fields that are not stated keep their values, unless the patient or
            the study is another one.
    """
    current = _current(connection, pixel_sha256)
    if stated is None or not stated.stated():
        return []
    statement_sha256 = hashlib.sha256(json.dumps(dataclasses.astuple(stated)).encode()).hexdigest()
    if statement_sha256 == current.statement_sha256:
        return []
    identity = _merge(current.identity, stated)
    patient_key = _find_or_add_patient(connection, identity, current)
    study_key = _find_or_add_study(connection, identity, patient_key, current)
    return _store(connection, pixel_sha256, identity, current, study_key, statement_sha256)


def replace_identity(connection: Connection, pixel_sha256: str, identity: Identity) -> list[str]:
    """Replace the identity of an image by that of a person, and return the names of the fields that changed.

    Args:
        connection: Of a write transaction.
        pixel_sha256: Of the image.
        identity: The complete identity. With the patient ID and issuer of before, it corrects the patient; otherwise the image
            belongs to another one.
    """
    current = _current(connection, pixel_sha256)
    if not identity.stated():  # the statement of the last upload stays, so that it does not count again
        return _store(connection, pixel_sha256, identity, current, None, current.statement_sha256)
    patient_key = _find_or_add_patient(connection, identity, current, complete=True)
    study_key = _find_or_add_study(connection, identity, patient_key, current, complete=True)
    return _store(connection, pixel_sha256, identity, current, study_key, current.statement_sha256)


def _store(
    connection: Connection,
    pixel_sha256: str,
    identity: Identity,
    current: _Assigned,
    study_key: str | None,
    statement_sha256: str,
) -> list[str]:
    """Store the instance, and return the names of the fields that changed; none for a new one."""
    values = {"study_key": study_key, "statement_sha256": statement_sha256, **_values(identity, _INSTANCE)}
    if not current.exists:
        connection.execute(insert(instances), [{"pixel_sha256": pixel_sha256, **values}])
        return []
    connection.execute(update(instances).where(instances.c.pixel_sha256 == pixel_sha256).values(values))
    _delete_empty(connection, {current.study_key} - {None}, {current.patient_key} - {None})
    after = _current(connection, pixel_sha256).identity
    return [name for name in IDENTITY_FIELDS if getattr(after, name) != getattr(current.identity, name)]


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
    connection.execute(delete(instances).where(condition))
    _delete_empty(connection, {row.study_key for row in rows}, {row.patient_key for row in rows} - {None})


def _delete_empty(
    connection: Connection, study_keys: Collection[str | None], patient_keys: Collection[str | None]
) -> None:
    """Delete those of the studies that have no instance, and those of the patients that have no study."""
    unused_study = ~exists().where(instances.c.study_key == studies.c.study_key)
    connection.execute(delete(studies).where(studies.c.study_key.in_(study_keys), unused_study))
    unused_patient = ~exists().where(studies.c.patient_key == patients.c.patient_key)
    connection.execute(delete(patients).where(patients.c.patient_key.in_(patient_keys), unused_patient))


def matches_search(words: Sequence[Sequence[str]]) -> ColumnElement[bool]:
    """Return the condition that a form of each word is part of a name, a number, or the name of the file.

    Args:
        words: Forms of each word.
    """
    columns = patients.c.patient_search, studies.c.study_search
    condition: ColumnElement[bool] = predictions.c.id.is_not(None)
    for forms in words:
        condition &= or_(
            *(column.contains(form, autoescape=True) for form in forms for column in columns),
            *(predictions.c.path.icontains(form, autoescape=True) for form in forms),
        )
    return condition


def _current(connection: Connection, pixel_sha256: str) -> _Assigned:
    joined = instances.outerjoin(studies).outerjoin(patients)
    query = select(*IDENTITY_COLUMNS, instances.c.statement_sha256).select_from(joined)
    row = connection.execute(query.where(instances.c.pixel_sha256 == pixel_sha256)).mappings().first()
    if row is None:
        return _Assigned()
    identity = Identity(**{name: row[name] or "" for name in IDENTITY_FIELDS})
    return _Assigned(identity, row["study_key"], row["patient_key"], row["statement_sha256"], exists=True)


def _merge(current: Identity, stated: Identity) -> Identity:
    """Return the current identity with the stated fields; another patient or study keeps nothing of the former one."""
    kept = dataclasses.asdict(current)
    if not is_same_person(stated, current) or _is_changed(current, stated, ("patient_id", "issuer_of_patient_id")):
        kept |= dict.fromkeys(PATIENT_FIELDS, "")
    if _is_changed(current, stated, ("study_instance_uid", "accession_number")):
        kept |= dict.fromkeys(STUDY_FIELDS, "")
    return Identity(**kept | stated.stated())


def _is_changed(current: Identity, stated: Identity, names: Sequence[str]) -> bool:
    """Return whether one of the fields has a value, and another one is stated."""
    return any(getattr(current, name) and getattr(stated, name) not in ("", getattr(current, name)) for name in names)


def _find_or_add_patient(
    connection: Connection, identity: Identity, current: _Assigned, *, complete: bool = False
) -> str | None:
    """Return the key of the patient, whose row then has the stated values; None if nothing is stated."""
    values = _values(identity, PATIENT_FIELDS)
    if not any(values.values()):
        return None
    same_number = [patients.c[name] == values[name] for name in ("patient_id", "issuer_of_patient_id")]
    if not identity.patient_id:
        same_number.append(_is_in_study(identity, current))
    # The current patient first: the name and the birth date may be corrected.
    is_current = patients.c.patient_key == current.patient_key
    query = select(patients).where(*same_number).order_by(case((is_current, 0), else_=1), patients.c.patient_key)
    matching = [
        row
        for row in connection.execute(query)
        if (complete and row.patient_key == current.patient_key)
        or is_same_person(Identity(**{name: getattr(row, name) for name in PATIENT_FIELDS}), identity)
    ]
    # Of several others, none is certain.
    is_certain = len(matching) == 1 or (matching and matching[0].patient_key == current.patient_key)
    found = matching[0] if is_certain else None
    if found is None:
        key = uuid.uuid4().hex
        values["patient_search"] = _patient_search_text(identity.patient_name, identity.patient_id)
        connection.execute(insert(patients), [{"patient_key": key, **values}])
        return key
    values = _update(found, values, is_current=found.patient_key == current.patient_key, complete=complete)
    values["patient_search"] = _patient_search_text(values["patient_name"], values["patient_id"])
    connection.execute(update(patients).where(patients.c.patient_key == found.patient_key).values(values))
    return str(found.patient_key)


def _is_in_study(identity: Identity, current: _Assigned) -> ColumnElement[bool]:
    """Return the condition that a patient without a number is the current one, or has a study with this UID or number."""
    condition = patients.c.patient_key == current.patient_key
    for name in ("study_instance_uid", "accession_number"):
        if value := getattr(identity, name):
            condition |= patients.c.patient_key.in_(select(studies.c.patient_key).where(studies.c[name] == value))
    return condition


def _find_or_add_study(
    connection: Connection, identity: Identity, patient_key: str | None, current: _Assigned, *, complete: bool = False
) -> str:
    """Return the key of the study, whose row then has the stated values."""
    values = _values(identity, STUDY_FIELDS)
    owner = studies.c.patient_key.is_(None) if patient_key is None else studies.c.patient_key == patient_key
    conditions: list[ColumnElement[bool]] | None = None
    if identity.study_instance_uid:
        if patient_key:  # the first header with the patient
            owner |= studies.c.patient_key.is_(None)
        elif not complete:  # a header without the patient, if the patient is certain
            owner = studies.c.study_key.is_not(None)
        conditions = [studies.c.study_instance_uid == identity.study_instance_uid, owner]
    elif identity.accession_number:
        conditions = [studies.c.accession_number == identity.accession_number, owner]
    elif patient_key and identity.study_date:
        same_day = studies.c.study_date == identity.study_date, studies.c.study_instance_uid == ""
        conditions = [*same_day, studies.c.accession_number == "", owner]
    elif current.study_key and current.patient_key == patient_key:
        conditions = [studies.c.study_key == current.study_key]
    found = [] if conditions is None else connection.execute(select(studies).where(*conditions)).all()
    found = [row for row in found if row.patient_key == patient_key] or found
    if len(found) != 1:
        key = uuid.uuid4().hex
        values["study_search"] = _search_text(identity.accession_number)
        connection.execute(insert(studies), [{"study_key": key, "patient_key": patient_key, **values}])
        return key
    values = _update(found[0], values, is_current=found[0].study_key == current.study_key, complete=complete)
    values["study_search"] = _search_text(values["accession_number"])
    owner_key = patient_key or found[0].patient_key
    query = update(studies).where(studies.c.study_key == found[0].study_key)
    connection.execute(query.values(values | {"patient_key": owner_key}))
    return str(found[0].study_key)


def _update(row: Row[Any], values: dict[str, str], *, is_current: bool, complete: bool) -> dict[str, str]:
    """Return the values of a patient or study after a statement about an image.

    A person may empty those of the image's own patient or study, and a header may change them. Of others, only empty ones are
    filled: an image does not rename the patient of others.
    """
    if is_current and complete:
        return values
    stated = {name: value or getattr(row, name) for name, value in values.items()}
    return stated if is_current else {name: getattr(row, name) or value for name, value in values.items()}


def _values(identity: Identity, names: Sequence[str]) -> dict[str, str]:
    return {name: getattr(identity, name) for name in names}


def _patient_search_text(name: str, id: str) -> str:
    return " ".join([*name_search_words(name), *search_words(id)])


def _search_text(*values: str) -> str:
    """Return the words of values, for `matches_search`."""
    return " ".join(word for value in values for word in search_words(value))
