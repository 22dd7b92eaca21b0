"""Exception handlers: every error response is a problem document (RFC 9457) with a stable code from `core.errors`.

Problem documents and log lines never contain image names or values read from images, which may identify patients.
Server paths and the database address appear only in the log, never in problem documents.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import errno
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pneumoscope.core import errors
from pneumoscope.core.error_messages import error_detail
from pneumoscope.core.errors import PneumoscopeError
from pneumoscope.core.i18n import choose_language
from pneumoscope.core.unreadable import UnreadableReason
from pneumoscope.service.storage.queries import TIME_FORMAT

__all__ = [
    "PROBLEM_MEDIA_TYPE",
    "STATUSES",
    "Problem",
    "error_response",
    "error_status",
    "extend_openapi",
    "install_exception_handlers",
    "internal_error_response",
    "problem_response",
    "problem_responses",
    "public_error",
    "record_error",
]

PROBLEM_MEDIA_TYPE = "application/problem+json"
_MAX_SHOWN = 64  # characters of client input that a problem document repeats
_RETRY_SECONDS = 2  # about the time it takes to score a full queue

# HTTP status by error class. Other classes use the status of their nearest base class.
STATUSES: Mapping[type[PneumoscopeError], int] = {
    errors.PneumoscopeError: 500,
    errors.InputError: 400,
    errors.UsageError: 422,
    errors.UnknownNameError: 404,
    errors.AuthenticationError: 401,
    errors.ForbiddenError: 403,
    errors.TooManyRequestsError: 429,
    errors.TooLargeError: 413,
    errors.InvalidIdentityError: 422,
    errors.UnreadableImageError: 422,
    errors.GoneError: 410,
    errors.ConflictError: 412,
    errors.ImageOfTwoPatientsError: 409,
    errors.BundleError: 503,
    errors.StorageError: 503,
    errors.BusyError: 503,
}
# Details of server errors that clients see.
_PUBLIC_DETAILS: Mapping[type[PneumoscopeError], str] = {
    errors.StorageError: "the storage cannot be used",
    errors.BundleError: "the model cannot be used",
    errors.PneumoscopeError: "internal error",
}
# Phrases of the IANA registry; `http.HTTPStatus` differs between Python versions.
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    409: "Conflict",
    410: "Gone",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
# Codes for errors raised by the framework.
_CODES = {404: errors.UnknownNameError.code, 413: errors.TooLargeError.code}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "60"},  # replaced by the error's own delay
    503: {"Retry-After": str(_RETRY_SECONDS)},
}
# Explanations of parameter patterns.
_PATTERNS = {
    "since": f"write a time as {TIME_FORMAT}",
    "until": f"write a time as {TIME_FORMAT}",
    "id": "an id is 32 digits of 0 to 9 and a to f",
    "study_key": "a key is 32 digits of 0 to 9 and a to f",
    "patient_key": "a key is 32 digits of 0 to 9 and a to f",
    "after": "pass `next` of the previous page, or nothing",
    **dict.fromkeys(("study", "series", "instance"), "a UID has up to 64 digits and periods"),
    "note": "the character U+0000 cannot be stored",
}
_FRAMEWORK_MESSAGES = {
    "Not Found": ("there is no resource at this path", "See /openapi.json for the paths"),
    "Method Not Allowed": ("this path does not support the method", "See /openapi.json, and the header Allow"),
}


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = Field(examples=["urn:pneumoscope:error:unknown_name"])
    """"urn:pneumoscope:error:" followed by the code."""
    title: str = Field(examples=["Not Found"])
    """Reason phrase of the status."""
    status: int = Field(examples=[404])
    """HTTP status."""
    detail: str = Field(examples=["there is no prediction '0123456789abcdef0123456789abcdef'"])
    """The problem, including the offending value."""
    hint: str = Field(examples=["It was deleted, or never existed here"])
    """What to do next; may be empty."""
    code: str = Field(examples=["unknown_name"])
    """Stable error code."""
    fields: dict[str, str] | None = None
    """Only with the code "invalid_identity": the problem code for each invalid field."""
    reason: UnreadableReason | None = None
    """Only for unreadable images: a stable code with parameters."""
    message: str | None = None
    """Only for unreadable images: the reason and the next step, in the language of the request."""


def problem_response(
    status: int,
    code: str,
    detail: str,
    hint: str = "",
    headers: Mapping[str, str] | None = None,
    **extensions: object,
) -> JSONResponse:
    """Return a problem document as a response. `extensions` become additional members."""
    document = {
        "type": f"urn:pneumoscope:error:{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "hint": hint,
        "code": code,
        **extensions,
    }
    return JSONResponse(document, status, {**_HEADERS.get(status, {}), **(headers or {})}, PROBLEM_MEDIA_TYPE)


def error_response(error: PneumoscopeError, language: str = "en") -> JSONResponse:
    """Return the response to a pneumoscope error.

    The language applies to the message about an unreadable image; all other text is English.
    """
    error = public_error(error)
    headers = {"Retry-After": str(error.retry_seconds)} if isinstance(error, errors.TooManyRequestsError) else {}
    extensions: dict[str, object] = {}
    if isinstance(error, errors.InvalidIdentityError):
        extensions["fields"] = error.fields
    if isinstance(error, errors.UnreadableImageError) and error.reason:
        extensions["reason"] = dataclasses.asdict(error.reason)
        extensions["message"] = error_detail(error, language).text
    return problem_response(error_status(error), error.code, error.message, error.hint, headers, **extensions)


def error_status(error: PneumoscopeError) -> int:
    """Return the HTTP status of a pneumoscope error."""
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def public_error(error: PneumoscopeError) -> PneumoscopeError:
    """Return a copy of the error that is safe for clients: without image names, server paths and database addresses."""
    if isinstance(error, errors.UnreadableImageError):
        return error.renamed("")
    if isinstance(error, errors.BusyError) or error_status(error) < 500:
        return error
    public = copy.copy(error)  # keeps the class and thereby the code
    public.message = next(detail for cls, detail in _PUBLIC_DETAILS.items() if isinstance(error, cls))
    public.hint = "See the server log for the reason"
    return public


def internal_error_response(request: Request, error: Exception) -> JSONResponse:
    """Return the response to an unexpected error. It names only the exception type, since the message may contain anything."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        busy = errors.BusyError("too many connections and files are open", hint="Try again in a few seconds")
        record_error(request, busy.code, busy.message)
        return error_response(busy)
    detail = f"unexpected {type(error).__name__}"
    record_error(request, PneumoscopeError.code, detail)
    return problem_response(500, PneumoscopeError.code, detail, "The server log has the time; please report it")


def record_error(request: Request, code: str, message: str = "") -> None:
    """Record an error for the request's log line, which `RequestMiddleware` writes.

    Args:
        request: The request that failed.
        code: Error code.
        message: Logged with status 500 and above. It may contain the id of a prediction, but no other client input.
    """
    request.state.error = (code, message)


def install_exception_handlers(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Register handlers that answer every error with a problem document.

    Args:
        app: The application.
        routes: The application's routes, for the Allow header.
    """

    @app.exception_handler(PneumoscopeError)
    async def _handle_error(request: Request, error: PneumoscopeError) -> JSONResponse:
        record_error(request, error.code, error.message)
        return error_response(error, choose_language("", request.headers.get("Accept-Language", "")))

    @app.exception_handler(ClientDisconnect)
    async def _handle_disconnect(request: Request, _: ClientDisconnect) -> JSONResponse:
        return await _handle_error(request, errors.UsageError("the client disconnected"))

    @app.exception_handler(RequestValidationError)
    async def _handle_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        code = errors.UsageError.code
        record_error(request, code)
        for each in error.errors():
            if each["type"] == "extra_forbidden" and each["loc"][0] == "query":
                return _unknown_parameter(request, str(each["loc"][-1]))
        # The rejected value is left out: a note may name a patient.
        detail = "; ".join(f"{_location(each)}: {_validation_message(each)}" for each in error.errors())
        return problem_response(422, code, detail, "See /openapi.json for the expected values")

    @app.exception_handler(HTTPException)
    async def _handle_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        code = _CODES.get(error.status_code, errors.UsageError.code)
        record_error(request, code)
        detail, hint = _FRAMEWORK_MESSAGES.get(error.detail, (error.detail, ""))
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the framework lists only one route's methods
            path = request.url.path
            methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
            headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        return problem_response(error.status_code, code, detail, hint, headers)


def _location(error: Mapping[str, Any]) -> str:
    """Return the path of an invalid value. Its parts may be keys sent by the client."""
    return ".".join(str(part)[:_MAX_SHOWN] for part in error["loc"])


def _validation_message(error: Mapping[str, Any]) -> str:
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] in _PATTERNS:
        return _PATTERNS[error["loc"][-1]]
    return str(error["msg"])


def _unknown_parameter(request: Request, name: str) -> JSONResponse:
    """Return the problem document for an unknown query parameter; the hint suggests the closest known name."""
    route: APIRoute = request.scope["route"]
    models = [field.field_info.annotation for field in route.dependant.query_params]
    fields = [pair for model in models for pair in getattr(model, "model_fields", {}).items()]
    known = sorted(field.alias or name for name, field in fields)
    closest = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {closest[0]!r}?" if closest else f"Known: {', '.join(known)}" if known else "Remove it"
    detail = f"there is no query parameter {name[:_MAX_SHOWN]!r} on this path"
    return problem_response(422, errors.UsageError.code, detail, hint)


# Arguments of `problem_response` for the OpenAPI examples.
_EXAMPLES = {
    400: ("usage", "There was an error parsing the body", ""),
    401: ("authentication", "unknown token", "Send the header: Authorization: Bearer TOKEN"),
    403: ("forbidden", "the role 'sender' may not do this; it requires the role 'reader'", "Ask an administrator for a token"),
    404: ("unknown_name", "there is no prediction '0123456789abcdef0123456789abcdef'", "It was deleted, or never existed here"),
    406: ("usage", "the client does not accept application/dicom+json or application/json, which this resource has", ""),
    409: (
        "image_of_two_patients",
        "nothing was deleted: an image was received under another patient as well",
        "Choose its patient first; its prediction has the conflict image_of_two_patients",
    ),
    412: ("conflict", "the prediction was changed in the meantime", "Get it again, and compare its reviews and its identity"),
    410: ("gone", "the image of prediction '0123456789abcdef0123456789abcdef' was removed", "The prediction is kept"),
    413: ("too_large", "too many images; the limit per request is 64", "Send them in several requests"),
    415: ("usage", "the Content-Type 'text/html' is not supported; use application/json", ""),
    422: ("usage", "query.limit: Input should be less than or equal to 200", "See /openapi.json for the expected values"),
    429: ("too_many_requests", "too many failed attempts to sign in from this address", "Try again in 60 seconds"),
    503: ("busy", "the queue is full: 256 images are waiting, and the limit is 256", "Try again in a few seconds"),
}  # fmt: skip


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return an operation's error responses for OpenAPI; `extend_openapi` adds their schema."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        example = json.loads(bytes(problem_response(status, *_EXAMPLES[status]).body))
        content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
        responses[status] = {"description": _TITLES[status], "content": content}
        if status in _HEADERS:
            responses[status]["headers"] = {name: {"schema": {"type": "string"}} for name in _HEADERS[status]}
    return responses


def extend_openapi(app: FastAPI, *, has_authentication: bool) -> None:
    """Add the problem document schema to OpenAPI; without authentication, remove the security schemes.

    FastAPI would list a model given in `responses` as application/json instead of application/problem+json.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= {"Problem": schema, **schema.pop("$defs")}
        if not has_authentication:
            document["components"].pop("securitySchemes", None)
            for operations in document["paths"].values():
                for operation in operations.values():
                    operation.pop("security", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
