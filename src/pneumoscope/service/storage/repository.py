"""Store predictions, reviews and images, with an audit log entry for each change.

`recovery` describes the order of writes, and how interrupted ones are completed or rolled back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import select

from pneumoscope.core.errors import ConflictError, GoneError, StorageError, UnknownNameError
from pneumoscope.core.identity import Identity
from pneumoscope.core.prediction import ModelInfo, Prediction
from pneumoscope.service.audit.log import append, prediction_entry
from pneumoscope.service.storage.additions import Addition, TransactionCallback, add_predictions
from pneumoscope.service.storage.blob_store import BLOBS
from pneumoscope.service.storage.current_prediction import (
    all_have_entered_age,
    assign_headers,
    mark_without_entered_age,
)
from pneumoscope.service.storage.database import close_database
from pneumoscope.service.storage.deletions import delete_predictions
from pneumoscope.service.storage.group_commit import GroupCommit
from pneumoscope.service.storage.identities import find_entered_age, has_entered_age, replace_identity
from pneumoscope.service.storage.image_storage import ImageStorage
from pneumoscope.service.storage.inbox import Inbox
from pneumoscope.service.storage.outbox import Outbox
from pneumoscope.service.storage.populations import PopulationRepository
from pneumoscope.service.storage.queries import (
    Filter,
    ImageCounts,
    Order,
    Page,
    PredictionStatistics,
    count_images,
    find_page,
    latest_statistics,
)
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.reviews import Label, Review, add_review, review_hash
from pneumoscope.service.storage.stored_predictions import has_image, read_one
from pneumoscope.service.storage.studies import find_studies, find_studies_of_patients
from pneumoscope.service.storage.tables import instances, predictions, studies
from pneumoscope.service.storage.unreadable import UnreadableFileRepository

__all__ = ["PredictionRepository"]


class PredictionRepository:
    """The predictions, reviews and images of a service.

    Opening it completes or rolls back interrupted writes; see `recovery`.

    Args:
        folder: The data directory; None stores everything in memory.
        database: URL of a PostgreSQL database; SQLite in the data directory if empty.
        now: Returns the current time; replaceable in tests.

    Attributes:
        storage: The database and the blob store.
        engine: Engine of the database.
        unreadable_files: Records of files that could not be read.
        populations: Populations of the models used by the service.
        inbox, outbox: Received DICOM instances to be predicted, and results to be delivered.

    Raises:
        StorageError, UsageError: See `ImageStorage`.
    """

    def __init__(
        self, folder: Path | None, database: str = "", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.storage = ImageStorage(folder, database, now=now)
        self.engine = self.storage.engine
        self._commits = GroupCommit(partial(add_predictions, self.storage), StorageError, name="group-commit")
        self.unreadable_files = UnreadableFileRepository(self.storage)
        self.populations = PopulationRepository(self.storage)
        self.outbox = Outbox(self.engine)
        self.inbox = Inbox(self.engine, folder, now=now, check=self.storage.directory.check)

    def close(self, timeout: float = 10) -> None:
        """Store what was submitted, waiting at most `timeout` seconds, and close the connections."""
        self.inbox.close(timeout)
        self._commits.close(timeout)
        close_database(self.engine)

    def add(self, prediction: Prediction, image: bytes, *, user: str) -> tuple[StoredPrediction, bool]:
        """Store a prediction and its image, and wait for the commit; see `submit`.

        Raises:
            StorageError: The prediction cannot be stored; nothing was changed.
        """
        return self.submit(prediction, image, user=user).result()

    def submit(
        self,
        prediction: Prediction,
        image: bytes,
        *,
        user: str,
        callback: TransactionCallback | None = None,
        earlier_id: str = "",
    ) -> Future[tuple[StoredPrediction, bool]]:
        """Store a prediction and its image, in one transaction with others submitted at the same time.

        Args:
            prediction: Prediction of a readable image.
            image: Bytes of the file.
            user: User for the audit log.
            callback: Makes further changes in the same transaction; it is called even if the prediction is not new.
            earlier_id: For a repeated prediction, id of the earlier one, whose patient the new one belongs to; empty
                for an upload.

        Returns:
            A future of the record and whether it is new. The first prediction for the same image, model, operating
            point and entered age is kept. The future may raise StorageError if nothing could be stored, or
            UnknownNameError if the earlier prediction was deleted in the meantime.
        """
        return self._commits.submit(Addition(prediction, image, user, callback, earlier_id))

    def get(self, id: str) -> StoredPrediction:
        """Return a prediction.

        Raises:
            UnknownNameError: There is no prediction with this id.
        """
        with self.storage.read_transaction() as connection:
            return read_one(connection, id)

    def entered_age(self, pixel_sha256: str, stated: Identity | None) -> float | None:
        """Return the age in years that was entered for the patient of an image; see `identities.find_entered_age`.

        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return find_entered_age(connection, pixel_sha256, stated)

    def needs_prediction_without_age(self, id: str) -> bool:
        """Return whether all predictions of an image use an age that was entered for another patient.

        Raises:
            UnknownNameError: There is no prediction with this id.
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            sha256 = read_one(connection, id).to_row()["pixel_sha256"]
            age = find_entered_age(connection, sha256, None)
            return age is None and all_have_entered_age(connection, sha256)

    def image(self, prediction: StoredPrediction) -> bytes:
        """Return the image file of a prediction.

        Raises:
            GoneError: The image was removed.
            StorageError: The image is unreadable, or is missing although it was not removed.
        """
        content = None if prediction.image_removed else self.storage.blobs.get(prediction.image_sha256)
        if content is not None:
            return content
        with self.storage.read_transaction() as connection:
            removed = prediction.image_removed or not has_image(connection, prediction.id)
        if removed:
            raise GoneError(
                f"the image of prediction {prediction.id!r} was removed",
                hint="The prediction is kept",
            )
        raise StorageError(
            f"the image of prediction {prediction.id!r} is missing",
            hint=f"Restore {prediction.image_sha256[:2]}/{prediction.image_sha256} below {BLOBS}/ from a backup, or post"
            " the image again",
        )

    def find(
        self, where: Filter, *, order: Order = "newest", limit: int = 50, after: str = "", by_study: bool = False
    ) -> Page:
        """Return a page of predictions.

        Args:
            where: Conditions.
            order: "newest" or "oldest" first; "highest" or "lowest" probability first, with predictions without one
                last; or "urgency": unreviewed first, in the order pneumonia, uncertain, no pneumonia (each by falling
                probability), rejected.
            limit: Size of the page, at most 200.
            after: `next` of the previous page, in the same order.
            by_study: Whether to group images of a study at the position of the first one.
        Raises:
            UsageError: `limit`, `after` or a time is invalid.
        """
        with self.storage.read_transaction() as connection:
            return find_page(connection, where, order=order, limit=limit, after=after, by_study=by_study)

    def count_images(self, where: Filter) -> ImageCounts:
        """Return the numbers of predictions by decision, by rejection code, and without a review.

        Raises:
            UsageError: A time is invalid.
        """
        with self.storage.read_transaction() as connection:
            return count_images(connection, where)

    def latest(
        self, model: ModelInfo, operating_point: str, limit: int, *, since: str = "", until: str = ""
    ) -> list[PredictionStatistics]:
        """Return the latest predictions of a model at an operating point, newest first.

        Args:
            model: The model, including its site profile.
            operating_point: Name of the operating point.
            limit: Maximum number of predictions.
            since, until: Earliest time (inclusive) and latest time (exclusive) in ISO 8601, UTC, or a prefix such as
            "2026-01"; no limit if empty.
        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return latest_statistics(connection, model, operating_point, limit, since, until)

    def review(
        self, id: str, label: Label, *, finding: str = "", note: str = "", user: str, etags: Sequence[str] = ()
    ) -> StoredPrediction:
        """Store a review, replacing an earlier one by the same user, and return the prediction with it.

        Args:
            id: Id of the prediction that the user has seen.
            label, finding, note: See `Review`.
            user: Author of the review.
            etags: The stored prediction must have one of these entity tags; empty to skip the check.
        Raises:
            UnknownNameError: There is no prediction with this id.
            ConflictError: The prediction has none of the entity tags.
            StorageError: The review cannot be stored.
        """
        with self.storage.write_transaction() as connection:
            prediction = read_one(connection, id)
            _require_etag(prediction, etags)
            row, time = prediction.to_row(), self.storage.time()
            add_review(connection, row, Review(label, finding, note, time, user))
            details = {"label": label, "review_sha256": review_hash(label, finding, note)}
            append(connection, [prediction_entry(row, time, user, "reviewed", details)])
            stored = read_one(connection, id)
        self.storage.notify()
        return stored

    def withdraw_review(self, id: str, *, user: str) -> StoredPrediction:
        """Withdraw a user's review, keeping its earlier versions, and return the prediction.

        Raises:
            UnknownNameError: There is no prediction with this id, or no review by the user.
            StorageError: The change cannot be stored.
        """
        with self.storage.write_transaction() as connection:
            prediction = read_one(connection, id)
            review = prediction.review_of(user)
            if review is None:
                raise UnknownNameError("review", user, (), hint="It was withdrawn, or never existed here")
            row, time = prediction.to_row(), self.storage.time()
            add_review(connection, row, Review(review.label, "", "", time, user), withdrawn=True)
            append(connection, [prediction_entry(row, time, user, "review_withdrawn")])
            stored = read_one(connection, id)
        self.storage.notify()
        return stored

    def set_identity(self, id: str, identity: Identity, *, user: str, etags: Sequence[str] = ()) -> StoredPrediction:
        """Replace the identity of an image, which affects all its predictions, and return the prediction with it.

        If the image was received under several patients, this decides for one of them. An age entered for another
        patient becomes invalid; the latest prediction without it, if any, becomes the current one.

        Args:
            id: Id of a prediction of the image.
            identity: The complete identity; empty fields remove values.
            user, etags: See `review`.
        Raises:
            UnknownNameError, ConflictError, StorageError: See `review`.
        """
        with self.storage.write_transaction() as connection:
            prediction = read_one(connection, id)
            _require_etag(prediction, etags)
            row = prediction.to_row()
            if (changed := replace_identity(connection, row["pixel_sha256"], identity)).fields:
                details = {"fields": changed.fields}
                append(connection, [prediction_entry(row, self.storage.time(), user, changed.event, details)])
                if changed.event == "identity_resolved":
                    assign_headers(connection, row["pixel_sha256"], changed.numbers, self.storage.time())
                if not has_entered_age(connection, row["pixel_sha256"]):
                    mark_without_entered_age(connection, row["pixel_sha256"], self.storage.time())
            stored = read_one(connection, id)
        self.storage.notify()
        return stored

    def studies(self, keys: Collection[str]) -> dict[str, list[StoredPrediction]]:
        """Return the predictions of studies by study key, oldest first; keys without a study are missing.

        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return find_studies(connection, keys)

    def studies_of_patient(self, key: str) -> dict[str, list[StoredPrediction]]:
        """Return the predictions of a patient's studies by study key, oldest first.

        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return find_studies_of_patients(connection, [key])

    def remove(self, id: str, *, user: str) -> None:
        """Delete a prediction and its image; the audit log keeps the events.

        Raises:
            UnknownNameError: There is no prediction with this id.
            StorageError: The prediction cannot be deleted.
        """
        if not delete_predictions(self.storage, predictions.c.id == id, user):
            raise UnknownNameError("prediction", id, (), hint="It was deleted, or never existed here")

    def remove_study(self, key: str, *, user: str) -> None:
        """Delete a study with its predictions and images; see `remove`.

        Raises:
            UnknownNameError: There is no study with this key.
            ImageOfTwoPatientsError: An image also belongs to another patient.
            StorageError: The study cannot be deleted.
        """
        hashes = select(instances.c.pixel_sha256).where(instances.c.study_key == key)
        if not delete_predictions(self.storage, predictions.c.pixel_sha256.in_(hashes), user, hashes):
            raise UnknownNameError("study", key, (), hint="It was deleted, or never existed here")

    def remove_patient(self, key: str, *, user: str) -> None:
        """Delete a patient with all studies, predictions and images; see `remove`.

        Raises:
            UnknownNameError: There is no patient with this key.
            ImageOfTwoPatientsError: An image also belongs to another patient.
            StorageError: The patient cannot be deleted.
        """
        hashes = select(instances.c.pixel_sha256).join(studies).where(studies.c.patient_key == key)
        if not delete_predictions(self.storage, predictions.c.pixel_sha256.in_(hashes), user, hashes):
            raise UnknownNameError("patient", key, (), hint="It was deleted, or never existed here")


def _require_etag(prediction: StoredPrediction, etags: Sequence[str]) -> None:
    """Raise ConflictError if entity tags are given and the prediction has none of them."""
    if etags and prediction.etag not in etags:
        raise ConflictError(
            "the prediction was changed in the meantime", hint="Get it again, and compare its reviews and its identity"
        )
