"""Select the identities of images, their conflicts, and what a search finds; see `identities`."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, exists, or_, select

from pneumoscope.core.identity import IDENTITY_FIELDS, PATIENT_FIELDS, STUDY_FIELDS, Identity
from pneumoscope.service.storage.tables import instances, patients, predictions, studies

__all__ = [
    "ASSIGNED",
    "CONFLICT_COLUMNS",
    "IDENTITY_COLUMNS",
    "INSTANCE_FIELDS",
    "IS_ASSIGNED",
    "OtherIdentity",
    "find_identities",
    "has_other_patient",
    "matches_search",
    "read_identity",
    "select_instances",
]

INSTANCE_FIELDS = ("series_instance_uid", "sop_instance_uid", "station_name")
ASSIGNED = 0  # number of the identity of an image among its instances
IS_ASSIGNED: ColumnElement[bool] = instances.c.number == ASSIGNED

_other_patients, _other_studies, _other_instances = patients.alias(), studies.alias(), instances.alias()
# Columns of a prediction that is joined with its instance, study and patient.
IDENTITY_COLUMNS: tuple[ColumnElement[str], ...] = (
    studies.c.patient_key,
    instances.c.study_key,
    *(patients.c[name] for name in PATIENT_FIELDS),
    *(studies.c[name] for name in STUDY_FIELDS),
    *(instances.c[name] for name in INSTANCE_FIELDS),
)
CONFLICT_COLUMNS: tuple[ColumnElement[bool], ...] = (
    exists()
    .where(
        _other_instances.c.pixel_sha256 == instances.c.pixel_sha256,
        _other_instances.c.study_key != instances.c.study_key,
    )
    .correlate(instances)
    .label("image_of_two_patients"),
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OtherIdentity:
    """Identity of another patient, under which the pixels of an image were received as well.

    Attributes:
        identity: Patient, study, series and instance.
        study_key: Key of the study.
        patient_key: Key of the patient.
    """

    identity: Identity
    study_key: str
    patient_key: str | None


def find_identities(connection: Connection, hashes: Collection[str]) -> dict[str, tuple[OtherIdentity, ...]]:
    """Return all identities of images that have several, that of the image first, by the hash of the pixels."""
    found: defaultdict[str, list[OtherIdentity]] = defaultdict(list)
    query = select_instances().where(instances.c.pixel_sha256.in_(hashes), instances.c.study_key.is_not(None))
    for row in connection.execute(query).mappings():
        identity = OtherIdentity(
            identity=read_identity(row), study_key=row["study_key"], patient_key=row["patient_key"]
        )
        found[row["pixel_sha256"]].append(identity)
    return {sha256: tuple(each) for sha256, each in found.items() if len(each) > 1}


def has_other_patient(connection: Connection, hashes: Select[Any]) -> bool:
    """Return whether an image among those with these hashes of pixels is that of several patients."""
    query = select(instances.c.pixel_sha256).where(instances.c.pixel_sha256.in_(hashes), CONFLICT_COLUMNS[0])
    return connection.execute(query.limit(1)).first() is not None


def matches_search(words: Sequence[Sequence[str]]) -> ColumnElement[bool]:
    """Return the condition that a form of each word is part of a name, a number, or the name of the file.

    Words that are part of the identity of another patient count as well, see `OtherIdentity`, but those of two are not mixed.

    Args:
        words: Forms of each word.
    """
    joined = _other_instances.join(_other_studies, _other_instances.c.study_key == _other_studies.c.study_key)
    joined = joined.outerjoin(_other_patients, _other_studies.c.patient_key == _other_patients.c.patient_key)
    other = select(_other_instances.c.number).select_from(joined).where(
        _other_instances.c.pixel_sha256 == predictions.c.pixel_sha256,
        _other_instances.c.number != ASSIGNED,
        _matches(words, _other_patients.c.patient_search, _other_studies.c.study_search),
    )  # fmt: skip
    own = _matches(words, patients.c.patient_search, studies.c.study_search)
    return or_(own, other.correlate(predictions).exists())


def _matches(words: Sequence[Sequence[str]], *columns: ColumnElement[str]) -> ColumnElement[bool]:
    found = [
        or_(
            *(column.contains(form, autoescape=True) for form in forms for column in columns),
            *(predictions.c.path.icontains(form, autoescape=True) for form in forms),
        )
        for forms in words
    ]
    return and_(predictions.c.id.is_not(None), *found)


def select_instances() -> Select[Any]:
    """Select the instances of images with their identities, that of the image first; see `read_identity`."""
    columns = (instances.c.pixel_sha256, instances.c.number, instances.c.statement_sha256, *IDENTITY_COLUMNS)
    joined = instances.outerjoin(studies).outerjoin(patients)
    return select(*columns).select_from(joined).order_by(instances.c.pixel_sha256, instances.c.number)


def read_identity(row: RowMapping | Mapping[str, Any]) -> Identity:
    """Return the identity in a row with `IDENTITY_COLUMNS`."""
    return Identity(**{name: row[name] or "" for name in IDENTITY_FIELDS})
