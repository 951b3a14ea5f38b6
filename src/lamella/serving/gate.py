"""What is under way in the front, and whether anything new may begin."""

from __future__ import annotations

import asyncio
import contextlib

from lamella.core.errors import Draining
from lamella.serving.engine_client import EngineStream


class Gate:
    """Open until the server shuts down.

    Attributes:
        n_requests: HTTP requests that are being answered.
    """

    def __init__(self) -> None:
        self.n_requests = 0
        self._draining = False
        self._streams: set[EngineStream] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_draining(self) -> bool:
        """Whether nothing new may begin."""
        return self._draining

    def check(self) -> None:
        """Whether work may begin.

        Raises:
            Draining: no more.
        """
        if self._draining:
            raise Draining("The server is shutting down.")

    def close(self) -> None:
        """Let nothing new begin."""
        self._draining = True

    def request_begins(self) -> None:
        """Count one."""
        self.n_requests += 1
        self._idle.clear()

    def request_ends(self) -> None:
        """Count one off."""
        self.n_requests -= 1
        if not self.n_requests:
            self._idle.set()

    def keep(self, stream: EngineStream) -> None:
        """Remember a running stream for ``cancel_streams``."""
        self._streams.add(stream)

    def forget(self, stream: EngineStream) -> None:
        """The stream has ended."""
        self._streams.discard(stream)

    def cancel_streams(self) -> None:
        """End all that runs."""
        for stream in list(self._streams):
            stream.cancel()

    async def idle(self, seconds: float) -> None:
        """Return when no request is being answered, or when the time is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)
