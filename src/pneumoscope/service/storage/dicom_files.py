"""Find the stored DICOM files available through DICOMweb: those whose identity contains study, series and instance UIDs."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, BinaryIO, NamedTuple

from sqlalchemy import ColumnElement, Engine, Select, func, select

from pneumoscope.core.errors import GoneError
from pneumoscope.service.storage.blob_store import BlobStore
from pneumoscope.service.storage.database import read_transaction
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.stored_predictions import read_stored, select_stored
from pneumoscope.service.storage.tables import instances, outbox, patients, predictions, studies

__all__ = ["DicomFiles", "PredictedFile", "StudyFilter"]

_IS_OFFERED = (
    predictions.c.format == "DICOM",
    predictions.c.image_removed.is_(None),
    studies.c.study_instance_uid != "",
    instances.c.series_instance_uid != "",
    instances.c.sop_instance_uid != "",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class StudyFilter:
    """Conditions on studies; empty values impose none.

    Attributes:
        study_uids: Accepted Study Instance UIDs.
        patient_id, accession_number: Exact values.
        patient_words: Each must be part of a word of `core.identity.name_search_words`.
        first_date, last_date: Range of study dates, inclusive, ISO 8601.
    """

    study_uids: tuple[str, ...] = ()
    patient_id: str = ""
    accession_number: str = ""
    patient_words: tuple[str, ...] = ()
    first_date: str = ""
    last_date: str = ""

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions on the joined tables."""
        return [
            *([studies.c.study_instance_uid.in_(self.study_uids)] if self.study_uids else []),
            *([patients.c.patient_id == self.patient_id] if self.patient_id else []),
            *([studies.c.accession_number == self.accession_number] if self.accession_number else []),
            *(patients.c.patient_search.contains(word, autoescape=True) for word in self.patient_words),
            *([studies.c.study_date >= self.first_date] if self.first_date else []),
            *([studies.c.study_date <= self.last_date] if self.last_date else []),
        ]


class PredictedFile(NamedTuple):
    """Identifiers of a prediction and its file.

    Attributes:
        prediction_id: Id of the prediction.
        pixel_sha256: Pixel hash of the image, which may have several predictions.
        series_instance_uid, sop_instance_uid: UIDs of the file.
    """

    prediction_id: str
    pixel_sha256: str
    series_instance_uid: str
    sop_instance_uid: str


class DicomFiles:
    """The stored DICOM files of a service.

    Args:
        engine: Engine of the database.
        blobs: Store of the files.
    """

    def __init__(self, engine: Engine, blobs: BlobStore) -> None:
        self._engine, self._blobs = engine, blobs

    def study_uids(self, where: StudyFilter) -> list[str]:
        """Return the UIDs of the studies that meet all conditions, most recently received first.

        Raises:
            StorageError: The database cannot be read.
        """
        uid = studies.c.study_instance_uid
        joined = (
            predictions.join(instances, predictions.c.pixel_sha256 == instances.c.pixel_sha256)
            .join(studies)
            .outerjoin(patients)
        )
        query = select(uid).select_from(joined).where(*_IS_OFFERED, *where.conditions()).group_by(uid)
        with read_transaction(self._engine) as connection:
            return list(connection.execute(query.order_by(func.max(predictions.c.created).desc(), uid)).scalars())

    def predicted(self, study_uid: str) -> list[PredictedFile]:
        """Return the identifiers of a study's predictions and files, latest first; a file may have several predictions.

        Args:
            study_uid: Study Instance UID.
        Raises:
            StorageError: The database cannot be read.
        """
        columns = (
            predictions.c.id, predictions.c.pixel_sha256, instances.c.series_instance_uid, instances.c.sop_instance_uid,
        )  # fmt: skip
        with read_transaction(self._engine) as connection:
            rows = connection.execute(_of_studies([study_uid]).with_only_columns(*columns))
            return [PredictedFile(*row) for row in rows]

    def images(self, study_uids: Collection[str], *, series_uid: str = "", sop_uid: str = "") -> list[StoredPrediction]:
        """Return the predictions of the files in studies, latest first; a file may have several.

        Args:
            study_uids: Study Instance UIDs.
            series_uid, sop_uid: Series and SOP Instance UID of the files; empty for all.
        Raises:
            StorageError: The database cannot be read.
        """
        query = _of_studies(study_uids)
        if series_uid:
            query = query.where(instances.c.series_instance_uid == series_uid)
        if sop_uid:
            query = query.where(instances.c.sop_instance_uid == sop_uid)
        with read_transaction(self._engine) as connection:
            return read_stored(connection, query)

    def result_uids(self, prediction_ids: Collection[str]) -> dict[tuple[str, str, str], str]:
        """Return the UIDs of waiting or delivered results, by prediction id, SOP Instance UID of the image, and kind of object.

        Raises:
            StorageError: The database cannot be read.
        """
        columns = outbox.c.prediction_id, outbox.c.sop_instance_uid, outbox.c.kind, outbox.c.result_uid
        delivered = outbox.c.prediction_id.in_(prediction_ids), outbox.c.state.in_(("waiting", "delivered"))
        with read_transaction(self._engine) as connection:
            rows = connection.execute(select(*columns).where(*delivered).order_by(outbox.c.number))
            return {(row.prediction_id, row.sop_instance_uid, row.kind): row.result_uid for row in rows}

    def beginning(self, prediction: StoredPrediction, size: int) -> bytes:
        """Return the first bytes of a prediction's file; see `open`, but damage is not detected."""
        with self._open(prediction, check=False) as file:
            return file.read(size)

    def open(self, prediction: StoredPrediction) -> BinaryIO:
        """Return the file of a prediction; the caller must close it.

        Raises:
            GoneError: The file was removed.
            StorageError: The file is unreadable or damaged.
        """
        return self._open(prediction, check=True)

    def _open(self, prediction: StoredPrediction, *, check: bool) -> BinaryIO:
        file = self._blobs.open(prediction.image_sha256, check=check)
        if file is None:
            raise GoneError(f"the image of prediction {prediction.id!r} was removed", hint="The prediction is kept")
        return file


def _of_studies(study_uids: Collection[str]) -> Select[Any]:
    """Select the predictions of the files in studies, latest first; see `select_stored`."""
    query = select_stored().where(*_IS_OFFERED, studies.c.study_instance_uid.in_(study_uids))
    return query.order_by(predictions.c.last_predicted.desc(), predictions.c.id)
