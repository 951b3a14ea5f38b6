"""llama.cpp's RPC bytes on their way through a tunnel: gathered, and weights that the node has left out.

A request is a command (1 byte), a size (8 bytes, little endian) and so many bytes; an answer is a size and its bytes
(ggml-rpc.cpp).  llama.cpp writes each of these parts alone.  ``Gather`` sends short messages on in one piece, which
halves the packets and the times that somebody is woken.

``Shorten`` replaces the data of a SET_TENSOR by its SHA-256 where the node has these bytes in its shard cache, as a
command of its own that ``Expand`` turns back before the RPC server sees it:

    SET_TENSOR    tensor, flag, offset (305 bytes), data
    KNOWN_TENSOR  tensor, flag, offset (305 bytes), SHA-256 of data

Should llama.cpp change its messages, no digest will match, and everything is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from lamella.core.errors import LamellaError, RemoteInvalid
from lamella.store.files import storage_errors

SET_TENSOR = 6  # enum rpc_cmd
KNOWN_TENSOR = 0xC5
TENSOR_HEAD_BYTES = 296 + 1 + 8  # rpc_tensor, cache flag, offset
LEAST_KNOWN_BYTES = 1024
"""Data that is shorter is sent as it is."""
GATHERED_BYTES = 128 << 10
PIECE_BYTES = 256 << 10
_COMMAND_BYTES, _SIZE_BYTES = 1, 8
REQUEST_HEAD_BYTES, ANSWER_HEAD_BYTES = _COMMAND_BYTES + _SIZE_BYTES, _SIZE_BYTES


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a file."""

    path: Path
    offset: int
    n_bytes: int

    def pieces(self) -> Iterator[bytes]:
        """Its bytes in order.

        Raises:
            StorageFailed: it cannot be read.
        """
        left = self.n_bytes
        with storage_errors(self.path, "read"), self.path.open("rb") as file:
            file.seek(self.offset)
            while left and (data := file.read(min(left, PIECE_BYTES))):
                left -= len(data)
                yield data
        if left:
            raise RemoteInvalid(f"{self.path} is shorter than it was")


class Gather:
    """A filter (``channel.Filter``): short messages leave whole, long ones as they come.

    Attributes:
        n_bytes: that have left.
    """

    def __init__(self, head_bytes: int) -> None:
        """Begin at the start of a message; ``head_bytes`` are before its data, the last eight of them its size."""
        self.n_bytes = 0
        self._head_bytes = head_bytes
        self._message = bytearray()  # its beginning, as long as it is not sent on
        self._passing = 0  # bytes of a long message that are still to come

    def __call__(self, data: bytes) -> Iterator[bytes]:
        """What to send on now."""
        for piece in self._pieces(data):
            self.n_bytes += len(piece)
            yield piece

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        at = 0
        while at < len(data):
            if self._passing:
                taken = data[at : at + self._passing]
                self._passing -= len(taken)
                at += len(taken)
                yield taken
                continue
            wanted = self._wanted()
            taken = data[at : at + wanted - len(self._message)]
            self._message += taken
            at += len(taken)
            if len(self._message) >= self._head_bytes and len(self._message) == self._wanted():
                yield from self._leave()

    def _wanted(self) -> int:
        """How much of the message has to be there before anything of it leaves."""
        if len(self._message) < self._head_bytes:
            return self._head_bytes
        size = self._head_bytes + self._size
        return size if self._is_kept(size) else self._head_bytes

    @property
    def _size(self) -> int:
        return int.from_bytes(self._message[self._head_bytes - _SIZE_BYTES : self._head_bytes], "little")

    def _is_kept(self, size: int) -> bool:
        """Whether a message of so many bytes, whose head is there, is to be there as a whole."""
        return size <= GATHERED_BYTES

    def _leave(self) -> Iterator[bytes]:
        message, self._message = self._message, bytearray()
        size = self._head_bytes + int.from_bytes(message[self._head_bytes - _SIZE_BYTES : self._head_bytes], "little")
        self._passing = size - len(message)
        yield from self._changed(message)

    def _changed(self, message: bytearray) -> Iterator[bytes]:
        yield bytes(message)


class Shorten(Gather):
    """Requests on the coordinator's side.

    Attributes:
        saved_bytes: of data that the node has.
    """

    def __init__(self, known: Set[bytes]) -> None:
        """``known`` are the digests of what the node has."""
        super().__init__(REQUEST_HEAD_BYTES)
        self.saved_bytes = 0
        self._known = known

    def _is_kept(self, size: int) -> bool:
        return size <= GATHERED_BYTES or (self._message[0] == SET_TENSOR and bool(self._known))

    def _changed(self, message: bytearray) -> Iterator[bytes]:
        head = REQUEST_HEAD_BYTES + TENSOR_HEAD_BYTES
        if message[0] == SET_TENSOR and self._known and len(message) >= head + LEAST_KNOWN_BYTES:
            digest = hashlib.sha256(memoryview(message)[head:]).digest()
            if digest in self._known:
                self.saved_bytes += len(message) - head
                size = TENSOR_HEAD_BYTES + len(digest)
                yield bytes([KNOWN_TENSOR]) + size.to_bytes(8, "little") + message[REQUEST_HEAD_BYTES:head] + digest
                return
        yield bytes(message)


class Expand(Gather):
    """Requests on the node's side."""

    def __init__(
        self, find: Callable[[bytes], Slice | None], on_damage: Callable[[bytes, str], None] = lambda *_: None
    ) -> None:
        """Nothing has come yet.

        Args:
            find: says where the data of a digest is.
            on_damage: told the digest where it is not there, and what is instead.
        """
        super().__init__(REQUEST_HEAD_BYTES)
        self._find, self._on_damage = find, on_damage

    def _changed(self, message: bytearray) -> Iterator[bytes]:
        if message[0] != KNOWN_TENSOR:
            yield bytes(message)
            return
        head = REQUEST_HEAD_BYTES + TENSOR_HEAD_BYTES
        digest = bytes(message[head:])
        found = self._find(digest)
        if found is None:
            raise RemoteInvalid("the coordinator means data that this node was not given")
        size = TENSOR_HEAD_BYTES + found.n_bytes
        yield bytes([SET_TENSOR]) + size.to_bytes(8, "little") + bytes(message[REQUEST_HEAD_BYTES:head])
        yield from self._checked(found, digest)

    def _checked(self, found: Slice, digest: bytes) -> Iterator[bytes]:
        """The data; its last piece leaves once all of it has the digest, so nobody computes with what is damaged."""
        hashed, last = hashlib.sha256(), b""
        try:
            for piece in found.pieces():
                hashed.update(piece)
                if last:
                    yield last
                last = piece
            if hashed.digest() != digest:
                raise RemoteInvalid(f"{found.path} is damaged: a tensor in it has other bytes than it had")
        except LamellaError as error:
            self._on_damage(digest, str(error))
            raise
        yield last
