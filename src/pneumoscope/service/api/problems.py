"""Errors as a client of the service meets them: problem documents (RFC 9457) named as the exception tree is.

Every answer that is no success has this form, with the name of its error, what is wrong and what to do next. It never repeats
an image's name or what stands in an image: names of patients do.
"""

from __future__ import annotations

import difflib
import errno
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pneumoscope.core import errors
from pneumoscope.core.errors import PneumoscopeError
from pneumoscope.service.storage.records import TIME_FORM

__all__ = [
    "MEDIA_TYPE",
    "STATUSES",
    "Problem",
    "describe_errors",
    "fault",
    "install_exception_handlers",
    "of_error",
    "problem",
    "refused",
    "responses",
]

MEDIA_TYPE = "application/problem+json"
_SHOWN = 64  # characters of client input that an error repeats
_RETRY = 2  # seconds, about what a full queue takes to be scored

# How what has a form is written, in words: the form itself is an expression that nobody should have to read.
_FORMS = {
    "since": f"a time is written {TIME_FORM}",
    "until": f"a time is written {TIME_FORM}",
    "id": "an id is 32 digits of 0 to 9 and a to f",
    "after": "it is `next` of the page before, or empty",
    "note": "it holds the character U+0000, which cannot be kept",
}

# The nearest class of an error's family tells its status.
STATUSES: Mapping[type[PneumoscopeError], int] = {
    errors.PneumoscopeError: 500,
    errors.InputError: 400,
    errors.UsageError: 422,
    errors.UnknownNameError: 404,
    errors.AuthenticationError: 401,
    errors.TooLargeError: 413,
    errors.UnreadableImageError: 422,
    errors.GoneError: 410,
    errors.BundleError: 503,
    errors.StorageError: 503,
    errors.BusyError: 503,
}
_TITLES = {
    400: "The request cannot be understood",
    401: "A token is needed",
    403: "This is not allowed from there",
    404: "There is no such thing",
    405: "This cannot be done here",
    410: "The image was removed",
    413: "The request is too large",
    415: "This kind of content is not taken",
    422: "The request cannot be done",
    500: "A fault of ours",
    503: "Not now",
}


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(examples=["urn:pneumoscope:error:UnknownNameError"])
    """One for each error: "urn:pneumoscope:error:" and its name."""
    title: str = Field(examples=["There is no such thing"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["there is no prediction '0123456789abcdef0123456789abcdef'"])
    """What is wrong, with which value."""
    hint: str = Field(examples=["It was deleted, or never made here"])
    """What to do next; may be empty."""
    error: str = Field(examples=["UnknownNameError"])
    """The name of the error, as in Python."""


def problem(
    status: int, error: str, detail: str, hint: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer that is no success."""
    found = Problem(
        type=f"urn:pneumoscope:error:{error}",
        title=_TITLES.get(status, "The request cannot be done"),
        status=status,
        detail=detail,
        hint=hint,
        error=error,
    )
    return JSONResponse(found.model_dump(), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def of_error(error: PneumoscopeError) -> JSONResponse:
    """What a client is told of an error raised on purpose."""
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {503: {"Retry-After": str(_RETRY)}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    detail = error.message
    if isinstance(error, errors.UnreadableImageError):  # without the image's name
        detail = f"the image cannot be read: {error.reason}"
    return problem(status, type(error).__name__, detail, error.hint, headers)


def fault(request: Request, error: Exception) -> JSONResponse:
    """What a client is told of an error that nobody foresaw: its kind alone, for what it says may hold anything."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        busy = errors.BusyError("too many connections and files are open", hint="Try again in a few seconds")
        refused(request, "BusyError", busy.message)
        return of_error(busy)
    what = f"an unforeseen {type(error).__name__}"
    refused(request, "PneumoscopeError", what)
    return problem(500, "PneumoscopeError", what, "The log tells when; please report it")


def refused(request: Request, error: str, why: str = "") -> None:
    """Remember what became of a request, for the log line of it.

    Args:
        request: that is not done.
        error: the name of the error.
        why: is told where the fault is not the client's, so nothing that a client sent may be in it.
    """
    request.state.refused = (error, why)


# What the framework says in two words, in ours.
_SAID = {
    "Not Found": ("there is nothing at this address", "See /openapi.json for what there is"),
    "Method Not Allowed": ("this address takes other methods", "See /openapi.json, and the header Allow"),
}


def _in_words(error: Mapping[str, Any]) -> str:
    """What is wrong with a value."""
    if error["type"] == "string_pattern_mismatch" and error["loc"][-1] in _FORMS:
        return _FORMS[error["loc"][-1]]
    return str(error["msg"])


def _unknown_parameter(request: Request, name: str) -> JSONResponse:
    """Return the problem of a query parameter that the route does not have, with the nearest that it has."""
    route: APIRoute = request.scope["route"]
    models = [field.field_info.annotation for field in route.dependant.query_params]
    known = sorted(each for model in models for each in getattr(model, "model_fields", ()))
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}" if known else "It takes none"
    return problem(422, "UsageError", f"there is no query parameter {name[:_SHOWN]!r} here", hint)


def install_exception_handlers(app: FastAPI, routes: Sequence[APIRoute]) -> None:
    """Give every error of an application this form.

    Args:
        app: the application.
        routes: of it, which tell the methods that an address takes.
    """

    @app.exception_handler(PneumoscopeError)
    async def _told(request: Request, error: PneumoscopeError) -> JSONResponse:
        refused(request, type(error).__name__, error.message)
        return of_error(error)

    @app.exception_handler(ClientDisconnect)
    async def _gone(request: Request, _: ClientDisconnect) -> JSONResponse:
        return await _told(request, errors.UsageError("the client has gone"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        for each in error.errors():
            if each["type"] == "extra_forbidden" and each["loc"][0] == "query":
                refused(request, "UsageError")
                return _unknown_parameter(request, str(each["loc"][-1]))
        # Where and why, not what was given: a note may name a patient.
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {_in_words(each)}" for each in error.errors())
        refused(request, "UsageError")
        return problem(422, "UsageError", said, "See /openapi.json for what is taken")

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        name = {404: "UnknownNameError", 413: "TooLargeError"}.get(error.status_code, "UsageError")
        refused(request, name)
        said, hint = _SAID.get(error.detail, (error.detail, ""))
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the framework names those of one route alone
            taken = {
                method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()
            }
            headers["Allow"] = ", ".join(sorted(taken | ({"HEAD"} if "GET" in taken else set())))
        return problem(error.status_code, name, said, hint, headers)


# Of each status, as OpenAPI shows it: the error, what it says, and its hint.
_EXAMPLES = {
    400: ("UsageError", "There was an error parsing the body", ""),
    401: ("AuthenticationError", "the token is not known", "Send the header: Authorization: Bearer TOKEN"),
    403: ("AuthenticationError", "the request comes from another site's page", "Send it from this service's page"),
    404: ("UnknownNameError", "there is no prediction '0123456789abcdef0123456789abcdef'", "It was deleted, or never made here"),
    410: ("GoneError", "the image of prediction '0123456789abcdef0123456789abcdef' was removed", "Its numbers are kept"),
    413: ("TooLargeError", "a request takes 64 images", "Send them in several requests"),
    415: ("UsageError", "the Content-Type is 'text/html'; taken is application/json", ""),
    422: ("UsageError", "query.limit: Input should be less than or equal to 200", "See /openapi.json for what is taken"),
    503: ("BusyError", "256 images wait to be scored; 256 may", "Try again in a few seconds"),
}  # fmt: skip


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the problems that an operation may answer with, for OpenAPI. `describe_errors` adds their schema."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        example = json.loads(bytes(problem(status, *_EXAMPLES[status]).body))
        content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
        found[status] = {"description": _TITLES[status], "content": content}
        headers = {503: "Retry-After", 401: "WWW-Authenticate"}
        if status in headers:
            found[status]["headers"] = {headers[status]: {"schema": {"type": "string"}}}
    return found


def describe_errors(app: FastAPI) -> None:
    """Add the schema of a problem document to an application's OpenAPI document, as `responses` refers to it.

    FastAPI would describe a model in `responses` as application/json, not as application/problem+json.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["schemas"]["Problem"] = Problem.model_json_schema()
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
