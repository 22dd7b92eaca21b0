"""Middleware for request bodies: limits on their size and total memory, and draining.

uvicorn limits neither. Protection against slow clients is left to the reverse proxy; see docs/how-to/operate.md.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.core.errors import BusyError

__all__ = ["UPLOAD_ROUTES", "BodyLimitMiddleware", "DrainBodyMiddleware"]

UPLOAD_ROUTES = (("POST", "/v1/predictions"), ("POST", "/dicom-web/studies"))  # the only routes with large bodies
# Limit for all other bodies, in bytes: enough for a note of 4,000 characters in JSON with any escapes.
_MAX_SMALL_BYTES = 64 * 2**10


class BodyLimitMiddleware:
    """Middleware that raises an error when the application reads a body that is too large.

    Args:
        app: The inner application.
        max_body_bytes: Maximum size of a body with images. Other bodies have a small limit, since they are read without
            a token.
        max_total_bytes: Maximum total size of all bodies with images in progress.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_total_bytes: int) -> None:
        self.app, self._max_body_bytes, self._max_total_bytes = app, max_body_bytes, max_total_bytes
        self._total = 0

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies with images in progress."""
        return self._total

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request within the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_upload = (scope["method"], scope["path"]) in UPLOAD_ROUTES
        limit = self._max_body_bytes if is_upload else _MAX_SMALL_BYTES
        content_length = dict(scope["headers"]).get(b"content-length", b"0")
        received, held = 0, 0

        async def limited_receive() -> Message:
            """Receive a message; raise an error if the body exceeds a limit."""
            nonlocal received, held
            if content_length.isdigit() and int(content_length) > limit:
                raise _too_large(limit)
            message = await receive()
            size = len(message.get("body", b""))
            if received + size > limit:
                raise _too_large(limit)
            received += size
            if is_upload:
                held += size
                self._add(size)
            return message

        async def releasing_send(message: Message) -> None:
            """Send a message. The images are no longer needed then, however slowly the client reads the response."""
            nonlocal held
            self._total -= held
            held = 0
            await send(message)

        try:
            await self.app(scope, limited_receive, releasing_send)
        finally:
            self._total -= held

    def _add(self, size: int) -> None:
        """Count bytes that are held until their request is answered.

        Raises:
            BusyError: All requests together hold too many bytes.
        """
        self._total += size
        if self._total > self._max_total_bytes:
            raise BusyError(
                f"the requests in progress hold {self._total:,} bytes of images; the limit is {self._max_total_bytes:,}",
                hint="Try again in a few seconds",
            )


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {limit:,} bytes")


class DrainBodyMiddleware:
    """Middleware that reads the rest of a request body before completing an early response on a connection about to be closed.

    uvicorn discards the rest of a body on a persistent connection. With `Connection: close`, which nginx and Python's
    urllib send, it closes the connection with unread bytes; the client receives a reset and may lose the response (RFC
    9112, section 9.6).

    Args:
        app: The inner application.
        max_bytes: Maximum number of bytes to read.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        headers = dict(scope.get("headers", ()))
        # With `Expect: 100-continue`, a client sends no body after an early response.
        if b"close" not in headers.get(b"connection", b"").lower() or b"expect" in headers:
            await self.app(scope, receive, send)
            return
        complete = False

        async def tracking_receive() -> Message:
            """Receive a message, and note whether it completes the body."""
            nonlocal complete
            message = await receive()
            complete = not message.get("more_body", False)
            return message

        async def draining_send(message: Message) -> None:
            """Send a message; before the last one of the response, receive the rest of the body."""
            if message["type"] == "http.response.body" and not message.get("more_body", False) and not complete:
                await send({**message, "more_body": True})
                remaining = self._max_bytes
                while not complete and remaining > 0:
                    remaining -= len((await tracking_receive()).get("body", b""))
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, tracking_receive, draining_send)
