"""Render stored images and heatmaps as PNG, and encode pixel values. Files from clients are never returned."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import io
import json
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydicom import Dataset

from pneumoscope.core.errors import GoneError, MissingExtraError, UnknownNameError, UnreadableImageError
from pneumoscope.core.identity import Identity, is_other_patient
from pneumoscope.core.prediction import Prediction
from pneumoscope.imaging.dicom_elements import MAX_HEADER_BYTES
from pneumoscope.imaging.header_identity import read_identity
from pneumoscope.imaging.patient_age import read_age
from pneumoscope.inference.model import Model
from pneumoscope.inference.saliency import Heatmap, Layer
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import decode_header, encode_header, read_header
from pneumoscope.service.storage.outbox_records import Delivery, ObjectKind, has_study_and_series, result_uid
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["EncodedPixels", "ImageRenderer", "as_of_header"]

_THUMBNAIL_SIZE = 160  # longer side in pixels
_MAX_HEATMAPS = 4  # cached heatmaps, including their images
_MAX_RENDERED = 2  # images rendered at once; each may take hundreds of MB
_GZIP_LEVEL = 1  # higher levels hardly compress image noise
_Rendered = TypeVar("_Rendered")


class EncodedPixels(NamedTuple):
    """Pixel values of an image for the viewer.

    Attributes:
        body: `PixelValues.numbers`, row by row, 16 bits, little-endian; then `PixelValues.gray_levels`; optionally
            compressed.
        description: Rows, columns and `PixelValues.description` as JSON in ASCII.
    """

    body: bytes
    description: str


class ImageRenderer:
    """A renderer for images of stored predictions, at most two at once.

    The methods take the id of a prediction, or its delivery. They raise UnknownNameError if it does not exist or has no
    heatmap, GoneError if its image was removed, UnreadableImageError if the image cannot be decoded, StorageError if it
    cannot be read.

    Args:
        model: The current model. Predictions of other models have no heatmaps.
        repository: Storage of predictions and images.
        results: Description of result series; defaults if None.
    """

    def __init__(self, model: Model, repository: PredictionRepository, results: ResultSettings | None = None) -> None:
        self._model, self._repository = model, repository
        self._results = results or ResultSettings()
        self._rendering = asyncio.Semaphore(_MAX_RENDERED)
        self._heatmaps: dict[str, Heatmap] = {}  # by prediction id, oldest first
        self._heatmaps_lock = threading.Lock()

    async def image(self, id: str) -> bytes:
        """Return the decoded image as a PNG at its original size."""
        return await self._render(lambda: _encode_png(self._decode(id)))

    async def pixels(self, id: str, *, compress: bool) -> EncodedPixels:
        """Return the pixel values of the image, before windowing."""
        return await self._render(lambda: self._encode_values(id, compress=compress))

    async def thumbnail(self, id: str) -> bytes:
        """Return the decoded image as a PNG with at most 160 pixels on the longer side."""
        return await self._render(lambda: _encode_png(_thumbnail(self._decode(id))))

    async def heatmap(self, id: str) -> bytes:
        """Return the image with its heatmap and a legend as a PNG."""
        return await self._render(lambda: self._draw_heatmap(id))

    async def heatmap_layer(self, id: str) -> Layer:
        """Return the heatmap as a transparent layer."""
        return await self._render(lambda: self._heatmap_layer(id))

    async def secondary_capture(self, id: str) -> bytes:
        """Return the result as a Secondary Capture; see `dicom.results`.

        Raises:
            UnknownNameError: The file is not DICOM or has no study.
            MissingExtraError: The extra [pacs] is not installed.
        """
        return await self._render(lambda: self._result_of_image(id, "secondary_capture"))

    async def structured_report(self, id: str) -> bytes:
        """Return the result as a DICOM Structured Report; raises the same errors as `secondary_capture`."""
        return await self._render(lambda: self._result_of_image(id, "structured_report"))

    def has_heatmap(self, prediction: StoredPrediction) -> bool:
        """Return whether the current model can draw the heatmap of a prediction."""
        is_current = prediction.model.matches(self._model.facts) and self._model.has_heatmaps
        return is_current and prediction.decision != "rejected"

    async def result(self, id: str, kind: ObjectKind, uid: str) -> bytes:
        """Return the result with this UID as a DICOM object; raises the same errors as `secondary_capture`."""
        return await self._render(lambda: self._result_of_image(id, kind, uid))

    def result_object(self, delivery: Delivery) -> bytes:
        """Return the DICOM object of a delivery. Blocking; call it in a thread.

        Raises:
            UnknownNameError: The prediction was deleted.
            MissingExtraError: The extra [pacs] is not installed.
        """
        subject = delivery.subject
        assert delivery.kind != "webhook"
        if delivery.kind != "rejection_note" and subject.prediction_id:
            header = decode_header(subject.header)
            prediction = as_of_header(self._repository.get(subject.prediction_id), header)
            return self._encode_result(prediction, header, delivery.kind, delivery.result_uid)
        stated = Prediction(
            path="",
            decision=None,
            operating_point=subject.operating_point,
            failure=subject.failure,
            model=self._model.facts,
        )
        with _missing_extra_errors():
            from pneumoscope.service.dicom.report import structured_report
            from pneumoscope.service.dicom.results import Result, rejection_note, secondary_capture

        header, population = decode_header(subject.header), self._model.card.population
        result = Result(delivery.result_uid, stated, delivery.created, header, self._results, population)
        if delivery.withdrawn_uids:
            return rejection_note(result, delivery.withdrawn_uids)
        return secondary_capture(result, None) if delivery.kind == "secondary_capture" else structured_report(result)

    async def _render(self, draw: Callable[[], _Rendered]) -> _Rendered:
        """Call a function in a thread once fewer than two are running."""
        async with self._rendering:
            return await run_in_threadpool(draw)

    def _decode(self, id: str) -> Image.Image:
        content = self._repository.image(self._repository.get(id))
        return Image.fromarray(self._model.decode(content).pixels)

    def _encode_values(self, id: str, *, compress: bool) -> EncodedPixels:
        values = self._model.decode_values(self._repository.image(self._repository.get(id)))
        rows, columns = values.numbers.shape
        description = {"rows": rows, "columns": columns, **msgspec.to_builtins(values.description)}
        body = values.numbers.astype("<u2", copy=False).tobytes() + values.gray_levels.tobytes()
        return EncodedPixels(gzip.compress(body, _GZIP_LEVEL) if compress else body, json.dumps(description))

    def _draw_heatmap(self, id: str) -> bytes:
        prediction = self._prediction_with_heatmap(id)
        return self._model.draw_heatmap(self._repository.image(prediction), prediction)

    def _result_of_image(self, id: str, kind: ObjectKind, uid: str = "") -> bytes:
        prediction = self._repository.get(id)
        no_objects = UnknownNameError(
            "DICOM result of prediction",
            id,
            (),
            hint="The stored file is not DICOM with a study: it has no results as DICOM objects",
        )
        try:
            header = read_header(self._repository.image(prediction))
        except UnreadableImageError as error:
            raise no_objects from error
        if not has_study_and_series(encode_header(header)):
            raise no_objects
        prediction = as_of_header(prediction, header)
        return self._encode_result(prediction, header, kind, uid or result_uid(kind, header.SOPInstanceUID, id))

    def _encode_result(self, prediction: StoredPrediction, header: Dataset, kind: ObjectKind, uid: str) -> bytes:
        with _missing_extra_errors():
            from pneumoscope.service.dicom.overlays import parametric_map, presentation_state
            from pneumoscope.service.dicom.report import structured_report
            from pneumoscope.service.dicom.results import Result, secondary_capture

        # A report without pneumonia contains no heatmap region; skip the network run.
        needs_heatmap = kind != "structured_report" or prediction.decision in ("pneumonia", "uncertain")
        heatmap = self._heatmap_of_result(prediction, kind) if needs_heatmap else None
        card, facts = self._model.card, self._model.facts
        population = self._repository.populations.find(prediction.model.sha256)
        prevalence = card.calibration.prevalence if prediction.model.matches(facts) else None
        result = Result(uid, prediction, prediction.created, header, self._results, population, heatmap, prevalence)
        if kind == "structured_report":
            return structured_report(result)
        if kind == "parametric_map":
            if heatmap is None:
                raise _no_heatmap(prediction.id)
            return parametric_map(result, heatmap)
        content = self._repository.image(prediction)
        if kind == "presentation_state":
            return presentation_state(result, self._display_of(content, header, prediction.id))
        return secondary_capture(result, heatmap.image if heatmap else self._model.decode(content))

    def _display_of(self, file: bytes, header: Dataset, id: str) -> Dataset:
        """Return the header elements for gray levels, after checking that the stored file is the one of this result."""
        is_of_result = False
        with contextlib.suppress(UnreadableImageError):
            is_of_result = read_header(file).SOPInstanceUID == header.SOPInstanceUID
        if not is_of_result:
            raise UnknownNameError(
                "window of the image of prediction", id, (), hint="The stored file is not the one of this result"
            )
        return Dataset.from_json(self._model.read_part(file[:MAX_HEADER_BYTES], "display").decode())

    def _heatmap_of_result(self, prediction: StoredPrediction, kind: ObjectKind) -> Heatmap | None:
        """Return the heatmap of a prediction; None if it was rejected, or the model was replaced or has no heatmaps.

        The objects of a prediction are usually created one after another, so recent heatmaps are cached. If the image
        was removed, a Structured Report is created without a heatmap region.
        """
        if not self.has_heatmap(prediction):
            return None
        with self._heatmaps_lock:
            if found := self._heatmaps.get(prediction.id):
                return found
        try:
            found = self._model.heatmap(self._repository.image(prediction))
        except GoneError:
            if kind != "structured_report":
                raise
            return None
        with self._heatmaps_lock:
            self._heatmaps[prediction.id] = found
            while len(self._heatmaps) > _MAX_HEATMAPS:
                self._heatmaps.pop(next(iter(self._heatmaps)))
        return found

    def _heatmap_layer(self, id: str) -> Layer:
        return self._model.heatmap_layer(self._repository.image(self._prediction_with_heatmap(id)))

    def _prediction_with_heatmap(self, id: str) -> StoredPrediction:
        """Return a prediction after checking that it has a heatmap."""
        prediction = self._repository.get(id)
        if not prediction.model.matches(self._model.facts):
            raise UnknownNameError(
                "heatmap", id, (), hint="The prediction is of another model or site profile; post the image again"
            )
        if prediction.decision == "rejected":
            raise _rejected_image(id)
        return prediction


@contextlib.contextmanager
def _missing_extra_errors() -> Iterator[None]:
    """Convert errors of imports that need the extra [pacs] to MissingExtraError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError("pacs", "a result as a DICOM object", error.name or "highdicom") from error


def _rejected_image(id: str) -> UnknownNameError:
    return UnknownNameError("heatmap", id, (), hint="The image was rejected; only predictions have a heatmap")


def as_of_header(prediction: StoredPrediction, header: Dataset) -> StoredPrediction:
    """Return a prediction with the identity and age in a header, since the same pixels may also belong to another patient.

    Otherwise, the result would contain the other patient's age.
    """
    if prediction.identity is None or prediction.identity.sop_instance_uid == header.SOPInstanceUID:
        return prediction
    stated_identity = read_identity(header) or Identity()
    age, rejection = read_age(header), prediction.rejection
    is_entered = prediction.age is not None and prediction.age.source == "entered"
    if age is None and is_entered and not is_other_patient(prediction.identity, stated_identity):
        age = prediction.age
    if rejection and rejection.code in ("outside_age_range", "age_not_understood"):
        stated: dict[str, str | float] = {}
        if age and age.years is not None:
            stated["age"] = age.years
        if age and age.stated:
            stated["stated"] = age.stated
        parameters = {name: stated.get(name, value) for name, value in rejection.parameters.items()}
        rejection = dataclasses.replace(rejection, parameters=parameters)
    return dataclasses.replace(prediction, identity=stated_identity, age=age, rejection=rejection)


def _no_heatmap(id: str) -> UnknownNameError:
    return UnknownNameError(
        "heatmap", id, (), hint="The image was rejected, or the model was replaced or has no heatmaps"
    )


def _thumbnail(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX, reducing_gap=2)
    return picture


def _encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
