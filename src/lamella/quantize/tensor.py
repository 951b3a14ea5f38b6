"""One tensor in row chunks: read, convert, check.

    conversion = Conversion(source_tensor, GGML_TYPES["Q4_K"], None)
    prepare([conversion])
    with SourceFiles() as files:
        for chunk in chunks_of(conversion, n_threads=1):
            file.write(convert_chunk(chunk, files))

A chunk is a few hundred thousand weights, so a tensor of any size passes through a few MiB, chunks convert on all
cores (reading, ggml and numpy release the interpreter lock), and they come out in order.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lamella.core.closing import Closing
from lamella.core.errors import InvalidWeights, StorageFailed, UnsupportedTensor
from lamella.core.precision import GgmlType
from lamella.llama import quantize
from lamella.llama.gguf import TensorData
from lamella.llama.rows import read_stored_rows
from lamella.quantize import channel, tuned

if TYPE_CHECKING:
    from numpy.typing import NDArray

F32_BUDGET_BYTES = 96 << 20
"""Of float32 in all threads together."""
BLOCK_CHUNK_WEIGHTS = 1 << 19  # 2 MiB of float32: stays in the cache between decoding and encoding
CHANNEL_CHUNK_WEIGHTS = 1 << 17  # numpy makes several temporaries of each chunk
TUNED_CHUNK_WEIGHTS = 1 << 18  # whatever the number of threads: BLAS may add in another order for other shapes

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What becomes of one tensor.

    Attributes:
        source: where its bytes are.
        target: what they become.
        rounding: menu precision that eq. 4 rounds to, or that is truncated to; None for ggml's own rounding.
        importance: mean squared activation of each column, shape (experts, row length), for ggml's rounding; None for
            plain rounding.
        tuned_on: what the rounding of errors is tuned on (``tuned.Tuning.identity``); "" if it is not.
        feedback: what it is tuned with; it comes when the tensor's turn has come.
        truncated: whether it is truncated to that precision, not rounded.
    """

    source: TensorData
    target: GgmlType
    rounding: str | None
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    tuned_on: str = ""
    feedback: tuned.Feedback | None = field(default=None, compare=False, repr=False)
    truncated: bool = False

    @property
    def copies(self) -> bool:
        """Whether the stored bytes are the source's bytes."""
        return self.rounding is None and self.target == self.source.spec.type

    @property
    def n_bytes(self) -> int:
        return self.source.spec.bytes_as(self.target)

    def check_possible(self) -> None:
        """Refuse before work begins what cannot be converted.

        Raises:
            UnsupportedTensor: the row length, or a type that cannot be written; names the tensor.
        """
        spec = self.source.spec
        try:
            self.target.row_bytes(spec.row_length)
        except UnsupportedTensor as error:
            raise UnsupportedTensor(f"tensor {spec.name}: {error}") from None
        informed = self.importance is not None or self.tuned_on
        if not self.copies and self.rounding is None and not self.target.writable and not informed:
            raise UnsupportedTensor(
                f"tensor {spec.name}: {self.target.name} needs an importance matrix that knows this tensor"
            )

    def importance_of(self, row: int) -> NDArray[np.float32] | None:
        """Mean squares for the columns of the expert that a row belongs to."""
        if self.importance is None:
            return None
        return np.ascontiguousarray(self.importance[row // self.rows_alike])

    @property
    def rows_alike(self) -> int:
        """Rows that share their columns' importance: all, or those of one expert."""
        n_rows = self.source.spec.n_rows
        return n_rows if self.importance is None else n_rows // len(self.importance)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows ``first_row`` to ``first_row + n_rows`` of a tensor."""

    conversion: Conversion
    first_row: int
    n_rows: int

    @property
    def n_weights(self) -> int:
        return self.n_rows * self.conversion.source.spec.row_length


def chunk_weights(conversion: Conversion, n_threads: int) -> int:
    """How many weights a chunk should have, so that all threads' float32 stays within ``F32_BUDGET_BYTES``."""
    if conversion.tuned_on:
        return TUNED_CHUNK_WEIGHTS
    wished = BLOCK_CHUNK_WEIGHTS if conversion.rounding is None else CHANNEL_CHUNK_WEIGHTS
    temporaries = 1 if conversion.rounding is None else 4
    return min(wished, F32_BUDGET_BYTES // (4 * temporaries * n_threads))


def chunks_of(conversion: Conversion, n_threads: int) -> Iterator[Chunk]:
    """Cut a tensor into whole rows; no chunk crosses from one expert's importance to the next."""
    spec, alike = conversion.source.spec, conversion.rows_alike
    step = max(1, chunk_weights(conversion, n_threads) // spec.row_length)
    for start in range(0, spec.n_rows, alike):
        for first in range(start, start + alike, step):
            yield Chunk(conversion, first, min(step, start + alike - first))


def prepare(conversions: Iterable[Conversion]) -> None:
    """Build ggml's lookup tables, before threads need them; some take seconds, so only what will be written."""
    for target in {conversion.target for conversion in conversions if not conversion.copies}:
        quantize.prepare(target)


def convert_chunk(chunk: Chunk, files: SourceFiles) -> memoryview:
    """Read, check, decode, encode and check a chunk.

    Returns:
        The stored bytes.

    Raises:
        InvalidWeights: NaN, infinity, or values that the target cannot hold; names the tensor.
        UnsupportedTensor: ggml cannot read or write the type; names the tensor.
        TruncatedModel, StorageFailed: the source cannot be read.
    """
    conversion, spec = chunk.conversion, chunk.conversion.source.spec
    stored = files.read_rows(chunk)
    try:
        quantize.check_stored_rows(stored, spec.type, f"tensor {spec.name}")
        if conversion.copies:
            return stored.data
        rows = quantize.decode_rows(stored, spec.type, spec.row_length)
        if conversion.rounding is not None:
            return channel.encode_rows(
                rows, conversion.rounding, conversion.target, truncated=conversion.truncated
            ).data
        if conversion.feedback is not None:
            encoded = tuned.encode_rows(rows, conversion.target, conversion.feedback)
        else:
            encoded = quantize.encode_rows(rows, conversion.target, conversion.importance_of(chunk.first_row))
    except (InvalidWeights, UnsupportedTensor) as error:
        message = str(error)
        raise type(error)(message if spec.name in message else f"tensor {spec.name} {message}") from None
    quantize.check_stored_rows(encoded, conversion.target, f"tensor {spec.name}, as {conversion.target.name},")
    return encoded.data


class SourceFiles(Closing):
    """The model's files, opened once each.  Reads by position, so threads may share it.  Owns the descriptors."""

    def __init__(self) -> None:
        self._fds: dict[Path, int] = {}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def read_rows(self, chunk: Chunk) -> NDArray[np.uint8]:
        source = chunk.conversion.source
        return read_stored_rows(self._fd(source.path), source, chunk.first_row, chunk.n_rows)

    def _fd(self, path: Path) -> int:
        if path not in self._fds:
            try:
                opened = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise StorageFailed(f"cannot read {path}: {error.strerror}") from error
            if self._fds.setdefault(path, opened) != opened:  # another thread was faster
                os.close(opened)
        return self._fds[path]


C = TypeVar("C")


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[C], T], items: Iterable[C], *, in_flight: int
) -> Generator[T, None, None]:
    """``work(item)`` on the pool's threads, results in the order of ``items``, at most ``in_flight`` at a time.

    Unlike ``pool.map`` it neither reads all items at once nor piles up results.  Closing the generator, or an error
    in it, cancels what has not begun.
    """
    waiting: collections.deque[Future[T]] = collections.deque()
    try:
        for item in items:
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
