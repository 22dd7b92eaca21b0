"""The prediction service: score the images of a request, store the predictions, and check readiness for both."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection

from pneumoscope.core.errors import PneumoscopeError, StorageError, UnknownNameError, UnreadableImageError, UsageError
from pneumoscope.core.i18n import N_
from pneumoscope.core.identity import Identity, age_at_study, combine, search_words
from pneumoscope.core.prediction import MAX_AGE, Failure, Prediction
from pneumoscope.core.prediction_messages import notice, notice_of_unknown_model
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.inference.model import Model
from pneumoscope.service.inference_queue import InferenceQueue
from pneumoscope.service.metrics import Metrics
from pneumoscope.service.storage.additions import TransactionCallback
from pneumoscope.service.storage.pseudonyms import Pseudonymizer
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["PredictionService", "Readiness", "check_age_by_dates", "depends_on_entered_age", "word_forms"]

WaitForDisconnect = Callable[[], Coroutine[object, object, None]]  # returns when the client disconnects
_LOG = logging.getLogger("pneumoscope.service")
_AGE_REJECTIONS = ("age_required", "outside_age_range")
_MAX_DECODED = 2  # images decoded at full size at once; each may take hundreds of MB


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionService:
    """The model with the queue that feeds it and the repository that stores its predictions.

    Attributes:
        pseudonymizer: Replaces patient identities by pseudonyms, if enabled.
        adjust_again: Returns the prediction that `predict_again` stores, given the earlier and the new one.
        on_predicted_again: Called in the transaction of `predict_again` with the earlier id, the connection and the new
            id.
    """

    model: Model
    repository: PredictionRepository
    queue: InferenceQueue
    metrics: Metrics
    pseudonymizer: Pseudonymizer | None = None
    adjust_again: Callable[[StoredPrediction, Prediction], Prediction] = lambda _, prediction: prediction
    on_predicted_again: Callable[[str, Connection, str], None] = lambda _earlier, _connection, _id: None
    decoding: asyncio.Semaphore = dataclasses.field(default_factory=lambda: asyncio.Semaphore(_MAX_DECODED))

    def notice(self, language: str, *predictions: Prediction) -> str:
        """Return the notice for a document with the given predictions; without predictions, the notice of the current model.

        It names the population of their model, unless the models' populations differ or one is unknown.
        """
        models = {each.model.sha256 for each in predictions} or {self.model.facts.sha256}
        populations = [self.repository.populations.find(each) for each in models]
        if None in populations and len(predictions) == 1:
            return notice_of_unknown_model(language)
        first, *others = populations
        return notice(first if all(each == first for each in others) else None, language)

    async def predict(
        self,
        images: Sequence[tuple[bytes, str]],
        user: str,
        disconnected: WaitForDisconnect,
        *,
        age: float | None = None,
        identity: Identity | None = None,
    ) -> list[StoredPrediction | Prediction]:
        """Score images, store predictions or records of unreadable files, and return the predictions in the same order.

        Args:
            images: Bytes and name of each image.
            user: User for the audit log.
            disconnected: Returns when the client disconnects; images still waiting are then not scored.
            age: Age of the patients in years, 0 to 130; used for images whose files contain none.
            identity: Identity for images whose files contain none; see `core.identity.combine`. If no age is known, it
                is calculated from the dates of the identity.
        Returns:
            A `StoredPrediction` for each image, or a `Prediction` with a `failure` if it is unreadable.
        Raises:
            BusyError: The queue is full, or the service is stopping.
            StorageError: A prediction cannot be stored.
            UsageError: The client disconnected, or the age calculated from the dates is not between 0 and 130 years.
        """
        with self.queue.reserve(len(images)):
            scored = [
                dataclasses.replace(each, identity=combine(each.identity, identity))
                for each in await self._score(images, disconnected, age)
            ]
            predictions = await asyncio.gather(
                *(self._with_known_age(each, image, disconnected) for each, image in zip(scored, images, strict=True))
            )
            pairs = zip(predictions, images, strict=True)
            return await asyncio.gather(*(self._store(prediction, image, user) for prediction, (image, _) in pairs))

    async def predict_received(
        self,
        instance: bytes,
        name: str,
        user: str,
        *,
        adjust: Callable[[Prediction], Prediction],
        callback: Callable[[Connection, Prediction, str], None],
    ) -> None:
        """Score a DICOM instance received from another node; store the prediction or a record of the unreadable file.

        Args:
            instance: A DICOM file.
            name: Name of the image.
            user: User for the audit log.
            adjust: Returns the prediction to store.
            callback: Makes further changes in the transaction that stores the prediction; called with the connection, the
                prediction and its id, which is empty for an unreadable file.
        Raises:
            BusyError, StorageError: See `predict`.
        """
        with self.queue.reserve(1):
            (scored,) = await self._score([(instance, name)], _never, None)
            try:
                scored = await self._with_known_age(scored, (instance, name), _never)
            except UsageError as error:  # the dates in the header contradict each other
                parameters = {"age": age_at_study(scored.identity) or 0.0, "maximum": MAX_AGE}
                reason = UnreadableReason("age_by_dates_impossible", parameters)
                failure = Failure(error.code, error.message, error.hint, reason)
                scored = dataclasses.replace(_without_result(scored), failure=failure)
            prediction = scored if scored.failure else adjust(scored)
            await self._store(prediction, instance, user, lambda connection, id: callback(connection, prediction, id))

    async def _with_known_age(
        self, prediction: Prediction, image: tuple[bytes, str], disconnected: WaitForDisconnect
    ) -> Prediction:
        """Return the prediction; if it has no age, use the one calculated from the dates, or else a previously entered one."""
        if prediction.age is not None or prediction.failure:
            return prediction
        age = age_at_study(prediction.identity)
        if age is not None:
            check_age_by_dates(age)
        elif depends_on_entered_age(prediction):
            age = await run_in_threadpool(self._entered_age, prediction)
        if age is None:
            return prediction
        (again,) = await self._score([image], disconnected, age)
        return dataclasses.replace(again, identity=prediction.identity)

    def _entered_age(self, prediction: Prediction) -> float | None:
        """Return the age in years that was entered for an image, unless the image now belongs to another patient."""
        if prediction.image is None:
            return None
        stated = (self.pseudonymizer.prediction(prediction) if self.pseudonymizer else prediction).identity
        return self.repository.entered_age(prediction.image.pixel_sha256, stated)

    async def predict_again(
        self, id: str, user: str, disconnected: WaitForDisconnect, *, age: float
    ) -> StoredPrediction:
        """Score a stored image with the age of the patient; return the new prediction, and keep the earlier one.

        Args:
            id: Id of the earlier prediction.
            user, disconnected, age: See `predict`.
        Raises:
            UnknownNameError: There is no prediction with this id.
            GoneError: The image was removed.
            UnreadableImageError: The image can no longer be decoded.
            UsageError: The file contains an age, or the image is rejected for another reason; see also `predict`.
            BusyError, StorageError: See `predict`.
        """
        earlier = await run_in_threadpool(self.repository.get, id)
        if not depends_on_entered_age(earlier):
            raise UsageError(
                "the prediction does not depend on an age that is entered",
                hint="Correct the header, and send the file again",
            )
        return await self._predict_again(earlier, user, disconnected, age)

    async def predict_without_entered_age(
        self, id: str, user: str, disconnected: WaitForDisconnect
    ) -> StoredPrediction | None:
        """Score an image without an age that was entered for another patient; calculate the age from the dates if possible.

        Args:
            id, user, disconnected: See `predict_again`.
        Returns:
            The new prediction; None if the image already has one without such an age, or was removed.
        Raises:
            UnknownNameError, UnreadableImageError, BusyError, StorageError: See `predict_again`.
        """
        earlier = await run_in_threadpool(self.repository.get, id)
        if earlier.image_removed or not await run_in_threadpool(self.repository.needs_prediction_without_age, id):
            return None
        age = age_at_study(earlier.identity)
        known_age = age if age is not None and 0 <= age <= MAX_AGE else None
        return await self._predict_again(earlier, user, disconnected, known_age)

    async def _predict_again(
        self, earlier: StoredPrediction, user: str, disconnected: WaitForDisconnect, age: float | None
    ) -> StoredPrediction:
        image = await run_in_threadpool(self.repository.image, earlier)
        with self.queue.reserve(1):
            (prediction,) = await self._score([(image, earlier.path)], disconnected, age)
            if prediction.failure:
                reason = UnreadableReason("readable_before", {"code": prediction.failure.code})
                raise UnreadableImageError("", reason)
            warnings = prediction.warnings
            if age is not None:
                warnings = tuple(each for each in earlier.warnings or warnings if each != "age_not_stated")
            # The identity may have been corrected, and the stored file may be a copy without a header.
            again = dataclasses.replace(
                prediction,
                path=earlier.path,
                identity=None,
                image=earlier.image,
                warnings=() if prediction.rejection else warnings,
            )
            again = await run_in_threadpool(self.adjust_again, earlier, again)
            return await self._submit(again, image, user, partial(self.on_predicted_again, earlier.id), earlier.id)

    def search_words(self, text: str) -> tuple[tuple[str, ...], ...]:
        """Return the forms of each word in a search text, for `Filter.search`.

        Raises:
            UsageError: The text contains no word.
        """
        forms = self.pseudonymizer.search(text) if self.pseudonymizer else word_forms(text)
        if not forms or not search_words(text):
            raise UsageError(N_("the search has no word"), hint=N_("Enter a name, a number or the name of a file"))
        return forms

    def study(self, key: str) -> dict[str, list[StoredPrediction]]:
        """Return the predictions of a study and of the patient's other studies, by study key.

        Raises:
            UnknownNameError: There is no study with this key.
        """
        found = self.repository.studies([key])
        if key not in found:
            raise UnknownNameError("study", key, (), hint="It was deleted, or never existed here")
        patient_key = found[key][0].patient_key
        return (self.repository.studies_of_patient(patient_key) if patient_key else {}) | found

    def set_identity(self, id: str, identity: Identity, *, user: str, etags: Sequence[str] = ()) -> StoredPrediction:
        """Replace the identity of an image; see `PredictionRepository.set_identity`.

        With pseudonymization, values that differ from the stored ones are replaced by pseudonyms.
        """
        if self.pseudonymizer:
            current = self.repository.get(id).identity_before(identity) or Identity()
            kept = {name: value for name, value in current.stated().items() if getattr(identity, name) == value}
            identity = dataclasses.replace(self.pseudonymizer.identity(identity), **kept)
        return self.repository.set_identity(id, identity, user=user, etags=etags)

    async def _score(
        self, images: Sequence[tuple[bytes, str]], disconnected: WaitForDisconnect, age: float | None
    ) -> list[Prediction]:
        futures = self.queue.submit(images, age=age)
        gone: asyncio.Future[Any] = asyncio.ensure_future(disconnected())
        scored: asyncio.Future[list[Prediction]] = asyncio.gather(*map(asyncio.wrap_future, futures))
        scored.add_done_callback(lambda done: done.cancelled() or done.exception())  # marks the exception as retrieved
        try:
            await asyncio.wait({gone, scored}, return_when=asyncio.FIRST_COMPLETED)
            if not scored.done():
                raise UsageError("the client disconnected")
            return scored.result()
        finally:
            gone.cancel()
            scored.cancel()
            for future in futures:
                future.cancel()

    async def _store(
        self, prediction: Prediction, image: bytes, user: str, callback: TransactionCallback | None = None
    ) -> StoredPrediction | Prediction:
        if self.pseudonymizer:
            prediction = self.pseudonymizer.prediction(prediction)
        if prediction.failure:
            self.metrics.images.labels("unreadable").inc()
            await run_in_threadpool(
                self.repository.unreadable_files.add, prediction, image, user=user, callback=callback
            )
            return prediction
        if self.pseudonymizer:
            async with self.decoding:
                image = await run_in_threadpool(self._anonymous_image, image)
        return await self._submit(prediction, image, user, callback)

    def _anonymous_image(self, image: bytes) -> bytes:
        assert self.pseudonymizer
        return self.pseudonymizer.image(self.model.decode(image).pixels, image)

    async def _submit(
        self,
        prediction: Prediction,
        image: bytes,
        user: str,
        callback: TransactionCallback | None = None,
        earlier_id: str = "",
    ) -> StoredPrediction:
        submitted = self.repository.submit(prediction, image, user=user, callback=callback, earlier_id=earlier_id)
        stored, is_new = await asyncio.wrap_future(submitted)
        if is_new:
            self.metrics.images.labels(stored.decision).inc()
        return stored


def check_age_by_dates(age: float) -> None:
    """Raise UsageError if an age calculated from dates is not between 0 and 130 years."""
    if not 0 <= age <= MAX_AGE:
        raise UsageError(
            f"the age by the birth date and the study date is {age:.1f} years, not from 0 to {MAX_AGE}",
            hint="Check patient_birth_date and study_date",
        )


def depends_on_entered_age(prediction: Prediction) -> bool:
    """Return whether entering an age can change a prediction: the file has no age, and the image is not otherwise rejected."""
    entered = prediction.age is None or prediction.age.source == "entered"
    return entered and (prediction.rejection is None or prediction.rejection.code in _AGE_REJECTIONS)


def _without_result(prediction: Prediction) -> Prediction:
    return dataclasses.replace(
        prediction,
        decision=None,
        probability=None,
        interval=None,
        threshold=None,
        rejection=None,
        uncertainty=None,
        warnings=(),
    )


def word_forms(text: str) -> tuple[tuple[str, ...], ...]:
    """Return each word in the form for comparing names and numbers, and unchanged for file names."""
    return tuple((folded, word) for word in text.split() for folded in search_words(word))


class Readiness:
    """A check whether images can be scored and stored, run at most once a second for all clients.

    Args:
        model: The model.
        repository: Storage of images.
        now: Monotonic clock in seconds; replaceable in tests.
        check_seconds: Time between two checks.
    """

    def __init__(
        self,
        model: Model,
        repository: PredictionRepository,
        now: Callable[[], float] = time.monotonic,
        check_seconds: float = 1,
    ) -> None:
        self._model, self._repository, self._now, self._check_seconds = model, repository, now, check_seconds
        self._lock = threading.Lock()
        self._next_check = self._now()
        self._error: PneumoscopeError | None = None

    def check(self) -> None:
        """Run the model's self-test, and check that images can be stored.

        Raises:
            BundleError: The self-test failed.
            StorageError: Images cannot be stored. The reason is only logged, since clients of this check are not
                authenticated.
        """
        with self._lock:
            if self._now() >= self._next_check:
                self._error = self._find_error()
                self._next_check = self._now() + self._check_seconds
            error = self._error
        if error is not None:
            raise error

    def _find_error(self) -> PneumoscopeError | None:
        try:
            self._model.run_self_test()
            self._repository.storage.check_writable()
        except StorageError as error:
            _LOG.warning("Not ready: %s", error.message)
            return StorageError("images cannot be stored", hint="See the server log for the reason")
        except PneumoscopeError as error:
            return error
        return None


async def _never() -> None:
    """Wait forever: an instance is predicted even if its sender disconnects."""
    await asyncio.Event().wait()
