"""Notify open pages of changes by server-sent events. An event carries no data: the page reloads its list."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated

from fastapi.sse import ServerSentEvent

from pneumoscope.core.errors import BusyError
from pneumoscope.service.api.dependencies import from_app_state

__all__ = ["MAX_STREAMS", "MAX_USER_STREAMS", "AppChanges", "ChangeStreams"]

MAX_STREAMS = 200
MAX_USER_STREAMS = 20  # so that one user does not take the streams of all others
_MIN_INTERVAL_SECONDS = 1.0  # between two events of a stream; the second one stands for all changes since the first
_SESSION_CHECK_SECONDS = 15.0
_RECONNECT_MS = 3000  # after which the browser opens a stream again that has ended


class ChangeStreams:
    """The open streams of a service.

    All methods but `notify` are called in the thread of the event loop.

    Args:
        max_streams: Streams that are open at a time.
        max_user_streams: Streams of one user that are open at a time.
        min_interval: Seconds between two events of a stream.
        session_check: Seconds between two checks of a user's session.
    """

    def __init__(
        self,
        *,
        max_streams: int = MAX_STREAMS,
        max_user_streams: int = MAX_USER_STREAMS,
        min_interval: float = _MIN_INTERVAL_SECONDS,
        session_check: float = _SESSION_CHECK_SECONDS,
    ) -> None:
        self._max_streams, self._max_user_streams = max_streams, max_user_streams
        self._min_interval, self._session_check = min_interval, session_check
        self._numbers = itertools.count(secrets.randbits(32))  # random, so that a restart counts as a change
        self._revision = next(self._numbers)
        self._changed, self._closed = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: Counter[str] = Counter()  # streams by user

    @property
    def open(self) -> int:
        """Number of open streams."""
        return self._open.total()

    @property
    def revision(self) -> int:
        """Number that changes with every change; what is read from the database afterwards is at least as new."""
        return self._revision

    def notify(self) -> None:
        """Send an event to all streams. Can be called in any thread."""
        self._revision = next(self._numbers)
        if self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the service has stopped
                self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """End all streams."""
        self._closed.set()
        self._wake()

    @contextlib.contextmanager
    def reserve(self, user: str) -> Iterator[None]:
        """Count a stream of a user while the block runs.

        Raises:
            BusyError: Too many streams are open, of this user or in total.
        """
        if self._open[user] >= self._max_user_streams:
            raise BusyError(
                f"the limit of {self._max_user_streams} live pages of one user is reached", hint="Close other tabs"
            )
        if self.open >= self._max_streams:
            raise BusyError(
                f"the limit of {self._max_streams} live pages is reached", hint="Reload the page to update it"
            )
        self._loop = asyncio.get_running_loop()
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            self._open += Counter()  # drops users without a stream

    async def events(
        self, revision: int | None, is_signed_in: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[ServerSentEvent]:
        """Yield an event for each change, until the service stops or the user is no longer signed in.

        Args:
            revision: Of what the page shows; if it is not the current one, the first event comes at once. None: the current.
            is_signed_in: Called before each event, and every few seconds.
        """
        seen = self._revision if revision is None else revision
        yield ServerSentEvent(comment="open", retry=_RECONNECT_MS)  # the browser knows now that the stream works
        while not self._closed.is_set() and await is_signed_in():
            changed = self._changed
            if self._revision == seen:
                await _wait(changed, self._session_check)
                continue
            seen = self._revision
            yield ServerSentEvent(data="changed")
            await _wait(self._closed, self._min_interval)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


AppChanges = Annotated[ChangeStreams, from_app_state("changes")]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
