"""Routers of the API and the dependencies of their routes: service, authentication, query parameters, content type, language.

The dependencies are coroutines that never wait; FastAPI would run plain functions in a thread each.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from pneumoscope.core.errors import UsageError
from pneumoscope.core.i18n import choose_language
from pneumoscope.core.prediction import MAX_AGE
from pneumoscope.core.prediction_codes import Decision
from pneumoscope.service.api.exception_handlers import problem_responses
from pneumoscope.service.api.uploads import MAX_NAME_LENGTH
from pneumoscope.service.audit.access import AccessLog
from pneumoscope.service.auth.authenticator import Authenticator
from pneumoscope.service.auth.tokens import TokenRepository
from pneumoscope.service.auth.users import AuthenticatedUser, Role
from pneumoscope.service.dicom.processing import InstanceProcessor
from pneumoscope.service.predictions import PredictionService, Readiness
from pneumoscope.service.rendering import ImageRenderer
from pneumoscope.service.settings import Settings
from pneumoscope.service.storage.queries import Order

__all__ = [
    "AppAccessLog",
    "AppAuthenticator",
    "AppProcessor",
    "AppReadiness",
    "AppRenderer",
    "AppService",
    "AppSettings",
    "AppTokens",
    "CardParameters",
    "CurrentUser",
    "FindParameters",
    "Id",
    "Language",
    "NoParameters",
    "PredictParameters",
    "UnreadableParameters",
    "User",
    "api_router",
    "authentication",
    "from_app_state",
    "no_duplicate_parameters",
    "require_json",
]

_MAX_SHOWN = 64  # characters of client input that an error message repeats
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?Z)?$"
_KEY = r"^[0-9a-f]{32}$"
Id = Annotated[str, Path(pattern=_KEY, examples=["0123456789abcdef0123456789abcdef"])]
_BEARER = HTTPBearer(scheme_name="bearer", auto_error=False, description="A token of the service")


def api_router(tag: str, role: Role) -> APIRouter:
    """Return a router below /v1 whose routes have a tag and require a role."""
    return APIRouter(
        prefix="/v1", tags=[tag], responses=problem_responses(401, 403, 422, 429, 503),
        dependencies=[authentication(role), Depends(no_duplicate_parameters)],
    )  # fmt: skip


def from_app_state(name: str) -> Any:
    """Return a dependency that yields an attribute of `app.state`; `app.create_app` sets these."""

    async def attribute(request: Request) -> Any:
        return getattr(request.app.state, name)

    return Depends(attribute)


AppAccessLog = Annotated[AccessLog, from_app_state("access_log")]
AppAuthenticator = Annotated[Authenticator, from_app_state("authenticator")]
AppProcessor = Annotated[InstanceProcessor, from_app_state("processor")]
AppReadiness = Annotated[Readiness, from_app_state("readiness")]
AppRenderer = Annotated[ImageRenderer, from_app_state("renderer")]
AppService = Annotated[PredictionService, from_app_state("service")]
AppSettings = Annotated[Settings, from_app_state("settings")]


async def _tokens(request: Request) -> TokenRepository:
    """Return the token repository.

    Raises:
        UsageError: The service runs without authentication.
    """
    authenticator: Authenticator = request.app.state.authenticator
    if authenticator.tokens is None:
        raise UsageError(
            "the service was started without authentication",
            hint="Add the first token with `pneumoscope tokens add`, and start the service again",
        )
    return authenticator.tokens


AppTokens = Annotated[TokenRepository, Depends(_tokens)]


def authentication(role: Role) -> Any:
    """Return a dependency that authenticates the request and requires a role; see `Authenticator.authenticate`.

    Routers depend on it; routes that need the user's name depend on `User`.
    """

    async def authenticate(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        authenticator: Authenticator = request.app.state.authenticator
        user = await authenticator.authenticate(request, credentials.credentials if credentials else "")
        request.state.authenticated_user, request.state.user = user, user.name  # log lines contain the name
        user.require_role(role)

    return Depends(authenticate)


async def _authenticated_user(request: Request) -> AuthenticatedUser:
    """Return the user that `authentication` found for the request."""
    user: AuthenticatedUser = request.state.authenticated_user
    return user


CurrentUser = Annotated[AuthenticatedUser, Depends(_authenticated_user)]


async def _user(request: Request) -> str:
    """Return the name of the user that `authentication` found for the request."""
    user: str = request.state.user
    return user


User = Annotated[str, Depends(_user)]


async def _request_language(request: Request) -> str:
    """Return the language of the response's messages, from the Accept-Language header."""
    return choose_language("", request.headers.get("Accept-Language", ""))


Language = Annotated[str, Depends(_request_language)]


class _Parameters(BaseModel):
    """Query parameters of an operation. Unknown ones are an error, because a mistyped filter would change the result."""

    model_config = ConfigDict(extra="forbid")


NoParameters = Annotated[_Parameters, Query()]


class PredictParameters(_Parameters):
    """Query parameters of `POST /v1/predictions`."""

    name: str = Field(
        default="",
        max_length=MAX_NAME_LENGTH,
        description="Name of the image, if the body is an image",
        examples=["image.dcm"],
    )
    age: float | None = Field(
        default=None,
        ge=0,
        le=MAX_AGE,
        allow_inf_nan=False,
        description="Age of the patients in years, for images without an age in their header",
        examples=[3.5],
    )


class FindParameters(_Parameters):
    """Query parameters of `GET /v1/predictions`."""

    decision: Decision | None = Field(default=None, examples=["uncertain"])
    reviewed: bool | None = Field(default=None, description="Whether there is a review", examples=[False])
    study_key: str | None = Field(default=None, pattern=_KEY, description="Key of a study", examples=[None])
    patient_key: str | None = Field(default=None, pattern=_KEY, description="Key of a patient", examples=[None])
    since: str | None = Field(
        default=None, pattern=_TIME, description="Start of the period, ISO 8601 in UTC", examples=["2026-01-31"]
    )
    until: str | None = Field(
        default=None,
        pattern=_TIME,
        description="End of the period (exclusive), ISO 8601 in UTC",
        examples=["2026-02-01"],
    )
    order: Order = Field(default="newest", description="Sort order", examples=["newest"])
    limit: int = Field(default=50, ge=1, le=200, description="Size of the page", examples=[50])
    after: str = Field(
        default="", pattern=r"^[0-9A-Za-z_-]{0,200}$", description="`next` of the previous page", examples=[""]
    )


class UnreadableParameters(_Parameters):
    """Query parameters of `GET /v1/unreadable`."""

    limit: int = Field(default=50, ge=1, le=200, description="Number of records", examples=[50])


class CardParameters(_Parameters):
    """Query parameters of `GET /v1/model`."""

    seen: bool = Field(
        default=False, description="Include the hashes of all training and validation images (a long list)"
    )


async def no_duplicate_parameters(request: Request) -> None:
    """Reject repeated query parameters; FastAPI would silently use the last value.

    Raises:
        UsageError: A parameter is repeated.
    """
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if count > 1:
            raise UsageError(f"the query parameter {name[:_MAX_SHOWN]!r} is repeated", hint="Send it once")


async def require_json(request: Request) -> None:
    """Reject a body whose Content-Type is not JSON; FastAPI would answer 422 without mentioning the header.

    Raises:
        HTTPException: The Content-Type is not JSON (415).
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    category, _, subtype = media_type.partition("/")
    if category != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise HTTPException(415, f"the Content-Type {media_type[:_MAX_SHOWN]!r} is not supported; use application/json")
