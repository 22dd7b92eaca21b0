"""Routes and errors of the FHIR R4 interface, which is read-only. The docstrings of routes are the descriptions in OpenAPI.

There is no search, since search parameters would put patient identifiers into URLs; webhooks report the ids of
resources instead. All problem documents of paths below /fhir are converted to OperationOutcome resources.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path as FilePath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.core.errors import GoneError, StorageError, UnknownNameError, UsageError
from pneumoscope.service.api.content_negotiation import accepted_ranges, choose, not_acceptable
from pneumoscope.service.api.dependencies import (
    AppAccessLog,
    AppService,
    AppSettings,
    User,
    authentication,
    no_duplicate_parameters,
)
from pneumoscope.service.api.exception_handlers import PROBLEM_MEDIA_TYPE, problem_responses
from pneumoscope.service.audit.log import last_change, was_deleted
from pneumoscope.service.fhir.resources import (
    FHIR_MEDIA_TYPE,
    ResourceType,
    capability_statement,
    operation_outcome,
    resource,
)
from pneumoscope.service.predictions import PredictionService
from pneumoscope.service.settings import Settings
from pneumoscope.service.signatures import read_secret, response_headers

__all__ = ["OutcomeMiddleware", "fhir_router"]

_PREFIX = "/fhir"
_JSON_TYPES = (FHIR_MEDIA_TYPE, "application/json")
_ID_LENGTH = 32  # length of a prediction id
_SCHEMA: dict[str, Any] = {"type": "object", "required": ["resourceType"]}
_HEADERS = {
    "ETag": {"schema": {"type": "string"}, "description": "`meta.versionId`, weak"},
    "Last-Modified": {"schema": {"type": "string"}, "description": "`meta.lastUpdated`"},
    **{
        name: {"schema": {"type": "string"}, "description": "If the service signs resources; see RFC 9421 and RFC 9530"}
        for name in ("Content-Digest", "Signature-Input", "Signature")
    },
}
_OUTCOME_SCHEMA = {
    "type": "object",
    "required": ["resourceType", "issue"],
    "properties": {
        "resourceType": {"const": "OperationOutcome"},
        "issue": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["severity", "code"]}},
    },
}


def _outcome(problem: dict[str, Any]) -> dict[str, Any]:
    return operation_outcome(problem["status"], problem["code"], problem["detail"], problem["hint"])


def _outcome_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return an operation's error responses for OpenAPI."""
    responses = problem_responses(*statuses)
    for response in responses.values():
        problem = response["content"].pop(PROBLEM_MEDIA_TYPE)
        response["content"][FHIR_MEDIA_TYPE] = {"schema": _OUTCOME_SCHEMA, "example": _outcome(problem["example"])}
    return responses


_READ_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {FHIR_MEDIA_TYPE: {"schema": _SCHEMA}}, "headers": _HEADERS},
    304: {"description": "Not Modified: the client has this version"},
    **_outcome_responses(404, 406, 410),
}


class _FhirParameters(BaseModel):
    """Query parameters of the FHIR interface."""

    model_config = ConfigDict(extra="forbid")

    format: str = Field(
        default="json", alias="_format", max_length=64, description="`json`, or the FHIR media type", examples=["json"]
    )


_Parameters = Annotated[_FhirParameters, Query()]
_ResourceId = Annotated[
    str,
    Path(
        pattern=r"^[A-Za-z0-9.-]{1,64}$",
        examples=["0123456789abcdef0123456789abcdef"],
        description="Id of the prediction; for an image of two patients, the id followed by the study key",
    ),
]
_IfNoneMatch = Annotated[str | None, Header(description="`ETag` of the version that the client has")]


async def _require_json(request: Request) -> None:
    """Reject requests for formats other than JSON.

    Raises:
        HTTPException: The client does not accept JSON (406).
    """
    wanted = request.query_params.get("_format")
    if not wanted:
        choose(accepted_ranges(request), _JSON_TYPES)
    elif wanted.partition(";")[0].strip() not in ("json", *_JSON_TYPES):
        raise not_acceptable(_JSON_TYPES)


fhir_router = APIRouter(
    prefix=_PREFIX, tags=["FHIR"], responses=_outcome_responses(401, 403, 422, 429, 503),
    dependencies=[authentication("reader"), Depends(no_duplicate_parameters), Depends(_require_json)],
)  # fmt: skip


@fhir_router.get(
    "/metadata", summary="Get the capability statement (FHIR R4)", response_class=Response,
    responses={200: {"content": {FHIR_MEDIA_TYPE: {"schema": _SCHEMA}}}, **_outcome_responses(406)},
)  # fmt: skip
def metadata(service: AppService, _: _Parameters) -> Response:
    """Return the supported resources and interactions."""
    return Response(_encode(capability_statement(service.notice("en"))), media_type=FHIR_MEDIA_TYPE)


@fhir_router.get(
    "/DiagnosticReport/{id}", summary="Get a prediction as a DiagnosticReport (FHIR R4)", response_class=Response,
    responses=_READ_RESPONSES,
)  # fmt: skip
def diagnostic_report(
    service: AppService,
    settings: AppSettings,
    access_log: AppAccessLog,
    user: User,
    id: _ResourceId,
    _: _Parameters,
    if_none_match: _IfNoneMatch = None,
) -> Response:
    """Return the preliminary report, which no person has verified. Its result is the Observation with the same id."""
    found = _read("DiagnosticReport", service, id)
    access_log.viewed(user, [id[:_ID_LENGTH]])
    return _response(found, settings, if_none_match)


@fhir_router.get(
    "/Observation/{id}", summary="Get a prediction as an Observation (FHIR R4)", response_class=Response,
    responses=_READ_RESPONSES,
)  # fmt: skip
def observation(
    service: AppService,
    settings: AppSettings,
    access_log: AppAccessLog,
    user: User,
    id: _ResourceId,
    _: _Parameters,
    if_none_match: _IfNoneMatch = None,
) -> Response:
    """Return the presence of pneumonia, with the codes of the DICOM Structured Report; for a rejected image,
    `dataAbsentReason` contains the reason. The components are the probability with its interval, the threshold, the
    operating point and the model hash.
    """
    found = _read("Observation", service, id)
    access_log.viewed(user, [id[:_ID_LENGTH]])
    return _response(found, settings, if_none_match)


def _read(kind: ResourceType, service: PredictionService, id: str) -> dict[str, Any]:
    """Return the resource of a prediction.

    Raises:
        GoneError: The prediction was deleted.
        UnknownNameError: The prediction never existed, or its image does not belong to the study.
    """
    repository, (prediction_id, study_key) = service.repository, (id[:_ID_LENGTH], id[_ID_LENGTH:])
    try:
        prediction = repository.get(prediction_id)
    except UnknownNameError as error:
        if was_deleted(repository.engine, prediction_id):
            raise GoneError(f"the prediction {prediction_id!r} was deleted") from error
        raise
    if study_key:
        of_study = repository.studies([study_key]).get(study_key, ())
        found = [each for each in of_study if each.id == prediction_id]
        if not found:
            raise UnknownNameError(kind, id, (), hint="The image belongs to another study now")
        prediction = found[0]
    updated = last_change(repository.engine, prediction_id) or prediction.created  # predictions of old versions
    return resource(kind, id, prediction, service.notice("en", prediction), updated)


def _response(found: dict[str, Any], settings: Settings, if_none_match: str | None) -> Response:
    meta, body = found["meta"], _encode(found)
    etag = f'W/"{meta["versionId"]}"'
    modified = format_datetime(datetime.fromisoformat(meta["lastUpdated"]), usegmt=True)
    headers = {"ETag": etag, "Last-Modified": modified}
    known = [each.strip().removeprefix("W/") for each in (if_none_match or "").split(",")]
    if "*" in known or etag.removeprefix("W/") in known:
        return Response(status_code=304, headers=headers)
    if settings.dicom.fhir_secret_file:
        signed = {"content-type": FHIR_MEDIA_TYPE, "etag": etag, "last-modified": modified}
        headers |= response_headers(_secret(settings.dicom.fhir_secret_file), 200, signed, body, int(time.time()))
    return Response(body, headers=headers, media_type=FHIR_MEDIA_TYPE)


def _secret(file: FilePath) -> bytes:
    """Return the signing secret. Raise StorageError if it has become unreadable, so that no unsigned response is sent."""
    try:
        return read_secret(file)
    except UsageError as error:
        raise StorageError(error.message, hint=error.hint) from error


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


# --- errors -------------------------------------------------------------------------------------------------------------------


class OutcomeMiddleware:
    """Middleware that converts problem documents of paths below /fhir to OperationOutcome resources.

    Args:
        app: The inner application, whose middleware and exception handlers produce problem documents.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, and convert the response if it is a problem document."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{_PREFIX}/"):
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, _OutcomeSender(send))


class _OutcomeSender:
    """A sender of the response to one request, which it converts if it is a problem document.

    Args:
        send: Sends an ASGI message.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # start of a problem document, held back until its body is complete
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Send a message, or hold it back until the problem document is complete."""
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("Content-Type") == PROBLEM_MEDIA_TYPE:
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_outcome(self._start)
            return
        await self._send(message)

    async def _send_outcome(self, start: Message) -> None:
        content = json.dumps(_outcome(json.loads(self._body)), ensure_ascii=False).encode()
        headers = MutableHeaders(raw=start["headers"])
        headers["Content-Type"], headers["Content-Length"] = FHIR_MEDIA_TYPE, str(len(content))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": content})
