"""A shard's GGUF header, read without trusting a byte of it.

ggml's parser is written for files that somebody chose to load; a shard from the network is looked at by this one first.
It is plain Python over a length-checked cursor, so a lie can raise ``RemoteInvalid`` and nothing else: no allocation is
larger than the bytes that are there, no count is believed before as many bytes were seen.  It knows less than GGUF
allows, only what a shard is (docs/store-format.md): version 3, alignment 32, tensors one behind the other up to the
last byte of the file.  Whatever passes here is well-formed for ggml too, which reads it next.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lamella.core.errors import RemoteInvalid
from lamella.core.input_files import check_file
from lamella.core.model import TensorSpec
from lamella.core.precision import GGML_TYPES_BY_CODE
from lamella.llama.gguf import ALIGNMENT, Scalar, padding
from lamella.store.files import storage_errors

MOST_HEADER_BYTES = 256 << 20
MOST_KEYS = 10_000
MOST_TENSORS = 65_535
MOST_NAME_BYTES = 63  # GGML_MAX_NAME - 1
MOST_KEY_BYTES = 1024
MOST_WEIGHTS = 1 << 48

_VERSION = 3
U16, U32, I32 = 2, 4, 5  # GGUF's codes for types
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """What a shard says of itself.

    Attributes:
        values: (GGUF type, value) of scalar metadata by key; texts and arrays, which nothing here decides by, as None.
        tensors: in file order, each known to lie inside the file, directly behind the one before.
    """

    values: Mapping[str, tuple[int, Scalar] | None]
    tensors: tuple[TensorSpec, ...]


def read_header(path: Path, label: str) -> ShardHeader:
    """Read the header of a file that may hold anything.

    Args:
        label: of the shard, for errors.

    Raises:
        RemoteInvalid: it is no shard; says what is wrong.
        StorageFailed: the file cannot be read.
    """
    with storage_errors(path, "read"):
        check_file(path)
        with path.open("rb") as file:
            return _Reader(file, path.stat().st_size, label).header()


class _Reader:
    """A cursor that never passes the end of the file, nor of what a header may take."""

    def __init__(self, file: BinaryIO, n_bytes: int, label: str) -> None:
        self._file, self._n_bytes, self._label = file, n_bytes, label
        self._at, self._end = 0, min(n_bytes, MOST_HEADER_BYTES)

    def header(self) -> ShardHeader:
        if self._take(4, "magic") != b"GGUF":
            raise self._wrong("does not start with GGUF")
        if (version := self._number("I", "version")) != _VERSION:
            raise self._wrong(f"is of GGUF version {version}, not {_VERSION}")
        n_tensors = self._count("number of tensors", MOST_TENSORS)
        n_keys = self._count("number of keys", MOST_KEYS)
        values = self._values(n_keys)
        tensors = self._tensors(n_tensors)
        return ShardHeader(values, tensors)

    def _values(self, n_keys: int) -> dict[str, tuple[int, Scalar] | None]:
        values: dict[str, tuple[int, Scalar] | None] = {}
        for _ in range(n_keys):
            key = self._name("key", MOST_KEY_BYTES)
            if key in values:
                raise self._wrong(f"has the key {key!r} twice")
            values[key] = self._value(key)
        if "general.alignment" in values and values["general.alignment"] != (U32, ALIGNMENT):
            raise self._wrong(f"has an alignment of its own, {values['general.alignment']!r}; shards have {ALIGNMENT}")
        return values

    def _value(self, key: str) -> tuple[int, Scalar] | None:
        kind = self._number("I", f"type of {key}")
        if kind == _STRING:
            self._skip_string(key)
            return None
        if kind == _ARRAY:
            self._skip_array(key)
            return None
        return kind, self._scalar(kind, key)

    def _scalar(self, kind: int, key: str) -> Scalar:
        if kind not in _SCALARS:
            raise self._wrong(f"has a value of unknown type {kind} at {key!r}")
        data = self._take(struct.calcsize(f"<{_SCALARS[kind]}"), key)
        self._check_truth(kind, data, key)
        value: Scalar = struct.unpack(f"<{_SCALARS[kind]}", data)[0]
        return value

    def _skip_array(self, key: str) -> None:
        kind, n = self._number("I", f"type of {key}"), self._number("Q", f"length of {key}")
        if kind == _STRING:
            for _ in range(self._believable(n, 8, key)):
                self._skip_string(key)
        elif kind in _SCALARS:
            size = struct.calcsize(f"<{_SCALARS[kind]}")
            self._check_truth(kind, self._take(self._believable(n, size, key) * size, key), key)
        else:
            raise self._wrong(f"has an array of unknown type {kind} at {key!r}")

    def _skip_string(self, key: str) -> None:
        n = self._number("Q", f"length of {key}")
        self._take(self._believable(n, 1, key), key)

    def _check_truth(self, kind: int, data: bytes, key: str) -> None:
        if kind == _BOOL and data.translate(None, b"\0\1"):
            raise self._wrong(f"has a truth value that is neither 0 nor 1 at {key!r}")

    def _tensors(self, n_tensors: int) -> tuple[TensorSpec, ...]:
        tensors: dict[str, TensorSpec] = {}
        offset = 0
        for _ in range(n_tensors):
            tensor = self._tensor()
            if tensor.name in tensors:
                raise self._wrong(f"has the tensor {tensor.name!r} twice")
            if (said := self._number("Q", f"offset of {tensor.name}")) != offset:
                raise self._wrong(f"says that {tensor.name} is at {said}, but it would be at {offset}")
            offset += tensor.n_bytes + padding(tensor.n_bytes)
            tensors[tensor.name] = tensor
        needed = self._at + padding(self._at) + offset
        if needed != self._n_bytes:
            raise self._wrong(f"describes {needed} bytes, the file has {self._n_bytes}")
        return tuple(tensors.values())

    def _tensor(self) -> TensorSpec:
        name = self._name("tensor name", MOST_NAME_BYTES)
        n_dimensions = self._number("I", f"dimensions of {name}")
        if not 1 <= n_dimensions <= 4:
            raise self._wrong(f"says that {name} has {n_dimensions} dimensions")
        shape = [self._number("Q", f"shape of {name}") for _ in range(n_dimensions)]
        if min(shape) < 1 or math.prod(shape) > MOST_WEIGHTS:
            raise self._wrong(f"says that {name} has the shape {shape}")
        while len(shape) > 1 and shape[-1] == 1:
            shape.pop()  # as ``llama.gguf`` reads shapes, so that structures compare
        code = self._number("I", f"type of {name}")
        if code not in GGML_TYPES_BY_CODE:
            raise self._wrong(f"says that {name} is of ggml type {code}, which is not known")
        kind = GGML_TYPES_BY_CODE[code]
        if not kind.allows_row(shape[0]):
            raise self._wrong(f"says that {name} is {kind.name} in rows of {shape[0]} weights")
        return TensorSpec(name, tuple(shape), kind.name)

    def _name(self, what: str, most_bytes: int) -> str:
        n = self._number("Q", what)
        if not 1 <= n <= most_bytes:
            raise self._wrong(f"has a {what} of {n} bytes")
        data = self._take(n, what)
        try:
            name = data.decode()
        except UnicodeDecodeError:
            raise self._wrong(f"has a {what} that is not UTF-8: {data[:40]!r}") from None
        if not name.isprintable():
            raise self._wrong(f"has a {what} with control characters: {name[:40]!r}")
        return name

    def _count(self, what: str, most: int) -> int:
        n = self._number("Q", what)
        if n > most:
            raise self._wrong(f"has {n} as {what}, more than {most}")
        return n

    def _believable(self, n: int, item_bytes: int, what: str) -> int:
        """A count of items, if that many could still follow."""
        if n * item_bytes > self._end - self._at:
            raise self._wrong(f"says that {n} items follow at {what!r}, but {self._end - self._at} bytes do")
        return n

    def _number(self, code: str, what: str) -> int:
        number: int = struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}"), what))[0]
        return number

    def _take(self, n: int, what: str) -> bytes:
        if n > self._end - self._at:
            raise self._wrong(f"ends inside its {what}")
        self._at += n
        data = self._file.read(n)
        if len(data) != n:
            raise self._wrong(f"ends inside its {what}")
        return data

    def _wrong(self, what: str) -> RemoteInvalid:
        return RemoteInvalid(f"the header of {self._label} {what}; it was not taken over")
