"""The films of a request: read from it, judged together, and kept before it is answered."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pneumoscope.errors import StorageError, TooLargeError, UsageError
from pneumoscope.predictor.model import Model
from pneumoscope.results import Prediction
from pneumoscope.service.answers import PredictionAnswer
from pneumoscope.service.records import Records
from pneumoscope.service.scoring import Scoring
from pneumoscope.service.watching import Metrics

__all__ = ["BODY", "NAME", "Judging", "read_films"]

_RAW = (
    "application/dicom",
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/bmp",
    "image/webp",
)
NAME = 255  # characters of a film's name that are kept
_MULTIPART = "multipart/form-data"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
BODY: dict[str, Any] = {
    "required": True,
    "content": {
        _MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["films"],
                "properties": {
                    "films": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
                },
            }
        },
        **dict.fromkeys(_RAW, _BINARY),
    },
}


@dataclasses.dataclass(frozen=True, slots=True)
class Judging:
    """What judges films and keeps what was said of them."""

    model: Model
    records: Records
    scoring: Scoring
    metrics: Metrics

    async def judge(self, request: Request, films: Sequence[tuple[bytes, str]], who: str) -> list[PredictionAnswer]:
        """Score films, and keep what was said of those that can be read."""
        with self.scoring.admitted(len(films)):
            judged = await self._scored(request, films)
            kept = (self._kept(each, film, who) for each, (film, _) in zip(judged, films, strict=True))
            return await asyncio.gather(*kept)

    async def _scored(self, request: Request, films: Sequence[tuple[bytes, str]]) -> list[Prediction]:
        """Predictions of all films, while whoever asked is there."""
        futures = self.scoring.submit(films)
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

    async def _kept(self, prediction: Prediction, film: bytes, who: str) -> PredictionAnswer:
        point = self.model.point_name
        if prediction.decision is None:
            self.metrics.films.labels("unreadable").inc()
            return PredictionAnswer.of_unreadable(prediction, point)
        record, new = await asyncio.wrap_future(self.records.submit(prediction, film, operating_point=point, who=who))
        if new:
            self.metrics.films.labels(record.prediction.decision).inc()
        return PredictionAnswer.of_record(record)


async def read_films(request: Request, name: str, most: int) -> list[tuple[bytes, str]]:
    """The films of a request: bytes, and the names that the client gave them.

    Args:
        request: a form with parts named films, or a film as the body.
        name: of the film that is the body.
        most: films in a form.
    Raises:
        UsageError, TooLargeError: there is no film, or there are too many.
        HTTPException: another kind of content, or a body beyond `limits.Limits`.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == _MULTIPART:
        try:
            async with request.form(max_files=most, max_fields=8) as form:
                parts = [part for part in form.getlist("films") if isinstance(part, UploadFile)]
                films = [(await part.read(), (part.filename or "")[:NAME]) for part in parts]
        except HTTPException as error:  # Starlette's own of a form that it cannot read
            if error.status_code != 400:  # the body broke a limit
                raise
            if "Too many files" in error.detail:
                raise TooLargeError(f"a request takes {most} films", advice="Send them in several requests") from error
            raise _unclear() from error
        except UnicodeError as error:  # the form names an encoding that is none
            raise _unclear() from error
        except OSError as error:  # parts beyond 1 MB pass through files
            raise StorageError(
                f"the form cannot be held in the temporary folder: {error.strerror or error}",
                advice="Free some space there, or start the service with another one in TMPDIR",
            ) from error
        if not films:
            raise UsageError(
                "there is no film in the form", advice="Send films as parts named films, each with a file name"
            )
        return [(film, _kept_name(name) or f"film {place}") for place, (film, name) in enumerate(films, 1)]
    if kind in _RAW:
        body = await request.body()
        if not body:
            raise UsageError("the body is empty", advice="Send a film")
        return [(body, _kept_name(name) or "film 1")]
    raise HTTPException(415, f"the Content-Type is {kind[:64]!r}; taken are {_MULTIPART} and {', '.join(_RAW)}")


def _unclear() -> UsageError:
    return UsageError("the form cannot be understood", advice="Send films as parts named films")


def _kept_name(name: str) -> str:
    """A name that both databases can keep.

    Raises:
        UsageError: one of them cannot.
    """
    if "\0" in name:
        raise UsageError("a film's name holds the character U+0000", advice="Send it under another name")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise UsageError("a film's name holds half of a character", advice="Send it under another name")
    return name


async def _gone(request: Request) -> None:
    """Return when whoever asked has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
