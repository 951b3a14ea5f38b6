"""Arithmetic on logits: losses of tokens and divergence of distributions; rows are tokens, columns the vocabulary.

Rows are worked on in blocks that stay in the processor's cache, on as many threads as computed the logits; what a row
gives does not depend on the threads.  Temporary arrays hold one or two blocks a thread, whatever the window's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 4  # 0.8 MB at 49,152 tokens

Logits = NDArray[np.float32]
Column = NDArray[np.float64]
"""One number for each row."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at the logits tells of each row.

    Attributes:
        normalizers: ``log(sum(exp(row)))``.
        best: the likeliest token.
    """

    normalizers: Column
    best: NDArray[np.int64]


def survey(logits: Logits, n_threads: int = 1) -> Survey:
    """Normalizer and likeliest token of each row."""
    found = Survey(np.empty(len(logits)), np.empty(len(logits), np.int64))

    def work(blocks: Sequence[slice]) -> None:
        scratch = np.empty((BLOCK_ROWS, logits.shape[1]), np.float32)
        for rows in blocks:
            block = logits[rows]
            values = scratch[: len(block)]
            best = block.argmax(axis=1)
            top = block[np.arange(len(block)), best]
            np.exp(np.subtract(block, top[:, None], out=values), out=values)
            found.normalizers[rows] = top + np.log(values.sum(axis=1), dtype=np.float64)
            found.best[rows] = best

    _in_blocks(work, len(logits), n_threads)
    return found


def token_losses(logits: Logits, normalizers: Column, targets: NDArray[np.int64]) -> Column:
    """``-log p(target)`` for each row."""
    losses: Column = normalizers - logits[np.arange(len(targets)), targets]
    return losses


def top_logprobs(logits: NDArray[np.float32], token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and the ``n`` likeliest tokens with theirs, best first.

    Args:
        logits: of one position, shape (vocabulary,), as the model gave them.
    """
    top = logits.max()
    normalizer = top + np.log(np.exp(logits - top).sum(dtype=np.float64))
    n = min(n, len(logits))
    if n == 0:
        return float(logits[token] - normalizer), []
    best = np.argpartition(logits, len(logits) - n)[len(logits) - n :]
    best = best[np.lexsort((best, -logits[best]))]
    return float(logits[token] - normalizer), [(int(t), float(logits[t] - normalizer)) for t in best]


class Reference:
    """Distributions that others are compared with: logits and probabilities, copied into memory that is used again."""

    def __init__(self, shape: tuple[int, int]) -> None:
        """Room for logits of this shape, and for their probabilities."""
        self._logits, self._p = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._normalizers = np.empty(shape[0])

    def hold(self, logits: Logits, normalizers: Column, n_threads: int = 1) -> None:
        """Copy logits; their probabilities are computed once for all that are compared with them."""
        self._normalizers = normalizers

        def work(blocks: Sequence[slice]) -> None:
            for rows in blocks:
                self._logits[rows] = logits[rows]
                shift = normalizers[rows, None].astype(np.float32)
                np.exp(np.subtract(logits[rows], shift, out=self._p[rows]), out=self._p[rows])

        _in_blocks(work, len(logits), n_threads)

    def divergences(self, logits: Logits, normalizers: Column, n_threads: int = 1) -> Column:
        """KL(reference || other) for each row, in nats.

        Summed as ``p * (reference - other)`` over the logits, so that equal rows give exactly 0 and close ones lose
        nothing to cancellation.  Rounding may leave a tiny negative number where the distributions are all but equal.
        """
        found = np.empty(len(logits))

        def work(blocks: Sequence[slice]) -> None:
            scratch = np.empty((BLOCK_ROWS, logits.shape[1]), np.float32)
            for rows in blocks:
                gap = np.subtract(self._logits[rows], logits[rows], out=scratch[: len(logits[rows])])
                found[rows] = np.einsum("ij,ij->i", self._p[rows], gap) + (normalizers[rows] - self._normalizers[rows])

        _in_blocks(work, len(logits), n_threads)
        return found


def _in_blocks(work: Callable[[Sequence[slice]], None], n_rows: int, n_threads: int) -> None:
    """Deal the blocks out to threads; numpy lets go of the interpreter's lock inside them."""
    blocks = [slice(start, start + BLOCK_ROWS) for start in range(0, n_rows, BLOCK_ROWS)]
    n_threads = min(n_threads, len(blocks))
    if n_threads < 2:
        work(blocks)
        return
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, (blocks[i::n_threads] for i in range(n_threads))))
