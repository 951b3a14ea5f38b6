"""What the reader of one request sees: its events in order, whichever engine they came from."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from lamella.serving.engine_client import StreamEvent


class RequestStream:
    """Events between the supervisor, which puts them in, and one reader.  An ``EngineStream``.

    What nobody reads piles up, at most the tokens that the request may have.
    """

    def __init__(self, on_cancel: Callable[[], None]) -> None:
        """Be empty.

        Args:
            on_cancel: called when the reader wants no more, once, and not after the end.
        """
        self._on_cancel = on_cancel
        self._events: deque[StreamEvent] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._has_ended = False
        self._error: Exception | None = None

    def push(self, event: StreamEvent) -> None:
        """Add an event."""
        self._events.append(event)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """No event will follow.  The reader gets what is there, and then the error, if there is one."""
        self._has_ended, self._error = True, error
        self._wake()

    def cancel(self) -> None:
        """The reader wants no more."""
        self._events.clear()
        if not self._has_ended:
            self.end()
            self._on_cancel()

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        while not self._events:
            if self._has_ended:
                raise self._error or StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._events.popleft()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
