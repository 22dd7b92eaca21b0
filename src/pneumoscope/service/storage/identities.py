"""Patients, studies and instances: assign images to them, and find what belongs together.

An instance is an image, identified by its pixels; a study belongs to one patient. Keys are random, so that URLs and logs may
contain them; the identifiers of the hospital may be reused or mistyped, so none of them is a key:

- A patient is found by identifier and issuer, unless name and birth date contradict. One without an identifier is found within
  its study.
- A study is found by its UID, or else by its accession number or date, and its patient: a UID that two patients share does not
  mix them.

The latest statement about an image is kept. Rows that nothing refers to are deleted.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, case, delete, exists, insert, or_, select, update

from pneumoscope.core.identity import IDENTITY_FIELDS, PATIENT_FIELDS, STUDY_FIELDS, Identity, search_words
from pneumoscope.service.storage.tables import instances, patients, predictions, studies

__all__ = [
    "CONFLICT_COLUMNS",
    "IDENTITY_COLUMNS",
    "assign_identity",
    "matches_search",
    "remove_identity",
    "remove_unused_identity",
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
    """The identity of an instance, and the keys of its study and patient; None if it has none yet."""

    identity: Identity
    study_key: str | None
    patient_key: str | None


def assign_identity(
    connection: Connection, pixel_sha256: str, stated: Identity | None, *, complete: bool = False
) -> list[str]:
    """Assign an image to its patient and study, and return the names of the fields that changed; none for a new image.

    Args:
        connection: Of a write transaction.
        pixel_sha256: Of the image.
        stated: What a header or a person states; None states nothing.
        complete: Whether empty fields are stated to be empty. Otherwise they keep their values, unless the patient or the study
            is another one.
    """
    current = _current(connection, pixel_sha256)
    if stated is None or not (stated.stated() or complete):
        return []
    identity = stated if complete else _merge(current.identity, stated)
    changed = [name for name in IDENTITY_FIELDS if getattr(identity, name) != getattr(current.identity, name)]
    if not changed:
        return []
    if not identity.stated():
        remove_identity(connection, [pixel_sha256])
        return changed
    patient_key = _find_or_add_patient(connection, identity, current)
    study_key = _find_or_add_study(connection, identity, patient_key, current)
    values = {"study_key": study_key, **_values(identity, _INSTANCE)}
    if current.study_key is None:
        connection.execute(insert(instances), [{"pixel_sha256": pixel_sha256, **values}])
        return []
    connection.execute(update(instances).where(instances.c.pixel_sha256 == pixel_sha256).values(values))
    _delete_empty(connection, {current.study_key}, {current.patient_key} - {None})
    return changed


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


def _delete_empty(connection: Connection, study_keys: Collection[str], patient_keys: Collection[str | None]) -> None:
    """Delete those of the studies that have no instance, and those of the patients that have no study."""
    unused_study = ~exists().where(instances.c.study_key == studies.c.study_key)
    connection.execute(delete(studies).where(studies.c.study_key.in_(study_keys), unused_study))
    unused_patient = ~exists().where(studies.c.patient_key == patients.c.patient_key)
    connection.execute(delete(patients).where(patients.c.patient_key.in_(patient_keys), unused_patient))


def matches_search(words: Sequence[str]) -> ColumnElement[bool]:
    """Return the condition that each word is part of a patient's name or identifier, an accession number, or a file name."""
    condition: ColumnElement[bool] = predictions.c.id.is_not(None)
    for word in words:
        condition &= or_(
            patients.c.patient_search.contains(word, autoescape=True),
            studies.c.study_search.contains(word, autoescape=True),
            predictions.c.path.icontains(word, autoescape=True),
        )
    return condition


def _current(connection: Connection, pixel_sha256: str) -> _Assigned:
    joined = instances.join(studies).outerjoin(patients)
    query = select(*IDENTITY_COLUMNS).select_from(joined).where(instances.c.pixel_sha256 == pixel_sha256)
    row = connection.execute(query).mappings().first()
    if row is None:
        return _Assigned(Identity(), None, None)
    return _Assigned(
        Identity(**{name: row[name] or "" for name in IDENTITY_FIELDS}), row["study_key"], row["patient_key"]
    )


def _merge(current: Identity, stated: Identity) -> Identity:
    """Return the current identity with the stated fields; another patient or study keeps nothing of the former one."""
    kept = dataclasses.asdict(current)
    for names, identifiers in ((PATIENT_FIELDS, PATIENT_FIELDS[:2]), (STUDY_FIELDS, STUDY_FIELDS[:2])):
        if any(getattr(stated, name) not in ("", kept[name]) for name in identifiers):
            kept |= dict.fromkeys(names, "")
    return Identity(**kept | stated.stated())


def _find_or_add_patient(connection: Connection, identity: Identity, current: _Assigned) -> str | None:
    """Return the key of the patient, whose row then has the stated values; None if nothing is stated."""
    values = _values(identity, PATIENT_FIELDS)
    if not any(values.values()):
        return None
    query = select(patients)
    if identity.patient_id:
        query = query.where(
            patients.c.patient_id == identity.patient_id,
            patients.c.issuer_of_patient_id == identity.issuer_of_patient_id,
        )
        # The current patient first: its name and birth date may be corrected.
        query = query.order_by(
            case((patients.c.patient_key == current.patient_key, 0), else_=1), patients.c.patient_key
        )
        found = next((row for row in connection.execute(query) if _may_be_same(row, identity)), None)
    else:
        found = connection.execute(query.where(patients.c.patient_id == "", _is_in_study(identity, current))).first()
    values["patient_search"] = _search_text(identity.patient_name, identity.patient_id)
    if found is None:
        key = uuid.uuid4().hex
        connection.execute(insert(patients), [{"patient_key": key, **values}])
        return key
    stated = {name: value for name, value in values.items() if value or found.patient_key == current.patient_key}
    stated["patient_search"] = _search_text(stated.get("patient_name", found.patient_name), identity.patient_id)
    connection.execute(update(patients).where(patients.c.patient_key == found.patient_key).values(stated))
    return str(found.patient_key)


def _is_in_study(identity: Identity, current: _Assigned) -> ColumnElement[bool]:
    """Return the condition that a patient without identifier is the current one, or has this name in the study."""
    condition = patients.c.patient_key == current.patient_key
    if not identity.study_instance_uid:
        return condition
    in_study = select(studies.c.patient_key).where(studies.c.study_instance_uid == identity.study_instance_uid)
    return condition | and_(
        patients.c.patient_key.in_(in_study),
        patients.c.patient_name == identity.patient_name,
        patients.c.patient_birth_date == identity.patient_birth_date,
    )


def _may_be_same(row: Row[tuple[str, ...]], identity: Identity) -> bool:
    """Return whether two patients with one identifier may be one person: not if no name and no birth date is the same."""
    names = set(search_words(row.patient_name)), set(search_words(identity.patient_name))
    dates = row.patient_birth_date, identity.patient_birth_date
    return not all(names) or bool(names[0] & names[1]) or (dates[0] == dates[1] != "")


def _find_or_add_study(connection: Connection, identity: Identity, patient_key: str | None, current: _Assigned) -> str:
    """Return the key of the study, whose row then has the stated values."""
    values = _values(identity, STUDY_FIELDS) | {"study_search": _search_text(identity.accession_number)}
    owner = studies.c.patient_key.is_(None) if patient_key is None else studies.c.patient_key == patient_key
    conditions: list[ColumnElement[bool]] | None = None
    if identity.study_instance_uid:
        # A header without a patient, or the first one with it, joins the study.
        owner = owner | studies.c.patient_key.is_(None) if patient_key else studies.c.study_key.is_not(None)
        conditions = [studies.c.study_instance_uid == identity.study_instance_uid, owner]
    elif identity.accession_number:
        conditions = [studies.c.accession_number == identity.accession_number, owner]
    elif patient_key and identity.study_date:
        same_day = studies.c.study_date == identity.study_date, studies.c.study_instance_uid == ""
        conditions = [*same_day, studies.c.accession_number == "", owner]
    elif current.study_key and current.patient_key == patient_key:
        conditions = [studies.c.study_key == current.study_key]
    found = None if conditions is None else connection.execute(select(studies).where(*conditions)).first()
    if found is None:
        key = uuid.uuid4().hex
        connection.execute(insert(studies), [{"study_key": key, "patient_key": patient_key, **values}])
        return key
    stated = {name: value for name, value in values.items() if value or found.study_key == current.study_key}
    stated["patient_key"] = patient_key or found.patient_key
    connection.execute(update(studies).where(studies.c.study_key == found.study_key).values(stated))
    return str(found.study_key)


def _values(identity: Identity, names: Sequence[str]) -> dict[str, str]:
    return {name: getattr(identity, name) for name in names}


def _search_text(*values: str) -> str:
    """Return the words of values, for `matches_search`."""
    return " ".join(word for value in values for word in search_words(value))
