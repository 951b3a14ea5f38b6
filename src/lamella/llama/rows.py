"""Stored rows of a tensor, read by position; never more of a file than was asked for.

    with tensor.path.open("rb", buffering=0) as file:
        stored = read_stored_rows(file.fileno(), tensor, first_row=0, n_rows=64)

Whoever calls opens the file: a build keeps it open, so that a file replaced meanwhile cannot mix with the old one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import StorageFailed, TruncatedModel
from lamella.llama.gguf import TensorData

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_stored_rows(fd: int, tensor: TensorData, first_row: int, n_rows: int) -> NDArray[np.uint8]:
    """The bytes of ``n_rows`` rows from ``first_row`` on; threads may share ``fd``.

    Raises:
        TruncatedModel: the file has become shorter since its header was read.
        StorageFailed: it cannot be read.
    """
    row_bytes = tensor.spec.type.row_bytes(tensor.spec.row_length)
    wanted = n_rows * row_bytes
    try:
        data = os.pread(fd, wanted, tensor.offset + first_row * row_bytes)
    except OSError as error:
        raise StorageFailed(f"cannot read {tensor.path}: {error.strerror}") from error
    if len(data) != wanted:
        raise TruncatedModel(f"{tensor.path} became shorter: tensor {tensor.spec.name} is cut off")
    return np.frombuffer(data, np.uint8)
