"""One scale a row, LSAQ's rounding (eq. 4) or DILEMMA's truncation, stored so that llama.cpp reads it.

    encode_rows(weights, "int4", GGML_TYPES["Q4_0"])

``llama.rounding`` gives each row of a weight matrix one scale and integers.  ggml has no type with one scale a row, but
its block types become one when every block of a row carries the same scale: reading back gives exactly q * s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import UnsupportedTensor
from lamella.core.precision import MENU, GgmlType
from lamella.llama.rounding import quantize_rows, truncate_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.llama.rounding import Levels, Scales

    Bytes = NDArray[np.uint8]


def encode_rows(rows: NDArray[np.float32], precision: str, container: GgmlType, *, truncated: bool = False) -> Bytes:
    """Float32 rows to stored rows.

    Args:
        rows: shape (rows, row_length), row_length a multiple of the container's block.
        precision: ``int2`` ... ``int8``.
        container: one of the precision's containers (``core.precision.MENU``).
        truncated: keep the top bits of an 8-bit code, instead of rounding to so many bits.

    Returns:
        The stored bytes, one dimension.

    Raises:
        InvalidWeights: NaN, infinity, or a row whose scale fp16 cannot hold.
        UnsupportedTensor: the container does not hold this precision.
    """
    menu = MENU.get(precision)
    if menu is None or container.name not in menu.channel or container.name not in _PACKERS:
        raise UnsupportedTensor(f"one scale a row does not put {precision} into {container.name}")
    levels, scales = truncate_rows(rows, menu.bits) if truncated else quantize_rows(rows, menu.bits)
    n_rows, row_length = rows.shape
    blocks = levels.reshape(-1, container.block_weights)
    block_scales = np.repeat(scales, row_length // container.block_weights)
    packed = _PACKERS[container.name](blocks, block_scales)
    assert packed.size == container.row_bytes(row_length) * n_rows, "a packer and the type table disagree"
    return packed.reshape(-1)


# One packer a container: (levels of shape (blocks, block_weights), one scale a block) -> bytes of shape (blocks,
# block_bytes).  The layouts are those of dequantize_row_* in ggml-quants.c and block_* in ggml-common.h.


def _pack_q8_0(levels: Levels, scales: Scales) -> Bytes:
    return _join(scales, levels)


def _pack_q4_0(levels: Levels, scales: Scales) -> Bytes:
    unsigned = _offset(levels, 8)
    return _join(scales, unsigned[:, :16] | unsigned[:, 16:] << 4)


def _pack_q5_0(levels: Levels, scales: Scales) -> Bytes:
    unsigned = _offset(levels, 16)
    fifth_bits = np.packbits(unsigned >> 4, axis=1, bitorder="little")
    return _join(scales, fifth_bits, unsigned[:, :16] & 15 | (unsigned[:, 16:] & 15) << 4)


def _pack_q6_k(levels: Levels, scales: Scales) -> Bytes:
    quarters = _offset(levels, 32).reshape(-1, 2, 4, 32)
    low, high = quarters & np.uint8(15), quarters >> np.uint8(4)
    n_blocks = len(levels)
    low_bytes = (low[:, :, :2] | low[:, :, 2:] << 4).reshape(n_blocks, 128)
    return _join(low_bytes, _four_of_two_bits(high), _constant(n_blocks, 16, 1), scales)


def _pack_q3_k(levels: Levels, scales: Scales) -> Bytes:
    quarters = _offset(levels, 4).reshape(-1, 2, 4, 32)
    n_blocks = len(levels)
    third_bits = (quarters >> 2).reshape(n_blocks, 8, 32)  # one bit of the mask's byte for each group of 32
    mask = np.packbits(third_bits, axis=1, bitorder="little").reshape(n_blocks, 32)
    # sub-scales are 6 bits and mean value - 32; all sixteen are 33: low nibbles 1, pairs of high bits 10
    low_nibbles, high_bits = _constant(n_blocks, 8, 0x11), _constant(n_blocks, 4, 0xAA)
    return _join(mask, _four_of_two_bits(quarters & np.uint8(3)), low_nibbles, high_bits, scales)


def _pack_q2_k(levels: Levels, scales: Scales) -> Bytes:
    quarters = _offset(levels, 1).reshape(-1, 2, 4, 32)  # 0, 1, 2: the type subtracts a minimum of one scale
    return _join(_constant(len(levels), 16, 0x11), _four_of_two_bits(quarters), scales, scales)


_PACKERS: dict[str, Callable[[Levels, Scales], Bytes]] = {
    "Q8_0": _pack_q8_0,
    "Q4_0": _pack_q4_0,
    "Q5_0": _pack_q5_0,
    "Q6_K": _pack_q6_k,
    "Q3_K": _pack_q3_k,
    "Q2_K": _pack_q2_k,
}


def _offset(levels: Levels, zero: int) -> Bytes:
    return (levels + np.int8(zero)).view(np.uint8)


def _four_of_two_bits(values: Bytes) -> Bytes:
    """(blocks, 2, 4, 32) values of two bits -> (blocks, 64) bytes, the four groups from the low bits up."""
    shifted = values << np.array([0, 2, 4, 6], np.uint8)[:, None]
    joined: Bytes = np.bitwise_or.reduce(shifted, axis=2)
    return joined.reshape(len(values), 64)


def _constant(n_blocks: int, n_bytes: int, value: int) -> Bytes:
    return np.full((n_blocks, n_bytes), value, np.uint8)


def _join(*fields: NDArray[Any]) -> Bytes:
    """Fields of one struct, block by block; one-dimensional ones are fp16 scales."""
    columns = [f.astype("<f2").reshape(-1, 1) if f.dtype == np.float16 else f for f in fields]
    return np.concatenate([np.ascontiguousarray(column).view(np.uint8) for column in columns], axis=1)
