"""Routes of the HTTP API for a prediction's pixels, heatmap and DICOM objects. The docstrings are the descriptions in OpenAPI."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool

from pneumoscope.service.api.dependencies import AppAccessLog, AppRenderer, Id, NoParameters, User, api_router
from pneumoscope.service.api.exception_handlers import problem_responses

__all__ = ["HEATMAP_SCALE", "PIXEL_DESCRIPTION", "image_reader_router", "image_sender_router"]

HEATMAP_SCALE = "X-Heatmap-Scale"  # header: contribution to the logit at full opacity of a heatmap layer
PIXEL_DESCRIPTION = "X-Pixel-Description"  # header: meaning of the pixel values, as JSON
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
    """Return the image at its original size."""
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
    """Return stored pixel values and a gray-level table, so that a viewer can apply other windows. The body contains
    one unsigned 16-bit integer (little-endian) per pixel, row by row, followed by the table: one byte for each integer
    from 0 up, the gray level of that integer in `image.png`.

    The header `X-Pixel-Description` is a JSON object with these members: `rows` and `columns`; `slope` and `intercept`,
    which convert an integer to a value (after the DICOM modality LUT); the `smallest` and `largest` value; `bits`
    according to the file; `white_is_zero` (MONOCHROME1); `padding`, an integer that is always displayed black;
    `default_window`, which produces the gray levels unless they come from a lookup table; `windows`, the windows in the
    file (`center`, `width`, `function`, `explanation`); and `spacing`, the pixel spacing in mm (`row` and `column`)
    with its `kind`: calibrated, detector (in the detector plane) or unstated. Members are null if the file does not
    contain them.
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
    """Return the image with at most 160 pixels on the longer side."""
    return _png_response(await renderer.thumbnail(id))


@image_sender_router.get(
    "/predictions/{id}/heatmap.png", summary="Get the image with its heatmap and a legend",
    response_class=Response, responses=_PNG_RESPONSES,
)  # fmt: skip
async def heatmap(renderer: AppRenderer, access_log: AppAccessLog, user: User, id: Id, _: NoParameters) -> Response:
    """Return the image in its aspect ratio, with 640 to 1,024 pixels on the longer side. The legend is below the image."""
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
    """Return a layer in the image's aspect ratio: orange is evidence for pneumonia, blue against it; transparent means
    no contribution."""
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
    """Burn heatmap, decision, probability, model and notice into the image. The object belongs to the image's study and
    is the same on every request."""
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
    """Return a Comprehensive 3D SR (TID 1500) in the image's study: decision, probability with interval, algorithm,
    reason for a rejection, and a reference to the image. The object is the same on every request.
    """
    report = await renderer.structured_report(id)
    await run_in_threadpool(access_log.viewed, user, [id])
    return Response(report, media_type=_DICOM)


def _png_response(content: bytes, headers: dict[str, str] | None = None) -> Response:
    return Response(content, media_type="image/png", headers=headers)
