"""Rounding that makes up for its own errors: what one block of columns gets wrong, later columns put right.

    feedback = Feedback.of(covariance)              # of the inputs that the weight is multiplied by
    stored = encode_rows(rows, GGML_TYPES["Q4_0"], feedback)

A product errs by (W - Q) x.  Over the inputs seen in calibration its mean square is tr(E H E^T), E = W - Q and H the
mean of x x^T.  ggml rounds each weight for itself, as if inputs were independent; but they are not, and GPTQ (Frantar
et al. 2022, arXiv:2210.17323) uses that: it walks through the columns and moves each column's error onto columns still
to come.  Here the step is one block of ggml's, and ggml rounds it: so every type that ggml writes can be written so,
scales and minima are ggml's, and this module knows no layout.

With H = R diag(d) R^T, R unit upper triangular (LDLQ, Chee et al. 2023, arXiv:2307.13304, shows that this is GPTQ),
the loss is the sum over columns j of d_j ((E R)_j)^2, and (E R)_j needs no column after j.  Block b is chosen last of
the blocks up to b: its part of the loss is least where it is nearest to

    T_b = W_b + (E_before R_before,b) R_bb^-1

under the metric R_bb diag(d_b) R_bb^T, whose diagonal ggml gets as importance.

What goes together in one text need not in another: errors moved to where the text saw nothing hurt text of another
kind.  So covariances between columns count by half (``SHRINKAGE``; without any they are an importance matrix), which
costs little where the text is alike and was measured to gain on text that is not (docs/log.md).

BLAS adds in an order of its own on each kind of processor: another machine may store other bytes for the same input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.llama import quantize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.core.precision import GgmlType

    Matrix = NDArray[np.float32]

SHRINKAGE = 0.5
"""How far covariances between columns are drawn to 0; variances stay."""

DAMPING = 0.01
"""Of the mean variance, added to all of them (GPTQ's default): columns that the text never showed still count."""

BATCH_BYTES = 1 << 30
"""Of covariances held at once, where a layer needs no more."""

TUNER_VERSION = 1  # raise when the bytes change for the same text


@dataclass(frozen=True, slots=True)
class Tuning:
    """Where covariances come from.

    Attributes:
        identity: SHA-256 of everything that they depend on besides the model: texts and how they are read.
        gather: covariances of the weights' inputs in these layers, by name of the weight; weights that share an input
            share the array.  Weights that it leaves out are rounded plainly.
    """

    identity: str
    gather: Callable[[Sequence[int]], Mapping[str, Matrix]]

    def feedbacks(self, layers: Sequence[int]) -> dict[str, Feedback]:
        """What the matrices of these layers are tuned with, by name."""
        covariances = self.gather(layers)
        distinct = {id(covariance): covariance for covariance in covariances.values()}
        made = {key: Feedback.of(covariance) for key, covariance in distinct.items()}
        return {name: made[id(covariance)] for name, covariance in covariances.items()}


@dataclass(frozen=True, slots=True)
class Feedback:
    """A covariance of n inputs, shrunk, damped and factored: H = R diag(d) R^T.

    Attributes:
        triangle: R, unit upper triangular, shape (n, n).
        weights: d, shape (n,).
        importance: the diagonal of H, shape (n,): an importance matrix's values.
    """

    triangle: Matrix
    weights: Matrix
    importance: Matrix

    @classmethod
    def of(cls, covariance: Matrix) -> Feedback:
        """Factor a symmetric, positive semidefinite matrix.

        Args:
            covariance: mean of x x^T, shape (n, n), finite.
        """
        shrunk = covariance.astype(np.float64)
        diagonal = shrunk.diagonal().copy()
        diagonal += DAMPING * diagonal.mean() or 1.0  # inputs that are all zero: any weight will do
        shrunk *= 1 - SHRINKAGE
        np.fill_diagonal(shrunk, diagonal)
        upper = np.linalg.cholesky(shrunk[::-1, ::-1])[::-1, ::-1]
        roots = upper.diagonal()
        triangle = np.ascontiguousarray(upper / roots, np.float32)
        return cls(triangle, np.square(roots).astype(np.float32), diagonal.astype(np.float32))

    def losses(self, errors: Matrix) -> Matrix:
        """``e H e^T`` of each row of errors, shape (rows,)."""
        found: Matrix = np.square(errors @ self.triangle) @ self.weights
        return found


def encode_rows(rows: Matrix, ggml_type: GgmlType, feedback: Feedback) -> NDArray[np.uint8]:
    """Float32 rows to stored rows; rows that ggml's own rounding serves better keep that.

    Args:
        rows: shape (rows, row_length), contiguous.

    Returns:
        The stored bytes, one dimension.  No row's loss is above that of ggml's rounding under the same importance.

    Raises:
        UnsupportedTensor: ggml cannot write or read the type, or the row length does not allow it.
    """
    n_rows, row_length = rows.shape
    plain = quantize.encode_rows(rows, ggml_type, feedback.importance)
    tuned = _walk(rows, ggml_type, feedback)
    with np.errstate(invalid="ignore", over="ignore"):  # a moved error may burst a scale: NaN is never better
        losses = [
            feedback.losses(rows - quantize.decode_rows(stored, ggml_type, row_length)) for stored in (tuned, plain)
        ]
        better = losses[0] <= losses[1]
    chosen = np.where(better[:, None], tuned.reshape(n_rows, -1), plain.reshape(n_rows, -1))
    return chosen.reshape(-1)


def _walk(rows: Matrix, ggml_type: GgmlType, feedback: Feedback) -> NDArray[np.uint8]:
    """Round block after block.  Columns lie in rows here, so that a block is contiguous."""
    n_rows, row_length = rows.shape
    size = ggml_type.block_weights
    weights = np.ascontiguousarray(rows.T)
    errors = np.empty_like(weights)
    stored = np.empty((row_length // size, n_rows, ggml_type.block_bytes), np.uint8)
    for number, start in enumerate(range(0, row_length, size)):
        block = slice(start, start + size)
        own = feedback.triangle[block, block]
        target = weights[block]
        if start:
            owed = feedback.triangle[:start, block].T @ errors[:start]
            target = target + np.linalg.inv(own).T @ owed
        importance = np.square(own) @ feedback.weights[block]
        encoded = quantize.encode_rows(np.ascontiguousarray(target.T), ggml_type, importance)
        errors[block] = weights[block] - quantize.decode_rows(encoded, ggml_type, size).T
        stored[number] = encoded.reshape(n_rows, -1)
    return np.ascontiguousarray(stored.transpose(1, 0, 2)).reshape(-1)
