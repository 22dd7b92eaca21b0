"""Errors as a client of the service meets them: problem documents (RFC 9457) named as the exception tree is.

Every answer that is no success has this form, with the name of its error, what is wrong and what to do next. It never repeats
a film's name or what stands in a film: names of patients do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from pneumoscope import errors
from pneumoscope.errors import PneumoscopeError

__all__ = ["MEDIA_TYPE", "STATUSES", "Problem", "answer_errors", "problem", "responses"]

MEDIA_TYPE = "application/problem+json"
_RETRY = 2  # seconds, about what a full queue takes to be scored
_LOG = logging.getLogger("pneumoscope.service")

# The nearest class of an error's family tells its status.
STATUSES: Mapping[type[PneumoscopeError], int] = {
    errors.PneumoscopeError: 500,
    errors.CallerError: 400,
    errors.UsageError: 422,
    errors.UnknownNameError: 404,
    errors.AccessError: 401,
    errors.TooLargeError: 413,
    errors.UnreadableFilmError: 422,
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
    408: "The request took too long to arrive",
    410: "The film was removed",
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
    advice: str = Field(examples=["It was deleted, or never made here"])
    """What to do next; may be empty."""
    error: str = Field(examples=["UnknownNameError"])
    """The name of the error, as in Python."""


def problem(
    status: int, error: str, detail: str, advice: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An answer that is no success."""
    found = Problem(
        type=f"urn:pneumoscope:error:{error}",
        title=_TITLES.get(status, "The request cannot be done"),
        status=status,
        detail=detail,
        advice=advice,
        error=error,
    )
    return JSONResponse(found.model_dump(), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def of_error(error: PneumoscopeError) -> JSONResponse:
    """What a client is told of an error raised on purpose."""
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    headers = {503: {"Retry-After": str(_RETRY)}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    detail = error.message
    if isinstance(error, errors.UnreadableFilmError):  # without the film's name
        detail = f"the film cannot be read: {error.why}"
    return problem(status, type(error).__name__, detail, error.advice, headers)


def answer_errors(app: FastAPI) -> None:
    """Give every error of an application this form."""

    @app.exception_handler(PneumoscopeError)
    async def _told(_: Request, error: PneumoscopeError) -> JSONResponse:
        answer = of_error(error)
        if answer.status_code >= 500:
            _LOG.error("%s: %s", type(error).__name__, error.message)
        return answer

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Where and why, not what was given: a note may name a patient.
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return problem(422, "UsageError", said, "See /openapi.json for what is taken")

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        name = {404: "UnknownNameError", 413: "TooLargeError"}.get(error.status_code, "UsageError")
        return problem(error.status_code, name, str(error.detail), headers=error.headers)

    @app.exception_handler(Exception)
    async def _fault(_: Request, error: Exception) -> JSONResponse:
        # The kind alone: what an unforeseen error says may hold anything.
        _LOG.error(
            "a fault of ours: %s", type(error).__name__, exc_info=error if _LOG.isEnabledFor(logging.DEBUG) else None
        )
        return problem(
            500, "PneumoscopeError", f"an unforeseen {type(error).__name__}", "The log tells when; please report it"
        )


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: the problems that a path may answer with."""
    return {
        status: {"model": Problem, "description": _TITLES[status], "content": {MEDIA_TYPE: {}}} for status in statuses
    }
