"""Render stored images and their heatmaps as PNG files, and encode their values. Files of clients are never returned."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydicom import Dataset

from pneumoscope.core.errors import MissingExtraError, UnknownNameError, UnreadableImageError
from pneumoscope.core.prediction import Failure, Prediction
from pneumoscope.inference.model import Model
from pneumoscope.inference.saliency import Layer
from pneumoscope.service.dicom.configuration import ResultSettings
from pneumoscope.service.dicom.header import decode_header, has_study, read_header
from pneumoscope.service.storage.outbox import Delivery, ObjectKind, result_uid
from pneumoscope.service.storage.records import StoredPrediction
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["EncodedPixels", "ImageRenderer"]

_THUMBNAIL_SIZE = 160  # pixels of the longer side
_MAX_RENDERED = 2  # images rendered at once: each may take hundreds of MB
_GZIP_LEVEL = 1  # higher levels hardly reduce the noise of an image
_Rendered = TypeVar("_Rendered")


class EncodedPixels(NamedTuple):
    """The values of an image for the viewer.

    Attributes:
        body: `PixelValues.numbers`, row by row, 16 bits, little-endian; then `PixelValues.gray_levels`; perhaps compressed.
        description: Rows, columns and `PixelValues.description` as JSON in ASCII.
    """

    body: bytes
    description: str


class ImageRenderer:
    """Renders the images of stored predictions, at most two at once.

    Every method takes the id of a prediction. They raise UnknownNameError if there is none or it has no heatmap, GoneError if
    its image was removed, UnreadableImageError if the image cannot be decoded, and StorageError if it cannot be read.

    Args:
        model: The current model; only its own predictions have heatmaps.
        repository: Where predictions and images are stored.
        results: How the series of results are described; the defaults if None.
    """

    def __init__(self, model: Model, repository: PredictionRepository, results: ResultSettings | None = None) -> None:
        self._model, self._repository = model, repository
        self._results = results or ResultSettings()
        self._rendering = asyncio.Semaphore(_MAX_RENDERED)

    async def image(self, id: str) -> bytes:
        """Return the decoded image as a PNG at its own size."""
        return await self._render(lambda: _encode_png(self._decode(id)))

    async def pixels(self, id: str, *, compress: bool) -> EncodedPixels:
        """Return the values of the image before any window."""
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
            UnknownNameError: The file is not DICOM with a study.
            MissingExtraError: [pacs] is not installed.
        """
        return await self._render(lambda: self._result_of_image(id, "secondary_capture"))

    async def structured_report(self, id: str) -> bytes:
        """Return the result as a DICOM Structured Report; it raises what `secondary_capture` raises."""
        return await self._render(lambda: self._result_of_image(id, "structured_report"))

    def result_object(self, delivery: Delivery) -> bytes:
        """Return the DICOM object of a delivery; called in a thread.

        Raises:
            UnknownNameError: The prediction was deleted.
            MissingExtraError: [pacs] is not installed.
        """
        subject = delivery.subject
        assert delivery.kind != "webhook"
        if delivery.kind != "rejection_note" and subject.prediction_id:
            prediction = self._repository.get(subject.prediction_id)
            return self._encode_result(prediction, decode_header(subject.header), delivery.kind, delivery.result_uid)
        failure = Failure(subject.failure_code, "") if subject.failure_code else None
        stated = Prediction(
            path="", decision=None, operating_point=subject.operating_point, failure=failure, model=self._model.facts
        )
        with _missing_extra_errors():
            from pneumoscope.service.dicom.results import Result, rejection_note, structured_report

        header = decode_header(subject.header)
        result = Result(delivery.result_uid, stated, delivery.created, header, self._results)
        return rejection_note(result, delivery.withdrawn_uids) if delivery.withdrawn_uids else structured_report(result)

    async def _render(self, draw: Callable[[], _Rendered]) -> _Rendered:
        """Call a function in a thread when fewer than two are being called."""
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
        prediction = self._explainable(id)
        return self._model.draw_heatmap(self._repository.image(prediction), prediction)

    def _result_of_image(self, id: str, kind: ObjectKind) -> bytes:
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
        if not has_study(header):
            raise no_objects
        uid = result_uid(kind, header.SOPInstanceUID, id)
        return self._encode_result(prediction, header, kind, uid)

    def _encode_result(self, prediction: StoredPrediction, header: Dataset, kind: ObjectKind, uid: str) -> bytes:
        with _missing_extra_errors():
            from pneumoscope.service.dicom.results import Result, secondary_capture, structured_report

        result = Result(uid, prediction, prediction.created, header, self._results)
        if kind == "structured_report":
            return structured_report(result)
        with_legend = prediction.decision != "rejected" and prediction.model.matches(self._model.facts)
        image = self._draw_heatmap(prediction.id) if with_legend else _encode_png(self._decode(prediction.id))
        return secondary_capture(result, image, self._model.notice, with_legend=with_legend)

    def _heatmap_layer(self, id: str) -> Layer:
        return self._model.heatmap_layer(self._repository.image(self._explainable(id)))

    def _explainable(self, id: str) -> StoredPrediction:
        """Return a prediction with a heatmap."""
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
    """Turn the error of an import that needs [pacs] into MissingExtraError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError("pacs", "a result as a DICOM object", error.name or "highdicom") from error


def _rejected_image(id: str) -> UnknownNameError:
    return UnknownNameError("heatmap", id, (), hint="The image was rejected; only predictions have a heatmap")


def _thumbnail(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX, reducing_gap=2)
    return picture


def _encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
