"""Messages as frames on a local socket: four bytes of length (little endian), then msgpack.

    FrameSocket(connection).send(hello)                      # the engine process: blocking, from any thread
    for message in FrameSocket(connection).receive(decoder): ...

    protocol = FrameProtocol(engine_decoder(), receive, on_closed)      # the front: asyncio
    await loop.create_unix_connection(lambda: protocol, sock=connection)
    protocol.send(generate)

Every token of every request passes here, in one frame a step: a frame is one write, and all frames of one read are
decoded in one go.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

import msgspec

from lamella.batching.messages import EngineMessage, FrontMessage
from lamella.batching.settings import EngineSettings
from lamella.core.closing import Closing
from lamella.core.errors import EngineFailed
from lamella.core.foreign import UNREADABLE
from lamella.core.units import format_bytes

FRAME_LIMIT_BYTES = 64 << 20
"""A longer frame is a fault, be it in what is sent or in what arrives: nobody allocates memory for it."""

Received = TypeVar("Received")
_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 18


class BrokenFrame(EngineFailed):
    """What arrived is no frame, or not a whole one, or not a message that is known."""


class FrameTooLong(EngineFailed):
    """A message that is longer than a frame may be.  Nothing of it was sent."""


def settings_decoder() -> msgspec.msgpack.Decoder[EngineSettings]:
    """Reads the first frame that an engine process gets."""
    return msgspec.msgpack.Decoder(EngineSettings)


def front_decoder() -> msgspec.msgpack.Decoder[FrontMessage]:
    """Reads the frames after it."""
    return msgspec.msgpack.Decoder(FrontMessage)


def engine_decoder() -> msgspec.msgpack.Decoder[EngineMessage]:
    """Reads what an engine process says."""
    return msgspec.msgpack.Decoder(EngineMessage)


class FrameWriter:
    """Encodes messages.  Not for several threads at once."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()

    def write(self, message: object, frame: bytearray) -> None:
        """Replace the contents of ``frame`` by a message's frame.

        Raises:
            FrameTooLong: the message is longer than ``FRAME_LIMIT_BYTES``.
        """
        frame[:] = bytes(_LENGTH.size)
        self._encoder.encode_into(message, frame, _LENGTH.size)
        n_bytes = len(frame) - _LENGTH.size
        if n_bytes > FRAME_LIMIT_BYTES:
            frame.clear()
            raise FrameTooLong(
                f"a {type(message).__name__} of {format_bytes(n_bytes)} is too long for one frame, "
                f"which may have {format_bytes(FRAME_LIMIT_BYTES)}"
            )
        _LENGTH.pack_into(frame, 0, n_bytes)


class FrameSplitter(Generic[Received]):
    """Turns pieces of a stream into messages."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Received]) -> None:
        self._decoder = decoder
        self._rest = bytearray()
        self._wanted_bytes = 0

    def feed(self, data: bytes) -> list[Received]:
        """The messages that are complete with this piece, in order.

        Raises:
            BrokenFrame: a frame is too long, or no message that is known.
        """
        if not self._rest:
            return self._take(data)
        self._rest += data
        if len(self._rest) < self._wanted_bytes:
            return []
        whole, self._rest = self._rest, bytearray()
        return self._take(whole)

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            BrokenFrame: inside a frame.
        """
        if self._rest:
            raise BrokenFrame(f"the connection ended inside a frame: {len(self._rest)} bytes of {self._wanted_bytes}")

    def _take(self, data: bytes | bytearray) -> list[Received]:
        messages, start, n_bytes = [], 0, len(data)
        with memoryview(data) as view:
            while start < n_bytes:
                begin = start + _LENGTH.size
                end = begin + (_read_length(view[start:begin]) if begin <= n_bytes else 0)
                if end > n_bytes:
                    self._wanted_bytes = end - start
                    self._rest += view[start:]
                    break
                messages.append(_decode(self._decoder, view[begin:end]))
                start = end
        return messages


class FrameSocket(Closing):
    """The blocking side: ``send`` from any thread, ``receive`` in one."""

    def __init__(self, connection: socket.socket) -> None:
        """Own a connected stream socket."""
        self._socket = connection
        self._writer, self._frame, self._lock = FrameWriter(), bytearray(), threading.Lock()

    def send(self, message: object) -> None:
        """Send one frame; waits while the other side does not read.

        Raises:
            FrameTooLong: see there.
            OSError: the other side is gone.
        """
        with self._lock:
            self._writer.write(message, self._frame)
            self._socket.sendall(self._frame)

    def receive_one(self, decoder: msgspec.msgpack.Decoder[Received]) -> Received:
        """Wait for one frame, and read no byte after it.

        Raises:
            BrokenFrame: it is none, or the connection ended before its end.
        """
        n_bytes = _read_length(self._exactly(_LENGTH.size))
        return _decode(decoder, self._exactly(n_bytes))

    def receive(self, decoder: msgspec.msgpack.Decoder[Received]) -> Iterator[Received]:
        """All further messages, until the other side closes.

        Raises:
            BrokenFrame: see ``FrameSplitter``.
        """
        splitter = FrameSplitter(decoder)
        while data := self._socket.recv(_READ_BYTES):
            yield from splitter.feed(data)
        splitter.finish()

    def close(self) -> None:
        """Close the socket; a ``receive`` that waits in another thread ends."""
        with contextlib.suppress(OSError):  # the other side was first
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _exactly(self, n_bytes: int) -> bytearray:
        data = bytearray(n_bytes)
        n_read = 0
        with memoryview(data) as view:
            while n_read < n_bytes:
                n_new = self._socket.recv_into(view[n_read:])
                if not n_new:
                    raise BrokenFrame(f"the connection ended inside a frame: {n_read} bytes of {n_bytes}")
                n_read += n_new
        return data


class FrameProtocol(asyncio.Protocol, Generic[Received]):
    """The asyncio side.

    Attributes:
        failure: what was wrong with the frames, if anything was.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Received],
        receive: Callable[[Received], None],
        on_closed: Callable[[], None],
    ) -> None:
        """Be ready for a connection.

        Args:
            receive: called with every message, in the event loop.
            on_closed: called when the connection has ended, for whatever reason.
        """
        self.failure = ""
        self._splitter, self._writer = FrameSplitter(decoder), FrameWriter()
        self._receive, self._on_closed = receive, on_closed
        self._transport: asyncio.Transport | None = None

    def send(self, message: object) -> None:
        """Send one frame, without waiting; it goes nowhere when the connection has ended.

        Raises:
            FrameTooLong: see there.
        """
        frame = bytearray()
        self._writer.write(message, frame)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def close(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)  # what uvloop gives is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            messages = self._splitter.feed(data)
        except BrokenFrame as error:
            self.failure = str(error)
            self.close()
            return
        for message in messages:
            self._receive(message)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._on_closed()


def _read_length(header: bytearray | memoryview) -> int:
    n_bytes: int = _LENGTH.unpack(header)[0]
    if n_bytes > FRAME_LIMIT_BYTES:
        raise BrokenFrame(f"a frame says that it has {n_bytes} bytes; at most {FRAME_LIMIT_BYTES} are allowed")
    return n_bytes


def _decode(decoder: msgspec.msgpack.Decoder[Received], frame: bytearray | memoryview) -> Received:
    try:
        return decoder.decode(frame)
    except UNREADABLE as error:
        raise BrokenFrame(f"a frame of {len(frame)} bytes is no message that is known: {error}") from None
