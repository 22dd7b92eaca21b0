"""Store predictions, reviews and images, with an audit log entry for each change.

`recovery` describes the order of writes, and how an interrupted one is completed or rolled back.
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
from pneumoscope.service.storage.additions import Addition, Also, add_predictions
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
    """The predictions, reviews and images of one service.

    Opening it completes or rolls back interrupted writes; see `recovery`.

    Args:
        folder: The data directory; None stores everything in memory.
        database: URL of a PostgreSQL database; SQLite in the data directory if empty.
        now: Returns the time, for tests.

    Attributes:
        storage: The database and the blob store.
        engine: Engine of the database.
        unreadable_files: Records of files that could not be read.
        populations: Populations of the models that were served.
        inbox, outbox: Received DICOM instances that are not predicted yet, and results that are not delivered yet.

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
        """Store what was submitted, but wait no longer than `timeout` seconds for it, and close the connections."""
        self.inbox.close(timeout)
        self._commits.close(timeout)
        close_database(self.engine)

    def add(self, prediction: Prediction, image: bytes, *, user: str) -> tuple[StoredPrediction, bool]:
        """Store a prediction and its image, and wait for the commit; see `submit`.

        Raises:
            StorageError: It cannot be stored; nothing was changed.
        """
        return self.submit(prediction, image, user=user).result()

    def submit(
        self, prediction: Prediction, image: bytes, *, user: str, also: Also | None = None, earlier_id: str = ""
    ) -> Future[tuple[StoredPrediction, bool]]:
        """Store a prediction and its image in one transaction with others that are submitted meanwhile.

        Args:
            prediction: Of a readable image.
            image: The file's bytes.
            user: For the audit log.
            also: Changes the database in the same transaction; called for a prediction that is not new, too.
            earlier_id: Of the prediction that is made again, for the patient that it is shown with; empty for an upload.

        Returns:
            A future of the record and of whether it is new: the first prediction for the same image, model, operating point and
            entered age is kept. Its error is StorageError if nothing could be stored, and UnknownNameError if the earlier
            prediction was deleted meanwhile.
        """
        return self._commits.submit(Addition(prediction, image, user, also, earlier_id))

    def get(self, id: str) -> StoredPrediction:
        """Return a prediction.

        Raises:
            UnknownNameError: There is no prediction with this id.
        """
        with self.storage.read_transaction() as connection:
            return read_one(connection, id)

    def entered_age(self, pixel_sha256: str, stated: Identity | None) -> float | None:
        """Return the age, years, that a person entered for the patient of an image; see `identities.find_entered_age`.

        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return find_entered_age(connection, pixel_sha256, stated)

    def needs_prediction_without_age(self, id: str) -> bool:
        """Return whether all predictions of an image are made with an age that was entered for another patient.

        Raises:
            UnknownNameError: There is no prediction with this id.
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            sha256 = read_one(connection, id).to_row()["pixel_sha256"]
            age = find_entered_age(connection, sha256, None)
            return age is None and all_have_entered_age(connection, sha256)

    def image(self, prediction: StoredPrediction) -> bytes:
        """Return the file of a prediction's image.

        Raises:
            GoneError: The image was removed.
            StorageError: The image is unreadable, or missing although it was not removed.
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
            order: "newest" or "oldest" first, or "highest" or "lowest" probability first, with predictions without one
                last. "urgency": without a review first, and among them pneumonia, then uncertain, then no pneumonia, each by
                falling probability, then rejected images.
            limit: Size of the page, up to 200.
            after: `next` of the page before, in the same order.
            by_study: Whether images of one study stand together, in the place of the first of them.
        Raises:
            UsageError: `limit`, `after` or a time is invalid.
        """
        with self.storage.read_transaction() as connection:
            return find_page(connection, where, order=order, limit=limit, after=after, by_study=by_study)

    def count_images(self, where: Filter) -> ImageCounts:
        """Return the numbers of predictions by decision, by rejection code and without a review.

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
            model: The model, with its site profile.
            operating_point: Name of the operating point.
            limit: Number of predictions.
            since, until: Earliest time, included, and latest time, excluded: ISO 8601 in UTC, or its beginning, such as
                "2026-01"; no limit if empty.
        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return latest_statistics(connection, model, operating_point, limit, since, until)

    def review(
        self, id: str, label: Label, *, finding: str = "", note: str = "", user: str, etags: Sequence[str] = ()
    ) -> StoredPrediction:
        """Store a review, which replaces an earlier one of the same user, and return the prediction with it.

        Args:
            id: Of the prediction that the user has seen.
            label, finding, note: See `Review`.
            user: Its author.
            etags: Entity tags, of which the stored prediction must have one; it may have any if there are none.
        Raises:
            UnknownNameError: There is no prediction with this id.
            ConflictError: The prediction has none of the entity tags.
            StorageError: It cannot be stored.
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
        """Withdraw the review of a user, of which the earlier versions are kept, and return the prediction.

        Raises:
            UnknownNameError: There is no prediction with this id, or no review of the user.
            StorageError: It cannot be stored.
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
        """Replace the identity of an image, which moves all its predictions, and return the prediction with it.

        If the image was received under several patients, this decides for one of them. An age that was entered for another
        patient no longer holds: the current prediction is the latest one without it, if there is one.

        Args:
            id: Of a prediction of the image.
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
        """Return the predictions of studies by key, oldest first; a key without a study is missing.

        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return find_studies(connection, keys)

    def studies_of_patient(self, key: str) -> dict[str, list[StoredPrediction]]:
        """Return the predictions of the studies of a patient by the key of the study, oldest first.

        Raises:
            StorageError: The database cannot be read.
        """
        with self.storage.read_transaction() as connection:
            return find_studies_of_patients(connection, [key])

    def remove(self, id: str, *, user: str) -> None:
        """Delete a prediction and its image; the audit log keeps the events.

        Raises:
            UnknownNameError: There is no prediction with this id.
            StorageError: It cannot be deleted.
        """
        if not delete_predictions(self.storage, predictions.c.id == id, user):
            raise UnknownNameError("prediction", id, (), hint="It was deleted, or never existed here")

    def remove_study(self, key: str, *, user: str) -> None:
        """Delete a study with its predictions and images; see `remove`.

        Raises:
            UnknownNameError: There is no study with this key.
            ImageOfTwoPatientsError: An image is that of another patient as well.
            StorageError: It cannot be deleted.
        """
        hashes = select(instances.c.pixel_sha256).where(instances.c.study_key == key)
        if not delete_predictions(self.storage, predictions.c.pixel_sha256.in_(hashes), user, hashes):
            raise UnknownNameError("study", key, (), hint="It was deleted, or never existed here")

    def remove_patient(self, key: str, *, user: str) -> None:
        """Delete a patient with all studies, predictions and images; see `remove`.

        Raises:
            UnknownNameError: There is no patient with this key.
            ImageOfTwoPatientsError: An image is that of another patient as well.
            StorageError: It cannot be deleted.
        """
        hashes = select(instances.c.pixel_sha256).join(studies).where(studies.c.patient_key == key)
        if not delete_predictions(self.storage, predictions.c.pixel_sha256.in_(hashes), user, hashes):
            raise UnknownNameError("patient", key, (), hint="It was deleted, or never existed here")


def _require_etag(prediction: StoredPrediction, etags: Sequence[str]) -> None:
    """Raise ConflictError if there are entity tags and a prediction has none of them."""
    if etags and prediction.etag not in etags:
        raise ConflictError(
            "the prediction was changed in the meantime", hint="Get it again, and compare its reviews and its identity"
        )
