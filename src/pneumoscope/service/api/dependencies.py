"""Dependencies of the API: who sends a request, and which parameters and content type it may have.

None of them waits for anything: as coroutines they stay on the event loop, where plain functions would take a thread each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from pneumoscope.core.errors import UsageError
from pneumoscope.core.prediction import Decision
from pneumoscope.service.auth.tokens import LOCAL, Authenticator
from pneumoscope.service.predictions import NAME
from pneumoscope.service.storage.records import Order

__all__ = [
    "CardParameters",
    "FindParameters",
    "Identify",
    "JudgeParameters",
    "NoParameters",
    "authentication",
    "json_body",
    "no_duplicate_parameters",
]

_SHOWN = 64  # characters of client input that an error repeats
_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?Z)?$"
_BEARER = HTTPBearer(scheme_name="bearer", auto_error=False, description="A token from the service's token file")

Identify = Callable[..., Awaitable[str]]


def authentication(access: Authenticator) -> Identify:
    """Return the dependency that yields the name of the token or session of a request.

    The dependency raises `AuthenticationError`, see `Authenticator.of_request`. Without tokens the name is `LOCAL`, and OpenAPI shows no
    security scheme.
    """

    async def identify(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> str:
        request.state.who = access.of_request(request, credentials.credentials if credentials else "")
        return str(request.state.who)

    async def identify_as_local(request: Request) -> str:
        request.state.who = LOCAL
        return LOCAL

    return identify if access.asks else identify_as_local


class _Parameters(BaseModel):
    """Query parameters of an operation; others are an error, since a mistyped filter would give another answer."""

    model_config = ConfigDict(extra="forbid")


NoParameters = Annotated[_Parameters, Query()]


class JudgeParameters(_Parameters):
    """Query parameters of `POST /v1/predictions`."""

    name: str = Field(
        default="",
        max_length=NAME,
        description="Of the image, where the body is the image itself",
        examples=["image.dcm"],
    )


class FindParameters(_Parameters):
    """Query parameters of `GET /v1/predictions`."""

    decision: Decision | None = Field(default=None, examples=["uncertain"])
    reviewed: bool | None = Field(default=None, description="By a person", examples=[False])
    since: str | None = Field(default=None, pattern=_TIME, description="ISO 8601 in UTC", examples=["2026-01-31"])
    until: str | None = Field(default=None, pattern=_TIME, description="Not included", examples=["2026-02-01"])
    order: Order = Field(default="newest", description="By time, or by probability", examples=["newest"])
    limit: int = Field(default=50, ge=1, le=200, examples=[50])
    after: str = Field(
        default="", pattern=r"^[0-9A-Za-z_-]{0,200}$", description="`next` of the page before", examples=[""]
    )


class CardParameters(_Parameters):
    """Query parameters of `GET /v1/model`."""

    seen: bool = Field(
        default=False,
        description="With the hashes of all images that it learned from or was tuned on, long as they are",
    )


async def no_duplicate_parameters(request: Request) -> None:
    """Reject a repeated query parameter, of which FastAPI would take the last.

    Raises:
        UsageError: A parameter is there twice.
    """
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if times > 1:
            raise UsageError(f"the query parameter {name[:_SHOWN]!r} stands there twice", hint="Send it once")


async def json_body(request: Request) -> None:
    """Reject a body that is not JSON by its Content-Type; FastAPI would answer 422 without naming the header.

    Raises:
        HTTPException: 415.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    family, _, form = kind.partition("/")
    if family != "application" or not (form == "json" or form.endswith("+json")):
        raise HTTPException(415, f"the Content-Type is {kind[:_SHOWN]!r}; taken is application/json")
