"""Server-sent events, written past everything that would cost time for each token.

A stream shares two cores with the model, and a token may take 8 ms.  So an event is a prefix that was encoded once, the
escaped text, and a suffix; it goes to the web server in one ``send``, and no model, no dictionary and no iterator of
starlette's stands in between.

A client that reads slowly blocks ``send`` (uvicorn's flow control); its tokens then wait in the engine's stream, at
most ``max_tokens`` of them.

A stream that has nothing to say for long sends comments, which clients pass over, so that no proxy takes it for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lamella.serving.engine_client import StreamEvent
from lamella.serving.openai.errors import api_error
from lamella.serving.openai.runs import Run, Runs, together

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_log = logging.getLogger(__name__)
encode = msgspec.json.Encoder().encode


class ChoiceWriter(Protocol):
    """Turns the events of one choice into bytes of a stream."""

    def opening(self) -> bytes:
        """What stands before all; may be nothing."""

    def write(self, event: StreamEvent) -> bytes:
        """Of one event; may be nothing."""


def event_bytes(document: Any) -> bytes:
    """A whole document as one event."""
    return b"data: " + encode(document) + b"\n\n"


class EventStream(Response):
    """The answer to a request with ``stream``: one writer for each run, then the usage and the end."""

    def __init__(
        self, runs: Runs, writers: Sequence[ChoiceWriter], trailer: Callable[[], bytes], keep_alive_seconds: float
    ) -> None:
        """Take over runs that have begun.

        Args:
            trailer: what comes after the last choice's end, before ``[DONE]``.
            keep_alive_seconds: how often it is looked whether the stream was silent.
        """
        self.status_code, self.background = 200, None
        self._runs, self._writers, self._trailer = runs, writers, trailer
        self._n_unfinished = len(writers)
        self._keep_alive_seconds, self._has_spoken = keep_alive_seconds, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            last = await self._ending(receive, send)
            await send({"type": "http.response.body", "body": last})
        finally:
            self._runs.close()

    async def _ending(self, receive: Receive, send: Send) -> bytes:
        """Send all tokens; the bytes that end the stream, or say why it ends."""
        try:
            async with self._kept_alive(send):
                return await self._runs.watched(receive, self._write_all(send))
        except Exception as error:
            told = api_error(error)
            if told.code == "internal_error":
                _log.error("a stream failed", exc_info=error)
            return event_bytes(told.document())

    @contextlib.asynccontextmanager
    async def _kept_alive(self, send: Send) -> AsyncIterator[None]:
        """Send comments meanwhile, where nothing else is sent."""
        task = asyncio.create_task(self._comment(send))
        try:
            yield
        finally:
            task.cancel()

    async def _comment(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._keep_alive_seconds)
            if not self._has_spoken:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
            self._has_spoken = False

    async def _write_all(self, send: Send) -> bytes:
        opening = b"".join(writer.opening() for writer in self._writers)
        if opening:
            await send({"type": "http.response.body", "body": opening, "more_body": True})
        pairs = list(zip(self._runs, self._writers, strict=True))
        endings = await together(self._write(run, writer, send) for run, writer in pairs)
        return b"".join(endings) + self._trailer() + DONE

    async def _write(self, run: Run, writer: ChoiceWriter, send: Send) -> bytes:
        """Send one choice; the end of the last is returned, to go out with what comes after it."""
        async for event in run:
            data = writer.write(event)
            if run.finished:
                self._n_unfinished -= 1
                if not self._n_unfinished:
                    return data
            if data:
                self._has_spoken = True
                await send({"type": "http.response.body", "body": data, "more_body": True})
        return b""
