"""Queries for the identities of images, their conflicts, and searches; see `identities`."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, RowMapping, Select, and_, exists, func, or_, select

from pneumoscope.core.identity import IDENTITY_FIELDS, PATIENT_FIELDS, STUDY_FIELDS, Identity
from pneumoscope.service.storage.tables import header_predictions, instances, patients, predictions, studies

__all__ = [
    "ASSIGNED",
    "CONFLICT_COLUMNS",
    "IDENTITY_COLUMNS",
    "INSTANCE_FIELDS",
    "MAX_OTHERS",
    "OtherIdentity",
    "Others",
    "find_others",
    "has_other_patient",
    "matches_search",
    "others_of_study",
    "read_identity",
    "select_instances",
]

INSTANCE_FIELDS = ("series_instance_uid", "sop_instance_uid", "station_name")
MAX_OTHERS = 20  # other identities per document; a test image may arrive under another patient every day
ASSIGNED = 0  # number of the image's own identity among its instances

_other_patients, _other_studies, _other_instances = patients.alias(), studies.alias(), instances.alias()
# Columns of a prediction joined with its instance, study and patient.
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
    """The identity of another patient under which the pixels of an image were also received.

    Attributes:
        identity: Patient, study, series and instance.
        study_key: Key of the study.
        patient_key: Key of the patient.
    """

    identity: Identity
    study_key: str
    patient_key: str | None


class Others(NamedTuple):
    """The first identities of an image with several patients, starting with its own, and the total number."""

    identities: Sequence[OtherIdentity]
    total: int


def find_others(connection: Connection, hashes: Collection[str]) -> dict[str, Others]:
    """Return the identities of images by pixel hash; see `others_of_study`."""
    partition = instances.c.pixel_sha256
    place = func.row_number().over(partition_by=partition, order_by=instances.c.number).label("place")
    total = func.count().over(partition_by=partition).label("total")
    query = select_instances().add_columns(place, total)
    listed = query.where(partition.in_(hashes), instances.c.study_key.is_not(None)).order_by(None).subquery()
    rows = select(listed).where(listed.c.place <= MAX_OTHERS + 1).order_by(listed.c.pixel_sha256, listed.c.place)
    found: defaultdict[str, list[OtherIdentity]] = defaultdict(list)
    totals = {}
    for row in connection.execute(rows).mappings():
        totals[row["pixel_sha256"]] = row["total"]
        identity = OtherIdentity(
            identity=read_identity(row), study_key=row["study_key"], patient_key=row["patient_key"]
        )
        found[row["pixel_sha256"]].append(identity)
    return {sha256: Others(each, totals[sha256]) for sha256, each in found.items()}


def others_of_study(found: Others | None, study_key: str | None) -> tuple[Sequence[OtherIdentity], int]:
    """Return an image's identities outside a study, at most `MAX_OTHERS`, and their total number."""
    if found is None or found.total < 2:
        return (), 0
    others = [each for each in found.identities if each.study_key != study_key]
    return others[:MAX_OTHERS], found.total - 1


def has_other_patient(connection: Connection, hashes: Select[Any]) -> bool:
    """Return whether any image with one of these pixel hashes belongs to several patients."""
    query = select(instances.c.pixel_sha256).where(instances.c.pixel_sha256.in_(hashes), CONFLICT_COLUMNS[0])
    return connection.execute(query.limit(1)).first() is not None


def matches_search(words: Sequence[Sequence[str]]) -> ColumnElement[bool]:
    """Return the condition that a form of each word occurs in a name, a number or the file name.

    The words may instead occur in the identity of another patient under whose header the prediction was made, but
    identities of two patients are not combined.

    Args:
        words: Forms of each word.
    """
    joined = _other_instances.join(_other_studies, _other_instances.c.study_key == _other_studies.c.study_key)
    joined = joined.outerjoin(_other_patients, _other_studies.c.patient_key == _other_patients.c.patient_key)
    joined = joined.join(header_predictions, header_predictions.c.number == _other_instances.c.number)
    other = select(_other_instances.c.number).select_from(joined).where(
        _other_instances.c.pixel_sha256 == predictions.c.pixel_sha256,
        header_predictions.c.prediction_id == predictions.c.id,
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
    """Select the instances of images with their identities, that of the image itself first; see `read_identity`."""
    columns = (
        instances.c.pixel_sha256,
        instances.c.number,
        instances.c.statement_sha256,
        instances.c.entered_age,
        *IDENTITY_COLUMNS,
    )
    joined = instances.outerjoin(studies).outerjoin(patients)
    return select(*columns).select_from(joined).order_by(instances.c.pixel_sha256, instances.c.number)


def read_identity(row: RowMapping | Mapping[str, Any]) -> Identity:
    """Return the identity in a row with `IDENTITY_COLUMNS`."""
    return Identity(**{name: row[name] or "" for name in IDENTITY_FIELDS})
