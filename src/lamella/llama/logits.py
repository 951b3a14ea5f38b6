"""Arithmetic on logits: losses of tokens and divergence of distributions; rows are tokens, columns the vocabulary.

Temporary arrays hold ``BLOCK_ROWS`` rows, whatever the window's size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 8  # 1.5 MB at 49,152 tokens: stays in the processor's cache

Logits = NDArray[np.float32]
Column = NDArray[np.float64]
"""One number for each row."""


def log_normalizers(logits: Logits) -> Column:
    """``log(sum(exp(row)))`` for each row."""
    found = np.empty(len(logits))
    for rows in _blocks(len(logits)):
        top = logits[rows].max(axis=1, keepdims=True)
        found[rows] = top[:, 0] + np.log(np.exp(logits[rows] - top).sum(axis=1), dtype=np.float64)
    return found


def token_losses(logits: Logits, normalizers: Column, targets: NDArray[np.int64]) -> Column:
    """``-log p(target)`` for each row."""
    losses: Column = normalizers - logits[np.arange(len(targets)), targets]
    return losses


def divergences(reference: Logits, reference_normalizers: Column, logits: Logits, normalizers: Column) -> Column:
    """KL(reference || other) for each row, in nats.

    Summed as ``p * (reference - other)`` over the logits, so that equal rows give exactly 0 and close ones lose nothing
    to cancellation.  Rounding may leave a tiny negative number where the distributions are all but equal.
    """
    found = np.empty(len(logits))
    for rows in _blocks(len(logits)):
        p = np.exp(reference[rows] - reference_normalizers[rows, None].astype(np.float32))
        gap = np.einsum("ij,ij->i", p, reference[rows] - logits[rows])
        found[rows] = gap + (normalizers[rows] - reference_normalizers[rows])
    return found


def _blocks(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, BLOCK_ROWS):
        yield slice(start, start + BLOCK_ROWS)
