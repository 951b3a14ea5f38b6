"""LSAQ's per-channel symmetric rounding (eq. 4): float32 rows to integers and one scale a row.

    levels, scales = quantize_rows(weights, bits=4)      # or truncate_rows
    stored = levels * scales.astype(np.float32)[:, None]     # what reads back

Row i of a weight matrix gets one scale s = max|W_i| / (2^(n-1) - 1) and the integers round(W_i / s).  s is rounded to
fp16 first, because that is what ggml's blocks hold; W is divided by the rounded s.  Here is the arithmetic alone, which
builds (``quantize.channel`` packs it) and measurements share.

``truncate_rows`` is DILEMMA's truncation: the 8-bit code of the same formula, of which the top n bits are kept.

Below 6.1e-5 fp16 scales lose precision (denormals): W / s may then exceed the range and is clipped to it, and where s
rounds to zero (max|W_i| < 3e-8 (2^(n-1) - 1)) the whole row becomes zero.  Ties round to even, as ``nearbyint`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InvalidWeights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Levels = NDArray[np.int8]
    Scales = NDArray[np.float16]


def quantize_rows(rows: NDArray[np.float32], bits: int) -> tuple[Levels, Scales]:
    """LSAQ eq. 4.

    Returns:
        levels of shape (rows, row_length) in [-(2^(bits-1) - 1), 2^(bits-1) - 1], and one scale a row.

    Raises:
        InvalidWeights: NaN, infinity, or a row whose scale fp16 cannot hold.
    """
    largest = 2 ** (bits - 1) - 1
    peaks = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if not np.isfinite(peaks).all():  # max and min carry NaN and infinity through
        raise InvalidWeights("holds NaN or infinity")
    with np.errstate(over="ignore"):
        scales = (peaks / np.float32(largest)).astype(np.float16)
    if np.isinf(scales).any():
        raise InvalidWeights(f"has a row with weights up to {peaks.max():g}, whose int{bits} scale fp16 cannot hold")
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = np.inf  # such rows become zero
    quotients = rows / divisors[:, None]
    np.rint(quotients, out=quotients)
    np.clip(quotients, -largest, largest, out=quotients)
    return quotients.astype(np.int8), scales


def truncate_rows(rows: NDArray[np.float32], bits: int) -> tuple[Levels, Scales]:
    """DILEMMA's truncation: round to 8 bits, then drop the lower ones of the magnitude.

    Of a code q in [-127, 127] stays sign(q) * (|q| >> (8 - bits)), with a scale 2^(8 - bits) times the 8-bit one.
    Magnitudes are cut and not two's complement codes, which would shift all weights down by half a step.

    Returns:
        As ``quantize_rows``; at 8 bits the same.

    Raises:
        InvalidWeights: NaN, infinity, or a row whose scale fp16 cannot hold.
    """
    levels, scales = quantize_rows(rows, 8)
    dropped = 8 - bits
    with np.errstate(over="ignore"):
        wider = scales * np.float16(2**dropped)
    if np.isinf(wider).any():
        raise InvalidWeights(f"has a row with a scale of {scales.max():g}, whose int{bits} scale fp16 cannot hold")
    return np.sign(levels) * (np.abs(levels) >> dropped), wider
