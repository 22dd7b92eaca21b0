"""The images of a request: read from it, judged together, and kept before it is answered."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.core.errors import StorageError, TooLargeError, UsageError
from pneumoscope.core.prediction import Prediction
from pneumoscope.inference.model import Model
from pneumoscope.service.api.schemas import PredictionSchema
from pneumoscope.service.inference_queue import InferenceQueue
from pneumoscope.service.middleware import Metrics
from pneumoscope.service.storage.repository import PredictionRepository

__all__ = ["BODY", "NAME", "PredictionService", "read_images"]

_RAW = (
    "application/dicom",
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/bmp",
    "image/webp",
)
NAME = 255  # characters of an image's name that are kept
_MULTIPART = "multipart/form-data"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        _MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {
                    "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                },
            }
        },
        **dict.fromkeys(_RAW, _BINARY),
    },
}


@dataclasses.dataclass(frozen=True, slots=True)
class PredictionService:
    """What judges images and keeps what was said of them."""

    model: Model
    records: PredictionRepository
    scoring: InferenceQueue
    metrics: Metrics

    async def judge(self, request: Request, images: Sequence[tuple[bytes, str]], who: str) -> list[PredictionSchema]:
        """Score images, and keep what was said of those that can be read."""
        with self.scoring.admitted(len(images)):
            judged = await self._scored(request, images)
            kept = (self._kept(each, image, who) for each, (image, _) in zip(judged, images, strict=True))
            return await asyncio.gather(*kept)

    async def _scored(self, request: Request, images: Sequence[tuple[bytes, str]]) -> list[Prediction]:
        """Predictions of all images, while whoever asked is there."""
        futures = self.scoring.submit(images)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        waiting: asyncio.Future[list[Prediction]] = asyncio.gather(*map(asyncio.wrap_future, futures))
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # when nobody waits any more
        try:
            await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():  # whoever asked has gone: what is not begun is not scored
                raise UsageError("the client has gone")
            return waiting.result()
        finally:
            gone.cancel()
            waiting.cancel()
            for future in futures:
                future.cancel()

    async def _kept(self, prediction: Prediction, image: bytes, who: str) -> PredictionSchema:
        point = self.model.operating_point_name
        if prediction.decision is None:
            self.metrics.images.labels("unreadable").inc()
            return PredictionSchema.of_unreadable(prediction, point)
        record, new = await asyncio.wrap_future(self.records.submit(prediction, image, operating_point=point, who=who))
        if new:
            self.metrics.images.labels(record.prediction.decision).inc()
        return PredictionSchema.of_record(record)


async def read_images(request: Request, name: str, most: int) -> list[tuple[bytes, str]]:
    """The images of a request: bytes, and the names that the client gave them.

    Args:
        request: a form with parts named images, or an image as the body.
        name: of the image that is the body.
        most: images in a form.
    Raises:
        UsageError, TooLargeError: there is no image, or there are too many.
        HTTPException: another kind of content, or a body beyond `limits.Limits`.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        try:
            async with request.form(max_files=most, max_fields=8) as form:
                parts = [part for part in form.getlist("images") if isinstance(part, UploadFile)]
                images = [(await part.read(), (part.filename or "")[:NAME]) for part in parts]
        except HTTPException as error:  # Starlette's own of a form that it cannot read
            if error.status_code != 400:  # the body broke a limit
                raise
            if "Too many files" in error.detail:
                raise TooLargeError(f"a request takes {most} images", hint="Send them in several requests") from error
            raise _unclear() from error
        except UnicodeError as error:  # the form names an encoding that is none
            raise _unclear() from error
        except OSError as error:  # parts beyond 1 MB pass through files
            raise StorageError(
                f"the form cannot be held in the temporary folder: {error.strerror or error}",
                hint="Free some space there, or start the service with another one in TMPDIR",
            ) from error
        if not images:
            raise UsageError(
                "there is no image in the form", hint="Send images as parts named images, each with a file name"
            )
        return [(image, _kept_name(name) or f"image {place}") for place, (image, name) in enumerate(images, 1)]
    if kind in _RAW:
        body = await request.body()
        if not body:
            raise UsageError("the body is empty", hint="Send an image")
        return [(body, _kept_name(name) or "image 1")]
    raise HTTPException(415, f"the Content-Type is {kind[:64]!r}; taken are {_MULTIPART} and {', '.join(_RAW)}")


def _unclear() -> UsageError:
    return UsageError("the form cannot be understood", hint="Send images as parts named images")


def _kept_name(name: str) -> str:
    """A name that both databases can keep.

    Raises:
        UsageError: one of them cannot.
    """
    if "\0" in name:
        raise UsageError("an image's name holds the character U+0000", hint="Send it under another name")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError("an image's name holds half of a character", hint="Send it under another name")
    return name


async def _gone(request: Request) -> None:
    """Return when whoever asked has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
