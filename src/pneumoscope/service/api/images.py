"""Routes of the HTTP API for the pixels, heatmap and DICOM objects of a prediction. Docstrings are descriptions in OpenAPI."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from pneumoscope.service.api.dependencies import AppAccessLog, AppRenderer, Id, NoParameters, User, api_router
from pneumoscope.service.api.exception_handlers import problem_responses

__all__ = ["HEATMAP_SCALE", "PIXEL_DESCRIPTION", "image_reader_router", "image_sender_router"]

HEATMAP_SCALE = "X-Heatmap-Scale"  # header: contribution to the logit where a heatmap layer is opaque
PIXEL_DESCRIPTION = "X-Pixel-Description"  # header: what the numbers of an image mean, JSON
_PNG: dict[str, Any] = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_SCALE_HEADER = {
    HEATMAP_SCALE: {"schema": {"type": "number"}, "description": "Contribution to the logit where the layer is opaque"}
}
_PNG_RESPONSES: dict[int | str, dict[str, Any]] = {200: _PNG, **problem_responses(404, 410, 422)}
_LAYER_RESPONSES: dict[int | str, dict[str, Any]] = {**_PNG_RESPONSES, 200: _PNG | {"headers": _SCALE_HEADER}}
_DICOM = "application/dicom"
_DICOM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {_DICOM: {"schema": {"type": "string", "format": "binary"}}}},
    **problem_responses(400, 404, 410, 422),
}
_PIXEL_HEADER = {
    PIXEL_DESCRIPTION: {
        "schema": {"type": "string"},
        "description": "JSON object; see the description of this operation",
    }
}
_PIXELS: dict[str, Any] = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "headers": _PIXEL_HEADER,
}
_PIXELS_RESPONSES: dict[int | str, dict[str, Any]] = {200: _PIXELS, **problem_responses(404, 410, 422)}

image_sender_router, image_reader_router = api_router("predictions", "sender"), api_router("predictions", "reader")


@image_sender_router.get(
    "/predictions/{id}/image.png", summary="Get the image with 8 bits of gray",
    response_class=Response, responses=_PNG_RESPONSES,
)  # fmt: skip
async def image(renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters) -> Response:
    """At its own size."""
    png = await renderer.image(id)
    await run_in_threadpool(access_log.viewed, user, [id])
    return _png_response(png)


@image_reader_router.get(
    "/predictions/{id}/pixels", summary="Get the image with all its bits",
    response_class=Response, responses=_PIXELS_RESPONSES,
)  # fmt: skip
async def pixels(
    request: Request, renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters
) -> Response:
    """For display with other windows: the body has a number for each pixel, row by row, as unsigned integers of 16 bits
    (little-endian), and then one byte for each number from 0: its gray level in `image.png`.

    The header `X-Pixel-Description` has `rows` and `columns`; `slope` and `intercept`, with which a number becomes a value
    (after the modality LUT of DICOM); the `smallest` and `largest` value; `bits` as the file states them; `white_is_zero`
    (MONOCHROME1); the number of `padding`, which is always black; the `default_window`, whose result are the gray levels, unless
    they come from a lookup table; the `windows` of the file (`center`, `width`, `function`, `explanation`); and the `spacing` of
    the pixels in mm (between each `row` and each `column`) with its `kind`: calibrated, detector (the plane of the detector) or
    unstated. Properties that the file does not state are null.
    """
    compress = "gzip" in request.headers.get("Accept-Encoding", "")
    encoded = await renderer.pixels(id, compress=compress)
    await run_in_threadpool(access_log.viewed, user, [id])
    headers = {PIXEL_DESCRIPTION: encoded.description, "Vary": "Accept-Encoding"}
    if compress:
        headers["Content-Encoding"] = "gzip"
    return Response(encoded.body, media_type="application/octet-stream", headers=headers)


@image_reader_router.get(
    "/predictions/{id}/thumbnail.png", summary="Get a thumbnail of the image",
    response_class=Response, responses=_PNG_RESPONSES,
)  # fmt: skip
async def thumbnail(renderer: AppRenderer, id: Id, _: NoParameters) -> Response:
    """With at most 160 pixels on the longer side."""
    return _png_response(await renderer.thumbnail(id))


@image_sender_router.get(
    "/predictions/{id}/heatmap.png", summary="Get the image with its heatmap and a legend",
    response_class=Response, responses=_PNG_RESPONSES,
)  # fmt: skip
async def heatmap(renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters) -> Response:
    """In the image's aspect ratio, with 640 to 1,024 pixels on the longer side; the legend is below."""
    png = await renderer.heatmap(id)
    await run_in_threadpool(access_log.viewed, user, [id])
    return _png_response(png)


@image_sender_router.get(
    "/predictions/{id}/heatmap-layer.png", summary="Get the heatmap as a transparent layer",
    response_class=Response, responses=_LAYER_RESPONSES,
)  # fmt: skip
async def heatmap_layer(
    renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters
) -> Response:
    """In the image's aspect ratio: orange towards pneumonia, blue away from it, transparent without a contribution."""
    layer = await renderer.heatmap_layer(id)
    await run_in_threadpool(access_log.viewed, user, [id])
    return _png_response(layer.png, {HEATMAP_SCALE: f"{layer.maximum:.6g}"})


@image_sender_router.get(
    "/predictions/{id}/secondary-capture.dcm", summary="Get the result as a DICOM Secondary Capture",
    response_class=Response, responses=_DICOM_RESPONSES,
)  # fmt: skip
async def secondary_capture(
    renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters
) -> Response:
    """Image with heatmap, decision, probability, model and notice burned in, in the study of the image. Always the same."""
    capture = await renderer.secondary_capture(id)
    await run_in_threadpool(access_log.viewed, user, [id])
    return Response(capture, media_type=_DICOM)


@image_sender_router.get(
    "/predictions/{id}/structured-report.dcm", summary="Get the result as a DICOM Structured Report",
    response_class=Response, responses=_DICOM_RESPONSES,
)  # fmt: skip
async def structured_report(
    renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters
) -> Response:
    """Comprehensive 3D SR by TID 1500, in the study of the image: decision, probability with interval, algorithm, reason of a
    rejection, and a reference to the image. Always the same object.
    """
    report = await renderer.structured_report(id)
    await run_in_threadpool(access_log.viewed, user, [id])
    return Response(report, media_type=_DICOM)


def _png_response(content: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(content, media_type="image/png", headers=headers)
