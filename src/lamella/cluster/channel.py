"""One connection: messages first, then perhaps bytes that somebody else takes.

    channel.send(Ping())
    answer = await channel.receive(Pong)
    ...
    join(tls_channel, loopback_channel)          # from now on each gets what the other one receives

A message is a length (4 bytes, big endian) and JSON.  What arrives waits here, within bounds, until it is asked for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import msgspec

from lamella.cluster.identity import Peer
from lamella.core.errors import ClusterRefused, LamellaError, RemoteFailed, RemoteInvalid
from lamella.core.foreign import UNREADABLE
from lamella.core.units import format_bytes

MOST_MESSAGE_BYTES = 16 << 20
MOST_WAITING_BYTES = 4 << 20
"""What may wait to be asked for, before the other side is no longer listened to."""
WRITE_BUFFER_BYTES = 1 << 20
TICK_SECONDS = 0.25
"""Silence is counted in ticks: a process that was stopped for a while has missed one, and not its peer's answer."""

Filter = Callable[[bytes], Iterable[bytes | memoryview]]
"""What to send on of what arrived; may keep some of it for later, and make the rest while it is sent."""

T = TypeVar("T")


class Channel(asyncio.Protocol):
    """A connection, of TLS or on loopback.  Belongs to one event loop.

    Attributes:
        peer: who is at the other end; None where nobody was asked.
        closed: set when nothing more can come or go.
    """

    def __init__(
        self, on_open: Callable[[Channel], None] | None = None, check: Callable[[Channel], Peer | None] = lambda _: None
    ) -> None:
        """A protocol for asyncio to connect.

        Args:
            on_open: called once connected and checked; not called for those who are refused.
            check: says who is at the other end, or raises ``ClusterRefused``, which ends the connection.
        """
        self.peer: Peer | None = None
        self.closed = asyncio.Event()
        self.refused: ClusterRefused | None = None
        self._on_open, self._check = on_open, check
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._wanted = 0
        self._wake: asyncio.Future[None] | None = None
        self._forwards = False
        self._target: Channel | None = None
        self._source: Channel | None = None
        self._change: Filter | None = None
        self._pieces: deque[Iterator[bytes | memoryview]] = deque()
        self._can_write = asyncio.Event()
        self._can_write.set()

    # --- called by asyncio -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop, for TLS after the handshake."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        try:
            self.peer = self._check(self)
        except Exception as error:  # whoever cannot be checked is refused, for whatever reason
            self.refused = ClusterRefused(str(error) or type(error).__name__)
            self._transport.abort()
            return
        if self._on_open is not None:
            self._on_open(self)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        if self.refused is not None:
            return
        if self._forwards:
            self._forward(data)
            return
        self._waiting += data
        if len(self._waiting) >= max(MOST_WAITING_BYTES, self._wanted):
            self.pause()
        if len(self._waiting) >= self._wanted:
            self._wake_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.closed.set()
        self._can_write.set()
        self._wake_up()
        if self._source is not None:
            self._source.close()

    def pause_writing(self) -> None:
        """Called by the event loop when the other side does not keep up."""
        self._can_write.clear()
        if self._source is not None:
            self._source.pause()

    def resume_writing(self) -> None:
        """Called by the event loop."""
        self._can_write.set()
        if self._source is not None:
            self._source._pump()

    # --- messages ----------------------------------------------------------------------------------------------------

    def send(self, message: msgspec.Struct) -> None:
        """Send a message, without waiting; what is sent to a closed connection is lost."""
        body = msgspec.json.encode(message)
        self.write(len(body).to_bytes(4, "big") + body)

    async def receive(
        self, kind: type[T] | Any, seconds: float | None = None, most_bytes: int = MOST_MESSAGE_BYTES
    ) -> T:
        """The next message.

        Args:
            kind: what it may be: a struct, or a union of tagged ones.
            seconds: how long to wait for it; None for ever.
            most_bytes: of the message.

        Raises:
            RemoteFailed: the connection ended, or nothing came in time.
            RemoteInvalid: something else came.
        """
        size = int.from_bytes(await self.read(4, seconds), "big")
        if size > most_bytes:
            self.abort()
            raise RemoteInvalid(f"a message of {format_bytes(size)} came, {format_bytes(most_bytes)} are the most")
        body = await self.read(size, seconds)
        try:
            return cast(T, msgspec.json.decode(body, type=kind))
        except UNREADABLE as error:
            self.abort()
            raise RemoteInvalid(f"a message was not understood: {error}") from None

    async def read(self, n_bytes: int, seconds: float | None = None) -> bytes:
        """Exactly so many bytes.

        Args:
            seconds: how long to wait for them; time in which this process stood still does not count.

        Raises:
            RemoteFailed: the connection ended before, or they did not come in time.
        """
        self._wanted = n_bytes
        left = seconds
        self.resume()
        while len(self._waiting) < n_bytes:
            if self.refused is not None:
                raise self.refused
            if self.closed.is_set():
                raise RemoteFailed("the connection was closed")
            self._wake = asyncio.get_running_loop().create_future()
            done, _ = await asyncio.wait((self._wake,), timeout=None if left is None else TICK_SECONDS)
            if left is not None and not done:
                left -= TICK_SECONDS
                if left <= 0:
                    raise RemoteFailed(f"no answer for {seconds:g} s")
        data = bytes(memoryview(self._waiting)[:n_bytes])
        del self._waiting[:n_bytes]
        self._wanted = 0
        return data

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, without waiting."""
        if self._transport is not None and not self.closed.is_set():
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until what was written is on its way."""
        await self._can_write.wait()

    def pause(self) -> None:
        """Listen no more, until ``resume``."""
        if (transport := self._living_transport) is not None and transport.is_reading():
            transport.pause_reading()

    @property
    def _living_transport(self) -> asyncio.Transport | None:
        """None for one that has ended: of TLS, it cannot even say whether it reads."""
        if self._transport is None or self.closed.is_set() or self._transport.is_closing():
            return None
        return self._transport

    def resume(self) -> None:
        """Listen again."""
        if (transport := self._living_transport) is not None and not transport.is_reading():
            transport.resume_reading()

    def close(self) -> None:
        """End the connection once what was written has gone."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def get_extra_info(self, name: str) -> Any:
        """What asyncio knows of the connection: ``ssl_object``, ``sockname``."""
        return self._transport.get_extra_info(name) if self._transport is not None else None

    def forward_to(self, other: Channel, change: Filter | None) -> None:
        """Send on to ``other`` whatever arrives, that which waits first; as fast as ``other`` takes it.

        What ``change`` makes of it is asked for piece by piece, when there is room to send it.
        """
        self._target, other._source = other, self
        self._change = change
        waiting, self._waiting = bytes(self._waiting), bytearray()
        self._forwards = True
        if waiting:
            self._forward(waiting)
        self._pump()

    def _forward(self, data: bytes) -> None:
        if self._change is None:
            assert self._target is not None  # or nothing would be forwarded
            self._target.write(data)
        else:
            self._pieces.append(iter(self._change(data)))
            self._pump()

    def _pump(self) -> None:
        """Send what there is to send on, until the other side is full; only then listen to more."""
        target = self._target
        assert target is not None  # or nothing would be forwarded
        try:
            while self._pieces and target._can_write.is_set():
                piece = next(self._pieces[0], None)
                if piece is None:
                    self._pieces.popleft()
                else:
                    target.write(piece)
        except LamellaError:  # what came is not what it should be, or a file is gone
            self.abort()
            return
        if self._pieces or not target._can_write.is_set():
            self.pause()
        else:
            self.resume()


async def join(one: Channel, other: Channel, change: Filter | None = None, change_back: Filter | None = None) -> None:
    """Let two connections be one, until either ends; then both have ended.

    Args:
        change: applied to what ``one`` receives, before ``other`` gets it.
        change_back: to what ``other`` receives.
    """
    one.forward_to(other, change)
    other.forward_to(one, change_back)
    ends = [asyncio.ensure_future(channel.closed.wait()) for channel in (one, other)]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        one.close()
        other.close()
        await asyncio.wait(ends, timeout=5)
    finally:
        for end in ends:
            end.cancel()
        one.abort()
        other.abort()
