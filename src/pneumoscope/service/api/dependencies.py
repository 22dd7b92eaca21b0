"""What is looked at before a request to the API is done: who asks, with which parameters, and in which form its body came.

None of it waits for anything: as coroutines they stay on the loop, where plain functions would be sent to a thread each.
"""

from __future__ import annotations

import difflib
from typing import Annotated

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from pneumoscope.core.errors import UsageError
from pneumoscope.service.auth.tokens import Authenticator

__all__ = ["Who", "as_json", "known_parameters", "who"]

_SHOWN = 64  # characters of what a client sent that an answer repeats


async def who(request: Request) -> str:
    """The name behind the request's token, or behind the page's cookie.

    Raises:
        AuthenticationError: see `Authenticator.of_request`.
    """
    access: Authenticator = request.app.state.access
    name = access.of_request(request)
    request.state.who = name
    return name


Who = Annotated[str, Depends(who)]


async def known_parameters(request: Request) -> None:
    """Go on where the path takes all parameters of the query: one that is mistyped would give another answer than was meant.

    Raises:
        UsageError: it does not take one of them.
    """
    route: APIRoute = request.scope["route"]
    taken = sorted(each.alias for each in route.dependant.query_params)
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if given.count(name) > 1:
            raise UsageError(f"the query parameter {name[:_SHOWN]!r} stands there twice", hint="Send it once")
        if name not in taken:
            near = difflib.get_close_matches(name, taken, n=1)
            known = f"Known: {', '.join(taken)}" if taken else "It takes none"
            raise UsageError(
                f"there is no query parameter {name[:_SHOWN]!r} here",
                hint=f"Did you mean {near[0]!r}?" if near else known,
            )


async def as_json(request: Request) -> None:
    """Go on where the body came as JSON.

    Raises:
        HTTPException: as something else.
    """
    kind = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    family, _, form = kind.partition("/")
    if family != "application" or not (form == "json" or form.endswith("+json")):
        raise HTTPException(415, f"the Content-Type is {kind[:_SHOWN]!r}; taken is application/json")
