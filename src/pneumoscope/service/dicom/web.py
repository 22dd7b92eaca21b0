"""DICOMweb Store Transaction (STOW-RS, PS3.18 10.5) at `/dicom-web/studies`."""

from __future__ import annotations

import asyncio
import io
import json
import re
from email.message import Message
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydicom import Dataset, Sequence
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from starlette.exceptions import HTTPException

from pneumoscope.core.errors import TooLargeError, UsageError
from pneumoscope.service.api.content_negotiation import accepted_ranges, choose
from pneumoscope.service.api.dependencies import (
    AppProcessor,
    AppSettings,
    NoParameters,
    User,
    authentication,
    no_duplicate_parameters,
)
from pneumoscope.service.api.exception_handlers import problem_responses
from pneumoscope.service.dicom.media_types import JSON, JSON_TYPES
from pneumoscope.service.dicom.node_settings import SUCCESS, image_name
from pneumoscope.service.dicom.processing import InstanceProcessor

__all__ = ["dicom_web_router"]

_PREFIX = slice(128, 132)  # "DICM", after the preamble
_META_GROUP = 0x0002
_MAX_META_BYTES = 64 * 2**10
_MAX_HEADER_BYTES = 4096  # of the headers of a part
_BODY: dict[str, Any] = {
    "required": True,
    "content": {"multipart/related": {"schema": {"type": "string", "format": "binary"}}},
}
_STORED: dict[str, Any] = {"content": {JSON: {"schema": {"type": "object"}}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {**_STORED, "description": "All instances were stored"},
    202: {**_STORED, "description": "Some instances were not stored"},
    409: {**_STORED, "description": "No instance was stored"},
}

dicom_web_router = APIRouter(
    prefix="/dicom-web", tags=["DICOMweb"], responses=problem_responses(401, 403, 422, 429, 503),
    dependencies=[authentication("sender"), Depends(no_duplicate_parameters)],
)  # fmt: skip


@dicom_web_router.post(
    "/studies", summary="Store DICOM instances (STOW-RS)", response_class=Response,
    responses={**_RESPONSES, **problem_responses(400, 406, 413, 415)}, openapi_extra={"requestBody": _BODY},
)  # fmt: skip
async def store(
    request: Request, processor: AppProcessor, settings: AppSettings, user: User, _: NoParameters
) -> Response:
    """Send DICOM files as the parts of a `multipart/related` body. The response (PS3.18 10.5.3) is sent once the
    instances are on disk: `ReferencedSOPSequence` lists the stored instances, `FailedSOPSequence` the others with
    reasons. Instances are predicted after the quiet period of their study. Instances that are already stored are not
    predicted again.
    """
    media_type = choose(accepted_ranges(request), JSON_TYPES)
    instances = await _read_instances(request, settings.max_images)
    items = await asyncio.gather(*(_store(processor, instance, user) for instance in instances))
    stored = [item for item in items if "FailureReason" not in item]
    failed = [item for item in items if "FailureReason" in item]
    document = Dataset()
    if stored:
        document.ReferencedSOPSequence = Sequence(stored)
    if failed:
        document.FailedSOPSequence = Sequence(failed)
    status = 409 if not stored else 202 if failed else 200
    return Response(json.dumps(document.to_json_dict()), status, media_type=media_type)


async def _store(processor: InstanceProcessor, instance: bytes, user: str) -> Dataset:
    """Store an instance; return its item for the response."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = _read_uids(instance)
    name = image_name(item.ReferencedSOPInstanceUID)
    received = await run_in_threadpool(processor.receive, instance, name, user)
    if received.status != SUCCESS:
        item.FailureReason = received.status
    return item


async def _read_instances(request: Request, max_instances: int) -> list[bytes]:
    """Return the parts of a body.

    Raises:
        UsageError: The body is malformed or has no parts.
        TooLargeError: There are too many parts.
        HTTPException: The body or a part is not DICOM (415).
    """
    content_type = Message()
    content_type["Content-Type"] = request.headers.get("Content-Type", "")
    boundary = content_type.get_param("boundary")
    part_type = str(content_type.get_param("type") or "application/dicom")
    if content_type.get_content_type() != "multipart/related" or part_type.lower() != "application/dicom":
        raise _unsupported(request.headers.get("Content-Type", ""))
    if not isinstance(boundary, str) or not boundary or len(boundary) > 256:
        raise UsageError("the Content-Type has no boundary", hint='Send multipart/related; type="application/dicom"')
    parts = _Parts()
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), parts.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
            if len(parts.complete) > max_instances:
                raise TooLargeError(
                    f"too many instances; the limit per request is {max_instances}",
                    hint="Send them in several requests",
                )
        parser.finalize()
    except MultipartParseError as error:
        raise UsageError("the body is not multipart", hint="Separate the parts by the boundary") from error
    if not parts.ended or not parts.complete:
        raise UsageError("the body has no instance, or ends in the middle of one", hint="Send each file as a part")
    return parts.complete


class _Parts:
    """The parts of a body, collected by the callbacks of `MultipartParser`."""

    def __init__(self) -> None:
        self.complete: list[bytes] = []
        self.ended = False
        self._content = bytearray()
        self._name = self._value = b""

    def callbacks(self) -> Any:
        """Return the callbacks of the parser."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end", "end")
        return {f"on_{name}": getattr(self, f"_{name}") for name in names}

    def _part_begin(self) -> None:
        self._content = bytearray()
        self._name = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _part_end(self) -> None:
        self.complete.append(bytes(self._content))

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _header_end(self) -> None:
        name, value = self._name.decode("latin-1").strip().lower(), self._value.decode("latin-1")
        if name == "content-type" and value.partition(";")[0].strip().lower() != "application/dicom":
            raise _unsupported(value)
        self._name = self._value = b""

    def _end(self) -> None:
        self.ended = True

    def _check_header(self) -> None:
        if len(self._name) + len(self._value) > _MAX_HEADER_BYTES:
            raise UsageError(f"a header of a part has more than {_MAX_HEADER_BYTES} bytes")


def _unsupported(content_type: str) -> HTTPException:
    return HTTPException(
        415, f'the Content-Type {content_type[:64]!r} is not supported; use multipart/related; type="application/dicom"'
    )


def _read_uids(instance: bytes) -> tuple[str, str]:
    """Return the SOP Class and SOP Instance UID in the file meta information; empty if it cannot be read."""
    if instance[_PREFIX] != b"DICM":
        return "", ""
    file = io.BytesIO(instance[_PREFIX.stop : _PREFIX.stop + _MAX_META_BYTES])
    try:
        meta = read_dataset(
            file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: _group(tag) != _META_GROUP
        )
        uids = (str(meta.get(name, "")) for name in ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID"))
        sop_class, sop_instance = (uid if re.fullmatch(r"[0-9.]{1,64}", uid) else "" for uid in uids)
        return sop_class, sop_instance
    except Exception:  # noqa: BLE001  untrusted bytes: pydicom may raise any type of error
        return "", ""


def _group(tag: BaseTag) -> int:
    return int(tag) >> 16
