"""Weight rows as float32, a bounded piece at a time, and work on such pieces spread over all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from lamella.core.cores import usable_cores
from lamella.core.errors import StorageFailed
from lamella.llama.gguf import TensorData
from lamella.llama.quantize import decode_rows
from lamella.llama.rows import read_stored_rows
from lamella.measuring.progress import Count, ignore

PIECE_WEIGHTS = 1 << 20  # 4 MiB of float32; a worker holds a few times that

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a tensor of a layer."""

    layer: int
    tensor: TensorData
    first_row: int
    n_rows: int

    @property
    def n_weights(self) -> int:
        return self.n_rows * self.tensor.spec.row_length

    def read(self) -> NDArray[np.float32]:
        return read_rows(self.tensor, self.first_row, self.n_rows)


def read_rows(tensor: TensorData, first_row: int, n_rows: int) -> NDArray[np.float32]:
    """Rows of a tensor of a model file, shape (n_rows, row_length).

    Raises:
        TruncatedModel: the file has become shorter since its header was read.
        StorageFailed: it cannot be read.
    """
    try:
        file = tensor.path.open("rb", buffering=0)
    except OSError as error:
        raise StorageFailed(f"cannot read {tensor.path}: {error.strerror}") from error
    with file:
        stored = read_stored_rows(file.fileno(), tensor, first_row, n_rows)
    return decode_rows(stored, tensor.spec.type, tensor.spec.row_length)


def pieces(layer: int, tensors: Iterable[TensorData]) -> Iterator[Piece]:
    """All rows of a layer's tensors, in pieces of about ``PIECE_WEIGHTS``."""
    for tensor in tensors:
        step = max(1, PIECE_WEIGHTS // tensor.spec.row_length)
        for first in range(0, tensor.spec.n_rows, step):
            yield Piece(layer, tensor, first, min(step, tensor.spec.n_rows - first))


def map_pieces(
    work: Callable[[Piece], T],
    todo: Sequence[Piece],
    *,
    n_threads: int = 0,
    on_weights: Count = ignore,
) -> list[T]:
    """``work`` of each piece, in order, on ``n_threads`` threads (0: one a core).

    When a piece fails, or on Ctrl-C, pieces not begun are dropped.
    """
    results: list[T] = []
    done = 0
    executor = ThreadPoolExecutor(n_threads or usable_cores(), "lamella-measure")
    try:
        for piece, result in zip(todo, executor.map(work, todo), strict=True):
            results.append(result)
            done += piece.n_weights
            on_weights(done)
    finally:
        executor.shutdown(cancel_futures=True)
    return results
