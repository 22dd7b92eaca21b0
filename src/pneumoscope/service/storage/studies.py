"""Studies: the decision for all images of a study, and the studies of a patient."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import get_args

from sqlalchemy import ColumnElement, Connection

from pneumoscope.core.identity import PATIENT_FIELDS, STUDY_FIELDS, ConflictCode, Identity
from pneumoscope.core.prediction_codes import Decision, RejectionCode
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.stored_predictions import read_stored, select_stored
from pneumoscope.service.storage.tables import instances, predictions, studies

__all__ = ["Study", "find_studies", "find_studies_of_patients", "latest_images", "sorted_studies", "summarize_study"]

_BY_SUSPICION: tuple[Decision, ...] = ("pneumonia", "uncertain", "no_pneumonia")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Study:
    """A study and the decision for its images.

    Attributes:
        study_key: Key of the study.
        patient_key: Key of the patient; None if the patient is unknown.
        identity: Patient and study; the image fields are empty.
        created: Time of the first prediction, ISO 8601 in UTC.
        images: Number of images.
        decision: Decision for the most suspicious frontal image: pneumonia before uncertain before no pneumonia, then
            by probability. "rejected" if all images are rejected.
        probability: Probability for that image; None if all images are rejected.
        prediction_id: Id of that prediction, or of the latest one if all images are rejected.
        rejections: Number of rejected images by code.
        reviewed: Number of images with a review.
        conflicts: Conflicts of the images.
    """

    study_key: str
    patient_key: str | None
    identity: Identity
    created: str
    images: int
    decision: Decision
    probability: float | None
    prediction_id: str
    rejections: dict[RejectionCode, int]
    reviewed: int
    conflicts: tuple[ConflictCode, ...] = ()


def latest_images(stored: Sequence[StoredPrediction]) -> list[StoredPrediction]:
    """Return the current prediction of each image among a study's predictions, in chronological order."""
    # If it is unknown under which patient's header predictions were made, their times are equal. A rejection then wins,
    # so that no patient gets another patient's decision.
    in_order = sorted(stored, key=lambda each: (each.last_predicted, each.decision == "rejected"))
    latest = {each.image_key: each for each in in_order}
    return sorted(latest.values(), key=lambda each: (each.created, each.id))


def summarize_study(stored: Sequence[StoredPrediction]) -> Study:
    """Return the study to which all these predictions belong; for each image, the current prediction counts.

    Raises:
        ValueError: There are no predictions, or they have no study.
    """
    if not stored or stored[0].study_key is None:
        raise ValueError("no prediction of a study")
    current = latest_images(stored)
    frontal = [each for each in current if each.decision in _BY_SUSPICION]
    shown = min(frontal, key=_suspicion) if frontal else max(current, key=lambda each: each.last_predicted)
    identity = shown.identity or Identity()
    codes = Counter(each.rejection.code for each in current if each.rejection)
    assert shown.decision
    return Study(
        study_key=stored[0].study_key,
        patient_key=stored[0].patient_key,
        identity=Identity(**{name: getattr(identity, name) for name in (*PATIENT_FIELDS, *STUDY_FIELDS)}),
        created=min(each.created for each in stored),
        images=len(current),
        decision=shown.decision,
        probability=shown.probability,
        prediction_id=shown.id,
        rejections=dict(codes.most_common()),
        reviewed=sum(bool(each.reviews) for each in current),
        conflicts=tuple(code for code in get_args(ConflictCode) if any(code in each.conflicts for each in current)),
    )


def sorted_studies(studies: Mapping[str, Sequence[StoredPrediction]]) -> list[Study]:
    """Return the studies of predictions by key, latest first: by study date, or else by the time of the first prediction."""
    found = [summarize_study(stored) for stored in studies.values()]
    return sorted(
        found, key=lambda study: (study.identity.study_date or study.created[:10], study.created), reverse=True
    )


def _suspicion(prediction: StoredPrediction) -> tuple[int, float]:
    assert prediction.decision
    return _BY_SUSPICION.index(prediction.decision), -(prediction.probability or 0.0)


def find_studies(connection: Connection, keys: Collection[str]) -> dict[str, list[StoredPrediction]]:
    """Return the predictions of studies by study key, oldest first; keys without a study are missing.

    An image of several patients appears in a study of each, with that patient's identity and predictions.
    """
    return _by_study(connection, instances.c.study_key.in_(keys))


def find_studies_of_patients(connection: Connection, keys: Collection[str]) -> dict[str, list[StoredPrediction]]:
    """Return the predictions of all studies of patients by study key, oldest first."""
    return _by_study(connection, studies.c.patient_key.in_(keys))


def _by_study(connection: Connection, condition: ColumnElement[bool]) -> dict[str, list[StoredPrediction]]:
    query = select_stored(of_patients=True).where(condition).order_by(predictions.c.created, predictions.c.id)
    found: defaultdict[str, list[StoredPrediction]] = defaultdict(list)
    for prediction in read_stored(connection, query):
        assert prediction.study_key
        found[prediction.study_key].append(prediction)
    return dict(found)
