"""What a request may cost: bytes and time for its body. It stands before all else, so that nothing larger is ever in memory."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Limits"]


class Limits:
    """Middleware that ends a request whose body is too large, or too slow: whoever reads the body gets an HTTPException.

    Args:
        app: behind it.
        most_bytes: of a body.
        seconds: for a body to arrive, from when its request began.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, seconds: float) -> None:
        self.app, self._most, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while it stays within the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        loop = asyncio.get_running_loop()
        end, taken, whole = loop.time() + self._seconds, 0, False

        async def limited() -> Message:
            nonlocal taken, whole
            if stated.isdigit() and int(stated) > self._most:
                raise self._too_large()
            if whole:  # nothing more is to come but the client's going
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                said = f"the request's body took longer than {self._seconds:g} s"
                raise HTTPException(408, said, {"Connection": "close"}) from error
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if taken > self._most:
                    raise self._too_large()
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request's body is more than {self._most:,} bytes", {"Connection": "close"})
