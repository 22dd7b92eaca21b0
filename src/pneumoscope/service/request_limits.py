"""What a request may cost: bytes of its body, bytes of all bodies together, and time for its head and for its body.

All stand before all else, so that nothing larger is ever in memory and nobody can hold a connection for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h11
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pneumoscope.core.errors import BusyError

__all__ = ["IMAGES", "Limits", "Lingering", "impatient"]

IMAGES = ("POST", "/v1/predictions")  # what alone has a large body
# Bytes of any other body: more than a note of 4,000 characters takes in JSON, however it is written.
_SMALL = 64 * 2**10


class Limits:
    """Middleware that ends a request whose body is too large, or too slow: whoever reads the body gets the error.

    Args:
        app: behind it.
        most_bytes: of a body that brings images. Others are small, and need no token to be read.
        most_held: bytes of all bodies with images that are under way at once.
        seconds: for a body to arrive, from when its request began.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, most_held: int, seconds: float) -> None:
        self.app, self._most, self._most_held, self._seconds = app, most_bytes, most_held, seconds
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while it stays within the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        images = (scope["method"], scope["path"]) == IMAGES
        most = self._most if images else _SMALL
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        loop = asyncio.get_running_loop()
        end, taken, whole, held = loop.time() + self._seconds, 0, False, 0

        async def limited() -> Message:
            nonlocal taken, whole, held
            if stated.isdigit() and int(stated) > most:
                raise _too_large(most)
            if whole:  # nothing more is to come but the client's going
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError as error:
                said = f"the request's body took longer than {self._seconds:g} s"
                raise HTTPException(408, said) from error
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if taken + size > most:
                    raise _too_large(most)
                taken += size
                if images:
                    held += size
                    self._hold(size)
            return message

        async def sending(message: Message) -> None:
            nonlocal held
            self._held -= held  # nobody needs the images any more, however slowly the answer is taken
            held = 0
            await send(message)

        try:
            await self.app(scope, limited, sending)
        finally:
            self._held -= held

    def _hold(self, size: int) -> None:
        """Count bytes that are held until their request is answered.

        Raises:
            BusyError: there are too many.
        """
        self._held += size
        if self._held > self._most_held:
            raise BusyError(
                f"requests that are under way hold {self._most_held:,} bytes of images, and no more may be",
                hint="Try again in a few seconds",
            )


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request's body is more than {most:,} bytes")


class Lingering:
    """Middleware that takes what is left of a body whose request is answered already, and throws it away.

    A connection that is closed with bytes unread is reset, and whoever is still sending may lose the answer (RFC 9112, section
    9.6): a program that sends a large image with a wrong token would learn only that the connection broke. So the answer is sent,
    and ends when the body has come or its time or size is over. Then the connection is closed, as the answer's head says.

    Args:
        app: behind it.
        most_bytes: of the rest.
        seconds: for it to arrive.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, seconds: float) -> None:
        self.app, self._most, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        headers = dict(scope.get("headers", ()))
        brings = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if scope["type"] != "http" or not brings:
            await self.app(scope, receive, send)
            return
        whole = closing = False
        begun = b"expect" not in headers  # whoever asks first sends nothing when the answer is no

        async def received() -> Message:
            nonlocal whole, begun
            begun = True
            message = await receive()
            whole = not message.get("more_body", False)  # or whoever asked has gone
            return message

        async def sending(message: Message) -> None:
            nonlocal closing
            starts = message["type"] == "http.response.start"
            ends = not starts and not message.get("more_body", False)
            if starts and not whole:
                closing = True
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            if ends and closing and begun and not whole:
                await send({**message, "more_body": True})
                left = self._most
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds):
                        while not whole and left > 0:
                            left -= len((await received()).get("body", b""))
                message = {"type": "http.response.body"}
            await send(message)

        await self.app(scope, received, sending)


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with an end to what it would wait for for ever: the head of a request.

    Args:
        seconds: for a head to arrive, from when the connection is made, or from the first byte of a later head.
    """

    class Impatient(H11Protocol):
        _end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._wait()
            else:
                self._wait_no_more()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def _wait(self) -> None:
            if self._end is None:
                self._end = self.loop.call_later(seconds, self.transport.abort)

        def _wait_no_more(self) -> None:
            if self._end is not None:
                self._end.cancel()
                self._end = None

    return Impatient
