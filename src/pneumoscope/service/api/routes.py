"""Routes of the HTTP API."""

import asyncio
import functools
import io
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image

from pneumoscope.core.errors import UnknownNameError
from pneumoscope.core.prediction import Failure
from pneumoscope.service.api.dependencies import (
    Authenticate,
    CardParameters,
    FindParameters,
    Language,
    NoParameters,
    PredictParameters,
    no_duplicate_parameters,
    require_json,
)
from pneumoscope.service.api.exception_handlers import problem_response, problem_responses, record_error
from pneumoscope.service.api.schemas import (
    HealthDocument,
    PredictionListDocument,
    PredictionPageDocument,
    ReviewRequest,
    SinglePredictionDocument,
    list_document,
    page_document,
    single_document,
)
from pneumoscope.service.api.uploads import UPLOAD_BODY, read_images, wait_for_disconnect
from pneumoscope.service.metrics import CONTENT_TYPE_LATEST
from pneumoscope.service.predictions import PredictionService, Readiness
from pneumoscope.service.storage.records import Filter

__all__ = ["HEATMAP_SCALE", "operation_router", "prediction_router"]

HEATMAP_SCALE = "X-Heatmap-Scale"  # header: contribution to the logit where a heatmap layer is opaque
_MAX_RENDERED = 2  # images rendered at once: each may take hundreds of MB
_THUMBNAIL_SIZE = 160  # pixels of the longer side
_PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_SCALE_HEADER = {
    HEATMAP_SCALE: {"schema": {"type": "number"}, "description": "Contribution to the logit where the layer is opaque"}
}
_PNG_RESPONSES: dict[int | str, dict[str, Any]] = {200: _PNG, **problem_responses(404, 410, 422)}
_LAYER_RESPONSES: dict[int | str, dict[str, Any]] = {**_PNG_RESPONSES, 200: _PNG | {"headers": _SCALE_HEADER}}
_TEXT_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

_Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"])]


def operation_router(service: PredictionService) -> APIRouter:
    """Return the router of the health checks and metrics, which need no authentication."""
    router = APIRouter(tags=["operation"], responses=problem_responses(403))
    readiness = Readiness(service.model, service.repository)

    @router.get("/healthz", summary="Liveness check")
    async def healthz() -> HealthDocument:
        return HealthDocument()

    @router.get("/readyz", summary="Readiness check", responses=problem_responses(503))
    def readyz() -> HealthDocument:
        """Run the model's self-test and try to write to the storage, at most once a second."""
        readiness.check()
        return HealthDocument()

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=_TEXT_RESPONSE)
    def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def prediction_router(service: PredictionService, max_images: int, authenticate: Authenticate) -> APIRouter:
    """Return the router of predictions and the model card.

    Args:
        service: The prediction service.
        max_images: Limit on the images of one request.
        authenticate: See `dependencies.authentication`.
    """
    # Annotations in this module are not strings, so FastAPI sees the local type.
    User = Annotated[str, Depends(authenticate)]  # noqa: N806
    model, repository = service.model, service.repository
    rendering = asyncio.Semaphore(_MAX_RENDERED)

    async def render(draw: Callable[[], Response]) -> Response:
        async with rendering:
            return await run_in_threadpool(draw)

    def stored_image(id: str) -> Image.Image:
        content = repository.image(repository.get(id))
        return Image.fromarray(model.decode(content).pixels)

    def rejected_image(id: str) -> UnknownNameError:
        return UnknownNameError("heatmap", id, (), hint="The image was rejected; only predictions have a heatmap")

    def explainable_image(id: str) -> bytes:
        prediction = repository.get(id)
        if prediction.model.sha256 != model.facts.sha256:
            raise UnknownNameError("heatmap", id, (), hint="The prediction is of another model; post the image again")
        if prediction.decision == "rejected":
            raise rejected_image(id)
        return repository.image(prediction)

    router = APIRouter(
        prefix="/v1", tags=["predictions"], responses=problem_responses(401, 403, 422, 503),
        dependencies=[Depends(authenticate), Depends(no_duplicate_parameters)],
    )  # fmt: skip

    @router.post(
        "/predictions", status_code=201, summary="Predict images", response_model=PredictionListDocument,
        responses=problem_responses(400, 413, 415), openapi_extra={"requestBody": UPLOAD_BODY},
    )  # fmt: skip
    async def predict(
        request: Request, user: User, language: Language, query: Annotated[PredictParameters, Query()]
    ) -> PredictionListDocument | Response:
        """Send images as parts named `images` of a form, or one image as the body.

        The response is sent when images and predictions are on the disk. An unreadable image has a `failure` and no id, and
        the others are processed; if all are unreadable, the response is a problem.
        """
        images = await read_images(request, query.name, max_images)
        predictions = await service.predict(images, user, functools.partial(wait_for_disconnect, request))
        failures = [each.failure for each in predictions if each.failure]
        if len(failures) == len(predictions):
            return _unreadable_response(request, failures)
        return list_document(predictions, language)

    @router.get("/predictions", summary="List predictions")
    def find(user: User, language: Language, query: Annotated[FindParameters, Query()]) -> PredictionPageDocument:
        """For the next page, send `next` of this one as `after`."""
        where = Filter(decision=query.decision, reviewed=query.reviewed, since=query.since, until=query.until)
        page = repository.find(where, order=query.order, limit=query.limit, after=query.after)
        return page_document(page, language)

    @router.get("/predictions/{id}", summary="Get a prediction", responses=problem_responses(404))
    def get(user: User, language: Language, id: _Id, _: NoParameters) -> SinglePredictionDocument:
        return single_document(repository.get(id), language)

    @router.get(
        "/predictions/{id}/image.png", summary="Get the image with 8 bits of gray",
        response_class=Response, responses=_PNG_RESPONSES,
    )  # fmt: skip
    async def image(user: User, id: _Id, _: NoParameters) -> Response:
        return await render(lambda: _png_response(_encode_png(stored_image(id))))

    @router.get(
        "/predictions/{id}/thumbnail.png", summary="Get a thumbnail of the image",
        response_class=Response, responses=_PNG_RESPONSES,
    )  # fmt: skip
    async def thumbnail(user: User, id: _Id, _: NoParameters) -> Response:
        def draw() -> Response:
            picture = stored_image(id)
            picture.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE), Image.Resampling.BOX, reducing_gap=2)
            return _png_response(_encode_png(picture))

        return await render(draw)

    @router.get(
        "/predictions/{id}/heatmap.png", summary="Get the image with its heatmap and a legend",
        response_class=Response, responses=_PNG_RESPONSES,
    )  # fmt: skip
    async def heatmap(user: User, id: _Id, _: NoParameters) -> Response:
        def draw() -> Response:
            picture = model.explain(explainable_image(id)).picture
            if picture is None:  # the bundle has the same network and stricter input checks
                raise rejected_image(id)
            return _png_response(picture)

        return await render(draw)

    @router.get(
        "/predictions/{id}/heatmap-layer.png", summary="Get the heatmap as a transparent layer",
        response_class=Response, responses=_LAYER_RESPONSES,
    )  # fmt: skip
    async def heatmap_layer(user: User, id: _Id, _: NoParameters) -> Response:
        """In the image's aspect ratio: orange towards pneumonia, blue away from it, transparent without a contribution."""

        def draw() -> Response:
            layer = model.heatmap_layer(explainable_image(id))
            return _png_response(layer.png, {HEATMAP_SCALE: f"{layer.maximum:.6g}"})

        return await render(draw)

    @router.put(
        "/predictions/{id}/review", summary="Store a review", responses=problem_responses(400, 404, 413, 415),
        dependencies=[Depends(require_json)],
    )  # fmt: skip
    def review(
        user: User, language: Language, id: _Id, _: NoParameters, body: ReviewRequest
    ) -> SinglePredictionDocument:
        """Agree or disagree with the decision, with a note; an earlier review is replaced."""
        return single_document(repository.review(id, agrees=body.agrees, note=body.note, user=user), language)

    @router.delete(
        "/predictions/{id}", status_code=204, summary="Delete a prediction and its image",
        responses=problem_responses(404),
    )  # fmt: skip
    def remove(user: User, id: _Id, _: NoParameters) -> None:
        """Keep only the events in the audit log, without the image's name."""
        repository.remove(id, user=user)

    @router.get("/model", summary="Get the model card", tags=["model"])
    def card(user: User, query: Annotated[CardParameters, Query()]) -> dict[str, Any]:
        """As `card.json` in the bundle; `seen` only on request."""
        document: dict[str, Any] = msgspec.to_builtins(model.card)
        if not query.seen:
            del document["seen"]
        return document

    return router


def _unreadable_response(request: Request, failures: list[Failure]) -> Response:
    """Return the problem of a request without a readable image: the first failure."""
    first = failures[0]
    record_error(request, first.code)
    detail = first.message if len(failures) == 1 else f"{first.message} (none of {len(failures)} images can be read)"
    return problem_response(422, first.code, detail, first.hint)


def _png_response(content: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(content, media_type="image/png", headers=headers)


def _encode_png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
