"""DICOMweb Search (QIDO-RS, PS3.18 10.6) and Retrieve Transactions (WADO-RS, PS3.18 10.4) below `/dicom-web`.

As the standard requires, paths contain UIDs. They never appear in errors, log lines or metrics.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Path, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydicom import Dataset
from starlette.exceptions import HTTPException

from pneumoscope.service.api.content_negotiation import choose
from pneumoscope.service.api.dependencies import AppAccessLog, User, authentication, from_app_state
from pneumoscope.service.api.exception_handlers import problem_responses
from pneumoscope.service.dicom.matching import ATTRIBUTES, MAX_LIMIT, Level, parse_query
from pneumoscope.service.dicom.media_types import (
    DICOM,
    JSON,
    JSON_TYPES,
    accepted_media_ranges,
    frame_type,
    require_dicom,
    require_frame,
)
from pneumoscope.service.dicom.stored_instances import StoredInstance, StoredInstances

__all__ = ["dicom_web_reader_router", "header_list"]

_CHUNK_BYTES = 256 * 2**10  # of a file in memory at a time
_RENDERED_TYPES = ("image/jpeg", "image/png")
Uid = Annotated[str, Path(pattern=r"^[0-9.]{1,64}$", examples=["1.2.840.113619.2.1"])]
AppStoredInstances = Annotated[StoredInstances, from_app_state("stored_instances")]
_DATASETS: dict[int | str, dict[str, Any]] = {
    200: {"content": {JSON: {"schema": {"type": "array", "items": {"type": "object"}}}}}
}


def _binary(*media_types: str) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"type": "string", "format": "binary"}}
    return {200: {"content": dict.fromkeys(media_types, schema)}}


_SEARCH: dict[str, Any] = {"response_class": Response, "responses": {**_DATASETS, **problem_responses(406)}}
_METADATA: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": {**_DATASETS, **problem_responses(404, 406, 410, 413)},
}
_FILES: dict[str, Any] = {
    "response_class": StreamingResponse,
    "responses": {**_binary("multipart/related"), **problem_responses(404, 406, 410, 413)},
}
_PARTIAL = (
    "The results are incomplete: too many files to read. Search by study, patient, accession number or study date."
)
_NO_PIXELS = "the instance has no pixel data"

# Without the check for duplicate parameters, because QIDO-RS allows `includefield` to be repeated.
dicom_web_reader_router = APIRouter(
    prefix="/dicom-web", tags=["DICOMweb"], responses=problem_responses(401, 403, 422, 429, 503),
    dependencies=[authentication("reader")],
)  # fmt: skip


# --- Search ----------------------------------------------------------------------------------------------------------------


@dicom_web_reader_router.get("/studies", summary="Search for studies (QIDO-RS)", **_SEARCH)
async def search_studies(request: Request, stored: AppStoredInstances) -> Response:
    """Match patient and study attributes by keyword or tag: a value, a value with the wildcards `*` and `?`, a date
    range, or a list of UIDs. `limit` is 100 by default and at most 500; `offset` skips results. All attributes are
    always returned. A search reads at most 2,000 files; if it stops there, a `Warning` header says that the results are
    incomplete.
    """
    return await _search(request, stored, "study")


@dicom_web_reader_router.get("/series", summary="Search for series (QIDO-RS)", **_SEARCH)
async def search_series(request: Request, stored: AppStoredInstances) -> Response:
    """Match as in `GET /dicom-web/studies`, including series attributes."""
    return await _search(request, stored, "series")


@dicom_web_reader_router.get("/instances", summary="Search for instances (QIDO-RS)", **_SEARCH)
async def search_instances(request: Request, stored: AppStoredInstances) -> Response:
    """Match as in `GET /dicom-web/series`, including instance attributes."""
    return await _search(request, stored, "instance")


@dicom_web_reader_router.get("/studies/{study}/series", summary="Search for series of a study (QIDO-RS)", **_SEARCH)
async def search_series_of_study(request: Request, stored: AppStoredInstances, study: Uid) -> Response:
    """See `GET /dicom-web/series`."""
    return await _search(request, stored, "series", study)


@dicom_web_reader_router.get(
    "/studies/{study}/instances", summary="Search for instances of a study (QIDO-RS)", **_SEARCH
)
async def search_instances_of_study(request: Request, stored: AppStoredInstances, study: Uid) -> Response:
    """See `GET /dicom-web/instances`."""
    return await _search(request, stored, "instance", study)


@dicom_web_reader_router.get(
    "/studies/{study}/series/{series}/instances", summary="Search for instances of a series (QIDO-RS)", **_SEARCH
)
async def search_instances_of_series(request: Request, stored: AppStoredInstances, study: Uid, series: Uid) -> Response:
    """See `GET /dicom-web/instances`."""
    return await _search(request, stored, "instance", study, series)


async def _search(
    request: Request, stored: StoredInstances, level: Level, study: str = "", series: str = ""
) -> Response:
    media_type = choose(accepted_media_ranges(request), JSON_TYPES)
    query = parse_query(request.query_params.multi_items(), level)
    result = await stored.search(query, level, study, series)
    base_url = str(request.base_url)
    count = len(result.found)
    warnings = [
        *(["The fuzzymatching parameter is not supported. Only literal matching has been performed."] if query.is_fuzzy else []),
        *([f"There are more than {count} results; send limit (up to {MAX_LIMIT}) and offset."] if result.has_more else []),
        *([_PARTIAL] if result.is_partial else []),
    ]  # fmt: skip
    response = Response(json.dumps([_result(each, level, base_url) for each in result.found]), media_type=media_type)
    for warning in warnings:
        response.headers.append("Warning", f'299 pneumoscope "{warning}"')
    return response


def _result(attributes: Dataset, level: Level, base_url: str) -> dict[str, Any]:
    """Return a result as DICOM JSON, with the URL for retrieving it."""
    steps = {"study": "studies", "series": "series", "instance": "instances"}
    keywords = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}
    levels = list(ATTRIBUTES)[: list(ATTRIBUTES).index(level) + 1]
    path = "/".join(f"{steps[each]}/{attributes[keywords[each]].value}" for each in levels)
    attributes.RetrieveURL, attributes.InstanceAvailability = f"{base_url}dicom-web/{path}", "ONLINE"
    attributes.SpecificCharacterSet = "ISO_IR 192"
    return attributes.to_json_dict(suppress_invalid_tags=True)


# --- Retrieve --------------------------------------------------------------------------------------------------------------


@dicom_web_reader_router.get("/studies/{study}", summary="Retrieve a study (WADO-RS)", **_FILES)
async def retrieve_study(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User, study: Uid
) -> Response:
    """Send the stored files and the results of the images as parts of a `multipart/related` body. Files are sent as
    stored, in their original transfer syntax.
    """
    return await _retrieve(request, stored, access_log, user, study)


@dicom_web_reader_router.get("/studies/{study}/series/{series}", summary="Retrieve a series (WADO-RS)", **_FILES)
async def retrieve_series(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User, study: Uid, series: Uid
) -> Response:
    """See `GET /dicom-web/studies/{study}`."""
    return await _retrieve(request, stored, access_log, user, study, series)


@dicom_web_reader_router.get(
    "/studies/{study}/series/{series}/instances/{instance}", summary="Retrieve an instance (WADO-RS)",
    response_class=StreamingResponse,
    responses={**_binary("multipart/related", DICOM), **problem_responses(404, 406, 410, 413)},
)  # fmt: skip
async def retrieve_instance(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User,
    study: Uid, series: Uid, instance: Uid,
) -> Response:  # fmt: skip
    """See `GET /dicom-web/studies/{study}`. With `Accept: application/dicom`, the body is the file itself."""
    return await _retrieve(request, stored, access_log, user, study, series, instance)


@dicom_web_reader_router.get("/studies/{study}/metadata", summary="Retrieve headers of a study (WADO-RS)", **_METADATA)
async def study_metadata(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User, study: Uid
) -> Response:
    """Send the headers of the instances, without pixels and other long binary values."""
    return await _metadata(request, stored, access_log, user, study)


@dicom_web_reader_router.get(
    "/studies/{study}/series/{series}/metadata", summary="Retrieve headers of a series (WADO-RS)", **_METADATA
)
async def series_metadata(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User, study: Uid, series: Uid
) -> Response:
    """See `GET /dicom-web/studies/{study}/metadata`."""
    return await _metadata(request, stored, access_log, user, study, series)


@dicom_web_reader_router.get(
    "/studies/{study}/series/{series}/instances/{instance}/metadata",
    summary="Retrieve the header of an instance (WADO-RS)",
    **_METADATA,
)
async def instance_metadata(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User,
    study: Uid, series: Uid, instance: Uid,
) -> Response:  # fmt: skip
    """See `GET /dicom-web/studies/{study}/metadata`."""
    return await _metadata(request, stored, access_log, user, study, series, instance)


@dicom_web_reader_router.get(
    "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}",
    summary="Retrieve the pixels of an instance (WADO-RS)",
    response_class=Response,
    responses={**_binary("multipart/related"), **problem_responses(404, 406, 410, 413)},
)
async def retrieve_frame(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User,
    study: Uid, series: Uid, instance: Uid,
    frames: Annotated[str, Path(pattern=r"^[0-9,]{1,64}$", examples=["1"])],
) -> Response:  # fmt: skip
    """Every image has exactly one frame, number 1. It is sent as stored; compressed pixels keep their transfer syntax."""
    ranges = accepted_media_ranges(request)
    found = await _one(stored, study, series, instance)
    if frames != "1":
        raise HTTPException(404, "the instance has no such frame")
    media_type, transfer_syntax = frame_type(found.transfer_syntax)
    require_frame(ranges, media_type, transfer_syntax)
    frame = await stored.frame(found)
    if frame is None:
        raise HTTPException(404, _NO_PIXELS)
    await run_in_threadpool(access_log.viewed, user, [found.prediction.id])
    boundary = secrets.token_hex(16)
    body = b"".join([_part_header(boundary, f"{media_type}; transfer-syntax={transfer_syntax}"), frame, _end(boundary)])
    return Response(body, media_type=_multipart_type(media_type, boundary))


@dicom_web_reader_router.get(
    "/studies/{study}/series/{series}/instances/{instance}/rendered",
    summary="Retrieve a rendered image of an instance (WADO-RS)",
    response_class=Response, responses={**_binary(*_RENDERED_TYPES), **problem_responses(404, 406, 410, 413)},
)  # fmt: skip
async def retrieve_rendered(
    request: Request, stored: AppStoredInstances, access_log: AppAccessLog, user: User,
    study: Uid, series: Uid, instance: Uid,
) -> Response:  # fmt: skip
    """Render the image with 8 bits at its original size, using the window in the file."""
    media_type = choose(accepted_media_ranges(request), _RENDERED_TYPES)
    found = await _one(stored, study, series, instance)
    image = await stored.rendered(found, media_type)
    if image is None:
        raise HTTPException(404, _NO_PIXELS)
    await run_in_threadpool(access_log.viewed, user, [found.prediction.id])
    return Response(image, media_type=media_type)


async def _retrieve(
    request: Request, stored: StoredInstances, access_log: AppAccessLog, user: str, *uids: str
) -> StreamingResponse:
    found = await _find(stored, *uids)
    syntaxes = {each.transfer_syntax for each in found}
    is_multipart = require_dicom(accepted_media_ranges(request), syntaxes, single=len(uids) == 3)
    first = await stored.open(found[0])  # before the status is sent, since the file may be gone
    try:
        await run_in_threadpool(access_log.viewed, user, list(dict.fromkeys(each.prediction.id for each in found)))
    except BaseException:
        first.close()
        raise
    if not is_multipart:
        return StreamingResponse(_chunks(first), media_type=DICOM)
    boundary = secrets.token_hex(16)
    return StreamingResponse(_parts(stored, found, first, boundary), media_type=_multipart_type(DICOM, boundary))


async def _metadata(
    request: Request, stored: StoredInstances, access_log: AppAccessLog, user: str, *uids: str
) -> Response:
    media_type = choose(accepted_media_ranges(request), JSON_TYPES)
    found = await _find(stored, *uids)
    first = await stored.metadata(found[0])  # before the status is sent, since the file may be gone
    await run_in_threadpool(access_log.viewed, user, list(dict.fromkeys(each.prediction.id for each in found)))
    return StreamingResponse(header_list(stored, found, first), media_type=media_type)


async def _one(stored: StoredInstances, study: str, series: str, instance: str) -> StoredInstance:
    return (await _find(stored, study, series, instance))[0]


async def _find(stored: StoredInstances, *uids: str) -> list[StoredInstance]:
    """Return the instances with these Study, Series and SOP Instance UIDs.

    Raises:
        HTTPException: There are none (404).
    """
    found = await run_in_threadpool(stored.instances, *uids)
    if not found:
        level = ("study", "series", "instance")[len(uids) - 1]
        raise HTTPException(404, f"no {level} with this UID is stored as DICOM")
    return found


async def _parts(
    stored: StoredInstances, instances: Sequence[StoredInstance], first: BinaryIO, boundary: str
) -> AsyncIterator[bytes]:
    """Yield a multipart body with the already opened file of the first instance, followed by the other files.

    If one of the others cannot be read, the body ends without the final boundary.
    """
    for number, each in enumerate(instances):
        file = await stored.open(each) if number else first
        yield _part_header(boundary, f"{DICOM}; transfer-syntax={each.transfer_syntax}")
        async for chunk in _chunks(file):
            yield chunk
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


async def header_list(
    stored: StoredInstances, instances: Sequence[StoredInstance], first: bytes
) -> AsyncIterator[bytes]:
    """Yield a JSON array with the given header of the first instance and the headers of the others; see `_parts`."""
    yield b"[" + first
    for each in instances[1:]:
        yield b"," + await stored.metadata(each)
    yield b"]"


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield the content of a file, then close it."""
    with file:
        while chunk := await run_in_threadpool(file.read, _CHUNK_BYTES):
            yield chunk


def _multipart_type(part_type: str, boundary: str) -> str:
    return f'multipart/related; type="{part_type}"; boundary={boundary}'


def _part_header(boundary: str, content_type: str) -> bytes:
    return f"--{boundary}\r\nContent-Type: {content_type}\r\n\r\n".encode()


def _end(boundary: str) -> bytes:
    return f"\r\n--{boundary}--\r\n".encode()
