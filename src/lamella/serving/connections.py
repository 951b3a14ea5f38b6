"""What a connection may cost before there is a request: uvicorn's protocol with bounds on heads, and on patience.

    uvicorn.Config(app, http=BoundedHttp, ...)

llhttp takes heads of any size and waits for them for any time; keys are only asked for behind that, so this bounds what
somebody without a key may do.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 64 << 10
"""Of a request line with all header fields, as h11 and most servers have it; trailers of a body likewise."""
HEAD_SECONDS = 30.0
"""From the connection, or the first byte of a further request, to the end of its head."""


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol over httptools.  Who sends too large a head gets 400; who sends none in time is hung up on."""

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0
    _tail_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response(f"The head of a request may have {MOST_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._in_head, self._head_bytes, self._tail_bytes = True, 0, 0
        self._wait()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser; after the body for its trailers, which nobody here reads."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._tail_bytes += len(name) + len(value)
        if self._tail_bytes > MOST_HEAD_BYTES:
            raise ValueError("too many trailers")  # the parser stops, and uvicorn answers 400

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._in_head = False
        self._wait_no_more()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._wait_no_more()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
