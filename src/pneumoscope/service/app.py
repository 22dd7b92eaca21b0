"""The API: films in, predictions out, kept and read again. The page stands on the same functions."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.base import BaseHTTPMiddleware

from pneumoscope import __version__
from pneumoscope.errors import TooLargeError, UnknownNameError, UnreadableFilmError, UsageError
from pneumoscope.predictor.model import Model
from pneumoscope.radiograph.decode import decode
from pneumoscope.results import NOTICE, Decision, Prediction
from pneumoscope.service.access import Access, is_loopback
from pneumoscope.service.answers import (
    Health,
    PredictionAnswer,
    PredictionsAnswer,
    PredictionsPage,
    ReviewGiven,
)
from pneumoscope.service.limits import Limits
from pneumoscope.service.problems import answer_errors, problem, responses
from pneumoscope.service.records import Filter, Order, Records
from pneumoscope.service.scoring import Scoring

__all__ = ["MULTIPART", "Settings", "make_app"]

MULTIPART = "multipart/form-data"
_RAW = (
    "application/dicom",
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/bmp",
    "image/webp",
)
_NAME = 255  # characters of a film's name that are kept
_TIME = r"^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d{1,6})?)?Z)?$"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a service takes.

    Attributes:
        most_bytes: of a request's body.
        most_films: of one request.
        most_waiting: films that may wait to be scored.
        body_seconds: for a body to arrive.
        loopback: whether only this machine can reach it, so that another host's name in a request is a trick.
    """

    most_bytes: int = 256 * 2**20
    most_films: int = 64
    most_waiting: int = 256
    body_seconds: float = 60
    loopback: bool = True


class _Metrics:
    """Numbers for Prometheus; no name of a film or a patient is among their labels."""

    def __init__(self, scoring: Scoring) -> None:
        self.registry = CollectorRegistry()
        self.films = Counter("pneumoscope_films", "Films by what became of them", ["decision"], registry=self.registry)
        self.requests = Counter(
            "pneumoscope_requests", "Requests by method, path and status", ["method", "path", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram("pneumoscope_request_seconds", "Time to answer", ["path"], registry=self.registry)
        waiting = Gauge("pneumoscope_films_waiting", "Films that wait to be scored", registry=self.registry)
        waiting.set_function(lambda: scoring.waiting)


def make_app(model: Model, records: Records, access: Access, settings: Settings | None = None) -> FastAPI:
    """The application, for a server to run. It closes `records` at its end.

    Args:
        model: that judges; load it with one thread a call.
        records: where films are kept.
        access: who may ask.
        settings: limits.
    """
    chosen = settings or Settings()
    scoring = Scoring(model, most_waiting=chosen.most_waiting)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(scoring.close)
        records.close()

    app = FastAPI(
        title="pneumoscope",
        version=__version__,
        summary="Judges chest radiographs and keeps what it said.",
        description=NOTICE,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its pages load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    metrics = _Metrics(scoring)
    answer_errors(app)
    service = _Service(model, records, scoring, metrics, chosen, asyncio.Semaphore(2))
    app.include_router(_open_paths(service))
    app.include_router(_paths(service))
    app.state.access = access
    app.add_middleware(Limits, most_bytes=chosen.most_bytes, seconds=chosen.body_seconds)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_watched(metrics, chosen.loopback))
    return app


@dataclasses.dataclass(frozen=True, slots=True)
class _Service:
    model: Model
    records: Records
    scoring: Scoring
    metrics: _Metrics
    settings: Settings
    drawing: asyncio.Semaphore  # how many films are decoded to be shown at once: each may take hundreds of MB

    async def judge(self, request: Request, films: Sequence[tuple[bytes, str]], who: str) -> list[PredictionAnswer]:
        """Score films, and keep what was said of those that can be read."""
        futures = self.scoring.submit(list(films))
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        waiting: asyncio.Future[Any] = asyncio.gather(*map(asyncio.wrap_future, futures))
        try:
            await asyncio.wait({gone, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():  # whoever asked has gone: what is not begun is not scored
                raise UsageError("the client has gone")
            judged = waiting.result()
        finally:
            gone.cancel()
            waiting.cancel()
            for future in futures:
                future.cancel()
        return [
            await run_in_threadpool(self._kept, each, film, who) for each, (film, _) in zip(judged, films, strict=True)
        ]

    def _kept(self, prediction: Prediction, film: bytes, who: str) -> PredictionAnswer:
        point = self.model.point_name
        if prediction.decision is None:
            self.metrics.films.labels("unreadable").inc()
            return PredictionAnswer.of_unreadable(prediction, point)
        record, new = self.records.add(prediction, film, operating_point=point, who=who)
        if new:
            self.metrics.films.labels(record.prediction.decision).inc()
        return PredictionAnswer.of_record(record)

    async def draw(self, draw: Callable[[], bytes]) -> Response:
        """A PNG that is drawn when there is room for it."""
        async with self.drawing:
            return Response(await run_in_threadpool(draw), media_type="image/png")


def _open_paths(service: _Service) -> APIRouter:
    """What needs no token: whether it lives, and numbers for a monitor."""
    router = APIRouter(tags=["operation"])

    @router.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", summary="Whether films can be judged and kept", responses=responses(503))
    def readyz() -> Health:
        """Score the golden film, and read the database."""
        service.model.try_golden_film()
        service.records.find(Filter(), limit=1)
        return Health()

    @router.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _who(request: Request) -> str:
    """The name behind the request's token."""
    access: Access = request.app.state.access
    return access.who(request.headers.get("Authorization", ""))


_Who = Annotated[str, Depends(_who)]
_Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"])]


def _paths(service: _Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["predictions"], responses=responses(401, 403, 422, 503))

    @router.post(
        "/predictions",
        status_code=201,
        summary="Judge films",
        responses=responses(400, 408, 413, 415),
        openapi_extra={"requestBody": _BODY},
    )
    async def judge(
        request: Request,
        who: _Who,
        name: Annotated[
            str, Query(max_length=_NAME, description="Of the film, where the body is the film itself")
        ] = "",
    ) -> PredictionsAnswer:
        """Send films as parts named `films` of a form, or one film as the body.

        They are judged together, and kept: when this is answered, they are on the disk. One that cannot be read has `error` and
        no id, and the others are done; where none can be read, the answer is a problem.
        """
        films = await _films(request, name, service.settings)
        answers = await service.judge(request, films, who)
        if all(answer.id is None for answer in answers):
            first = answers[0].error
            raise UnreadableFilmError(
                "", first if len(answers) == 1 else f"{first} (none of {len(answers)} films can be)"
            )
        return PredictionsAnswer(predictions=answers)

    @router.get("/predictions", summary="Films that are kept")
    def find(
        who: _Who,
        decision: Decision | None = None,
        reviewed: bool | None = None,
        since: Annotated[
            str | None, Query(pattern=_TIME, description="ISO 8601 in UTC", examples=["2026-01-31"])
        ] = None,
        until: Annotated[str | None, Query(pattern=_TIME, description="Not included", examples=["2026-02-01"])] = None,
        order: Annotated[Order, Query(description="By time, or by probability")] = "newest",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        after: Annotated[str, Query(pattern=r"^([0-9a-f]{32})?$", description="`next` of the page before")] = "",
    ) -> PredictionsPage:
        """In pages: send `next` of one as `after` of the following one."""
        wanted = Filter(decision=decision, reviewed=reviewed, since=since, until=until)
        return PredictionsPage.of_page(service.records.find(wanted, order=order, limit=limit, after=after))

    @router.get("/predictions/{id}", summary="One film", responses=responses(404))
    def get(who: _Who, id: _Id) -> PredictionAnswer:
        return PredictionAnswer.of_record(service.records.get(id))

    @router.get(
        "/predictions/{id}/film.png", summary="The film as it was read, 8 bits of grey",
        response_class=Response, responses=_PICTURE | responses(404, 410),
    )  # fmt: skip
    async def film(who: _Who, id: _Id) -> Response:
        def draw() -> bytes:
            return _png(decode(service.records.film(service.records.get(id)), name="the film").pixels)

        return await service.draw(draw)

    @router.get(
        "/predictions/{id}/heatmap.png", summary="What spoke for and against pneumonia",
        response_class=Response, responses=_PICTURE | responses(404, 410),
    )  # fmt: skip
    async def heatmap(who: _Who, id: _Id) -> Response:
        def draw() -> bytes:
            record = service.records.get(id)
            if record.prediction.model.sha256 != service.model.facts.sha256:
                raise UnknownNameError("heatmap", id, (), advice="Another model judged this film; post it again")
            ((_, picture),) = service.model.explain_many([service.records.film(record)], batch_size=1, workers=1)
            if picture is None:
                raise UnknownNameError(
                    "heatmap", id, (), advice="The film was rejected, so nothing is said of its places"
                )
            return picture

        return await service.draw(draw)

    @router.put("/predictions/{id}/review", summary="A person's reading", responses=responses(400, 404, 408, 413))
    def review(who: _Who, id: _Id, given: ReviewGiven) -> PredictionAnswer:
        """Agree or disagree, and a note; an earlier reading is replaced."""
        return PredictionAnswer.of_record(service.records.review(id, agrees=given.agrees, note=given.note, who=who))

    @router.delete(
        "/predictions/{id}", status_code=204, summary="Remove a film and its numbers", responses=responses(404)
    )
    def remove(who: _Who, id: _Id) -> None:
        """That it was there, and when it was removed, stays in the audit trail."""
        service.records.remove(id, who=who)

    @router.get("/model", summary="The model's card", tags=["model"])
    def card(who: _Who) -> dict[str, Any]:
        """As `card.json` in its bundle."""
        found: dict[str, Any] = msgspec.to_builtins(service.model.card)
        return found

    return router


async def _films(request: Request, name: str, settings: Settings) -> list[tuple[bytes, str]]:
    """The films of a request: bytes, and the names that the client gave them."""
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == MULTIPART:
        try:
            async with request.form(max_files=settings.most_films, max_fields=8) as form:
                parts = [part for part in form.getlist("films") if isinstance(part, UploadFile)]
                films = [(await part.read(), (part.filename or "")[:_NAME]) for part in parts]
        except HTTPException as error:  # Starlette's own of a form that it cannot read
            if error.status_code != 400:  # the body broke a limit
                raise
            if "Too many files" in error.detail:
                raise TooLargeError(
                    f"a request takes {settings.most_films} films", advice="Send them in several requests"
                ) from error
            raise UsageError("the form cannot be understood", advice="Send films as parts named films") from error
        if not films:
            raise UsageError(
                "there is no film in the form", advice="Send films as parts named films, each with a file name"
            )
        return [(film, name or f"film {place}") for place, (film, name) in enumerate(films, 1)]
    if kind in _RAW:
        body = await request.body()
        if not body:
            raise UsageError("the body is empty", advice="Send a film")
        return [(body, name or "film 1")]
    raise HTTPException(415, f"the Content-Type is {kind[:64]!r}; taken are {MULTIPART} and {', '.join(_RAW)}")


async def _gone(request: Request) -> None:
    """Return when whoever asked has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _watched(
    metrics: _Metrics, loopback: bool
) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Counts requests, refuses those that another site's page makes, and adds the headers that all answers have."""

    async def watch(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        start = time.perf_counter()
        response = _refusal(request, loopback) or await go_on(request)
        route = request.scope.get("route")
        path = getattr(route, "path", "other")  # with {id} in the place of an id
        metrics.requests.labels(request.method if route else "other", path, response.status_code).inc()
        metrics.seconds.labels(path).observe(time.perf_counter() - start)
        for header, value in _HEADERS.items():
            response.headers.setdefault(header, value)
        return response

    return watch


def _refusal(request: Request, loopback: bool) -> Response | None:
    host = request.headers.get("Host", "")
    # A page of another site may send a form here, or have its own name point to this machine: neither may act.
    if loopback and not is_loopback(host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host):
        return problem(403, "AccessError", "the request names another host", "Ask http://127.0.0.1 or http://localhost")
    origin = request.headers.get("Origin", "")
    if request.method not in ("GET", "HEAD", "OPTIONS") and origin and origin.partition("://")[2] != host:
        return problem(
            403, "AccessError", "the request comes from another site's page", "Send it from this service's page"
        )
    return None


_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "required": True,
    "content": {
        MULTIPART: {
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
