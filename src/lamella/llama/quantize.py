"""Rows of float32 to ggml types and back, by ggml's own code.

Every call releases the interpreter lock, so rows are spread over threads by the caller.
"""

from __future__ import annotations

import ctypes as ct
import functools
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InvalidWeights, UnsupportedTensor
from lamella.core.precision import GgmlType
from lamella.llama import library

if TYPE_CHECKING:
    from numpy.typing import NDArray


def decode_rows(data: NDArray[np.uint8], ggml_type: GgmlType, row_length: int) -> NDArray[np.float32]:
    """Stored rows to float32 (``ggml_type_traits.to_float``).

    Args:
        data: whole rows, contiguous.

    Returns:
        Array of shape (rows, row_length).

    Raises:
        UnsupportedTensor: ggml cannot read this type back.
    """
    n_rows = data.nbytes // ggml_type.row_bytes(row_length)
    if ggml_type.name == "F32":
        return data.view(np.float32).reshape(n_rows, row_length)
    out = np.empty((n_rows, row_length), np.float32)
    _to_float(ggml_type)(data.ctypes.data, out.ctypes.data, out.size)
    return out


def encode_rows(
    rows: NDArray[np.float32], ggml_type: GgmlType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Float32 rows to stored rows (``ggml_quantize_chunk``).

    Args:
        rows: shape (rows, row_length), contiguous.
        importance: mean squared activation of each column, shape (row_length,); None for plain rounding.

    Returns:
        The stored bytes, one dimension.

    Raises:
        UnsupportedTensor: the type needs an importance matrix, or the row length does not allow it.
    """
    n_rows, row_length = rows.shape
    n_bytes = ggml_type.row_bytes(row_length) * n_rows
    if ggml_type.name == "F32":
        return np.ascontiguousarray(rows, np.float32).view(np.uint8).reshape(-1)
    base = library.load().base
    if importance is None and base.ggml_quantize_requires_imatrix(ggml_type.code):
        raise UnsupportedTensor(f"{ggml_type.name} cannot be written without an importance matrix")
    out = np.empty(n_bytes, np.uint8)
    matrix = None if importance is None else importance.ctypes.data
    written = base.ggml_quantize_chunk(ggml_type.code, rows.ctypes.data, out.ctypes.data, 0, n_rows, row_length, matrix)
    if written != n_bytes:
        raise UnsupportedTensor(f"ggml wrote {written} bytes of {ggml_type.name} where {n_bytes} were expected")
    return out


def prepare(ggml_type: GgmlType) -> None:
    """Build ggml's lookup tables for a type; needed once before threads call ``encode_rows``."""
    library.load().base.ggml_quantize_init(ggml_type.code)


def check_stored_rows(data: NDArray[np.uint8], ggml_type: GgmlType, what: str) -> None:
    """Refuse stored rows whose scales are NaN or infinite (``ggml_validate_row_data``).

    Raises:
        InvalidWeights: names ``what``.
    """
    if not library.load().base.ggml_validate_row_data(ggml_type.code, data.ctypes.data, data.nbytes):
        raise InvalidWeights(f"{what} holds NaN, infinite or malformed {ggml_type.name} blocks")


@functools.cache
def _to_float(ggml_type: GgmlType) -> ct._FuncPointer:
    traits = library.load().base.ggml_get_type_traits(ggml_type.code).contents
    if not traits.to_float:
        raise UnsupportedTensor(f"ggml cannot convert {ggml_type.name} to float")
    function: ct._FuncPointer = traits.to_float
    return function
