"""Middleware for request bodies: limits on their size and on the memory that all of them take, and reading what is left.

uvicorn limits neither. Slow clients are left to the reverse proxy, see docs/operating.md.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.core.errors import BusyError

__all__ = ["IMAGES", "DrainBody", "Limits"]

IMAGES = ("POST", "/v1/predictions")  # the only request with a large body
# Bytes of any other body: more than a note of 4,000 characters takes in JSON, whatever its escapes.
_SMALL = 64 * 2**10


class Limits:
    """Middleware that raises an error where the application reads a body that is too large.

    Args:
        app: the application behind it.
        most_bytes: size of a body with images. Other bodies are small, and are read without a token.
        most_held: bytes of all bodies with images in progress together.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, most_held: int) -> None:
        self.app, self._most, self._most_held = app, most_bytes, most_held
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while it stays within the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        images = (scope["method"], scope["path"]) == IMAGES
        most = self._most if images else _SMALL
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        taken, held = 0, 0

        async def limited() -> Message:
            nonlocal taken, held
            if stated.isdigit() and int(stated) > most:
                raise _too_large(most)
            message = await receive()
            size = len(message.get("body", b""))
            if taken + size > most:
                raise _too_large(most)
            taken += size
            if images:
                held += size
                self._hold(size)
            return message

        async def sending(message: Message) -> None:
            nonlocal held
            self._held -= held  # the images are no longer needed, however slowly the response is read
            held = 0
            await send(message)

        try:
            await self.app(scope, limited, sending)
        finally:
            self._held -= held

    def _hold(self, size: int) -> None:
        """Count bytes that are held until their request is answered.

        Raises:
            BusyError: All requests together hold too many.
        """
        self._held += size
        if self._held > self._most_held:
            raise BusyError(
                f"requests that are under way hold {self._most_held:,} bytes of images, and no more may be",
                hint="Try again in a few seconds",
            )


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request's body is more than {most:,} bytes")


class DrainBody:
    """Middleware that reads the rest of a body before it ends an early response on a connection that will be closed.

    uvicorn discards the rest of a body on a connection that is kept alive. With `Connection: close`, which nginx and Python's
    urllib send, it closes the connection with bytes unread; the client gets a reset and may lose the response (RFC 9112,
    section 9.6).

    Args:
        app: the application behind it.
        most_bytes: read at most.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int) -> None:
        self.app, self._most = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        headers = dict(scope.get("headers", ()))
        # A client that sends `Expect: 100-continue` sends nothing after an early response.
        if b"close" not in headers.get(b"connection", b"").lower() or b"expect" in headers:
            await self.app(scope, receive, send)
            return
        complete = False

        async def receiving() -> Message:
            nonlocal complete
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False) and not complete:
                await send({**message, "more_body": True})
                left = self._most
                while not complete and left > 0:
                    left -= len((await receiving()).get("body", b""))
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, receiving, sending)
