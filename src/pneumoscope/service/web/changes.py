"""Notify open pages of changes by server-sent events. Events carry no data; the page reloads its list."""

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
MAX_USER_STREAMS = 20  # so that one user cannot occupy all streams
_MIN_INTERVAL_SECONDS = 1.0  # minimum interval between events of a stream; later changes share one event
_SESSION_CHECK_SECONDS = 15.0
_RECONNECT_MS = 3000  # delay until the browser reopens an ended stream


class ChangeStreams:
    """The open streams of a service.

    All methods except `notify` must be called in the thread of the event loop.

    Args:
        max_streams: Maximum number of open streams.
        max_user_streams: Maximum number of open streams per user.
        min_interval: Minimum seconds between two events of a stream.
        session_check: Seconds between checks of a user's session.
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
        self._numbers = itertools.count(secrets.randbits(32))  # random start, so that a restart counts as a change
        self._revision = next(self._numbers)
        self._changed, self._closed = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: Counter[str] = Counter()  # number of streams by user

    @property
    def open(self) -> int:
        """Number of open streams."""
        return self._open.total()

    @property
    def revision(self) -> int:
        """Number that increases with every change. Data read from the database afterwards are at least as new."""
        return self._revision

    def notify(self) -> None:
        """Send an event to all streams. Thread-safe."""
        self._revision = next(self._numbers)
        if self._loop:
            with contextlib.suppress(RuntimeError):  # the loop is closed, because the service has stopped
                self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """End all streams."""
        self._closed.set()
        self._wake()

    @contextlib.contextmanager
    def reserve(self, user: str) -> Iterator[None]:
        """Count a user's stream while the block runs.

        Raises:
            BusyError: Too many streams are open, for this user or in total.
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
            self._open += Counter()  # drops users without streams

    async def events(
        self, revision: int | None, is_signed_in: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[ServerSentEvent]:
        """Yield an event for each change, until the service stops or the user is no longer signed in.

        Args:
            revision: Revision shown by the page. If it is outdated, the first event follows immediately. None: the
                current one.
            is_signed_in: Called before each event, and every few seconds.
        """
        seen = self._revision if revision is None else revision
        yield ServerSentEvent(comment="open", retry=_RECONNECT_MS)  # confirms to the browser that the stream works
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
