"""LSAQ's per-channel symmetric rounding (eq. 4): float32 rows to integers and one scale a row.

    levels, scales = quantize_rows(weights, bits=4)
    stored = levels * scales.astype(np.float32)[:, None]     # what reads back

Row i of a weight matrix gets one scale s = max|W_i| / (2^(n-1) - 1) and the integers round(W_i / s).  s is rounded to
fp16 first, because that is what ggml's blocks hold; W is divided by the rounded s.  Here is the arithmetic alone, which
builds (``quantize.channel`` packs it) and measurements share.

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
