"""Rows of patients and studies: find or add those of an identity, and delete those without references.

`identities` describes the rules for matching.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, delete, exists, insert, select, update

from pneumoscope.core.identity import (
    PATIENT_FIELDS,
    STUDY_FIELDS,
    Identity,
    is_same_person,
    name_search_words,
    search_words,
)
from pneumoscope.service.storage.tables import instances, patients, studies

__all__ = ["delete_empty", "find_or_add_patient", "find_or_add_study"]


def find_or_add_patient(
    connection: Connection, identity: Identity, current_patient: str | None, *, complete: bool = False
) -> str | None:
    """Return the key of the patient, after adding or updating the row; None if the identity contains no patient.

    Args:
        connection: Connection in a write transaction.
        identity: The identity.
        current_patient: Key of the image's current patient, if any.
        complete: Whether empty fields remove values.
    """
    values = _values(identity, PATIENT_FIELDS)
    if not any(values.values()):
        return None
    same_number = [patients.c[name] == values[name] for name in ("patient_id", "issuer_of_patient_id")]
    if not identity.patient_id:
        same_number.append(_is_in_study(identity, current_patient))
    # The current patient first, since the name and the birth date may be corrected.
    is_current = patients.c.patient_key == current_patient
    query = select(patients).where(*same_number).order_by(case((is_current, 0), else_=1), patients.c.patient_key)
    matching = [
        row
        for row in connection.execute(query)
        if (complete and row.patient_key == current_patient)
        or is_same_person(Identity(**{name: getattr(row, name) for name in PATIENT_FIELDS}), identity)
    ]
    # Several matches other than the current patient are ambiguous.
    is_certain = len(matching) == 1 or (matching and matching[0].patient_key == current_patient)
    found = matching[0] if is_certain else None
    if found is None:
        key = uuid.uuid4().hex
        values["patient_search"] = _patient_search_text(identity.patient_name, identity.patient_id)
        connection.execute(insert(patients), [{"patient_key": key, **values}])
        return key
    values = _update(found, values, is_current=found.patient_key == current_patient, complete=complete)
    values["patient_search"] = _patient_search_text(values["patient_name"], values["patient_id"])
    connection.execute(update(patients).where(patients.c.patient_key == found.patient_key).values(values))
    return str(found.patient_key)


def _is_in_study(identity: Identity, current_patient: str | None) -> ColumnElement[bool]:
    """Return the condition that a patient without an identifier is the current one, or has a study with this UID or number."""
    condition = patients.c.patient_key == current_patient
    for name in ("study_instance_uid", "accession_number"):
        if value := getattr(identity, name):
            condition |= patients.c.patient_key.in_(select(studies.c.patient_key).where(studies.c[name] == value))
    return condition


def find_or_add_study(
    connection: Connection,
    identity: Identity,
    patient_key: str | None,
    current_study: str | None,
    current_patient: str | None,
    *,
    complete: bool = False,
) -> str:
    """Return the key of the study, after adding or updating the row.

    Args:
        connection: Connection in a write transaction.
        identity: The identity.
        patient_key: Key of its patient; see `find_or_add_patient`.
        current_study, current_patient: Keys of the image's current study and patient, if any.
        complete: Whether empty fields remove values.
    """
    values = _values(identity, STUDY_FIELDS)
    owner = studies.c.patient_key.is_(None) if patient_key is None else studies.c.patient_key == patient_key
    conditions: list[ColumnElement[bool]] | None = None
    if identity.study_instance_uid:
        if patient_key:  # this may be the first header that names the patient
            owner |= studies.c.patient_key.is_(None)
        elif not complete:  # a header without a patient, if the study is unambiguous
            owner = studies.c.study_key.is_not(None)
        conditions = [studies.c.study_instance_uid == identity.study_instance_uid, owner]
    elif identity.accession_number:
        conditions = [studies.c.accession_number == identity.accession_number, owner]
    elif patient_key and identity.study_date:
        same_day = studies.c.study_date == identity.study_date, studies.c.study_instance_uid == ""
        conditions = [*same_day, studies.c.accession_number == "", owner]
    elif current_study and current_patient == patient_key:
        conditions = [studies.c.study_key == current_study]
    found = [] if conditions is None else connection.execute(select(studies).where(*conditions)).all()
    found = [row for row in found if row.patient_key == patient_key] or found
    if len(found) != 1:
        key = uuid.uuid4().hex
        values["study_search"] = _search_text(identity.accession_number)
        connection.execute(insert(studies), [{"study_key": key, "patient_key": patient_key, **values}])
        return key
    values = _update(found[0], values, is_current=found[0].study_key == current_study, complete=complete)
    values["study_search"] = _search_text(values["accession_number"])
    owner_key = patient_key or found[0].patient_key
    query = update(studies).where(studies.c.study_key == found[0].study_key)
    connection.execute(query.values(values | {"patient_key": owner_key}))
    return str(found[0].study_key)


def _update(row: Row[Any], values: dict[str, str], *, is_current: bool, complete: bool) -> dict[str, str]:
    """Return the updated values of a patient or study.

    A header may change values of the image's own patient or study, and a person may also remove them. For others, only
    missing values are added, so that an image cannot rename the patient of other images.
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
    """Return the search words of values, for `matches_search`."""
    return " ".join(word for value in values for word in search_words(value))


def delete_empty(
    connection: Connection, study_keys: Collection[str | None], patient_keys: Collection[str | None]
) -> None:
    """Delete the given studies without instances and the given patients without studies."""
    unused_study = ~exists().where(instances.c.study_key == studies.c.study_key)
    connection.execute(delete(studies).where(studies.c.study_key.in_(study_keys), unused_study))
    unused_patient = ~exists().where(studies.c.patient_key == patients.c.patient_key)
    connection.execute(delete(patients).where(patients.c.patient_key.in_(patient_keys), unused_patient))
