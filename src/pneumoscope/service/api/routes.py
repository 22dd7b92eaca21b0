"""What can be asked of the service, path by path."""

import asyncio
import io
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from pneumoscope.core.errors import UnknownNameError, UnreadableImageError
from pneumoscope.service.api.dependencies import (
    CardParameters,
    FindParameters,
    Identify,
    JudgeParameters,
    NoParameters,
    json_body,
    no_duplicate_parameters,
)
from pneumoscope.service.api.problems import responses
from pneumoscope.service.api.schemas import (
    Health,
    PredictionPageSchema,
    PredictionSchema,
    PredictionsSchema,
    ReviewRequest,
)
from pneumoscope.service.predictions import BODY, PredictionService, read_images
from pneumoscope.service.readiness import Readiness
from pneumoscope.service.storage.records import Filter

__all__ = ["SCALE", "paths", "public_routes"]

_DRAWN = 2  # images that are decoded at once to be shown: each may take hundreds of MB
_THUMBNAIL = 160  # pixels of the longer side
SCALE = "X-Heatmap-Scale"  # header: the contribution to the logit at which a layer is opaque
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}

_LAYER: dict[int | str, dict[str, Any]] = {
    200: _PICTURE[200]
    | {
        "headers": {
            SCALE: {"schema": {"type": "number"}, "description": "Contribution to the logit where the layer is opaque"}
        }
    }
}


def public_routes(service: PredictionService) -> APIRouter:
    """What needs no token: whether it lives, and numbers for a monitor."""
    router = APIRouter(tags=["operation"], responses=responses(403))
    readiness = Readiness(service.model, service.records)

    @router.get("/healthz", summary="Whether the process answers")
    async def healthz() -> Health:
        return Health()

    @router.get("/readyz", summary="Whether images can be judged and kept", responses=responses(503))
    def readyz() -> Health:
        """Score the golden image, and do all that keeping an image takes; at most once a second, however many ask."""
        readiness.check()
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


_Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", examples=["0123456789abcdef0123456789abcdef"])]


def paths(service: PredictionService, most_images: int, identify: Identify) -> APIRouter:
    """Return the routes that need a token: images, and the model's card.

    Args:
        service: behind them.
        most_images: of one request.
        identify: see `asking.authentication`.
    """
    Who = Annotated[str, Depends(identify)]  # noqa: N806  a type; seen by FastAPI since annotations here are not strings
    drawing = asyncio.Semaphore(_DRAWN)

    def explained(id: str) -> bytes:
        """The image of a record whose heatmap can be drawn."""
        record = service.records.get(id)
        if record.prediction.model.sha256 != service.model.facts.sha256:
            raise UnknownNameError("heatmap", id, (), hint="Another model judged this image; post it again")
        if record.prediction.decision == "rejected":
            raise UnknownNameError("heatmap", id, (), hint="The image was rejected, so nothing is said of its places")
        return service.records.image(record)

    router = APIRouter(
        prefix="/v1", tags=["predictions"], responses=responses(401, 403, 422, 503),
        dependencies=[Depends(identify), Depends(no_duplicate_parameters)],
    )  # fmt: skip

    @router.post(
        "/predictions",
        status_code=201,
        summary="Judge images",
        responses=responses(400, 413, 415),
        openapi_extra={"requestBody": BODY},
    )
    async def judge(
        request: Request,
        who: Who,
        query: Annotated[JudgeParameters, Query()],
    ) -> PredictionsSchema:
        """Send images as parts named `images` of a form, or one image as the body.

        They are judged together, and kept: when this is answered, they are on the disk. One that cannot be read has `error` and
        no id, and the others are done; where none can be read, the answer is a problem.
        """
        images = await read_images(request, query.name, most_images)
        answers = await service.judge(request, images, who)
        if all(answer.id is None for answer in answers):
            first = answers[0].failure
            assert first is not None
            reason = (
                first.message if len(answers) == 1 else f"{first.message} (none of {len(answers)} images can be read)"
            )
            raise UnreadableImageError("", reason, hint=first.hint)
        return PredictionsSchema(predictions=answers)

    @router.get("/predictions", summary="Images that are kept")
    def find(
        who: Who,
        query: Annotated[FindParameters, Query()],
    ) -> PredictionPageSchema:
        """In pages: send `next` of one as `after` of the following one."""
        wanted = Filter(decision=query.decision, reviewed=query.reviewed, since=query.since, until=query.until)
        page = service.records.find(wanted, order=query.order, limit=query.limit, after=query.after)
        return PredictionPageSchema.of_page(page)

    @router.get("/predictions/{id}", summary="One image", responses=responses(404))
    def get(who: Who, id: _Id, _: NoParameters) -> PredictionSchema:
        return PredictionSchema.of_record(service.records.get(id))

    @router.get(
        "/predictions/{id}/image.png", summary="The image as it was read, 8 bits of grey",
        response_class=Response, responses=_PICTURE | responses(404, 410),
    )  # fmt: skip
    async def image(who: Who, id: _Id, _: NoParameters) -> Response:
        def draw() -> bytes:
            return _png(
                Image.fromarray(
                    service.model.decode(service.records.image(service.records.get(id)), name="the image").pixels
                )
            )

        return await _drawn(drawing, draw)

    @router.get(
        "/predictions/{id}/thumbnail.png", summary="The image, small",
        response_class=Response, responses=_PICTURE | responses(404, 410),
    )  # fmt: skip
    async def thumbnail(who: Who, id: _Id, _: NoParameters) -> Response:
        def draw() -> bytes:
            picture = Image.fromarray(
                service.model.decode(service.records.image(service.records.get(id)), name="the image").pixels
            )
            picture.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX, reducing_gap=2)
            return _png(picture)

        return await _drawn(drawing, draw)

    @router.get(
        "/predictions/{id}/heatmap.png", summary="What spoke for and against pneumonia",
        response_class=Response, responses=_PICTURE | responses(404, 410),
    )  # fmt: skip
    async def heatmap(who: Who, id: _Id, _: NoParameters) -> Response:
        def draw() -> bytes:
            ((_, picture),) = service.model.explain_many([explained(id)], batch_size=1, workers=1)
            assert picture is not None  # it was not rejected
            return picture

        return await _drawn(drawing, draw)

    @router.get(
        "/predictions/{id}/heatmap-layer.png", summary="The heatmap alone, to be laid over the image",
        response_class=Response, responses=_LAYER | responses(404, 410),
    )  # fmt: skip
    async def heatmap_layer(who: Who, id: _Id, _: NoParameters) -> Response:
        """Transparent where nothing was contributed, of the image's aspect; orange towards pneumonia, blue towards normal."""

        def draw() -> Response:
            layer = service.model.heatmap_layer(explained(id))
            return Response(layer.png, media_type="image/png", headers={SCALE: f"{layer.maximum:.6g}"})

        async with drawing:
            return await run_in_threadpool(draw)

    @router.put(
        "/predictions/{id}/review", summary="A person's reading", responses=responses(400, 404, 413, 415),
        dependencies=[Depends(json_body)],
    )  # fmt: skip
    def review(who: Who, id: _Id, _: NoParameters, given: ReviewRequest) -> PredictionSchema:
        """Agree or disagree, and a note; an earlier reading is replaced."""
        return PredictionSchema.of_record(service.records.review(id, agrees=given.agrees, note=given.note, who=who))

    @router.delete(
        "/predictions/{id}", status_code=204, summary="Remove an image and its numbers", responses=responses(404)
    )
    def remove(who: Who, id: _Id, _: NoParameters) -> None:
        """That it was there, and when it was removed, stays in the audit log."""
        service.records.remove(id, who=who)

    @router.get("/model", summary="The model's card", tags=["model"])
    def card(
        who: Who,
        query: Annotated[CardParameters, Query()],
    ) -> dict[str, Any]:
        """As `card.json` in its bundle, without `seen` where that is not asked for."""
        found: dict[str, Any] = msgspec.to_builtins(service.model.card)
        if not query.seen:
            del found["seen"]
        return found

    return router


async def _drawn(drawing: asyncio.Semaphore, draw: Callable[[], bytes]) -> Response:
    """A PNG, made when there is room for it."""
    async with drawing:
        return Response(await run_in_threadpool(draw), media_type="image/png")


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
