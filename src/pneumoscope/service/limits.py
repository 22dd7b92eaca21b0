"""What a request may cost: bytes of its body, bytes of all bodies together, and time for its head and for its body.

Both stand before all else, so that nothing larger is ever in memory and nobody can hold a connection for nothing.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pneumoscope.errors import BusyError

__all__ = ["FILMS", "Limits", "impatient"]

FILMS = ("POST", "/v1/predictions")  # what alone has a large body
_UNREAD = 2**20  # bytes of the rest of a body that nobody reads
# Bytes of any other body: more than a note of 4,000 characters takes in JSON, however it is written.
_SMALL = 64 * 2**10


class Limits:
    """Middleware that ends a request whose body is too large, or too slow: whoever reads the body gets the error.

    Args:
        app: behind it.
        most_bytes: of a body that brings films. Others are small, and need no token to be read.
        most_held: bytes of all bodies with films that are under way at once.
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
        films = (scope["method"], scope["path"]) == FILMS
        most = self._most if films else _SMALL
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
                raise HTTPException(408, said, {"Connection": "close"}) from error
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if taken + size > most:
                    raise _too_large(most)
                taken += size
                if films:
                    held += size
                    self._hold(size)
            return message

        async def sending(message: Message) -> None:
            nonlocal held
            self._held -= held  # nobody needs the films any more, however slowly the answer is taken
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
                f"requests that are under way hold {self._most_held:,} bytes of films, and no more may be",
                advice="Try again in a few seconds",
            )


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"the request's body is more than {most:,} bytes", {"Connection": "close"})


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, with an end to two things that it would wait for for ever.

    These are the head of a request, and the rest of a body that nobody reads, because its request is answered already.

    Args:
        seconds: for a head to arrive, from when the connection is made, or from the first byte of a later head; and for the rest
            of a body, which may have no more than `_UNREAD` bytes.
    """

    class Impatient(H11Protocol):
        _end: asyncio.TimerHandle | None = None
        _answered: object = None  # the request whose body nobody reads
        _unread = 0  # bytes of the rest of it

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            idle = self.conn.their_state is h11.IDLE
            # The end of that body may come together with the next request.
            if self._answered and (idle or self.cycle is not self._answered):
                self._answered = None
                self._wait_no_more()
            if idle:
                self._wait()
            elif not self._answered:
                self._wait_no_more()
            else:
                self._unread += len(data)
                if self._unread > _UNREAD:
                    self.transport.abort()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
                self._answered, self._unread = self.cycle, 0
                self._wait()

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
